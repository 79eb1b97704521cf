// Package wash decides when an instance is washed in full, and in which order: it
// is a function of what it was and what was seen, without a clock and without
// doing anything itself.
//
//	state, actions := config.Step(state, observation, now)
//
// A full wash plants a canary, clears the GPU's memory, checks the model's files,
// replaces the enclave by a fresh one, checks the health of all, and looks for
// the canary. The enclave that serves is stopped only after the fresh one, which
// was started beside it, has taken over. One action is under way at a time; its
// [Result], or none in time, decides on the next. Whatever fails ends the wash
// and quarantines the instance, until a wash that an operator orders passes. An old
// enclave that could not be stopped is then still there, and its slot taken.
//
// Each wash is recorded once, as a row of cleanup_validation.
//
// The parent carries it out (parent/washes.go).
package wash

import (
	"cmp"
	"fmt"
	"slices"
	"time"

	"github.com/mrgc/mrgc/internal/fleet"
	"github.com/mrgc/mrgc/internal/state"
)

// Config says which instance this is, and when it is washed.
type Config struct {
	Region         fleet.Region
	Instance       string
	EveryRequests  int           // after so many requests; 0: not for their number
	Every          time.Duration // so long after the one before began; 0: not for its age
	OnTenantChange bool          // after a request of another tenant than the one before
	Strict         bool          // after every request, and none runs meanwhile ([Config.Admits])
	StepTimeout    time.Duration // an action that takes longer has failed; default 10 minutes
}

// Why an instance is washed.
const (
	TriggerRequests = "requests"
	TriggerInterval = "interval"
	TriggerTenant   = "tenant"
	TriggerStrict   = "strict"
	TriggerOperator = "operator"
)

// Kind is what is to be done.
type Kind string

// The actions of a wash, in their order, and what follows from how it ends.
const (
	PlantCanary  Kind = "plant_canary"
	ClearGPU     Kind = "clear_gpu"
	CheckModel   Kind = "check_model"
	StartStandby Kind = "start_standby" // a fresh enclave: started, attested, healthy
	SwitchOver   Kind = "switch_over"   // new requests go to the standby; those under way end where they are
	StopOld      Kind = "stop_old"      // once nothing is under way there
	CheckHealth  Kind = "check_health"
	CheckCanary  Kind = "check_canary"

	DropStandby Kind = "drop_standby" // a fresh enclave that never took over
	Record      Kind = "record"       // Action.Row
	Quarantine  Kind = "quarantine"   // Action.Row says why
	Release     Kind = "release"      // from quarantine
)

// part is one action of a wash, and the step of the record that it belongs to.
type part struct {
	kind Kind
	step string
}

const restart = "restart_enclave"

var parts = []part{
	{PlantCanary, string(PlantCanary)},
	{ClearGPU, string(ClearGPU)},
	{CheckModel, string(CheckModel)},
	{StartStandby, restart},
	{SwitchOver, restart},
	{StopOld, restart},
	{CheckHealth, string(CheckHealth)},
	{CheckCanary, string(CheckCanary)},
}

// State is what is remembered. The zero value, with Washed set to the instance's
// start, is an instance that has done nothing yet.
type State struct {
	Washed      time.Time // when the last wash began
	Requests    int       // that have ended since
	Tenant      string    // whose request ended last
	Changed     bool      // it was another's before, since the last wash began
	Quarantined string    // why; empty: it is not

	Wash  string // id of the wash that is under way; empty: none
	Row   state.Wash
	Part  int       // which of its actions is under way
	Since time.Time // since when
}

// Observation is what has happened since the last step.
type Observation struct {
	Ended   []string // tenants whose requests have ended, in order
	Result  Result   // of the action that was under way; zero: none yet
	Ordered bool     // an operator wants a wash
}

// Result is how an action has ended.
type Result struct {
	Wash   string // its id
	Kind   Kind
	Passed bool
	Detail string // what was checked and found, for people; never what was washed away
}

// Action is what is to be done now.
type Action struct {
	Kind Kind
	Wash string
	Row  state.Wash // of Record and Quarantine
}

// Admits says whether a request may start while so many others run: in strict mode
// alone, and not while a wash is due or under way.
func (c Config) Admits(s State, running int) bool {
	return s.Quarantined == "" && (!c.Strict || running == 0 && s.Wash == "" && s.Requests == 0)
}

// Timeout is how long an action may take.
func (c Config) Timeout() time.Duration { return cmp.Or(c.StepTimeout, 10*time.Minute) }

// Step decides.
func (c Config) Step(s State, o Observation, now time.Time) (State, []Action) {
	for _, tenant := range o.Ended {
		s.Requests++
		s.Changed = s.Changed || s.Tenant != "" && s.Tenant != tenant
		s.Tenant = tenant
	}
	if s.Wash != "" {
		return c.proceed(s, o.Result, now)
	}
	trigger := c.due(s, o.Ordered, now)
	if trigger == "" {
		return s, nil
	}
	key := state.WashKey(c.Instance, now)
	s.Wash = key.Partition + "/" + key.Sort
	s.Row = state.Wash{Region: c.Region, Trigger: trigger, StartedAt: now}
	s.Washed, s.Requests, s.Changed = now, 0, false
	s.Part, s.Since = 0, now
	return s, []Action{{Kind: parts[0].kind, Wash: s.Wash}}
}

// due says why a wash has to begin now; empty: it has not.
func (c Config) due(s State, ordered bool, now time.Time) string {
	switch {
	case ordered:
		return TriggerOperator
	case s.Quarantined != "": // somebody has to look first
		return ""
	case c.Strict && s.Requests > 0:
		return TriggerStrict
	case c.OnTenantChange && s.Changed:
		return TriggerTenant
	case c.EveryRequests > 0 && s.Requests >= c.EveryRequests:
		return TriggerRequests
	case c.Every > 0 && now.Sub(s.Washed) >= c.Every:
		return TriggerInterval
	default:
		return ""
	}
}

// proceed takes an action's result. One of another action is not this one's.
func (c Config) proceed(s State, r Result, now time.Time) (State, []Action) {
	current := parts[s.Part]
	if r.Wash != s.Wash || r.Kind != current.kind {
		limit := c.Timeout()
		if now.Sub(s.Since) < limit {
			return s, nil
		}
		r = Result{Detail: fmt.Sprintf("%s has not ended within %s", current.kind, limit)}
	}
	s.Row.Steps = noted(s.Row.Steps, current, r, now.Sub(s.Since))
	if !r.Passed {
		return end(s, fmt.Sprintf("%s: %s", current.kind, r.Detail))
	}
	if s.Part++; s.Part == len(parts) {
		return end(s, "")
	}
	s.Since = now
	return s, []Action{{Kind: parts[s.Part].kind, Wash: s.Wash}}
}

// noted gives the record's steps with an action's result: a step that has several
// takes as long as all of them, and has passed if all have.
func noted(steps []state.WashStep, p part, r Result, took time.Duration) []state.WashStep {
	steps = slices.Clone(steps)
	if n := len(steps); n > 0 && steps[n-1].Name == p.step {
		last := &steps[n-1]
		last.Duration, last.Passed = last.Duration+took, last.Passed && r.Passed
		last.Detail += "; " + r.Detail
		return steps
	}
	return append(steps, state.WashStep{Name: p.step, Duration: took, Passed: r.Passed, Detail: r.Detail})
}

// end ends the wash; a reason says that it has failed.
func end(s State, reason string) (State, []Action) {
	row := s.Row
	row.Passed, row.Reason = reason == "", reason
	var actions []Action
	if failed := parts[min(s.Part, len(parts)-1)].kind; reason != "" && (failed == StartStandby || failed == SwitchOver) {
		actions = append(actions, Action{Kind: DropStandby, Wash: s.Wash})
	}
	actions = append(actions, Action{Kind: Record, Wash: s.Wash, Row: row})
	switch {
	case reason != "":
		actions = append(actions, Action{Kind: Quarantine, Wash: s.Wash, Row: row})
	case s.Quarantined != "":
		actions = append(actions, Action{Kind: Release, Wash: s.Wash})
	}
	s.Quarantined = reason
	s.Wash, s.Row, s.Part, s.Since = "", state.Wash{}, 0, time.Time{}
	return s, actions
}
