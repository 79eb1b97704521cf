// Fairness measures in virtual time what a tenant notices of another one that asks
// for ten times its share while nothing is free, and what the fleet loses by it.
package main

import (
	"flag"
	"fmt"
	"os"
	"time"

	"github.com/mrgc/mrgc/bench/result"
)

func main() {
	seeds := flag.Int("seeds", 5, "worlds of each kind")
	length := flag.Duration("duration", 10*time.Minute, "virtual time that each lasts")
	flag.Parse()
	if err := run(uint64(*seeds), *length); err != nil {
		fmt.Fprintln(os.Stderr, "fairness:", err)
		os.Exit(1)
	}
}

const warmUp = time.Minute

// Two tenants of one weight: one has ten times as many requests at once as its half
// of all slots, and sends the next when one is answered; the other asks once a
// second, which is a twentieth of what the engines can do.
var (
	greedy = load{tenant: "greedy", workers: 10 * engines * slots / 2}
	modest = load{tenant: "modest", rate: 1}
)

// as is a load under another tenant's name.
func (l load) as(tenant string) load {
	l.tenant = tenant
	return l
}

// after is a load that begins later.
func (l load) after(from time.Duration) load {
	l.from = from
	return l
}

// weighing is a load of a tenant with a weight.
func (l load) weighing(weight int) load {
	l.weight = weight
	return l
}

// sum is what some worlds of one kind have in common; the load of interest is the
// last one.
type sum struct {
	firsts   []float64 // seconds, once warm
	early    []float64 // of the first 30 s of that load
	busy     []float64
	tokens   []int // by load
	refusals []int // by load
	minutes  float64
}

func simulate(seeds uint64, length time.Duration, loads ...load) (sum, error) {
	s := sum{tokens: make([]int, len(loads)), refusals: make([]int, len(loads))}
	for seed := range seeds {
		w, err := play(loads, seed, warmUp, length)
		if err != nil {
			return s, err
		}
		for i, f := range w.figures {
			s.tokens[i] += f.tokens
			s.refusals[i] += f.refusals
		}
		last, from := &w.figures[len(loads)-1], loads[len(loads)-1].from
		s.firsts = append(s.firsts, last.afterwards(from+warmUp, length)...)
		s.early = append(s.early, last.afterwards(from, from+30*time.Second)...)
		s.busy = append(s.busy, w.busy...)
		s.minutes += (length - warmUp).Minutes()
	}
	return s, nil
}

// kinds are the worlds that are compared.
func kinds() (names []string, loads [][]load) {
	add := func(name string, of ...load) { names, loads = append(names, name), append(loads, of) }
	add("alone", modest)
	add("beside the other, without shares", greedy.as("one"), modest.as("one"))
	add("beside the other, with shares", greedy, modest)
	add("the same, coming a minute after it", greedy, modest.after(warmUp))
	return names, loads
}

func run(seeds uint64, length time.Duration) error {
	table := result.Table{
		Title:   "The modest tenant's time to first token, and what the fleet does",
		Columns: []string{"the modest tenant is", "p50, s", "p99, s", "p50 of its first 30 s, s", "slots busy", "answers' tokens/s, all", "refused: modest", "refused/min: greedy"},
	}
	var sums []sum
	names, loads := kinds()
	for i, of := range loads {
		s, err := simulate(seeds, length, of...)
		if err != nil {
			return err
		}
		sums = append(sums, s)
		table.Rows = append(table.Rows, s.row(names[i]))
	}
	heavy, light := greedy.as("heavy").weighing(3), greedy.as("light").weighing(1)
	both, err := simulate(seeds, length, heavy, light)
	if err != nil {
		return err
	}
	alone, without, with := sums[0], sums[1], sums[2]
	first := func(s sum, q float64) float64 { return result.Quantile(s.firsts, q) }
	r := result.Result{
		Name: "fairness", Title: "Shares while nothing is free, in virtual time", Command: "make bench-fairness",
		Figures: []result.Figure{
			{Name: "modest tenant's first token, p99, alone", Value: first(alone, 0.99), Unit: "s"},
			{Name: "modest tenant's first token, p99, beside one that asks for ten times its share", Value: first(with, 0.99), Unit: "s"},
			{Name: "the same without shares", Value: first(without, 0.99), Unit: "s"},
			{Name: "slots busy, with shares", Value: mean(with.busy), Unit: "%"},
			{Name: "slots busy, without", Value: mean(without.busy), Unit: "%"},
			{Name: "answers' tokens of two greedy tenants, weights 3 and 1", Value: float64(both.tokens[0]) / float64(both.tokens[1]), Unit: "times as many", Goal: "3"},
		},
		Tables: []result.Table{table},
		Notes: []string{
			fmt.Sprintf("The router's picker, all of it real, before %d engines (package engine/sim/batching, an A100's profile with %d slots), %d worlds of each kind, %v each, the first minute not counted. "+
				"Prompts have %d tokens, answers any number up to %d, and nothing is cached. The greedy tenant has %d requests at once and sends another when one is answered, or when Retry-After says; the modest one sends %.0f a second at random. "+
				"\"Without shares\" both are one tenant to the picker.", engines, slots, seeds, length, promptSize, outputSize, greedy.workers, modest.rate),
			"Who comes while another has been alone finds its queue, and waits behind that once: so its first 30 s are longer.",
		},
	}
	r.Print(os.Stdout)
	return r.Write()
}

func (s *sum) row(name string) []string {
	all := 0
	for _, tokens := range s.tokens {
		all += tokens
	}
	last := len(s.tokens) - 1
	others := "–"
	if last > 0 {
		others = fmt.Sprintf("%.0f", float64(s.refusals[0])/s.minutes)
	}
	return []string{
		name, fmt.Sprintf("%.2f", result.Quantile(s.firsts, 0.5)), fmt.Sprintf("%.2f", result.Quantile(s.firsts, 0.99)),
		fmt.Sprintf("%.2f", result.Quantile(s.early, 0.5)),
		fmt.Sprintf("%.1f %%", mean(s.busy)), fmt.Sprintf("%.0f", float64(all)/s.minutes/60), fmt.Sprint(s.refusals[last]), others,
	}
}
