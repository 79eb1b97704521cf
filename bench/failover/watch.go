package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/mrgc/mrgc/bench/cluster"
	"github.com/mrgc/mrgc/controller"
	"github.com/mrgc/mrgc/controller/accelerator"
	"github.com/mrgc/mrgc/internal/fleet"
	"github.com/mrgc/mrgc/internal/state"
	"github.com/mrgc/mrgc/internal/state/open"
)

const (
	decidedPoll = 100 * time.Millisecond
	dialsPoll   = 500 * time.Millisecond
	callTimeout = 2 * time.Second
)

// watcher follows what controllers have decided of a region, and what the accelerator
// has.
type watcher struct {
	region fleet.Region
	store  state.Store
	driver *accelerator.Accelerator
	cancel context.CancelFunc
	ending sync.WaitGroup

	mu      sync.Mutex
	now     seen        // guarded by mu
	phases  []string    // guarded by mu: each that the region has been in
	dials   []int       // guarded by mu: each that the accelerator had
	moves   []move      // guarded by mu: each that was decided, of any region
	led     []time.Time // guarded by mu: when the lead of the loop was renewed
	version int64       // guarded by mu: of the lead's lease
	changed chan struct{}
}

// move is a region's state that was decided.
type move struct {
	at     time.Time
	region fleet.Region
	phase  state.Failover
	dial   int
}

// seen is how a region is.
type seen struct {
	phase   state.Failover
	decided int  // the dial
	dial    int  // that the accelerator has
	settled bool // what is decided is in effect
	normal  bool // every region is NORMAL
	healthy bool // every endpoint is, by the accelerator's checks
}

func (s seen) well() bool { return s.normal && s.healthy }

func watch(ctx context.Context, c *cluster.Cluster, region fleet.Region) (*watcher, error) {
	env, err := c.Env()
	if err != nil {
		return nil, err
	}
	store, err := open.Store(ctx, env["MRGC_STATE"], nil)
	if err != nil {
		return nil, err
	}
	driver, err := c.Accelerator(ctx)
	if err != nil {
		return nil, errors.Join(err, store.Close())
	}
	ctx, cancel := context.WithCancel(ctx)
	w := &watcher{region: region, store: store, driver: driver, cancel: cancel, changed: make(chan struct{})}
	w.now.dial = -1
	w.ending.Go(func() { w.each(ctx, decidedPoll, w.lookAtDecided) })
	w.ending.Go(func() { w.each(ctx, dialsPoll, w.lookAtDials) })
	return w, nil
}

func (w *watcher) close() error {
	w.cancel()
	w.ending.Wait()
	w.driver.Close()
	return w.store.Close()
}

func (w *watcher) each(ctx context.Context, every time.Duration, look func(context.Context)) {
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		call, cancel := context.WithTimeout(ctx, callTimeout)
		look(call)
		cancel()
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// note changes what is seen, and wakes who waits for it.
func (w *watcher) note(change func(*seen)) {
	w.mu.Lock()
	defer w.mu.Unlock()
	was := w.now
	change(&w.now)
	if w.now == was {
		return
	}
	if w.now.phase != was.phase {
		w.phases = append(w.phases, string(w.now.phase))
	}
	if w.now.dial != was.dial {
		w.dials = append(w.dials, w.now.dial)
	}
	close(w.changed)
	w.changed = make(chan struct{})
}

func (w *watcher) lookAtDecided(ctx context.Context) {
	if lease, err := state.LeaseTable(w.store).Get(ctx, state.LeaseKey(controller.RoutingLease)); err == nil {
		w.noteLead(lease.Version)
	}
	row, err := state.RoutingTable(w.store).Get(ctx, state.RoutingKey)
	if err != nil {
		return // nothing is decided yet, or the store is busy
	}
	normal := len(row.Value.Regions) > 0
	for _, r := range row.Value.Regions {
		normal = normal && r.State == state.Normal
	}
	w.noteMoves(row.Value.Regions)
	of := row.Value.Regions[w.region]
	w.note(func(s *seen) {
		s.normal = normal
		if s.decided != of.Dial {
			s.settled = false // until it is seen to be
		}
		s.phase, s.decided = of.State, of.Dial
	})
}

func (w *watcher) noteLead(version int64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.version != version {
		w.version, w.led = version, append(w.led, time.Now())
	}
}

func (w *watcher) noteMoves(regions map[fleet.Region]state.RegionRouting) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, region := range slices.Sorted(maps.Keys(regions)) {
		now := move{time.Now(), region, regions[region].State, regions[region].Dial}
		last := move{}
		for _, m := range w.moves {
			if m.region == region {
				last = m
			}
		}
		if last.phase != now.phase || last.dial != now.dial {
			w.moves = append(w.moves, now)
		}
	}
}

// since gives what was decided since a fault began, and for how long at most nobody
// renewed the lead.
func (w *watcher) since(began time.Time) (moves []move, unled time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, m := range w.moves {
		if m.at.After(began) {
			moves = append(moves, m)
		}
	}
	last := began
	for _, at := range w.led {
		if at.After(began) {
			unled, last = max(unled, at.Sub(last)), at
		}
	}
	return moves, max(unled, time.Since(last))
}

func (w *watcher) lookAtDials(ctx context.Context) {
	groups, err := w.driver.Groups(ctx)
	if err != nil {
		return
	}
	deployed, err := w.driver.Deployed(ctx)
	if err != nil {
		return
	}
	healthy := len(groups) > 0
	for _, g := range groups {
		healthy = healthy && g.Healthy == g.Endpoints
	}
	w.note(func(s *seen) {
		s.healthy = healthy
		s.dial = groups[w.region].Dial
		s.settled = deployed && s.dial == s.decided
	})
}

// until waits for something to be seen, and says how long that took.
func (w *watcher) until(ctx context.Context, limit time.Duration, what string, is func(seen) bool) (time.Duration, error) {
	began := time.Now()
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	for {
		w.mu.Lock()
		now, changed := w.now, w.changed
		w.mu.Unlock()
		if is(now) {
			return time.Since(began), nil
		}
		select {
		case <-ctx.Done():
			return 0, fmt.Errorf("%s: not within %s: it is %+v", what, limit, now)
		case <-changed:
		}
	}
}

// history gives the phases and dials so far.
func (w *watcher) history() (phases []string, dials []int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.phases), slices.Clone(w.dials)
}

// turns counts how often dials changed their direction.
func turns(dials []int) (n int) {
	direction := 0
	for i := 1; i < len(dials); i++ {
		next := 1
		if dials[i] < dials[i-1] {
			next = -1
		}
		if direction != 0 && next != direction {
			n++
		}
		direction = next
	}
	return n
}
