package controller

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/mrgc/mrgc/controller/failover"
	"github.com/mrgc/mrgc/internal/fleet"
	"github.com/mrgc/mrgc/internal/state"
	"github.com/mrgc/mrgc/internal/state/schema"
)

// Routing is the loop that sends tenants to the regions that package failover
// decides. One controller of all regions runs it; the others watch, and the next one
// goes on with what it has seen.
type Routing struct {
	Config failover.Config
	// Every is how often it decides. Default 1 s.
	Every time.Duration
	// Observe looks at the regions. Term is filled in.
	Observe func(ctx context.Context) (failover.Observation, error)
	// Execute sets a dial, or has a region's front doors begin or end to send
	// connections away.
	Execute func(ctx context.Context, id string, action failover.Action) error

	dials *Dials // of the accelerator, for who leads; nil: Observe gives them
	alone bool   // there is no accelerator, and so dials are as they were decided
}

// routedRow is the loop's row.
type routedRow = state.RoutingOf[*failover.State]

const defaultRoutingEvery = time.Second

// RoutingLease is the lease under which the routing loop runs.
const RoutingLease = "failover"

// Loop gives the loop, for [Config.Loops].
func (r Routing) Loop() (Loop[routedRow, failover.Observation, failover.Action], error) {
	if err := r.Config.Check(); err != nil {
		return Loop[routedRow, failover.Observation, failover.Action]{}, err
	}
	if r.Every == 0 {
		r.Every = defaultRoutingEvery
	}
	return Loop[routedRow, failover.Observation, failover.Action]{
		Name: "failover", Lease: RoutingLease, Table: schema.RoutingState, Key: state.RoutingKey, Every: r.Every,
		Tries: 1, // a step decides a dial again until it sees it set; waiting for it would be a gap in what it counts
		Observe: func(ctx context.Context, token int64) (failover.Observation, error) {
			o, err := r.Observe(ctx)
			o.Term = token
			if r.dials != nil && token != 0 {
				o.Dials = r.dials.Known()
			}
			return o, err
		},
		Step: func(row routedRow, o failover.Observation, now time.Time) (routedRow, []failover.Action) {
			was := r.remembered(row, now)
			if r.alone {
				o.Dials = was.Dials()
			}
			next, actions := failover.Step(r.Config, was, o, now)
			return routed(row, next), actions
		},
		Same: func(a, b routedRow) bool {
			if a.Memory == nil || b.Memory == nil {
				return a.Memory == b.Memory
			}
			return a.Memory.Same(*b.Memory)
		},
		Adopt: func(stored, own routedRow, token int64) routedRow {
			if stored.Memory == nil || own.Memory == nil {
				return stored
			}
			return routed(stored, stored.Memory.Watched(*own.Memory, token))
		},
		Explain: explainRouting,
		Execute: r.Execute,
	}, nil
}

func (r Routing) remembered(row routedRow, now time.Time) failover.State {
	if row.Memory == nil {
		return failover.Initial(r.Config, now)
	}
	return *row.Memory
}

// routed is the row of a state, with what people and programs read of it.
func routed(row routedRow, next failover.State) routedRow {
	regions := make(map[fleet.Region]state.RegionRouting, len(next.Regions))
	for name, is := range next.Regions {
		was := row.Regions[name]
		now := state.RegionRouting{
			State: state.Failover(is.Phase), Dial: is.Dial, Drain: is.Drain, Since: is.Since, Reason: is.Reason, Epoch: was.Epoch,
		}
		if now.State != was.State {
			now.Epoch++
		}
		if is.Order.Kind == failover.Hold {
			now.Hold = fmt.Sprintf("%s: %s", is.Order.By, is.Order.Why)
		}
		regions[name] = now
	}
	row.Regions, row.Memory = regions, &next
	return row
}

func explainRouting(a failover.Action) (what, reason string) {
	switch a.Kind {
	case failover.SetDial:
		return fmt.Sprintf("set the dial of %s to %d %%", a.Region, a.Dial), a.Why
	case failover.StartDrain:
		return fmt.Sprintf("begin to drain %s", a.Region), a.Why
	default:
		return fmt.Sprintf("end the drain of %s", a.Region), a.Why
	}
}

// Drained says which regions are drained; none while nothing has been decided.
func Drained(ctx context.Context, store state.Store) (map[fleet.Region]bool, error) {
	row, err := state.RoutingTable(store).Get(ctx, state.RoutingKey)
	if errors.Is(err, state.ErrNotFound) {
		return nil, nil
	}
	drained := map[fleet.Region]bool{}
	for region, is := range row.Value.Regions {
		if is.Drain {
			drained[region] = true
		}
	}
	return drained, err
}

// ErrNoRouting is returned while no controller has decided on failover yet.
var ErrNoRouting = errors.New("no controller has decided on failover yet")

// Order has the routing loop follow an operator's order: it writes the order into
// the loop's row, and whoever leads goes on from there. It asks no controller.
func Order(ctx context.Context, store state.Store, region fleet.Region, order failover.Order) error {
	table := state.NewTable[routedRow](store, schema.RoutingState, 0)
	for race := 1; ; race++ {
		row, err := table.Get(ctx, state.RoutingKey)
		if errors.Is(err, state.ErrNotFound) || err == nil && row.Value.Memory == nil {
			return ErrNoRouting
		}
		if err != nil {
			return err
		}
		next, err := failover.Obey(*row.Value.Memory, region, order)
		if err != nil {
			return err
		}
		row.Value = routed(row.Value, next)
		_, err = table.Put(ctx, row)
		if !errors.Is(err, state.ErrConflict) || race == mostRaces {
			return err
		}
	}
}
