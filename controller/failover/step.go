package failover

import (
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/mrgc/mrgc/internal/fleet"
)

// Observation is what a step goes by.
type Observation struct {
	Term  int64                 // fencing token of the leadership under which this runs
	Views map[fleet.Region]View // by observer; who is absent is missing
	// Dials are percents as the accelerator says; a region that is absent is not
	// known. While it is not, no dial is lowered.
	Dials map[fleet.Region]int
}

// ActionKind is what is to be done.
type ActionKind string

// Kinds of actions.
const (
	SetDial    ActionKind = "set_dial"
	StartDrain ActionKind = "start_drain" // the region's Envoys send GOAWAY
	StopDrain  ActionKind = "stop_drain"
)

// Action is to be done after the state that it comes with was stored. All are
// idempotent; dials are repeated until the accelerator says so.
type Action struct {
	Kind   ActionKind
	Region fleet.Region
	Dial   int // percent
	Why    string
}

// Step decides. The state is not changed; config must pass Check.
func Step(config Config, state State, o Observation, now time.Time) (State, []Action) {
	c := config.withDefaults()
	s := state.clone()
	// What another leader's clock said, or what was before a gap, is not added to.
	interrupted := s.Term != o.Term || now.Sub(s.Stepped) > c.MaxGap || now.Before(s.Stepped)
	s.Term, s.Stepped = o.Term, now
	judged := c.judgeAll(o.Views)
	for _, name := range c.Regions {
		r, ok := s.Regions[name]
		if !ok { // configured since
			r = Region{Phase: Normal, Since: now, Reason: "new", Dial: 100}
		}
		r.watch(judged[name], interrupted, now)
		if dial, known := o.Dials[name]; r.Moving && s.confirm(name, &r, known && dial == r.Dial, now) {
			r.Moving = false
		}
		s.Regions[name] = r
	}
	w := world{c: &c, s: &s, o: &o, judged: judged, now: now}
	for _, name := range c.Regions {
		r := s.Regions[name]
		if r.Order.Kind != Hold {
			w.move(name, &r)
			s.Regions[name] = r
		}
	}
	return s, actions(&c, &state, &s, &o)
}

// watch counts for how long a region has been seen as it is.
func (r *Region) watch(j judgement, interrupted bool, now time.Time) {
	for _, timer := range []struct {
		since *time.Time
		is    bool
	}{
		{&r.DownSince, j.Verdict == Down},
		{&r.PartialSince, j.Verdict == Down || j.Verdict == Partial},
		{&r.UpSince, j.Verdict == Up},
		{&r.CalmSince, j.Verdict == Up && !j.suspect},
	} {
		switch {
		case !timer.is:
			*timer.since = time.Time{}
		case timer.since.IsZero() || interrupted:
			*timer.since = now
		}
	}
}

// confirm notes that a dial's last move is not over before the accelerator has it:
// what is counted from it is what tenants feel, not what was decided.
func (s *State) confirm(name fleet.Region, r *Region, has bool, now time.Time) bool {
	if r.Lowered.After(r.Raised) {
		r.Lowered = now
		if s.Lowered.Region == name {
			s.Lowered.At = now
		}
	} else {
		r.Raised, r.Stage = now, now
	}
	return has
}

// lasted says whether what began then has lasted for so long.
func lasted(since time.Time, d time.Duration, now time.Time) bool {
	return !since.IsZero() && now.Sub(since) >= d
}

// world is one step.
type world struct {
	c      *Config
	s      *State
	o      *Observation
	judged map[fleet.Region]judgement
	now    time.Time
}

// move makes a region's transition, if there is one.
func (w *world) move(name fleet.Region, r *Region) {
	j := w.judged[name]
	switch r.Phase {
	case Normal:
		if r.Failed > 0 && lasted(r.Since, w.c.Forgive, w.now) {
			r.Failed = 0
		}
		if j.suspect {
			r.enter(Degraded, w.now, j.votes)
		}
	case Degraded:
		w.degraded(name, r, j)
	case FailoverActive:
		w.out(name, r, j)
	case Recovering:
		w.recovering(name, r, j)
	}
}

func (w *world) degraded(name fleet.Region, r *Region, j judgement) {
	switch {
	case lasted(r.DownSince, w.c.Confirm, w.now):
		if why := w.keeps(name); why != "" {
			r.Reason = "down, but not taken out: " + why
			return
		}
		r.enter(FailoverActive, w.now, j.votes)
		r.Drain = true
		w.lower(name, r, 0)
	case lasted(r.PartialSince, w.c.ConfirmPartial, w.now) && r.Dial > w.c.Partial:
		if why := w.keeps(name); why != "" {
			r.Reason = "partial, but its dial stays: " + why
			return
		}
		r.Reason = j.votes
		w.lower(name, r, w.c.Partial)
	case lasted(r.CalmSince, w.c.Calm, w.now) && r.Dial == 100:
		r.enter(Normal, w.now, "well again")
	case lasted(r.CalmSince, w.c.Calm, w.now):
		r.enter(Recovering, w.now, "well again")
	}
}

func (w *world) out(name fleet.Region, r *Region, j judgement) {
	if r.Order.Kind == Drain {
		return
	}
	if lasted(r.DownSince, w.c.Confirm, w.now) && w.keeps(name) == "" {
		w.lower(name, r, 0) // if it could not be when the region went out
	}
	if lasted(r.UpSince, w.c.validate(r.Failed), w.now) && w.mayTurn(r.Raised) {
		r.enter(Recovering, w.now, "validated: "+j.votes)
		r.Drain = false
	}
}

// validate is how long a region must be well before a recovery: longer after each
// that failed.
func (c *Config) validate(failed int) time.Duration {
	d := c.Validate
	for range failed {
		if d *= 2; d >= c.MaxValidate {
			return c.MaxValidate
		}
	}
	return d
}

func (w *world) recovering(name fleet.Region, r *Region, j judgement) {
	if lasted(r.DownSince, w.c.Confirm, w.now) {
		if why := w.keeps(name); why != "" {
			r.Reason = "down, but not taken out: " + why
			return
		}
		r.enter(FailoverActive, w.now, "recovery failed: "+j.votes)
		r.Failed++
		r.Drain = true
		w.lower(name, r, 0)
		return
	}
	held := r.Stage.IsZero() || // the first stage, for which it was validated or ordered
		!r.Moving && lasted(r.Stage, w.c.Hold, w.now) && lasted(r.UpSince, w.c.Hold, w.now)
	switch {
	case !held:
	case r.Dial == 100:
		if !r.Stage.IsZero() {
			r.enter(Normal, w.now, "recovered")
			return
		}
		r.Stage = w.now
	case w.mayTurn(r.Raised) || !r.Lowered.After(r.Raised):
		next := slices.IndexFunc(w.c.Stages, func(stage int) bool { return stage > r.Dial })
		r.Dial, r.Raised, r.Stage, r.Moving = w.c.Stages[next], w.now, w.now, true
		r.Reason = fmt.Sprintf("recovering, at %d %%", r.Dial)
	}
}

// keeps says why a region cannot be taken out, in part or whole; empty: it can. The
// flap rule is not asked: a region goes out of service at once though its dial must
// wait.
func (w *world) keeps(name fleet.Region) string {
	if at := w.s.Lowered; at.Region != name && at.Region != "" && w.now.Sub(at.At) < w.c.Apart && !w.now.Before(at.At) {
		return fmt.Sprintf("the dial of %s was lowered %v ago", at.Region, w.now.Sub(at.At).Round(time.Second))
	}
	// One that is cut off from all others, and can still publish, sees them down.
	views := maps.Clone(w.o.Views)
	delete(views, name)
	for _, other := range w.c.Regions {
		dial, known := w.o.Dials[other]
		s := w.s.Regions[other]
		if j := w.c.judge(views, other); other != name && known && dial == 100 && s.Dial == 100 && j.serves() {
			return ""
		}
	}
	return "no other region serves and is at 100 %"
}

// mayTurn says whether a dial may move in a direction in which it last moved then,
// if it has moved in the other one since. So of three moves that alternate, the last
// comes at least a FlapWindow after the first, and within one there is at most one
// turn.
func (w *world) mayTurn(last time.Time) bool {
	return last.IsZero() || w.now.Sub(last) >= w.c.FlapWindow+2*w.c.MaxSkew
}

// lower lowers a dial, or leaves it where the flap rule wants it.
func (w *world) lower(name fleet.Region, r *Region, to int) {
	if r.Dial <= to || !w.mayTurn(r.Lowered) && r.Raised.After(r.Lowered) {
		return
	}
	r.Dial, r.Lowered, r.Moving = to, w.now, true
	w.s.Lowered = Lowered{name, w.now}
}

// actions are what the accelerator and the routers do not do yet: what raises a
// dial comes first.
func actions(c *Config, before, after *State, o *Observation) []Action {
	var raise, lower, rest []Action
	for _, name := range c.Regions {
		r, was := after.Regions[name], before.Regions[name]
		dial, known := o.Dials[name]
		a := Action{Kind: SetDial, Region: name, Dial: r.Dial, Why: r.Reason}
		switch {
		case known && dial < r.Dial, !known && was.Dial < r.Dial:
			raise = append(raise, a)
		case known && dial > r.Dial:
			lower = append(lower, a)
		}
		if r.Drain != was.Drain {
			kind := StopDrain
			if r.Drain {
				kind = StartDrain
			}
			rest = append(rest, Action{Kind: kind, Region: name, Why: r.Reason})
		}
	}
	return slices.Concat(raise, lower, rest)
}
