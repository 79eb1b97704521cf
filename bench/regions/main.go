// Regions measures in virtual time what it is worth that a region which has no room
// for its requests sends some of them to others.
package main

import (
	"flag"
	"fmt"
	"os"
	"time"

	"github.com/mrgc/mrgc/bench/result"
)

func main() {
	seeds := flag.Int("seeds", 3, "worlds of each kind")
	length := flag.Duration("duration", 4*time.Minute, "virtual time that each lasts")
	flag.Parse()
	if err := run(uint64(*seeds), *length); err != nil {
		fmt.Fprintln(os.Stderr, "regions:", err)
		os.Exit(1)
	}
}

const warmUp = time.Minute

// capacity is how many requests a second a region's engines end when more come than
// they can.
func capacity(length time.Duration) (float64, error) {
	w, err := play([]float64{200}, false, 1, warmUp, length)
	if err != nil {
		return 0, err
	}
	return float64(w.answers) / (length - warmUp).Seconds(), nil
}

// kind is how much the regions have to do, in parts of what they can.
type kind struct {
	name  string
	loads []float64
}

var kinds = []kind{
	{"the first has 1.3 of what it can do, the others 0.4", []float64{1.3, 0.4, 0.4}},
	{"all have 0.7", []float64{0.7, 0.7, 0.7}},
	{"all have 1.1", []float64{1.1, 1.1, 1.1}},
}

// sum is what some worlds of one kind have in common, by region.
type sum struct {
	firsts [][]float64
	away   []int
	shares [][]float64
}

func simulate(k kind, spills bool, can float64, seeds uint64, length time.Duration) (sum, error) {
	s := sum{firsts: make([][]float64, len(k.loads)), away: make([]int, len(k.loads)), shares: make([][]float64, len(k.loads))}
	rates := make([]float64, len(k.loads))
	for i, load := range k.loads {
		rates[i] = load * can
	}
	for seed := range seeds {
		w, err := play(rates, spills, seed, warmUp, length)
		if err != nil {
			return s, err
		}
		for i, r := range w.regions {
			s.firsts[i] = append(s.firsts[i], r.firsts...)
			s.shares[i] = append(s.shares[i], r.shares...)
			s.away[i] += r.away
		}
	}
	return s, nil
}

func (s *sum) first(region int, q float64) float64 { return result.Quantile(s.firsts[region], q) }

func (s *sum) gone(region int) float64 {
	return 100 * float64(s.away[region]) / float64(max(len(s.firsts[region]), 1))
}

func run(seeds uint64, length time.Duration) error {
	can, err := capacity(length)
	if err != nil {
		return err
	}
	table := result.Table{
		Title: "Time to first token, by the region that requests come to",
		Columns: []string{
			"load", "sent elsewhere", "first: p50, s", "p99, s", "sent elsewhere, of all", "in a second, p10–p90",
			"others: p50, s", "p99, s", "sent elsewhere, of all",
		},
	}
	var over [2]sum
	for n, k := range kinds {
		for i, spills := range []bool{false, true} {
			s, err := simulate(k, spills, can, seeds, length)
			if err != nil {
				return err
			}
			if n == 0 {
				over[i] = s
			}
			table.Rows = append(table.Rows, s.row(k.name, spills))
		}
	}
	r := result.Result{
		Name: "regions", Title: "A region that has no room, in virtual time", Command: "make bench-regions",
		Figures: []result.Figure{
			{Name: "first token, p99, of a region with 1.3 of what it can do, others with 0.4: only a dead region is left", Value: over[0].first(0, 0.99), Unit: "s"},
			{Name: "the same when requests leave one that has no room", Value: over[1].first(0, 0.99), Unit: "s"},
			{Name: "first token, p99, of the others: only a dead region is left", Value: max(over[0].first(1, 0.99), over[0].first(2, 0.99)), Unit: "s"},
			{Name: "the same when requests come from one that has no room", Value: max(over[1].first(1, 0.99), over[1].first(2, 0.99)), Unit: "s"},
		},
		Tables: []result.Table{table},
		Notes: []string{
			fmt.Sprintf("Three regions with the picker of a router each, all of it real, before %d engines each (package engine/sim/batching, an A100's profile with %d slots), %d worlds of each kind, %v each, the first minute not counted. "+
				"A region can do %.1f requests/s: prompts have %d tokens, answers any number up to %d, and nothing is cached. Requests come at random, from %d clients of each region, which seal to the three recipients that the keys route offered within the last %v. "+
				"Regions are 12, 51 and 62 ms apart, there and back; reports come from other regions once a second.", engines, slots, seeds, length, can, promptSize, outputSize, clients, refresh),
			"Where more comes than all regions together can do, and where without spilling more comes than one can, the queue grows for as long as it lasts: so those waits are of this length of time, and no property of the cluster.",
		},
	}
	r.Print(os.Stdout)
	return r.Write()
}

func (s *sum) row(name string, spills bool) []string {
	how := "never"
	if spills {
		how = "when there is no room"
	}
	others := sum{firsts: [][]float64{append(append([]float64{}, s.firsts[1]...), s.firsts[2]...)}, away: []int{s.away[1] + s.away[2]}}
	return []string{
		name, how, fmt.Sprintf("%.3f", s.first(0, 0.5)), fmt.Sprintf("%.3f", s.first(0, 0.99)), fmt.Sprintf("%.1f %%", s.gone(0)),
		fmt.Sprintf("%.0f–%.0f %%", 100*result.Quantile(s.shares[0], 0.1), 100*result.Quantile(s.shares[0], 0.9)),
		fmt.Sprintf("%.3f", others.first(0, 0.5)), fmt.Sprintf("%.3f", others.first(0, 0.99)), fmt.Sprintf("%.1f %%", others.gone(0)),
	}
}
