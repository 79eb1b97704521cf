// Autoscaling replays days of recorded burstiness in virtual time: what the
// autoscaler's rules cost in instance-hours, and in requests that wait too long, beside
// an oracle that knows the future.
package main

import (
	"flag"
	"fmt"
	"os"

	"github.com/mrgc/mrgc/bench/result"
	"github.com/mrgc/mrgc/controller/autoscaler"
)

func main() {
	seeds := flag.Uint64("seeds", 10, "days of each kind")
	flag.Parse()
	r, err := run(*seeds)
	if err == nil {
		r.Print(os.Stdout)
		err = r.Write()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "autoscaling:", err)
		os.Exit(1)
	}
}

// contender is a way to decide how many.
type contender struct {
	name   string
	change func(*autoscaler.Config)
	fresh  bool // without the days before
}

const ours = "forecast and learned capacity"

var contenders = []contender{
	{name: "plain rules", change: func(*autoscaler.Config) {}},
	{name: "learned capacity", change: func(c *autoscaler.Config) { c.Learn = true }},
	{name: "forecast", change: func(c *autoscaler.Config) { c.Forecast = true }},
	{name: ours, change: func(c *autoscaler.Config) { c.Learn, c.Forecast = true, true }},
	{name: "the same on its first day", change: func(c *autoscaler.Config) { c.Learn, c.Forecast = true, true }, fresh: true},
	{name: "the same with a reserve for a lost region", change: func(c *autoscaler.Config) { c.Learn, c.Forecast, c.Reserve = true, true, true }},
}

// score is how a contender did, over all days.
type score struct {
	missed, hours, ofOracle []float64
}

func run(seeds uint64) (result.Result, error) {
	r := result.Result{
		Name: "autoscaling", Title: "Autoscaling of one region over a day, in virtual time", Command: "make bench-autoscaling",
		Notes: []string{
			fmt.Sprintf("The recordings are AzureLLMInferenceTrace 2023 (Azure/AzurePublicDataset, Microsoft, CC BY 4.0), an hour of a service for conversations and one for code. A day is the slow rise and fall of the first, stretched to 24 hours "+
				"and scaled to a peak of %.0f requests/s. What it fluctuates by within minutes, in requests and in their tokens, is another piece of the recording each quarter of an hour, scaled as it is, as if all tenants did the same at the same time: "+
				"of conversations, or four fifths of that and one of code. Two days before, which fluctuate otherwise, are up to a tenth higher or lower and up to a quarter of an hour earlier or later, are what a forecast has learned from.", peakRate),
			fmt.Sprintf("An instance serves %.0f mean requests/s, and takes %v on average from its launch until it is ready, which is paid. A request misses if it waits for longer than %v. The oracle knows every arrival, has the same launch time, "+
				"misses nothing, and keeps an instance that is idle for less than a launch takes. Hours are what is paid for, from launch to termination.", instanceRate, bootTime, patience),
			"A reserve is for a region's half of another one that has as much load: it costs half as much again, and is what makes the loss of a region need no launch.",
		},
	}
	for _, kind := range kinds {
		table := result.Table{
			Title:   kind.name,
			Columns: []string{"rules", "requests that miss", "worst day", "instance-hours a day", "of the oracle's"},
		}
		scores := make([]score, len(contenders))
		var oracleHours []float64
		for seed := range seeds {
			d, err := newDay(kind, seed)
			if err != nil {
				return r, err
			}
			best := d.oracle()
			oracleHours = append(oracleHours, best.hours)
			lines := []result.Line{{Name: "needed", Points: d.needed()}, {Name: "oracle", Points: best.points}}
			for i, c := range contenders {
				p, err := d.play(c)
				if err != nil {
					return r, err
				}
				s := &scores[i]
				s.missed, s.hours, s.ofOracle = append(s.missed, 100*p.missed), append(s.hours, p.hours), append(s.ofOracle, p.hours/best.hours)
				if i == 0 || c.name == ours {
					lines = append(lines, result.Line{Name: c.name, Accent: c.name == ours, Points: p.points})
				}
			}
			if seed == 0 {
				r.Plots = append(r.Plots, result.Plot{
					Name: "autoscaling-" + kind.file, Title: "Instances over a day of " + kind.name, X: "hour of the day", Y: "ready instances", Lines: lines,
				})
			}
		}
		table.Rows = append(table.Rows, []string{"oracle", "0 %", "", fmt.Sprintf("%.0f", mean(oracleHours)), "1"})
		for i, c := range contenders {
			s := scores[i]
			table.Rows = append(table.Rows, []string{
				c.name, fmt.Sprintf("%.2f %%", mean(s.missed)), fmt.Sprintf("%.2f %%", result.Quantile(s.missed, 1)),
				fmt.Sprintf("%.0f", mean(s.hours)), fmt.Sprintf("%.3f", mean(s.ofOracle)),
			})
			if c.name == ours {
				missed, of := result.SpreadOf(s.missed), result.SpreadOf(s.ofOracle)
				r.Figures = append(r.Figures,
					result.Figure{Name: kind.name + ": requests that miss, " + ours, Value: missed.P50, Unit: "%", Goal: "≤ 1", Spread: &missed},
					result.Figure{Name: kind.name + ": instance-hours of the oracle's, " + ours, Value: of.P50, Unit: "", Goal: "≤ 1.10", Spread: &of},
				)
			}
		}
		r.Tables = append(r.Tables, table)
	}
	return r, nil
}

func mean(all []float64) (m float64) {
	for _, v := range all {
		m += v / float64(len(all))
	}
	return m
}
