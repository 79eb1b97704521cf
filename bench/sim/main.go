// Sim plays thousands of seeds of package controller/sim: three regions and their
// controllers in virtual time, while everything goes wrong.
//
//	go run ./bench/sim              # 5,000 seeds; a failing one tells its story
//	go run ./bench/sim -seed 75 -v  # the story of one, again
package main

import (
	"flag"
	"fmt"
	"io"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/mrgc/mrgc/bench/result"
	"github.com/mrgc/mrgc/controller/sim"
)

func main() {
	seeds := flag.Uint64("seeds", 5000, "seeds to play")
	first := flag.Uint64("first", 0, "the first of them")
	seed := flag.Int64("seed", -1, "play this one alone, and write no result")
	verbose := flag.Bool("v", false, "with -seed: tell its story, even if nothing is wrong")
	flag.Parse()
	if *seed >= 0 {
		os.Exit(one(uint64(*seed), *verbose))
	}
	os.Exit(run(*first, *seeds))
}

// one plays one seed, and tells its story if something is wrong with it.
func one(seed uint64, verbose bool) int {
	var tell io.Writer
	if verbose {
		tell = os.Stdout
	}
	outcome := sim.Run(seed, sim.Options{Tell: tell})
	if outcome.Violation == "" {
		fmt.Printf("seed %d: every invariant held; %+v\n", seed, outcome.Counts)
		return 0
	}
	if !verbose {
		sim.Run(seed, sim.Options{Tell: os.Stdout})
	}
	fmt.Printf("\nseed %d, after %v: %s: %s\nagain: go run ./bench/sim -seed %d -v\n", seed, outcome.At, outcome.Invariant, outcome.Violation, seed)
	return 1
}

// calmSeeds is how many times a region dies while nothing else goes wrong.
const calmSeeds = 200

func run(first, seeds uint64) int {
	wild := play(first, seeds, sim.Options{}, "everything goes wrong")
	calm := play(0, calmSeeds, sim.Options{Calm: true}, "a region dies")
	r := summary(wild, calm)
	r.Print(os.Stdout)
	for _, all := range [][]sim.Outcome{wild, calm} {
		for _, o := range all {
			if o.Violation != "" {
				return one(o.Seed, false)
			}
		}
	}
	if err := r.Write(); err != nil {
		fmt.Fprintln(os.Stderr, "sim:", err)
		return 1
	}
	return 0
}

// play plays seeds on all processors, with a bar, and stops at the first that fails.
func play(first, seeds uint64, o sim.Options, what string) []sim.Outcome {
	outcomes := make([]sim.Outcome, seeds)
	var next, done atomic.Uint64
	var failed atomic.Bool
	var workers sync.WaitGroup
	for range runtime.GOMAXPROCS(0) {
		workers.Go(func() {
			for i := next.Add(1) - 1; i < seeds && !failed.Load(); i = next.Add(1) - 1 {
				outcomes[i] = sim.Run(first+i, o)
				if outcomes[i].Violation != "" {
					failed.Store(true)
				}
				bar(what, done.Add(1), seeds)
			}
		})
	}
	workers.Wait()
	fmt.Fprintln(os.Stderr)
	return outcomes[:min(next.Load(), seeds)]
}

func bar(what string, done, all uint64) {
	if done*100/all == (done-1)*100/all { // the same percentage as before
		return
	}
	const width = 40
	full := int(done * width / all)
	fmt.Fprintf(os.Stderr, "\r%-24s [%s%s] %d of %d", what, strings.Repeat("#", full), strings.Repeat(".", width-full), done, all)
}

// summary is what was played, and what it says.
func summary(wild, calm []sim.Outcome) result.Result {
	broken := map[sim.Invariant]int{}
	var sum sim.Counts
	for _, o := range wild {
		if o.Violation != "" {
			broken[o.Invariant]++
		}
		sum.Add(o.Counts)
	}
	var calmSum sim.Counts
	for _, o := range calm {
		calmSum.Add(o.Counts)
	}
	r := result.Result{
		Name: "sim", Title: "Failover and autoscaling while everything goes wrong, in virtual time", Command: "make sim",
		Figures: []result.Figure{
			{Name: "seeds played", Value: float64(len(wild)), Unit: ""},
			{Name: "invariants broken", Value: float64(violations(broken)), Unit: "", Goal: "0"},
			{Name: "region dies, nothing else: until its dial is at 0", Value: quantile(calmSum.Failover, 0.5), Unit: "s", Spread: spread(calmSum.Failover)},
			{Name: "the same, the slowest", Value: quantile(calmSum.Failover, 1), Unit: "s", Goal: "< 60"},
			{Name: "region dies while everything goes wrong: until its dial is at 0", Value: quantile(sum.Failover, 0.5), Unit: "s", Spread: spread(sum.Failover)},
			{Name: "requests sent to a dead region by the accelerator, region dies, nothing else", Value: 100 * calmSum.DeadDoor / calmSum.Requests, Unit: "%"},
		},
		Notes: []string{
			"A seed is an hour in which things go wrong and an hour and a quarter in which they get well again. Two controllers in each region; the wildest seeds lose 2 % of all messages, repeat 2 %, delay 3 % by seconds, " +
				"and have a large fault every half a minute. What the others are about: controllers crash at any line, stand still for minutes, have clocks that are up to 2 s off; links, regions and the accelerator's API are cut off; disks are slow for minutes, so that each call of the tables takes seconds; regions and " +
				"instances die; zones have no capacity; instances never come up; a hand writes the number of instances, or launches one. Half of the regions' EC2 honour client tokens; half of the seeds scale by forecast and reserve, half by the plain rules.",
			"When a region dies, its dial is lowered after it was seen down for 5 s, by a standby when the leader died with it. Dials are the slow loop: what the accelerator sends to a dead region before its health checks notice is for " +
				"Envoy's spill and the tenant's client, which are not part of this simulation.",
			"That each invariant catches a bug which is planted on purpose is asserted by the tests of package controller/sim.",
		},
	}
	invariants := result.Table{Title: "Invariants", Columns: []string{"what must hold", "broken"}}
	for _, i := range sim.Invariants {
		invariants.Rows = append(invariants.Rows, []string{string(i), fmt.Sprint(broken[i])})
	}
	played := result.Table{Title: "What was played", Columns: []string{"what", "how many"}}
	for _, row := range []struct {
		what string
		n    int
	}{
		{"large faults", sum.Faults},
		{"controllers crashed", sum.Crashes},
		{"regions died", sum.RegionsLost},
		{"links cut", sum.Cuts},
		{"regions whose disks were slow", sum.SlowDisks},
		{"leaderships", sum.Leaderships},
		{"dials lowered to 0", sum.Failovers},
		{"instances launched", sum.Launches},
		{"instances terminated", sum.Terminations},
	} {
		played.Rows = append(played.Rows, []string{row.what, fmt.Sprint(row.n)})
	}
	r.Tables = []result.Table{invariants, played}
	return r
}

func violations(broken map[sim.Invariant]int) (n int) {
	for _, count := range broken {
		n += count
	}
	return n
}

func seconds(all []time.Duration) []float64 {
	s := make([]float64, len(all))
	for i, d := range all {
		s[i] = d.Seconds()
	}
	slices.Sort(s)
	return s
}

func quantile(all []time.Duration, share float64) float64 {
	return result.Quantile(seconds(all), share)
}

func spread(all []time.Duration) *result.Spread {
	s := result.SpreadOf(seconds(all))
	return &s
}
