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
// A wash that restarts the engine checks the files first, and takes the instance out of traffic meanwhile, and has
// to wait for its turn before it begins: see [State.Aside] and [Observation].
//
// Each wash has one row of cleanup_validation. One that restarts the engine has it from
// when it is due, so that whoever finds the row after a crash knows ([Config.Resume]).
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
	RestartEngine  bool          // the engine is restarted, so that the GPU's memory can be overwritten; not with Strict
	// Untold is that the fleet could not be told of the instance last: a wash has new keys
	// to tell of, so none begins but those that are ordered, and those of strict mode.
	Untold      bool
	StepTimeout time.Duration // an action that takes longer has failed; default 10 minutes
	// AsideTimeout is how long an instance may be out of traffic for a wash, which has
	// failed if it takes longer; default 8 minutes: after 10 the autoscaler takes an
	// instance that is not healthy for dead.
	AsideTimeout time.Duration
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
	Announce      Kind = "announce" // Action.Row is stored before anything else is done
	PlantCanary   Kind = "plant_canary"
	KeepTurn      Kind = "keep_turn"  // the turn is made to last until the instance is back
	StepAside     Kind = "step_aside" // nobody is to send requests any more; those that come are served still
	AwaitIdle     Kind = "await_idle" // what runs ends; what comes is sent elsewhere
	ClearGPU      Kind = "clear_gpu"
	RestartEngine Kind = "restart_engine" // in ClearGPU's place
	CheckModel    Kind = "check_model"
	StartStandby  Kind = "start_standby" // a fresh enclave: started, attested, healthy
	SwitchOver    Kind = "switch_over"   // new requests go to the standby; those under way end where they are
	StopOld       Kind = "stop_old"      // once nothing is under way there
	CheckHealth   Kind = "check_health"
	CheckCanary   Kind = "check_canary"
	StepBack      Kind = "step_back" // into traffic

	Wait        Kind = "wait"         // the wash may not begin yet: Action.Row says why
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

const (
	restartEnclave = "restart_enclave"
	awaitTurn      = "await_turn"
)

var (
	parts = []part{
		{PlantCanary, string(PlantCanary)},
		{ClearGPU, string(ClearGPU)},
		{CheckModel, string(CheckModel)},
		{StartStandby, restartEnclave},
		{SwitchOver, restartEnclave},
		{StopOld, restartEnclave},
		{CheckHealth, string(CheckHealth)},
		{CheckCanary, string(CheckCanary)},
	}
	restartingParts = []part{
		{Announce, awaitTurn},
		{CheckModel, string(CheckModel)}, // which takes long, while the instance serves
		{PlantCanary, string(PlantCanary)},
		{KeepTurn, string(KeepTurn)},
		{StepAside, string(StepAside)},
		{AwaitIdle, string(StepAside)},
		{RestartEngine, string(ClearGPU)},
		{StartStandby, restartEnclave},
		{SwitchOver, restartEnclave},
		{StopOld, restartEnclave},
		{CheckHealth, string(CheckHealth)},
		{CheckCanary, string(CheckCanary)},
		{StepBack, string(StepBack)},
	}
)

// State is what is remembered. The zero value, with Washed set to the instance's
// start, is an instance that has done nothing yet.
type State struct {
	Washed      time.Time // when the last wash began
	Requests    int       // that have ended since
	Tenant      string    // whose request ended last
	Changed     bool      // it was another's before, since the last wash began
	Quarantined string    // why; empty: it is not

	Wash    string // id of the wash that is due or under way; empty: none
	Row     state.Wash
	Waiting bool      // it may not begin yet
	Restart bool      // it restarts the engine
	Part    int       // which of its actions is under way
	Since   time.Time // since when
	Left    time.Time // when the instance stepped aside; zero: it has not
	Again   string    // trigger of a wash that was cut off, and has to be made again; empty: none
}

// Observation is what has happened since the last step.
type Observation struct {
	Ended   []string // tenants whose requests have ended, in order
	Result  Result   // of the action that was under way; zero: none yet
	Ordered bool     // an operator wants a wash
	// Turn is that the instance's engine may be restarted now: it is the only one of its
	// models in the region that may, and others take its requests. Waits is why not, for
	// people; empty with no Turn: nothing new is known. Only a wash that restarts the engine
	// waits for it, and such a one keeps the turn while [State.WantsTurn].
	Turn  bool
	Waits string
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
	Row  state.Wash // of Announce, Wait, Record and Quarantine
}

// Admits says whether a request may start while so many others run: in strict mode
// alone, and not while a wash is due or under way.
func (c Config) Admits(s State, running int) bool {
	return s.Quarantined == "" && !s.Closed() && (!c.Strict || running == 0 && s.Wash == "" && s.Requests == 0)
}

// Deadline is when the action that is under way has failed, if it has not ended.
func (c Config) Deadline(s State) time.Time {
	at := s.Since.Add(c.timeout())
	if aside := s.Left.Add(c.MayBeAside()); s.Aside() && aside.Before(at) {
		return aside
	}
	return at
}

func (c Config) timeout() time.Duration { return cmp.Or(c.StepTimeout, 10*time.Minute) }

// MayBeAside is AsideTimeout, or its default.
func (c Config) MayBeAside() time.Duration { return cmp.Or(c.AsideTimeout, 8*time.Minute) }

// Step decides.
func (c Config) Step(s State, o Observation, now time.Time) (State, []Action) {
	for _, tenant := range o.Ended {
		s.Requests++
		s.Changed = s.Changed || s.Tenant != "" && s.Tenant != tenant
		s.Tenant = tenant
	}
	switch {
	case s.Waiting:
		return c.await(s, o, now)
	case s.Wash != "":
		return c.proceed(s, o.Result, now)
	}
	trigger := c.due(s, o.Ordered, now)
	if trigger == "" {
		return s, nil
	}
	key := state.WashKey(c.Instance, now)
	s.Wash = key.Partition + "/" + key.Sort
	s.Row = state.Wash{Region: c.Region, Trigger: trigger, StartedAt: now}
	s.Again = ""
	if s.Waiting = c.restarts(); s.Waiting {
		return c.await(s, o, now)
	}
	return c.begin(s, now)
}

// begin begins the wash that is due.
func (c Config) begin(s State, now time.Time) (State, []Action) {
	s.Washed, s.Requests, s.Changed = now, 0, false
	s.Row.Open, s.Row.Reason = "", ""
	if s.Waiting {
		s.Row.Steps = []state.WashStep{{Name: awaitTurn, Duration: now.Sub(s.Row.StartedAt), Passed: true, Detail: "its turn came"}}
	}
	s.Waiting, s.Restart = false, c.restarts()
	s.Part, s.Since = 0, now
	if s.Restart {
		s.Row.Open = state.WashUnderWay
	}
	return s, []Action{{Kind: s.parts()[0].kind, Wash: s.Wash, Row: s.Row}}
}

// due says why a wash has to begin now; empty: it has not.
func (c Config) due(s State, ordered bool, now time.Time) string {
	switch {
	case ordered:
		return TriggerOperator
	case s.Again != "":
		return s.Again
	case s.Quarantined != "": // somebody has to look first
		return ""
	case c.Strict && s.Requests > 0:
		return TriggerStrict
	case c.Untold:
		return ""
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
	current := s.parts()[s.Part]
	if r.Wash != s.Wash || r.Kind != current.kind {
		if now.Before(c.Deadline(s)) {
			return s, nil
		}
		r = Result{Detail: fmt.Sprintf("%s has not ended within %s", current.kind, c.timeout())}
		if now.Sub(s.Since) < c.timeout() {
			r.Detail = fmt.Sprintf("%s has not ended, and the instance has been out of traffic for %s", current.kind, c.MayBeAside())
		}
	}
	if r.Passed && r.Detail == "" { // nobody could tell it from one that did nothing
		r = Result{Detail: "it does not say what it did and found"}
	}
	s.Row.Steps = noted(s.Row.Steps, current, r, now.Sub(s.Since))
	if !r.Passed && current.kind == KeepTurn {
		return again(s, r.Detail)
	}
	if !r.Passed {
		return end(s, fmt.Sprintf("%s: %s", current.kind, r.Detail))
	}
	if s.Part++; s.Part == len(s.parts()) {
		return end(s, "")
	}
	next := s.parts()[s.Part].kind
	if s.Since = now; next == StepAside {
		s.Left = now
	}
	return s, []Action{{Kind: next, Wash: s.Wash}}
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
	row.Open, row.Passed, row.Reason = "", reason == "", reason
	var actions []Action
	if failed := s.parts()[min(s.Part, len(s.parts())-1)].kind; reason != "" && (failed == StartStandby || failed == SwitchOver) {
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
	s.Wash, s.Row, s.Restart, s.Part, s.Since, s.Left = "", state.Wash{}, false, 0, time.Time{}, time.Time{}
	return s, actions
}
