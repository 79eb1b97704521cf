package main

import (
	"context"
	"fmt"
	"math"
	"os"
	"time"

	"github.com/mrgc/mrgc/bench/result"
)

// book has every run that counts, by scenario, contender and seed.
type book struct {
	options options
	runs    []entry
	void    int
	absent  []string // who is not here, and why
}

type entry struct {
	scenario, contender string
	ours                bool
	seed                uint64
	measured
}

// enter measures contenders beside each other, those whose run was void once
// more.
func (b *book) enter(ctx context.Context, contenders []contender, s scenario, seed uint64, requests []request) error {
	for range 2 {
		all, err := measure(ctx, contenders, s, requests)
		if err != nil {
			return err
		}
		var again []contender
		for i, c := range contenders {
			if !b.take(c, s, seed, all[i]) {
				again = append(again, c)
			}
		}
		if contenders = again; len(again) == 0 {
			break
		}
	}
	return nil
}

// take writes down one run, unless it is void.
func (b *book) take(c contender, s scenario, seed uint64, m measured) bool {
	say("%-30s seed %d  %-34s TTFT p50 %6.0f  p90 %6.0f  p99 %6.0f ms  %d of %d failed  %3.0f %% cached  cpu %.2f ms  machine %2.0f %%  lag %v  failing %.3f",
		s.name, seed, c.name, m.first.P50, m.first.P90, m.p99, m.failed, m.sent, 100*m.hits, m.cpu, 100*m.machine, m.lag.Round(10*time.Microsecond), m.late)
	if why := m.void(); why != "" {
		b.void++
		say("  void: %s", why)
		return false
	}
	b.runs = append(b.runs, entry{s.name, c.name, c.ours, seed, m})
	return true
}

// write writes down what there is: also of a run that was cut short, which may
// have taken hours.
func (b *book) write(cut error) error {
	if len(b.runs) == 0 {
		return nil
	}
	r := b.result()
	if cut != nil {
		r.Notes = append(r.Notes, "The benchmark was cut short: "+cut.Error()+".")
	}
	r.Print(os.Stdout)
	return r.Write()
}

// of gathers one contender's runs of a scenario, by seed.
func (b *book) of(scenario, contender string) map[uint64]entry {
	out := map[uint64]entry{}
	for _, e := range b.runs {
		if e.scenario == scenario && e.contender == contender {
			out[e.seed] = e
		}
	}
	return out
}

// names lists scenarios or contenders in order of appearance, ours first.
func (b *book) names(of func(entry) string) []string {
	var names []string
	seen := map[string]bool{}
	for _, ours := range []bool{true, false} {
		for _, e := range b.runs {
			if name := of(e); e.ours == ours && !seen[name] {
				seen[name] = true
				names = append(names, name)
			}
		}
	}
	return names
}

// bestPeer is the peer with the lowest geometric mean of p99s.
func (b *book) bestPeer(scenario string) string {
	best, lowest := "", math.Inf(1)
	for _, name := range b.names(func(e entry) string { return e.contender }) {
		var logs []float64
		for _, e := range b.of(scenario, name) {
			if e.ours {
				break
			}
			logs = append(logs, math.Log(e.p99))
		}
		if len(logs) > 0 && mean(logs) < lowest {
			best, lowest = name, mean(logs)
		}
	}
	return best
}

func (b *book) result() result.Result {
	r := result.Result{
		Name: b.options.result, Title: "Routing alone: our policies and the peers", Command: command(),
		Notes: []string{
			fmt.Sprintf("%d engines of one profile, simulated, one of them %.0f× slower; %.1f requests/s for %v, arrivals and lengths from the Azure "+
				"conversation trace; %d seeds, %d contenders at a time; %d runs void (client more than %v late at p99, or machine over %.0f %% busy).",
				engineCount, slowFactor, b.options.rate, b.options.duration, b.options.seeds, b.options.together, b.void, maxLag, 100*maxCPU),
			"TTFT is from when a request was due; medians over the seeds. Of the best peer: geometric mean of the p99s' ratios within seeds, with its 95 % interval.",
		},
	}
	r.Notes = append(r.Notes, b.counted())
	r.Notes = append(r.Notes, b.absent...)
	r.Figures = append(r.Figures, result.Figure{Name: rateFigure, Value: b.options.rate, Unit: "requests/s"})
	for _, s := range b.names(func(e entry) string { return e.scenario }) {
		peer := b.bestPeer(s)
		table := result.Table{
			Title:   "Traffic: " + s,
			Columns: []string{"contender", "TTFT p50, ms", "p90, ms", "p99, ms", "p99 of the best peer", "failed", "prompt cached", "CPU per request, ms", "failing engine's share"},
		}
		for _, name := range b.names(func(e entry) string { return e.contender }) {
			if runs := b.of(s, name); len(runs) > 0 {
				table.Rows = append(table.Rows, row(name, runs, b.of(s, peer)))
			}
		}
		r.Tables = append(r.Tables, table)
		r.Figures = append(r.Figures, goals(s, b, peer)...)
	}
	r.Charts = []result.Chart{b.chart()}
	return r
}

// counted says how many runs of a contender are left when the void ones are not
// counted: a seed whose repetition was void, too, is missing.
func (b *book) counted() string {
	fewest, most := math.MaxInt, 0
	for _, s := range b.names(func(e entry) string { return e.scenario }) {
		for _, name := range b.names(func(e entry) string { return e.contender }) {
			if n := len(b.of(s, name)); n > 0 {
				fewest, most = min(fewest, n), max(most, n)
			}
		}
	}
	return fmt.Sprintf("Of %d seeds, %d to %d count for each contender: the others were void twice.", b.options.seeds, fewest, most)
}

func row(name string, runs, peer map[uint64]entry) []string {
	median := func(of func(entry) float64) float64 {
		var all []float64
		for _, e := range runs {
			all = append(all, of(e))
		}
		return quantile(all, 0.5)
	}
	failed, sent := 0, 0
	for _, e := range runs {
		failed += e.failed
		sent += e.sent
	}
	share := "–"
	if late := median(func(e entry) float64 { return e.late }); !math.IsNaN(late) {
		share = fmt.Sprintf("%.2f %%", 100*late)
	}
	return []string{
		name,
		fmt.Sprintf("%.0f", median(func(e entry) float64 { return e.first.P50 })),
		fmt.Sprintf("%.0f", median(func(e entry) float64 { return e.first.P90 })),
		fmt.Sprintf("%.0f", median(func(e entry) float64 { return e.p99 })),
		against(runs, peer).text(),
		fmt.Sprintf("%d of %d", failed, sent),
		fmt.Sprintf("%.0f %%", 100*median(func(e entry) float64 { return e.hits })),
		fmt.Sprintf("%.2f", median(func(e entry) float64 { return e.cpu })),
		share,
	}
}

// against compares p99s on the traffic that both have had.
func against(runs, peer map[uint64]entry) interval {
	var a, b []float64
	for seed, e := range runs {
		if other, ok := peer[seed]; ok {
			a, b = append(a, e.p99), append(b, other.p99)
		}
	}
	return ratio(a, b)
}

func (i interval) text() string {
	if math.IsNaN(i.mid) {
		return "–"
	}
	return fmt.Sprintf("%.2f (%.2f–%.2f)", i.mid, i.low, i.high)
}

// goals are the issue's, for the default policy.
func goals(s string, b *book, peer string) []result.Figure {
	runs := b.of(s, defaultPolicy)
	if len(runs) == 0 || peer == "" {
		return nil
	}
	var figures []result.Figure
	p99 := against(runs, b.of(s, peer))
	if math.IsNaN(p99.mid) {
		return nil // no seed that both have had
	}
	name := fmt.Sprintf("p99 TTFT of %s over that of %s: %s (95 %% interval %.2f–%.2f)", defaultPolicy, peer, s, p99.low, p99.high)
	switch s {
	case "reuse":
		figures = append(figures, result.Figure{Name: name, Value: p99.mid, Goal: "≤ 0.70"})
	case "no reuse":
		figures = append(figures, result.Figure{Name: name, Value: p99.mid, Goal: "≤ 1.05"})
	default:
		var late []float64
		for _, e := range runs {
			late = append(late, 100*e.late)
		}
		figures = append(figures, result.Figure{Name: name, Value: p99.mid},
			result.Figure{Name: "share of attempts at the engine that fails fast, from 2 s on, " + defaultPolicy, Value: quantile(late, 0.5), Unit: "%", Goal: "≤ 1"})
	}
	return figures
}
