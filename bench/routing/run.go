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

// start makes it ready for the traffic. Whatever comes of it, stop it.
func (b *bout) start(ctx context.Context, s scenario) (err error) {
	if b.dir, err = os.MkdirTemp("", "mrgc-routing-"); err != nil {
		return err
	}
	engines, err := startEngines(ctx, b.dir, s)
	if err != nil {
		return fmt.Errorf("%s: engines: %w", b.contender.name, err)
	}
	b.engines = engines
	if b.router, err = b.contender.start(ctx, b.dir, b.engines); err != nil {
		return fmt.Errorf("%s: %w", b.contender.name, err)
	}
	return b.engines.reset()
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
	bouts := make([]*bout, len(contenders))
	defer func() {
		for _, b := range bouts {
			err = errors.Join(err, b.stop())
		}
	}()
	var starting errgroup.Group
	for i, c := range contenders {
		bouts[i] = &bout{contender: c}
		starting.Go(func() error { return bouts[i].start(ctx, s) })
	}
	if err := starting.Wait(); err != nil {
		return nil, err
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
