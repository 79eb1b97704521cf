package main

import (
	"bytes"
	"embed"
	"encoding/csv"
	"fmt"
	"math"
	"math/rand/v2"
	"strconv"
	"time"
)

//go:embed testdata/*.csv
var recorded embed.FS

// tick is the step of the recordings, of the arrivals here, and of the autoscaler.
const tick = 10 * time.Second

// What a day is like. An instance serves instanceRate requests/s of the mean size.
const (
	peakRate     = 220.0 // requests/s, without what it fluctuates by
	instanceRate = 15.0
	sizeSpread   = 0.9 // standard deviation of a request's tokens, of their mean, as recorded
	daysBefore   = 2
	ticksOfDay   = int(24 * time.Hour / tick)
	minute       = int(time.Minute / tick)
	piece        = 15 * minute // of a recording that is played in a row
)

// kind is a mix of the two recordings.
type kind struct {
	name, file string
	code       float64 // share of the requests that are as those of the recording of code
}

var kinds = []kind{
	{name: "conversations", file: "conversations"},
	{name: "conversations and a fifth of code", file: "code", code: 0.2},
}

// bin is what arrives in a tick: how many requests, and tokens.
type bin struct{ requests, tokens float64 }

// recording is one of the two.
func recording(name string) ([]bin, error) {
	content, err := recorded.ReadFile("testdata/azure-llm-2023-" + name + "-10s.csv")
	if err != nil {
		return nil, err
	}
	lines := csv.NewReader(bytes.NewReader(content))
	lines.Comment, lines.FieldsPerRecord = '#', 3
	rows, err := lines.ReadAll()
	if err != nil {
		return nil, fmt.Errorf("recording of %s: %w", name, err)
	}
	var all []bin
	for _, row := range rows[1:] {
		var n [3]float64
		for i, field := range row {
			if n[i], err = strconv.ParseFloat(field, 64); err != nil {
				return nil, fmt.Errorf("recording of %s: %w", name, err)
			}
		}
		all = append(all, bin{n[0], n[1] + n[2]})
	}
	return all, nil
}

// around is the mean of a recording's ticks about one of them.
func around(all []bin, i, width int) (m bin) {
	from, to := max(i-width/2, 0), min(i+(width+1)/2, len(all))
	for _, b := range all[from:to] {
		m.requests += b.requests / float64(to-from)
		m.tokens += b.tokens / float64(to-from)
	}
	return m
}

// flat is what a recording fluctuates by within minutes, as parts of what it is within
// a quarter of an hour. Within a tick it has so few requests that chance would be most
// of it; that is added anew, for as many as there are here.
func flat(all []bin) []bin {
	parts := make([]bin, len(all))
	for i := range all {
		now, usual := around(all, i, minute), around(all, i, piece)
		parts[i] = bin{now.requests / usual.requests, now.tokens / usual.tokens}
	}
	return parts
}

// day is what arrives in each tick of some days, of which the last is measured, in
// requests/s; tokens are in mean requests.
type day struct {
	seed     uint64
	requests []float64
	tokens   []float64
}

func newDay(k kind, seed uint64) (*day, error) {
	chat, err := recording("conv")
	if err != nil {
		return nil, err
	}
	code, err := recording("code")
	if err != nil {
		return nil, err
	}
	tide := rises(chat)
	chat, code = flat(chat), flat(code)
	random := rand.New(rand.NewPCG(seed, 7)) //nolint:gosec // traffic is no secret
	d := &day{seed: seed}
	pieceOf := func(all []bin) []bin {
		from := random.IntN(len(all) - piece)
		return all[from : from+piece]
	}
	var a, b []bin
	height, late := 1.0, 0.0
	for i := range (daysBefore + 1) * ticksOfDay {
		if i%ticksOfDay == 0 {
			height, late = 0.9+0.2*random.Float64(), 0.5*random.Float64()-0.25
		}
		if i%piece == 0 {
			a, b = pieceOf(chat), pieceOf(code)
		}
		rate := height * tide(float64(i%ticksOfDay)*tick.Hours()-late)
		x, y := a[i%piece], b[i%piece]
		requests := rate * ((1-k.code)*x.requests + k.code*y.requests)
		tokens := rate * ((1-k.code)*x.tokens + k.code*y.tokens)
		chance := math.Sqrt(1 / max(requests*tick.Seconds(), 1))
		many := max(1+chance*random.NormFloat64(), 0)
		large := max(1+chance*sizeSpread*random.NormFloat64(), 0)
		d.requests, d.tokens = append(d.requests, requests*many), append(d.tokens, tokens*many*large)
	}
	return d, nil
}

// rises is a day's rate in requests/s at an hour: the slow rise and fall of the
// recorded hour, stretched to a day.
func rises(all []bin) func(hour float64) float64 {
	most := 0.0
	slow := make([]float64, len(all))
	for i := range all {
		slow[i] = around(all, i, piece).requests
		most = max(most, slow[i])
	}
	return func(hour float64) float64 {
		at := math.Mod(hour+24, 24) / 24 * float64(len(slow))
		i := int(at)
		here, next := slow[i%len(slow)], slow[(i+1)%len(slow)]
		return peakRate * (here + (at-float64(i))*(next-here)) / most
	}
}

// today are the ticks that are measured.
func (d *day) today() []float64 { return d.tokens[daysBefore*ticksOfDay:] }
