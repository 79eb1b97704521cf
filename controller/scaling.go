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
	Config autoscaler.Config // its Min and Max hold until others are written by hand
	// Every is how often it decides. Default 10 s.
	Every time.Duration
	// Observe looks at the region. Term and Hand are filled in.
	Observe func(ctx context.Context) (autoscaler.Observation, error)
	// Execute carries an action out, or finds that the instance is so already. What
	// EC2 says of a launch, such as that it has no capacity, is no error: it is for
	// the next observation's results.
	Execute func(ctx context.Context, id string, action autoscaler.Action) error
}

// scaledRow is the loop's row.
type scaledRow = state.AutoscalingOf[*autoscaler.State]

const defaultScalingEvery = 10 * time.Second

// Loop gives the loop, for [Config.Loops].
//
// A desired capacity that is written by hand is what the autoscaler wants from then
// on, within the limits, until its rules want another; to pin it, write the limits,
// too.
func (s Scaling) Loop() (Loop[scaledRow, autoscaler.Observation, autoscaler.Action], error) {
	if err := s.Config.Check(); err != nil {
		return Loop[scaledRow, autoscaler.Observation, autoscaler.Action]{}, err
	}
	start := autoscaler.Initial(s.Config, time.Time{}).Desired // with defaults
	limits := s.Config.Defaulted()
	if s.Every == 0 {
		s.Every = defaultScalingEvery
	}
	return Loop[scaledRow, autoscaler.Observation, autoscaler.Action]{
		Name: "autoscaler", Table: schema.AutoscalingState, Key: state.Key{Partition: string(s.Config.Region)},
		Initial: scaledRow{DesiredCapacity: start, Min: limits.Min, Max: limits.Max},
		ByHand:  state.ByHand, Every: s.Every,
		Observe: func(ctx context.Context, token int64) (autoscaler.Observation, error) {
			o, err := s.Observe(ctx)
			o.Term = token
			return o, err
		},
		Step:    s.step,
		Explain: explainScaling,
		Execute: s.Execute,
	}, nil
}

func (s Scaling) step(row scaledRow, o autoscaler.Observation, now time.Time) (scaledRow, []autoscaler.Action) {
	config := s.Config
	config.Min, config.Max = row.Min, row.Max
	before := autoscaler.Initial(config, now)
	if row.Memory != nil {
		before = *row.Memory
	}
	o.Hand = 0
	if written := row.DesiredCapacity; written != before.Desired {
		o.Hand = written
	} else if within := min(max(written, row.Min), row.Max); within != written {
		o.Hand = within // the limits were written
	}
	next, actions := autoscaler.Step(config, before, o, now)
	row.Memory, row.DesiredCapacity = &next, next.Desired
	if next.Desired != before.Desired || row.LastReason == "" {
		row.LastAction, row.LastReason, row.LastActionAt = fmt.Sprintf("%d to %d", before.Desired, next.Desired), next.Reason, now
		row.CooldownUntil = next.Changed.Add(config.Defaulted().Cooldown)
	}
	return row, actions
}

func explainScaling(a autoscaler.Action) (what, reason string) {
	switch a.Kind {
	case autoscaler.Launch:
		return fmt.Sprintf("launch %s in %s", a.Intent, a.Zone), a.Why
	default:
		return fmt.Sprintf("%s %s (%s)", a.Kind, a.Instance, a.Intent), a.Why
	}
}
