package controller

import (
	"context"
	"fmt"
	"time"

	"github.com/mrgc/mrgc/controller/autoscaler"
	"github.com/mrgc/mrgc/internal/state"
	"github.com/mrgc/mrgc/internal/state/schema"
)

// Scaling is the loop that keeps a region as large as package autoscaler decides.
type Scaling struct {
	// Config gives the rules that hold, with each decision anew. Their region and zones
	// stay the same. Their Min and Max hold where none are written by hand.
	Config func() autoscaler.Config
	// Every is how often it decides. Default 10 s.
	Every time.Duration
	// Observe looks at the region. Term and Hand are filled in.
	Observe func(ctx context.Context) (autoscaler.Observation, error)
	// Decided hears that the decision on an observation is stored: the next need not have
	// its results. nil: nobody does.
	Decided func(autoscaler.Observation)
	// Execute carries an action out, or finds that the instance is so already. What
	// EC2 says of a launch, such as that it has no capacity, is no error: it is for
	// the next observation's results.
	Execute func(ctx context.Context, id string, action autoscaler.Action) error
}

// scaledRow is the loop's row.
type scaledRow = state.AutoscalingOf[*scaledMemory]

// scaledMemory is what the row has besides the capacities.
type scaledMemory struct {
	autoscaler.State
	// Least and Most are the limits that the loop has written, or would have, were there
	// none by hand: others that the row has were written by hand.
	Least, Most int
}

// scaledBy is what a decision goes by.
type scaledBy struct {
	autoscaler.Observation
	config autoscaler.Config
}

const defaultScalingEvery = 10 * time.Second

// Loop gives the loop, for [Config.Loops].
//
// A desired capacity that is written by hand is what the autoscaler wants from then
// on, within the limits, until its rules want another. A limit that is written by hand
// beats the configuration's, until it is what the configuration says, 0, or removed.
func (s Scaling) Loop() (Loop[scaledRow, scaledBy, autoscaler.Action], error) {
	config := s.Config()
	if err := config.Check(); err != nil {
		return Loop[scaledRow, scaledBy, autoscaler.Action]{}, err
	}
	if s.Every == 0 {
		s.Every = defaultScalingEvery
	}
	return Loop[scaledRow, scaledBy, autoscaler.Action]{
		Name: "autoscaler", Table: schema.AutoscalingState, Key: state.Key{Partition: string(config.Region)},
		ByHand: state.ByHand, Every: s.Every,
		Observe: func(ctx context.Context, token int64) (scaledBy, error) {
			config := s.Config()
			if err := config.Check(); err != nil {
				return scaledBy{}, err
			}
			o, err := s.Observe(ctx)
			o.Term = token
			return scaledBy{o, config.Defaulted()}, err
		},
		Step: stepScaling,
		Decided: func(by scaledBy) {
			if s.Decided != nil {
				s.Decided(by.Observation)
			}
		},
		Explain: explainScaling,
		Execute: s.Execute,
	}, nil
}

// stepScaling decides. A row is whole, or has none of a capacity, which is 0, if it is
// new or somebody has removed that.
func stepScaling(row scaledRow, by scaledBy, now time.Time) (scaledRow, []autoscaler.Action) {
	config := by.config
	memory := scaledMemory{}
	if row.Memory != nil {
		memory = *row.Memory
	}
	limit(&row, &memory, &config)
	before := memory.State
	if row.Memory == nil {
		before = autoscaler.Initial(config, now)
	}
	by.Hand = 0
	if written := row.DesiredCapacity; written != before.Desired {
		by.Hand = written
	}
	next, actions := autoscaler.Step(config, before, by.Observation, now)
	memory.State = next
	row.Memory, row.DesiredCapacity = &memory, next.Desired
	if next.Desired != before.Desired || row.LastReason == "" {
		row.LastAction, row.LastReason, row.LastActionAt = fmt.Sprintf("%d to %d", before.Desired, next.Desired), next.Reason, now
		row.CooldownUntil = next.Changed.Add(config.Cooldown)
	}
	return row, actions
}

// limit finds which limits hold: those of the row that were written by hand, else the
// configuration's. Where only one of the two was, the other gives way to it.
func limit(row *scaledRow, memory *scaledMemory, config *autoscaler.Config) {
	if memory.Least == 0 && memory.Most == 0 { // nothing was decided yet, or by a version that wrote the defaults
		none := autoscaler.Config{}.Defaulted()
		memory.Least, memory.Most = none.Min, none.Max
	}
	byHand := func(is, wrote, configured int) bool { return is != 0 && is != wrote && is != configured }
	least, most := config.Min, config.Max
	leastByHand, mostByHand := byHand(row.Min, memory.Least, least), byHand(row.Max, memory.Most, most)
	if mostByHand {
		most = min(row.Max, autoscaler.MostInstances)
		least = min(least, most)
	}
	if leastByHand {
		least = min(row.Min, autoscaler.MostInstances)
		if !mostByHand {
			most = max(most, least)
		}
	}
	memory.Least, memory.Most = config.Min, config.Max
	if !leastByHand {
		memory.Least = least
	}
	if !mostByHand {
		memory.Most = most
	}
	row.Min, row.Max = least, most
	config.Min, config.Max = least, most
}

func explainScaling(a autoscaler.Action) (what, reason string) {
	switch a.Kind {
	case autoscaler.Launch:
		return fmt.Sprintf("launch %s in %s", a.Intent, a.Zone), a.Why
	default:
		return fmt.Sprintf("%s %s (%s)", a.Kind, a.Instance, a.Intent), a.Why
	}
}
