package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/mrgc/mrgc/bench/result"
	"github.com/mrgc/mrgc/bench/rig"
)

// scenario is traffic, and the engines that it meets.
type scenario struct {
	name    string
	reuse   bool
	failing bool // one engine answers every request with an error, at once
}

// Of four engines one is half as fast as the others.
const (
	engineCount = 4
	slowFactor  = 2.0
)

// Runs beyond these measure the machine and are void.
const (
	maxLag = 5 * time.Millisecond // p99 of how late requests were sent
	maxCPU = 0.8                  // of the whole machine
)

// measured is one run: one contender, one seed.
type measured struct {
	first   result.Spread // time to first token of what was answered, ms
	p99     float64       // ms
	failed  int
	sent    int
	lag     time.Duration
	machine float64 // share of the machine's processor time
	cpu     float64 // the contender's own, ms per request
	hits    float64 // share of prompt tokens that engines had cached
	// late is the failing engine's share of the attempts from two seconds on;
	// NaN where there is none.
	late float64
}

func (m measured) void() string {
	switch {
	case m.lag > maxLag:
		return fmt.Sprintf("the client was %v late", m.lag.Round(100*time.Microsecond))
	case m.machine > maxCPU:
		return fmt.Sprintf("the machine was %.0f %% busy", 100*m.machine)
	}
	return ""
}

// bout is a contender before fresh engines of its own.
type bout struct {
	contender contender
	dir       string
	engines   *engines
	router    *rig.Running
}

func prepare(ctx context.Context, c contender, s scenario) (b *bout, err error) {
	b = &bout{contender: c}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("%s: %w", c.name, err), b.stop())
		}
	}()
	if b.dir, err = os.MkdirTemp("", "mrgc-routing-"); err != nil {
		return b, err
	}
	if b.engines, err = startEngines(ctx, b.dir, s); err != nil {
		return b, fmt.Errorf("engines: %w", err)
	}
	if b.router, err = c.start(ctx, b.dir, b.engines); err != nil {
		return b, err
	}
	return b, b.engines.reset()
}

func (b *bout) stop() error {
	if b.router != nil {
		b.router.Stop()
	}
	if b.engines != nil {
		b.engines.stop()
	}
	return os.RemoveAll(b.dir)
}

// run has the contender route the traffic.
func (b *bout) run(ctx context.Context, s scenario, requests []request) (m measured, err error) {
	ownBefore := b.router.ProcessorTime()
	marked := time.AfterFunc(2*time.Second, b.engines.mark)
	defer marked.Stop()
	outcomes := play(ctx, b.router.Front, requests)
	if ctx.Err() != nil {
		return m, ctx.Err()
	}
	m.cpu = (b.router.ProcessorTime() - ownBefore).Seconds() * 1e3 / float64(len(requests))
	m.count(outcomes)
	m.hits, m.late, err = b.engines.tally(s)
	return m, err
}

// measure runs contenders beside each other, each before engines of its own, at
// the same time: what disturbs one disturbs all. How much they disturb each other
// shows in how late requests are sent and in how busy the machine is.
func measure(ctx context.Context, contenders []contender, s scenario, requests []request) (all []measured, err error) {
	var bouts []*bout
	defer func() {
		for _, b := range bouts {
			err = errors.Join(err, b.stop())
		}
	}()
	for _, c := range contenders {
		b, err := prepare(ctx, c, s)
		if err != nil {
			return nil, err
		}
		bouts = append(bouts, b)
	}
	busyBefore, totalBefore, err := rig.MachineTime()
	if err != nil {
		return nil, err
	}
	all = make([]measured, len(bouts))
	var running errgroup.Group
	for i, b := range bouts {
		running.Go(func() (err error) {
			all[i], err = b.run(ctx, s, requests)
			return err
		})
	}
	if err := running.Wait(); err != nil {
		return nil, err
	}
	busy, total, err := rig.MachineTime()
	for i := range all {
		all[i].machine = float64(busy-busyBefore) / float64(total-totalBefore)
	}
	return all, err
}

// count takes down how the requests went.
func (m *measured) count(outcomes []rig.Outcome) {
	m.sent = len(outcomes)
	var firsts, lags []float64
	for _, o := range outcomes {
		lags = append(lags, o.Lag.Seconds())
		if o.Err != nil {
			m.failed++
			continue
		}
		firsts = append(firsts, o.First.Seconds()*1e3)
	}
	m.first = result.SpreadOf(firsts)
	m.p99 = quantile(firsts, 0.99)
	m.lag = time.Duration(quantile(lags, 0.99) * float64(time.Second))
}
