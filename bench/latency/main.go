// Latency measures what it costs to go through everything instead of straight
// to the engine: time to the first token and in total, processor time, and
// memory for streams that are open.
//
// Everything is measured in one run and in pairs, because machines are noisy: a
// pair asks the engine's own socket and the tenant's endpoint, in random order,
// one right after the other, and what counts is the difference. The engine is
// first the simulator, which takes no time of its own, then llama.cpp.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/mrgc/mrgc/bench/cluster"
	"github.com/mrgc/mrgc/bench/result"
)

// options say how long to measure.
type options struct {
	simPairs, llamaPairs int           // of each kind of request
	rounds               int           // over the hops
	window               time.Duration // over which processor time is counted
	streams              int           // held open at once
}

func main() {
	var o options
	flag.IntVar(&o.simPairs, "sim-pairs", 300, "pairs of each kind of request to the simulator")
	flag.IntVar(&o.llamaPairs, "llama-pairs", 20, "pairs of each kind of request to llama.cpp; 0: none of it")
	flag.IntVar(&o.rounds, "rounds", 300, "requests to each hop")
	flag.DurationVar(&o.window, "window", 20*time.Second, "how long processor time is counted")
	flag.IntVar(&o.streams, "streams", 120, "streams held open at once; 0: none")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, o); err != nil {
		fmt.Fprintln(os.Stderr, "latency:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, o options) error {
	r := result.Result{
		Name: "latency", Title: "Latency: straight to the engine, and through everything", Command: "make bench-latency",
	}
	for _, part := range []func(context.Context, options, *result.Result) error{measureSim, measureLlama, measureStreams} {
		if err := part(ctx, o, &r); err != nil {
			return err
		}
	}
	r.Notes = append(r.Notes,
		"A pair is one request, or eight at once of which the mean counts, straight to the engine's Unix socket and the same "+
			"through `mrgc connect`, in random order. The first token is the first that is not empty.")
	r.Print(os.Stdout)
	return r.Write()
}

// measureSim is about time: the simulator takes none, so that all of it is ours.
func measureSim(ctx context.Context, o options, r *result.Result) error {
	return with(ctx, func(c *cluster.Cluster) error {
		w, err := waysOf(c, true)
		if err != nil {
			return err
		}
		compared, err := compare(ctx, w, "simulator, 16 tokens", w.body(16), o.simPairs)
		if err != nil {
			return err
		}
		for _, p := range compared {
			if p.stream && p.atOnce == 1 {
				added := result.SpreadOf(p.added().first)
				r.Figures = append(r.Figures,
					result.Figure{Name: "added to the first token by everything, p50 (simulator, 1 at once)", Value: added.P50, Unit: "ms", Goal: "≤ 2"},
					result.Figure{Name: "added to the first token by everything, p90 (simulator, 1 at once)", Value: added.P90, Unit: "ms"})
			}
			r.Comparisons = append(r.Comparisons, p.comparisons()...)
		}
		if err := measureHops(ctx, c, w, o.rounds, r); err != nil {
			return err
		}
		return costOfRequest(ctx, c, w, o.window/2, r)
	}, "--engine", "sim", "--regions", "use1", "--instances", "1")
}

// measureLlama is about what matters in the end: an engine that works.
func measureLlama(ctx context.Context, o options, r *result.Result) error {
	if o.llamaPairs == 0 {
		return nil
	}
	return with(ctx, func(c *cluster.Cluster) error {
		w, err := waysOf(c, false)
		if err != nil {
			return err
		}
		compared, err := compare(ctx, w, "llama.cpp, 16 tokens", w.body(16), o.llamaPairs)
		if err != nil {
			return err
		}
		for _, p := range compared {
			r.Comparisons = append(r.Comparisons, p.comparisons()...)
		}
		return shareOfEngine(ctx, c, w, o.window, r)
	}, "--engine", "llama", "--regions", "use1", "--instances", "1")
}

// with runs a cluster for as long as use takes.
func with(ctx context.Context, use func(*cluster.Cluster) error, args ...string) error {
	c, err := cluster.Start(ctx, append([]string{"--ask=false"}, args...)...)
	if err != nil {
		return err
	}
	return errors.Join(use(c), c.Stop())
}
