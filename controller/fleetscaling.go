package controller

import (
	"context"
	"errors"
	"fmt"
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
	// StaleAfter is the age of a heartbeat that no longer counts. Default 15 s.
	StaleAfter time.Duration
}

// NewScaling is the loop that scales a region by EC2, or what stands for it, and by what
// instances say in the fleet's store. How many requests there are it learns from two
// heartbeats of an instance, so that the first decision takes as long.
func NewScaling(config autoscaler.Config, of Scaled) (Scaling, error) {
	if of.Cloud == nil || of.Fleet == nil {
		return Scaling{}, errors.New("controller: scaling needs a cloud and the fleet's store")
	}
	if (of.Washes == nil) != (of.Wash == nil) {
		return Scaling{}, errors.New("controller: washes are ordered and recorded, or neither")
	}
	if of.StaleAfter == 0 {
		of.StaleAfter = defaultStaleAfter
	}
	s := &scaler{Scaled: of, region: config.Region, demand: map[string]*demand{}, drained: map[string]*drainSeen{}}
	return Scaling{Config: config, Observe: s.observe, Execute: s.execute}, nil
}

// scaler is the edge of the scaling loop. What it remembers is of what it has seen, and
// is seen again by the next leader.
type scaler struct {
	Scaled
	region fleet.Region

	mu      sync.Mutex
	demand  map[string]*demand    // guarded by mu; by instance
	drained map[string]*drainSeen // guarded by mu; by instance
	results []autoscaler.Result   // guarded by mu; not observed yet
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
	if fleetErr == nil {
		ours, heard := 0, 0
		for _, in := range snapshot.Instances {
			byID[in.ID] = in
			if in.Region != s.region {
				continue
			}
			if ours++; !snapshot.Stale(in, s.StaleAfter) {
				heard++
			}
		}
		o.Known = heard > 0 || ours == 0 // a region does not fall silent at once; the way of its heartbeats does
		s.load(&o, snapshot)
	}
	for _, in := range listed {
		seen := autoscaler.Instance{ID: in.ID, Intent: in.Intent, Zone: in.Zone, Leaving: in.Leaving}
		if says := byID[in.ID]; says != nil {
			stale := snapshot.Stale(says, s.StaleAfter)
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
	o.Results, s.results = s.results, nil // not before nothing can fail any more
	return o, nil
}

// load fills in what regions' tenants ask for.
func (s *scaler) load(o *autoscaler.Observation, snapshot *fleet.Snapshot) {
	loads := map[fleet.Region]autoscaler.Load{}
	there := map[string]bool{}
	for _, in := range snapshot.Instances {
		there[in.ID] = true
		d := s.demand[in.ID]
		if d == nil {
			d = &demand{}
			s.demand[in.ID] = d
		}
		d.see(in.HeartbeatAt, in.Load.Requests)
		if snapshot.Stale(in, s.StaleAfter) {
			continue
		}
		if rate, known := d.rate(); known {
			load := loads[in.Region]
			load.Fresh, load.Requests = true, load.Requests+rate
			loads[in.Region] = load
		}
	}
	for id := range s.demand {
		if !there[id] {
			delete(s.demand, id)
		}
	}
	for region, load := range loads {
		if region == s.region {
			o.Load = load
		} else {
			o.Others[region] = load
		}
	}
}

// demandOver is what an instance's requests per second are a mean of.
const demandOver = 30 * time.Second

// demand is how many requests an instance has had by which heartbeats, the oldest first.
type demand struct {
	at       []time.Time
	requests []int64
}

// see takes a heartbeat, maybe one that was seen before.
func (d *demand) see(at time.Time, requests int64) {
	last := len(d.at) - 1
	switch {
	case last >= 0 && !at.After(d.at[last]):
		return
	case last >= 0 && requests < d.requests[last]: // its parent has started anew
		d.at, d.requests = nil, nil
	}
	d.at, d.requests = append(d.at, at), append(d.requests, requests)
	for len(d.at) > 2 && at.Sub(d.at[1]) >= demandOver {
		d.at, d.requests = d.at[1:], d.requests[1:]
	}
}

// rate is in requests per second; it is not known by one heartbeat.
func (d *demand) rate() (perSecond float64, known bool) {
	last := len(d.at) - 1
	if last < 1 {
		return 0, false
	}
	return float64(d.requests[last]-d.requests[0]) / d.at[last].Sub(d.at[0]).Seconds(), true
}

// drainSeen is an instance that drains, as it was seen.
type drainSeen struct {
	heartbeat time.Time // the last
	idle      int       // in a row that say that there are no requests
	since     time.Time // when there were none, of a router's last request, too
}

// idleHeartbeats say that an instance has drained: of one, a router may not have known
// of the drain yet.
const idleHeartbeats = 2

func (s *scaler) hasDrained(in *fleet.Instance, now time.Time) bool {
	if !in.Draining {
		return false
	}
	d := s.drained[in.ID]
	if d == nil {
		s.drained[in.ID] = &drainSeen{heartbeat: in.HeartbeatAt}
		return false
	}
	if in.HeartbeatAt.After(d.heartbeat) {
		d.heartbeat = in.HeartbeatAt
		if d.idle++; in.Load.Running+in.Load.Queued > 0 {
			d.idle, d.since = 0, time.Time{}
		}
	}
	if d.idle >= idleHeartbeats && d.since.IsZero() {
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
