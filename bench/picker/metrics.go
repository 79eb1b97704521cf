package main

import (
	"cmp"
	"fmt"
	"io"
	"net/http"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// metrics is a page in Prometheus' text format.
type metrics string

func fetch(url string) (metrics, error) {
	resp, err := http.Get(url) //nolint:gosec // an address of the benchmark's own
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	page, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: status %d", url, resp.StatusCode)
	}
	return metrics(page), err
}

// sum adds up the series whose names and labels begin so.
func (m metrics) sum(series string) (sum float64) {
	for line := range strings.SplitSeq(string(m), "\n") {
		name, value, ok := cutLast(line)
		if ok && strings.HasPrefix(name, series) {
			v, _ := strconv.ParseFloat(value, 64)
			sum += v
		}
	}
	return sum
}

func cutLast(line string) (before, after string, ok bool) {
	at := strings.LastIndexByte(line, ' ')
	if at < 0 || line[0] == '#' {
		return "", "", false
	}
	return line[:at], line[at+1:], true
}

var bound = regexp.MustCompile(`le="([^"]*)"`)

// quantile is that of what a histogram counted from one page to another, by
// linear interpolation within a bucket, as Prometheus' histogram_quantile has it.
func quantile(histogram string, before, after metrics, share float64) float64 {
	type bucket struct{ upTo, count float64 }
	var buckets []bucket
	for line := range strings.SplitSeq(string(after), "\n") {
		name, _, ok := cutLast(line)
		if !ok || !strings.HasPrefix(name, histogram+"_bucket{") {
			continue
		}
		if upTo := bound.FindStringSubmatch(name); upTo != nil && upTo[1] != "+Inf" {
			v, _ := strconv.ParseFloat(upTo[1], 64)
			buckets = append(buckets, bucket{v, after.sum(name) - before.sum(name)})
		}
	}
	slices.SortFunc(buckets, func(a, b bucket) int { return cmp.Compare(a.upTo, b.upTo) })
	all := after.sum(histogram+"_count") - before.sum(histogram+"_count")
	wanted, low := share*all, bucket{}
	for _, b := range buckets {
		if b.count >= wanted && b.count > low.count {
			return low.upTo + (b.upTo-low.upTo)*(wanted-low.count)/(b.count-low.count)
		}
		low = b
	}
	return low.upTo // at least
}
