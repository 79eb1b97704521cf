package main

import (
	"math"

	"github.com/mrgc/mrgc/bench/result"
)

// chartRow draws one contender's runs: the quantiles of its times to first
// token, each the median over the seeds.
func chartRow(name string, ours bool, runs []measured) result.Row {
	row := result.Row{Name: name, Accent: ours}
	for _, q := range []struct {
		name string
		of   func(measured) float64
	}{
		{"p50", func(m measured) float64 { return m.first.P50 }},
		{"p90", func(m measured) float64 { return m.first.P90 }},
		{"p99", func(m measured) float64 { return m.p99 }},
	} {
		var all []float64
		for _, m := range runs {
			all = append(all, q.of(m))
		}
		i := middle(all)
		if math.IsNaN(i.mid) {
			continue // nothing was answered
		}
		row.Marks = append(row.Marks, result.Mark{Name: q.name, Value: i.mid, Low: i.low, High: i.high})
	}
	return row
}

// chart is the book's, with a panel for each scenario.
func (b *book) chart() result.Chart {
	c := result.Chart{Name: b.options.result + "-p99", Title: "Time to first token by contender, routing alone", Unit: "ms"}
	for _, s := range b.names(func(e entry) string { return e.scenario }) {
		panel := result.Panel{Title: s}
		for _, name := range b.names(func(e entry) string { return e.contender }) {
			var runs []measured
			ours := false
			for _, e := range b.of(s, name) {
				runs, ours = append(runs, e.measured), e.ours
			}
			if len(runs) > 0 {
				panel.Rows = append(panel.Rows, chartRow(name, ours, runs))
			}
		}
		c.Panels = append(c.Panels, panel)
	}
	return c
}

// chart is the sealed book's.
func (b *sealedBook) chart() result.Chart {
	c := result.Chart{Name: b.options.result + "-p99", Title: "Time to first token, sealed: what a choice of three costs", Unit: "ms"}
	for _, s := range b.scenarios() {
		panel := result.Panel{Title: s}
		for _, contender := range sealedField() {
			var runs []measured
			for _, r := range b.of(s, contender) {
				runs = append(runs, r.measured)
			}
			if len(runs) > 0 {
				panel.Rows = append(panel.Rows, chartRow(contender.name(), contender == sealedField()[0], runs))
			}
		}
		c.Panels = append(c.Panels, panel)
	}
	return c
}
