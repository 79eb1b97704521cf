package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

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

// measure runs one contender on fresh engines.
func measure(ctx context.Context, c contender, s scenario, requests []request) (m measured, err error) {
	dir, err := os.MkdirTemp("", "mrgc-routing-")
	if err != nil {
		return m, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	e, err := startEngines(ctx, dir, s)
	if err != nil {
		return m, fmt.Errorf("engines: %w", err)
	}
	defer e.stop()
	r, err := c.start(ctx, dir, e)
	if err != nil {
		return m, fmt.Errorf("%s: %w", c.name, err)
	}
	defer r.Stop()
	if err := e.reset(); err != nil {
		return m, err
	}
	busyBefore, totalBefore, err := rig.MachineTime()
	if err != nil {
		return m, err
	}
	ownBefore := r.ProcessorTime()
	time.AfterFunc(2*time.Second, e.mark)
	outcomes := play(ctx, r.Front, requests)
	if ctx.Err() != nil {
		return m, ctx.Err()
	}
	own := r.ProcessorTime() - ownBefore
	busy, total, err := rig.MachineTime()
	if err != nil {
		return m, err
	}
	m.machine = float64(busy-busyBefore) / float64(total-totalBefore)
	m.cpu = own.Seconds() * 1e3 / float64(len(requests))
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
	m.hits, m.late, err = e.tally(s)
	return m, err
}
