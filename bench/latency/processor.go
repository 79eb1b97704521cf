package main

import (
	"context"
	"fmt"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/mrgc/mrgc/bench/cluster"
	"github.com/mrgc/mrgc/bench/result"
)

// load is what a cluster did under a steady load.
type load struct {
	requests int
	used     map[string]time.Duration // processor time by program, idle work included
}

// keepBusy asks through everything, so many at once, until the window is over,
// and adds up what the cluster used until the last answer was complete.
func keepBusy(ctx context.Context, c *cluster.Cluster, w way, atOnce int, body []byte, window time.Duration) (load, error) {
	before, err := c.ProcessorTime()
	if err != nil {
		return load{}, err
	}
	counts := make([]int, atOnce)
	group, working := errgroup.WithContext(ctx)
	over := time.Now().Add(window)
	for i := range counts {
		group.Go(func() error {
			for ; time.Now().Before(over); counts[i]++ {
				if _, err := w.ask(working, body); err != nil {
					return err
				}
			}
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		return load{}, err
	}
	after, err := c.ProcessorTime()
	if err != nil {
		return load{}, err
	}
	l := load{used: map[string]time.Duration{}}
	for _, n := range counts {
		l.requests += n
	}
	for program := range after {
		l.used[program] = after[program] - before[program]
	}
	return l, nil
}

// costOfRequest is where processor time goes, program by program.
func costOfRequest(ctx context.Context, c *cluster.Cluster, w ways, window time.Duration, r *result.Result) error {
	for _, tokens := range []int{1, 101} {
		l, err := keepBusy(ctx, c, w.through, 1, w.body(tokens)(true), window)
		if err != nil {
			return err
		}
		delete(l.used, simulator)
		b := l.breakdown(fmt.Sprintf("processor time of a request, %d tokens", tokens), "ms", time.Millisecond*time.Duration(l.requests))
		r.Figures = append(r.Figures, result.Figure{Name: b.Name + " (simulator, streamed, everything but the engine)", Value: b.Sum(), Unit: b.Unit})
		r.Breakdowns = append(r.Breakdowns, b)
	}
	return nil
}

// simulator is the program that is the engine where no llama.cpp is. Beside
// llama.cpp it is what started it, and does nothing.
const simulator = "engine"

// shareOfEngine is what everything around llama.cpp uses beside it.
func shareOfEngine(ctx context.Context, c *cluster.Cluster, w ways, window time.Duration, r *result.Result) error {
	for _, atOnce := range []int{1, 8} {
		l, err := keepBusy(ctx, c, w.through, atOnce, w.body(64)(true), window)
		if err != nil {
			return err
		}
		engine := l.used[cluster.Llama]
		if engine == 0 {
			return fmt.Errorf("%s used no processor time for %d requests", cluster.Llama, l.requests)
		}
		delete(l.used, cluster.Llama)
		b := l.breakdown(fmt.Sprintf("processor time beside llama.cpp's, %d at once", atOnce), "%", engine/100)
		r.Figures = append(r.Figures, result.Figure{
			Name:  fmt.Sprintf("%s (streamed, 64 tokens, %d requests)", b.Name, l.requests),
			Value: b.Sum(), Unit: b.Unit, Goal: "≤ 5",
		})
		r.Breakdowns = append(r.Breakdowns, b)
	}
	return nil
}

// breakdown gives each program's processor time in a unit of one's own.
func (l load) breakdown(name, unitName string, unit time.Duration) result.Breakdown {
	b := result.Breakdown{Name: name, Unit: unitName, Parts: map[string]float64{}}
	for program, used := range l.used {
		b.Parts[program] = float64(used) / float64(unit)
	}
	return b
}
