package controller

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/mrgc/mrgc/controller/autoscaler"
	"github.com/mrgc/mrgc/internal/fleet"
	"github.com/mrgc/mrgc/internal/state"
)

// Cloud launches, lists and terminates the instances of a region.
type Cloud interface {
	// Launch launches an action's instance, once for a token. That there is no capacity
	// is a result. After an error it may be launched or not.
	Launch(ctx context.Context, action autoscaler.Action) (autoscaler.Result, error)
	// Instances lists those of the region that are not terminated, all of them.
	Instances(ctx context.Context) ([]CloudInstance, error)
	// Terminate terminates one; one that is not there is.
	Terminate(ctx context.Context, id string) error
}

// CloudInstance is an instance as its cloud lists it. Its id is what it calls itself in
// the fleet's store.
type CloudInstance struct {
	ID, Intent, Zone string
	Leaving          bool // it is shutting down
}

// Scaled is what a region is scaled by.
type Scaled struct {
	Cloud Cloud
	Fleet fleet.Store
	// Washes is where instances record their washes. nil: there is none to wait for.
	Washes state.Store
	// Wash orders the full wash of an instance that has drained. It goes with Washes.
	Wash func(ctx context.Context, in *fleet.Instance) error
	// StaleAfter gives the age of a heartbeat that no longer counts, at each look anew.
	// nil: 15 s.
	StaleAfter func() time.Duration
}

// NewScaling is the loop that scales a region by EC2, or what stands for it, and by what
// instances say in the fleet's store. How many requests there are it learns from two
// heartbeats of an instance, so that the first decision takes as long. Config gives the
// rules that hold now.
func NewScaling(config func() autoscaler.Config, of Scaled) (Scaling, error) {
	if of.Cloud == nil || of.Fleet == nil {
		return Scaling{}, errors.New("controller: scaling needs a cloud and the fleet's store")
	}
	if (of.Washes == nil) != (of.Wash == nil) {
		return Scaling{}, errors.New("controller: washes are ordered and recorded, or neither")
	}
	if of.StaleAfter == nil {
		of.StaleAfter = staleByDefault
	}
	s := &scaler{Scaled: of, region: config().Region, heard: map[string]*heard{}, mean: map[string]float64{}, drained: map[string]*drainSeen{}}
	return Scaling{Config: config, Observe: s.observe, Decided: s.decided, Execute: s.execute}, nil
}

// scaler is the edge of the scaling loop. What it remembers is of what it has seen, and
// is seen again by the next leader.
type scaler struct {
	Scaled
	region fleet.Region

	mu      sync.Mutex
	heard   map[string]*heard     // guarded by mu; by instance
	mean    map[string]float64    // guarded by mu; tokens of a request, by model
	drained map[string]*drainSeen // guarded by mu; by instance
	results []autoscaler.Result   // guarded by mu; no decision on them is stored yet
}

func (s *scaler) observe(ctx context.Context) (autoscaler.Observation, error) {
	o := autoscaler.Observation{Others: map[fleet.Region]autoscaler.Load{}}
	listed, err := s.Cloud.Instances(ctx)
	if err != nil {
		return o, err // without it nothing could be decided
	}
	o.Listed = true
	snapshot, fleetErr := s.Fleet.Snapshot(ctx)
	s.mu.Lock()
	defer s.mu.Unlock()
	byID := map[string]*fleet.Instance{}
	staleAfter := s.StaleAfter()
	if fleetErr == nil {
		ours, heard := 0, 0
		for _, in := range snapshot.Instances {
			byID[in.ID] = in
			if in.Region != s.region {
				continue
			}
			if ours++; !snapshot.Stale(in, staleAfter) {
				heard++
			}
		}
		o.Known = heard > 0 || ours == 0 // a region does not fall silent at once; the way of its heartbeats does
		s.load(&o, snapshot, staleAfter)
	}
	for _, in := range listed {
		seen := autoscaler.Instance{ID: in.ID, Intent: in.Intent, Zone: in.Zone, Leaving: in.Leaving}
		if says := byID[in.ID]; says != nil {
			stale := snapshot.Stale(says, staleAfter)
			seen.Registered, seen.Draining = true, says.Draining
			seen.Healthy = says.Health.OK() && !stale
			seen.Drained = s.hasDrained(says, snapshot.At)
			if seen.Drained {
				if seen.Washed, err = s.hasWashed(ctx, in.ID); err != nil {
					return o, err
				}
			}
		}
		o.Instances = append(o.Instances, seen)
	}
	for id := range s.drained {
		if in := byID[id]; fleetErr == nil && (in == nil || !in.Draining) {
			delete(s.drained, id)
		}
	}
	o.Results = slices.Clone(s.results)
	return o, nil
}

// decided forgets the results that a decision was made on, now that it is stored.
func (s *scaler) decided(o autoscaler.Observation) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.results = slices.Clone(s.results[len(o.Results):])
}

// load fills in what regions' tenants ask for. A region that has instances and has not
// been heard of lately is one whose load is not known.
func (s *scaler) load(o *autoscaler.Observation, snapshot *fleet.Snapshot, staleAfter time.Duration) {
	regions := map[fleet.Region]*asked{} // nil: not known
	there := map[string]bool{}
	for _, in := range snapshot.Instances {
		there[in.ID] = true
		h := s.heard[in.ID]
		if h == nil {
			h = &heard{}
			s.heard[in.ID] = h
		}
		h.see(in)
		of, seen := regions[in.Region]
		if !seen {
			regions[in.Region] = nil
		}
		if snapshot.Stale(in, staleAfter) {
			continue
		}
		if of == nil {
			of = &asked{}
		}
		if of.add(*h) {
			regions[in.Region] = of
		}
	}
	for id := range s.heard {
		if !there[id] {
			delete(s.heard, id)
		}
	}
	for _, region := range slices.Sorted(maps.Keys(regions)) {
		var load autoscaler.Load
		if of := regions[region]; of != nil {
			load = of.load(s.mean)
		}
		if region == s.region {
			o.Load = load
		} else {
			o.Others[region] = load
		}
	}
}

// drainSeen is an instance that drains, as it was seen.
type drainSeen struct {
	fleet.Drain
	since time.Time // when there were no requests, of a router's last one, too
}

func (s *scaler) hasDrained(in *fleet.Instance, now time.Time) bool {
	if !in.Draining {
		return false
	}
	d := s.drained[in.ID]
	if d == nil {
		d = &drainSeen{}
		s.drained[in.ID] = d
	}
	switch done := d.See(in); {
	case !done:
		d.since = time.Time{}
	case d.since.IsZero():
		d.since = now
	}
	return !d.since.IsZero()
}

// hasWashed says whether a wash has passed that began after an instance had drained.
func (s *scaler) hasWashed(ctx context.Context, id string) (bool, error) {
	if s.Washes == nil {
		return true, nil
	}
	rows, err := state.WashTable(s.Washes).List(ctx, state.Query{Partition: id, Newest: true, Limit: 1})
	if errors.Is(err, state.ErrNotWhole) {
		return false, nil // another one is ordered
	}
	if err != nil {
		return false, fmt.Errorf("washes of %s: %w", id, err)
	}
	since := s.drained[id].since
	return slices.ContainsFunc(rows, func(row state.Record[state.Wash]) bool { return row.Value.Passed && row.Value.StartedAt.After(since) }), nil
}

func (s *scaler) execute(ctx context.Context, _ string, a autoscaler.Action) error {
	switch a.Kind {
	case autoscaler.Launch:
		result, err := s.Cloud.Launch(ctx, a)
		if err != nil {
			return err
		}
		s.mu.Lock()
		s.results = append(s.results, result)
		s.mu.Unlock()
		return nil
	case autoscaler.Drain:
		if err := s.Fleet.SetDraining(ctx, a.Instance, true); !errors.Is(err, fleet.ErrNotFound) {
			return err
		}
		return nil // it never registered, and takes no requests
	case autoscaler.Wash:
		return s.wash(ctx, a.Instance)
	case autoscaler.Terminate:
		if err := s.Cloud.Terminate(ctx, a.Instance); err != nil {
			return err
		}
		return s.Fleet.Deregister(ctx, a.Instance)
	default:
		return fmt.Errorf("nobody knows how to %s", a.Kind)
	}
}

func (s *scaler) wash(ctx context.Context, id string) error {
	if s.Wash == nil {
		return nil
	}
	snapshot, err := s.Fleet.Snapshot(ctx)
	if err != nil {
		return err
	}
	at := slices.IndexFunc(snapshot.Instances, func(in *fleet.Instance) bool { return in.ID == id })
	if at < 0 {
		return nil // it has gone, which the next step sees
	}
	return s.Wash(ctx, snapshot.Instances[at])
}
