package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/mrgc/mrgc/bench/cluster"
	"github.com/mrgc/mrgc/bench/result"
	"github.com/mrgc/mrgc/internal/state"
)

const (
	// killPoll is how soon a process of a region that is down is killed again.
	killPoll = 20 * time.Millisecond
	// recoveryLimit is more than a recovery takes by its rules (docs/failover.md).
	recoveryLimit = 12 * time.Minute
)

// story is what a region's death and return cost.
type story struct {
	down               time.Duration
	active, settled    time.Duration // from its death
	recovering, normal time.Duration // from when it was let come back
	phases             []string
	dials              []int
	died, back         tally // of package client
	diedNear, backNear tally // through the accelerator
	moved              uint64
	unled              time.Duration // while it was down, at most
}

// enginesOf are a region's engines: `mrgc up` numbers them in the order of regions.
var enginesOf = map[string][]string{victim: {"engine-0", "engine-1"}}

// partOf says whether a child is of a region.
func partOf(name, region string) bool { return strings.Contains(name+"-", "-"+region+"-") }

// kill sends SIGKILL to the children that are chosen, and to what they have started, and
// says how many children that were.
func kill(c *cluster.Cluster, chosen func(name string) bool) (killed int, err error) {
	children, err := c.Children()
	if err != nil {
		return 0, err
	}
	for name, pid := range children {
		if !chosen(name) {
			continue
		}
		if _, err := killBelow(pid); err != nil {
			return killed, err
		}
		if syscall.Kill(pid, syscall.SIGKILL) == nil {
			killed++
		}
	}
	return killed, nil
}

// killBelow does that to what a process has started: a DynamoDB Local.
func killBelow(pid int) (killed int, err error) {
	below, err := cluster.Below(pid)
	if err != nil {
		return 0, err
	}
	for _, child := range below {
		if syscall.Kill(child, syscall.SIGKILL) == nil {
			killed++
		}
	}
	return killed, nil
}

// keepDown kills every process of a region, and each that is started again, until
// release is called.
func keepDown(ctx context.Context, c *cluster.Cluster, region string) (release func() error, err error) {
	ofRegion := func(name string) bool { return partOf(name, region) || slices.Contains(enginesOf[region], name) }
	return keepKilling(ctx, 13, func() (int, error) { return kill(c, ofRegion) })
}

// keepKilling kills again and again, the first time so many processes, until release is
// called.
func keepKilling(ctx context.Context, atLeast int, kill func() (int, error)) (release func() error, err error) {
	killed, err := kill()
	if err != nil {
		return nil, err
	}
	if killed < atLeast {
		return nil, fmt.Errorf("killed %d processes, want %d", killed, atLeast)
	}
	ctx, cancel := context.WithCancel(ctx)
	ended := make(chan error, 1)
	go func() {
		tick := time.NewTicker(killPoll)
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				ended <- nil
				return
			case <-tick.C:
				if _, err := kill(); err != nil {
					ended <- err
					return
				}
			}
		}
	}()
	return sync.OnceValue(func() error {
		cancel()
		return <-ended
	}), nil
}

// killRegion has the victim die under load, and come back.
func killRegion(ctx context.Context, c *cluster.Cluster, w *watcher, o options) (s story, err error) {
	env, err := c.Env()
	if err != nil {
		return s, err
	}
	direct, err := startLoad(ctx, c, strings.Split(env["MRGC_ENDPOINTS"], ","), o.perSecond)
	if err != nil {
		return s, err
	}
	defer direct.stop()
	near, err := startLoad(ctx, c, []string{env["MRGC_ACCELERATOR_"+strings.ToUpper(victim)]}, o.perSecond)
	if err != nil {
		return s, err
	}
	defer near.stop()
	if err := wait(ctx, o.around); err != nil {
		return s, err
	}

	died := time.Now()
	release, err := keepDown(ctx, c, victim)
	if err != nil {
		return s, err
	}
	defer func() { err = errors.Join(err, release()) }()
	if s.active, err = w.until(ctx, time.Minute, "FAILOVER_ACTIVE", func(n seen) bool { return n.phase == state.FailoverActive }); err != nil {
		return s, err
	}
	fmt.Printf("%s killed; FAILOVER_ACTIVE after %.1f s\n", victim, seconds(s.active))
	if _, err = w.until(ctx, 2*time.Minute, "its dial is at 0, in effect", func(n seen) bool { return n.decided == 0 && n.settled }); err != nil {
		return s, err
	}
	s.settled = time.Since(died)
	fmt.Printf("dials settled after %.1f s\n", seconds(s.settled))
	if err := wait(ctx, o.down-time.Since(died)); err != nil {
		return s, err
	}

	let := time.Now()
	_, s.unled = w.since(died)
	s.down = let.Sub(died)
	if err := release(); err != nil {
		return s, err
	}
	fmt.Printf("%s may come back after %.0f s\n", victim, seconds(s.down))
	if s.recovering, err = w.until(ctx, recoveryLimit, "RECOVERING", func(n seen) bool { return n.phase == state.Recovering }); err != nil {
		return s, err
	}
	fmt.Printf("RECOVERING after %.0f s\n", seconds(s.recovering))
	if _, err = w.until(ctx, recoveryLimit, "NORMAL", func(n seen) bool { return n.well() && n.decided == 100 && n.settled }); err != nil {
		return s, err
	}
	s.normal = time.Since(let)
	if err := wait(ctx, o.around); err != nil {
		return s, err
	}
	s.moved = direct.client.Stats().Moved
	sent, sentNear, end := direct.stop(), near.stop(), time.Now()
	s.phases, s.dials = w.history()
	s.died, s.back = between(sent, died, let), between(sent, let, end)
	s.diedNear, s.backNear = between(sentNear, died, let), between(sentNear, let, end)
	return s, nil
}

// wait waits, unless there is nothing to wait for.
func wait(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}

func (s *story) figures() []result.Figure {
	count := func(name string, n int, goal string) result.Figure {
		return result.Figure{Name: name, Value: float64(n), Unit: "requests", Goal: goal}
	}
	took := func(name string, d time.Duration, goal string) result.Figure {
		return result.Figure{Name: name, Value: seconds(d), Unit: "s", Goal: goal}
	}
	return []result.Figure{
		count("region killed, client: sent or under way", s.died.requests, ""),
		count("region killed, client: failed with no byte yet", s.died.failed, "0"),
		count("region killed, client: answers that were cut", s.died.cut, ""),
		took("region killed, client: the first one sent afterwards is answered after", s.died.next, "≤ 3"),
		took("region killed, client: slowest begin of an answer", s.died.slowest, "≤ 3"),
		count("region killed, accelerator alone: failed with no byte yet", s.diedNear.failed, ""),
		took("region killed, accelerator alone: the last failure after", s.diedNear.lastFailure, ""),
		took("region killed: FAILOVER_ACTIVE after", s.active, "≤ 10"),
		took("region killed: dials settled after", s.settled, "< 60"),
		took("region killed: nobody led the loop for", s.unled, ""),
		count("region restored, client: failed or cut", s.back.failed+s.back.cut, "0"),
		count("region restored, accelerator alone: failed or cut", s.backNear.failed+s.backNear.cut, "0"),
		took("region restored: RECOVERING after", s.recovering, ""),
		took("region restored: NORMAL at 100 %, in effect, after", s.normal, ""),
		{Name: "turns of the region's dial in all of it", Value: float64(turns(s.dials)), Unit: "turns", Goal: "1"},
	}
}

// missed says which goals are.
func (s *story) missed() error {
	const soon = 3 * time.Second // "new requests served elsewhere"
	var missed []error
	want := func(met bool, format string, args ...any) {
		if !met {
			missed = append(missed, fmt.Errorf("goal missed: "+format, args...))
		}
	}
	want(s.died.failed == 0, "%d requests failed that had no byte yet: %w", s.died.failed, s.died.why)
	want(s.died.next > 0 && s.died.next <= soon && s.died.slowest <= soon,
		"the first new request was served elsewhere after %s, and the slowest took %s", s.died.next, s.died.slowest)
	want(s.active <= 10*time.Second, "FAILOVER_ACTIVE after %s", s.active)
	want(s.settled < time.Minute, "dials settled after %s", s.settled)
	for way, back := range map[string]tally{"client": s.back, "accelerator": s.backNear} {
		want(back.failed+back.cut == 0, "%d requests failed, %d were cut while the region came back, by %s: %w", back.failed, back.cut, way, back.why)
	}
	want(turns(s.dials) == 1, "the dial turned %d times: %v, %v", turns(s.dials), s.dials, s.phases)
	return errors.Join(missed...)
}
