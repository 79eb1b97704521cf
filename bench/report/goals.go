package main

import (
	"cmp"
	"fmt"
	"strconv"
	"strings"

	"github.com/mrgc/mrgc/bench/result"
)

// goal is something that routing is to reach, and where its figures are: in each
// result whose name begins with result, those whose names have all of figure's parts.
type goal struct {
	says    string
	result  string
	figure  []string
	command string // that measures it, for who finds no result
}

// routingGoals are in the order in which people ask.
func routingGoals() []goal {
	const ours = "p99 TTFT of MRGC gate-then-load over that of "
	return []goal{
		{"time to first token at p99, of the best peer's, with reuse: ≥ 30 % below", "routing", []string{ours, ": reuse ("}, "make bench-routing"},
		{"the same without reuse: never > 5 % worse", "routing", []string{ours, ": no reuse ("}, "make bench-routing"},
		{"share of an instance that fails fast, after 2 s", "routing", []string{"share of attempts at the engine that fails fast"}, "make bench-routing"},
		{"a pick at p95, 500 requests/s, 40 instances, ms", "routing-picker", []string{"a pick as Envoy sees it, p95"}, "make bench-picker"},
		{"added at p95 to requests of 220 KB, paired with the picker off, ms", "routing-picker", []string{"added to the time to the first byte at p95", "220000 bytes"}, "make bench-picker"},
		{"picker's processor time, 10,000 output tokens over 100", "routing-picker", []string{"picker's processor time per request, 10000 tokens over 100"}, "make bench-picker"},
		{"max over mean in flight, p99 of 100 ms windows, four routers over one", "routing-routers", []string{"p99 of max over mean in flight, 4 routers, "}, "make bench-routers"},
		{"load reports of 100 idle instances, cores", "routing-picker", []string{"load reports of 100 idle instances to 1 router"}, "make bench-picker"},
		{"all pickers killed at load: failed requests", "routing-picker", []string{"when every picker is killed under load"}, "make bench-picker"},
		{"all pickers killed at load: time to first token at p99", "routing-picker", []string{"time to first token at p99 then"}, "make bench-picker"},
		{"rebuilds of balancers spared, of pushing every change, %", "routing-picker", []string{"rebuilds of Envoy's load balancer spared"}, "make bench-picker"},
		{"sealed, with reuse: p99 of an unrestricted choice's", "routing-sealed", []string{"over that of an unrestricted choice: reuse ("}, "make bench-routing-sealed"},
		{"sealed, without reuse: the same", "routing-sealed", []string{"over that of an unrestricted choice: no reuse ("}, "make bench-routing-sealed"},
		{"sealed: share of relays, with reuse, %", "routing-sealed", []string{"requests that a parent relayed to another: reuse"}, "make bench-routing-sealed"},
		{"sealed: share of resealed requests, with reuse, %", "routing-sealed", []string{"requests that the client sealed once more: reuse"}, "make bench-routing-sealed"},
	}
}

// goalsTable is a section of docs/benchmarks.md: what is asked of routing, what the
// results say, and what no result says anything of.
func goalsTable(results []result.Result, goals []goal) string {
	var b strings.Builder
	b.WriteString("\n## What routing is to reach\n\nA figure is named below, with what one must know to read it; figures without a goal are to be reported.\n" +
		"\n| what | goal | measured | reached | result, its commit | measured by |\n| --- | --- | --- | --- | --- | --- |\n")
	for _, g := range goals {
		found := false
		for _, r := range results {
			if !strings.HasPrefix(r.Name, g.result) || strings.HasPrefix(r.Name, "routing-virtual") {
				continue
			}
			for _, f := range r.Figures {
				if g.has(f) {
					found = true
					fmt.Fprintf(&b, "| %s | %s | %s | %s | %s, %s | `%s` |\n",
						g.says, cmp.Or(f.Goal, "–"), strings.TrimSpace(f.Text()), reached(f), r.Name, r.Commit, g.command)
				}
			}
		}
		if !found {
			fmt.Fprintf(&b, "| %s | | **no result** | | | `%s` |\n", g.says, g.command)
		}
	}
	return b.String()
}

func (g goal) has(f result.Figure) bool {
	for _, part := range g.figure {
		if !strings.Contains(f.Name, part) {
			return false
		}
	}
	return true
}

// reached says whether a figure keeps its goal: "≤ 2", "≥ 90", or a number that it is
// to be.
func reached(f result.Figure) string {
	if f.Goal == "" {
		return ""
	}
	sign, text, ok := strings.Cut(f.Goal, " ")
	if !ok {
		sign, text = "=", f.Goal
	}
	limit, err := strconv.ParseFloat(text, 64)
	kept := map[string]bool{"≤": f.Value <= limit, "≥": f.Value >= limit, "=": f.Value == limit}
	keeps, known := kept[sign]
	switch {
	case err != nil || !known:
		return "?"
	case keeps:
		return "yes"
	default:
		return "**no**"
	}
}
