package main

import (
	"fmt"
	"math"

	"github.com/mrgc/mrgc/bench/result"
	"github.com/mrgc/mrgc/internal/api"
)

func (b *sealedBook) result() result.Result {
	o := b.options
	r := result.Result{
		Name: o.result, Title: "Routing, sealed: everything real but the engines", Command: command(),
		Figures: []result.Figure{{Name: rateFigure, Value: o.rate, Unit: "requests/s"}},
		Notes: []string{
			fmt.Sprintf("The engines and the traffic of the table in clear, %.1f requests/s for %v, %d seeds, through package client (which verifies "+
				"attestation and seals), Envoy, router, parents, enclaves and guards; %d runs void (client more than %v late at p99, or machine over %.0f %% busy).",
				o.rate, o.duration, o.seeds, b.void, maxLag, 100*maxCPU),
			fmt.Sprintf("Clients are offered %d recipients of %d instances; sealed to %[2]d the choice is unrestricted. p99 of the unrestricted choice: geometric mean "+
				"of the p99s' ratios within seeds, with its 95 %% interval. Relayed: a parent forwarded the request to another's, since it was not sealed to its own "+
				"enclave. Resealed: the client had to fetch recipients and seal once more. Weights alone: the router is stopped after the first request. "+
				"CPU: of everything but engines and client.", api.Offered, engineCount),
		},
	}
	for _, s := range b.scenarios() {
		table := result.Table{
			Title: "Traffic, sealed: " + s,
			Columns: []string{
				"contender", "TTFT p50, ms", "p90, ms", "p99, ms", "p99 of the unrestricted choice", "relayed", "resealed", "failed",
				"prompt cached", "CPU per request, ms",
			},
		}
		for _, c := range sealedField() {
			if runs := b.of(s, c); len(runs) > 0 {
				table.Rows = append(table.Rows, b.row(s, c, runs))
			}
		}
		r.Tables = append(r.Tables, table)
		r.Figures = append(r.Figures, b.figures(s)...)
		if runs := b.of(s, sealedField()[0]); len(runs) > 0 {
			r.Breakdowns = append(r.Breakdowns, breakdown(s, runs))
		}
	}
	r.Charts = []result.Chart{b.chart()}
	return r
}

// scenarios are those that were measured.
func (b *sealedBook) scenarios() []string {
	var names []string
	seen := map[string]bool{}
	for _, r := range b.runs {
		if !seen[r.scenario] {
			seen[r.scenario] = true
			names = append(names, r.scenario)
		}
	}
	return names
}

// of gathers one contender's runs of a scenario.
func (b *sealedBook) of(scenario string, c sealedContender) []sealedRun {
	var runs []sealedRun
	for _, r := range b.runs {
		if r.scenario == scenario && r.contender == c {
			runs = append(runs, r)
		}
	}
	return runs
}

// againstAll compares p99s with those of a choice among all instances.
func (b *sealedBook) againstAll(scenario string, c sealedContender) interval {
	all := c
	all.recipients = engineCount
	if c == all || c.silent {
		return interval{math.NaN(), math.NaN(), math.NaN()}
	}
	return against(bySeed(b.of(scenario, c)), bySeed(b.of(scenario, all)))
}

func bySeed(runs []sealedRun) map[uint64]entry {
	entries := map[uint64]entry{}
	for _, r := range runs {
		entries[r.seed] = entry{seed: r.seed, measured: r.measured}
	}
	return entries
}

// medianOf is over the seeds.
func medianOf(runs []sealedRun, of func(sealedRun) float64) float64 {
	var all []float64
	for _, r := range runs {
		all = append(all, of(r))
	}
	return quantile(all, 0.5)
}

// meanOf is over the seeds: of shares that are mostly 0.
func meanOf(runs []sealedRun, of func(sealedRun) float64) float64 {
	var all []float64
	for _, r := range runs {
		all = append(all, of(r))
	}
	return mean(all)
}

func relayedShare(r sealedRun) float64  { return r.relayed }
func resealedShare(r sealedRun) float64 { return r.resealed }

func (b *sealedBook) row(scenario string, c sealedContender, runs []sealedRun) []string {
	failed, sent := 0, 0
	for _, r := range runs {
		failed += r.failed
		sent += r.sent
	}
	return []string{
		c.name(),
		fmt.Sprintf("%.0f", medianOf(runs, func(r sealedRun) float64 { return r.first.P50 })),
		fmt.Sprintf("%.0f", medianOf(runs, func(r sealedRun) float64 { return r.first.P90 })),
		fmt.Sprintf("%.0f", medianOf(runs, func(r sealedRun) float64 { return r.p99 })),
		b.againstAll(scenario, c).text(),
		fmt.Sprintf("%.2f %%", 100*meanOf(runs, relayedShare)),
		fmt.Sprintf("%.2f %%", 100*meanOf(runs, resealedShare)),
		fmt.Sprintf("%d of %d", failed, sent),
		fmt.Sprintf("%.0f %%", 100*medianOf(runs, func(r sealedRun) float64 { return r.hits })),
		fmt.Sprintf("%.1f", medianOf(runs, func(r sealedRun) float64 { return r.cpu })),
	}
}

// breakdown is what each program takes of a request's processor time.
func breakdown(scenario string, runs []sealedRun) result.Breakdown {
	d := result.Breakdown{Name: "processor time of a request, " + scenario, Unit: "ms", Parts: map[string]float64{}}
	for program := range runs[0].programs {
		d.Parts[program] = medianOf(runs, func(r sealedRun) float64 { return r.programs[program] })
	}
	return d
}

// figures are what the issue asks for, of the default policy as it comes.
func (b *sealedBook) figures(scenario string) []result.Figure {
	c := sealedField()[0]
	runs := b.of(scenario, c)
	if len(runs) == 0 {
		return nil
	}
	figures := []result.Figure{
		{Name: "requests that a parent relayed to another: " + scenario, Value: 100 * meanOf(runs, relayedShare), Unit: "%"},
		{Name: "requests that the client sealed once more: " + scenario, Value: 100 * meanOf(runs, resealedShare), Unit: "%"},
	}
	if p99 := b.againstAll(scenario, c); !math.IsNaN(p99.mid) {
		figures = append(figures, result.Figure{
			Name:  fmt.Sprintf("p99 TTFT of %s over that of an unrestricted choice: %s (95 %% interval %.2f–%.2f)", c.name(), scenario, p99.low, p99.high),
			Value: p99.mid,
		})
	}
	return figures
}
