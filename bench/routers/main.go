// Routers measures what it costs that a region has several routers, of which
// each picks for itself: how evenly four of them, which tell each other what they
// have in flight, spread requests over instances, against one that sees them all.
//
// Routers are the real ones, in one process, over mutual TLS on loopback. The
// program asks them for picks and writes the access log as Envoy does, with its
// delay. Instances are timers: what is measured is how many requests each has at
// every moment, which no router is told by anyone but its peers. The same seeded
// arrivals go to one router, to four, and to four that do not know each other.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"os/signal"
	"slices"
	"syscall"
	"time"

	"github.com/mrgc/mrgc/bench/result"
)

// scene is a fleet and the load on it.
type scene struct {
	instances int
	inFlight  float64       // on each instance, on average
	takes     time.Duration // a request, on average
}

func (s scene) String() string {
	return fmt.Sprintf("%d instances with %.0f requests each, of %s", s.instances, s.inFlight, s.takes)
}

// warmUp is until 95 % as many end as arrive.
func (s scene) warmUp() time.Duration { return 3 * s.takes }

// contenders are the regions that are compared. The first is the measure of the
// others.
var contenders = []struct {
	name    string
	routers int
	share   bool
}{{"1 router", 1, false}, {"4 routers", 4, true}, {"4 routers that do not know each other", 4, false}}

func main() {
	seeds := flag.Int("seeds", 5, "how many arrivals are drawn; all contenders get each")
	only := flag.Int("instances", 0, "measure only with so many instances; 0: with every number")
	duration := flag.Duration("duration", 10*time.Second, "how long is measured, after a warm-up")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, *seeds, *only, *duration); err != nil {
		fmt.Fprintln(os.Stderr, "routers:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, seeds, only int, duration time.Duration) error {
	r := result.Result{
		Name: "routing-routers", Title: "Several routers: how evenly they spread requests", Command: "make bench-routers",
		Notes: []string{
			fmt.Sprintf("Max over mean of the requests that instances have in flight, as means over windows of 100 ms; p99 over the windows of %s, medians over the seeds. "+
				"Of one router's: geometric mean of the ratios within seeds, with its 95 %% interval.", duration),
			"Arrivals are Poisson, each at a router drawn at random; what requests take is exponential; they may go to every instance, and declare no size. There are no load reports: a router knows of other routers' requests by the exchange alone. " +
				"An end is told at once, as Envoy's access log does.",
			fmt.Sprintf("A play in which requests were asked for more than %s late at p99 is repeated, and after %d of them its seed is void.", lateAtMost, plays),
			"Processor time is of the whole program, which is Envoy and the instances as well; how late a request was asked for is the machine's doing.",
		},
	}
	for _, s := range []scene{{8, 16, time.Second}, {40, 16, 2 * time.Second}} {
		if only != 0 && only != s.instances {
			continue
		}
		if err := measureScene(ctx, &r, s, seeds, duration); err != nil {
			return err
		}
	}
	r.Print(os.Stdout)
	return r.Write()
}

// measureScene has every contender play every seed, and adds what came out.
func measureScene(ctx context.Context, r *result.Result, s scene, seeds int, duration time.Duration) error {
	outcomes := make([][]outcome, len(contenders))
	void := 0
seeds:
	for seed := range uint64(seeds) {
		random := rand.New(rand.NewPCG(seed, 1)) //nolint:gosec // the same seed gives the same arrivals
		arrivals := draw(random, s, duration)
		order := random.Perm(len(contenders))
		of := make([]outcome, len(contenders))
		for _, i := range order {
			c := contenders[i]
			got, err := playInTime(ctx, s, c.routers, c.share, arrivals)
			if errors.Is(err, errLate) {
				fmt.Printf("seed %d is void: %v\n", seed, err)
				void++
				continue seeds
			}
			if err != nil {
				return fmt.Errorf("%s: %w", c.name, err)
			}
			fmt.Printf("%s, seed %d: %s: p99 %.3f, p50 %.3f, late %.1f ms\n", s, seed, c.name, got.p99, got.p50, got.late.Seconds()*1e3)
			of[i] = got
		}
		for i := range of {
			outcomes[i] = append(outcomes[i], of[i])
		}
	}
	if len(outcomes[0]) == 0 {
		return errLate
	}
	table := result.Table{
		Title:   fmt.Sprintf("%s; %d of %d seeds void", s, void, seeds),
		Columns: []string{"contender", "max over mean, p50", "p99", "p99 of one router's", "processor time per request, ms", "asked for late, p99, ms"},
	}
	column := func(i int, of func(outcome) float64) (values []float64) {
		for _, o := range outcomes[i] {
			values = append(values, of(o))
		}
		return values
	}
	p99 := func(o outcome) float64 { return o.p99 }
	for i, c := range contenders {
		low, mid, high := ratio(column(i, p99), column(0, p99))
		table.Rows = append(table.Rows, []string{
			c.name,
			fmt.Sprintf("%.3f", median(column(i, func(o outcome) float64 { return o.p50 }))),
			fmt.Sprintf("%.3f", median(column(i, p99))),
			fmt.Sprintf("%.3f (%.3f–%.3f)", mid, low, high),
			fmt.Sprintf("%.2f", median(column(i, func(o outcome) float64 { return o.processor.Seconds() * 1e3 }))),
			fmt.Sprintf("%.1f", median(column(i, func(o outcome) float64 { return o.late.Seconds() * 1e3 }))),
		})
		if c.share {
			r.Figures = append(r.Figures, result.Figure{
				Name:  fmt.Sprintf("p99 of max over mean in flight, %s, of one router's: %s (95 %% interval %.3f–%.3f)", c.name, s, low, high),
				Value: mid, Goal: "≤ 1.10",
			})
		}
	}
	r.Tables = append(r.Tables, table)
	return nil
}

const (
	// lateAtMost is how late requests may be asked for, at p99, for a play to count.
	lateAtMost = 50 * time.Millisecond
	// plays is how often a play is tried on a machine that others use too.
	plays = 4
)

var errLate = errors.New("the machine was too busy")

// playInTime plays, again if the machine was busy with other things. A play that
// was late each time is errLate: what it shows is the machine.
func playInTime(ctx context.Context, s scene, routers int, share bool, arrivals []arrival) (got outcome, err error) {
	for range plays {
		if got, err = play(ctx, s, routers, share, arrivals); err != nil || got.late <= lateAtMost {
			return got, err
		}
		fmt.Printf("void: requests were asked for %.0f ms late\n", got.late.Seconds()*1e3)
	}
	return got, fmt.Errorf("%w: %d times requests were asked for more than %s late", errLate, plays, lateAtMost)
}

func median(values []float64) float64 { return quantile(values, 0.5) }

// quantile is by nearest rank.
func quantile(values []float64, share float64) float64 {
	sorted := slices.Sorted(slices.Values(values))
	return sorted[max(int(math.Ceil(share*float64(len(sorted))))-1, 0)]
}

// ratio is the geometric mean of a[i]/b[i] with the bounds of its 95 % interval, by
// bootstrap over the pairs (Efron and Tibshirani, An Introduction to the
// Bootstrap, 13.3).
func ratio(a, b []float64) (low, mid, high float64) {
	random := rand.New(rand.NewPCG(1, 2)) //nolint:gosec // the same figures give the same interval
	means := make([]float64, 10_000)
	for i := range means {
		for range a {
			j := random.IntN(len(a))
			means[i] += math.Log(a[j]/b[j]) / float64(len(a))
		}
	}
	for i := range a {
		mid += math.Log(a[i]/b[i]) / float64(len(a))
	}
	return math.Exp(quantile(means, 0.025)), math.Exp(mid), math.Exp(quantile(means, 0.975))
}
