// Canary measures in virtual time how soon the judge of a canary finds out that it
// is worse, and how often it says so of one that is not.
package main

import (
	"flag"
	"fmt"
	"os"
	"time"

	"github.com/mrgc/mrgc/bench/result"
)

func main() {
	runs := flag.Int("runs", 400, "canaries that are worse, of each kind")
	days := flag.Int("days", 300, "days of a canary that is not")
	flag.Parse()
	if err := run(*runs, *days); err != nil {
		fmt.Fprintln(os.Stderr, "canary:", err)
		os.Exit(1)
	}
}

// deadline is how soon a verdict is wanted.
const deadline = 5 * time.Minute

func run(runs, days int) error {
	goal := healthy()
	goal.ttft = 1.2
	inTime, minutes, err := goal.find(runs)
	if err != nil {
		return err
	}
	wrong, err := healthy().wrong(days)
	if err != nil {
		return err
	}
	r := result.Result{
		Name: "canary", Title: "A canary's judge, in virtual time", Command: "make bench-canary",
		Figures: []result.Figure{
			{Name: "first tokens 20 % later, found out within 5 minutes", Value: 100 * inTime, Unit: "% of runs", Goal: "≥ 95"},
			{Name: "first tokens 20 % later, until the verdict", Value: minutes.P50, Unit: "min", Goal: "≤ 5", Spread: &minutes},
			{Name: fmt.Sprintf("verdicts against a canary that is like the other, of %d days", days), Value: 100 * wrong, Unit: "% of days", Goal: "≤ 1"},
		},
		Notes: []string{
			fmt.Sprintf("%.0f requests/s, %.0f %% to the canary, %.1f %% of all fail. Prompts are log-normal (median 1,024 tokens); so is the time to first token of one length, "+
				"with a standard deviation of its logarithm of %.1f unless the table says otherwise, around what the prompt takes and a load that comes and goes. %d runs of each kind; "+
				"the first %v, which the judge passes over, count.", goal.rate, 100*goal.share, 100*goal.errors, goal.spread, runs, 30*time.Second),
			"A verdict that takes longer than an hour counts as an hour. That false verdicts come on at most 1 % of days is proved (package controller/canary); the days simulated are a check.",
		},
	}
	table, err := kinds(runs)
	if err != nil {
		return err
	}
	r.Tables = append(r.Tables, table)
	r.Print(os.Stdout)
	return r.Write()
}

// kinds is every way in which a canary is worse here.
func kinds(runs int) (result.Table, error) {
	table := result.Table{
		Title:   "Canaries that are worse",
		Columns: []string{"what is worse", "found out within 5 min", "minutes until then, median", "p95"},
	}
	add := func(name string, change func(*world)) error {
		w := healthy()
		change(&w)
		inTime, minutes, err := w.find(runs)
		table.Rows = append(table.Rows, []string{
			name, fmt.Sprintf("%.1f %%", 100*inTime), fmt.Sprintf("%.1f", minutes.P50), fmt.Sprintf("%.1f", w.slowest),
		})
		return err
	}
	type kind struct {
		name   string
		change func(*world)
	}
	var all []kind
	for _, spread := range []float64{0.3, 0.4, 0.5, 0.6, 0.8} {
		all = append(all, kind{fmt.Sprintf("first tokens 20 %% later, spread %.1f", spread), func(w *world) { w.ttft, w.spread = 1.2, spread }})
	}
	all = append(all,
		kind{"first tokens 50 % later", func(w *world) { w.ttft = 1.5 }},
		kind{"first tokens 20 % later, after two hours like the other's", func(w *world) { w.ttft, w.onset = 1.2, 2*time.Hour }},
		kind{"first tokens 20 % later, 20 % of the requests", func(w *world) { w.ttft, w.share = 1.2, 0.2 }},
		kind{"tokens 20 % slower", func(w *world) { w.perToken = 1.2 }},
		kind{"2 % of its requests fail", func(w *world) { w.fails = 0.02 }},
		kind{"10 % of its requests fail", func(w *world) { w.fails = 0.1 }},
		kind{"all its requests fail", func(w *world) { w.fails = 1 }},
	)
	for _, k := range all {
		if err := add(k.name, k.change); err != nil {
			return table, err
		}
	}
	return table, nil
}
