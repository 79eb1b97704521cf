package autoscaler

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"strconv"
	"time"
)

// Step decides. The state is not changed; config must pass Check.
func Step(config Config, state State, o Observation, now time.Time) (State, []Action) {
	c := config.withDefaults()
	s := state.clone()
	interrupted := s.Term != o.Term || now.Sub(s.Stepped) > c.MaxGap || now.Before(s.Stepped)
	dt := now.Sub(s.Stepped)
	s.Term, s.Stepped = o.Term, now

	w := work{c: &c, s: &s, o: &o, now: now, listed: map[string]*Instance{}, kept: map[string]bool{}, interrupted: interrupted}
	for i := range o.Instances {
		w.listed[o.Instances[i].ID] = &o.Instances[i]
	}
	w.results()
	if o.Listed {
		w.match()
		w.follow()
	}
	serving := w.count(func(m *Member) bool { return m.Phase == Serving && w.ready(m) })
	if !interrupted && o.Load.Fresh {
		s.learn(&c, o.Load, serving, dt)
	}
	s.decide(&c, &o, serving, dt, interrupted, now)
	if o.Listed {
		w.keep()
		w.adjust()
		w.launch()
		w.leave()
	}
	return s, w.actions
}

// work is one step.
type work struct {
	c           *Config
	s           *State
	o           *Observation
	now         time.Time
	listed      map[string]*Instance // by ID
	interrupted bool
	kept        map[string]bool // by intent: to be drained, but not yet
	actions     []Action
}

func token(intent string, attempt int) string { return intent + "." + strconv.Itoa(attempt) }

func (w *work) act(kind ActionKind, m *Member, why string) {
	a := Action{Kind: kind, Intent: m.Intent, Instance: m.Instance, Why: why}
	if kind == Launch {
		a.Zone, a.Attempt, a.Token = m.Zone, m.Attempt, m.Token()
	}
	w.actions = append(w.actions, a)
}

func (w *work) count(is func(*Member) bool) (n int) {
	for i := range w.s.Members {
		if is(&w.s.Members[i]) {
			n++
		}
	}
	return n
}

// ready says whether a member takes requests, as far as is known.
func (w *work) ready(m *Member) bool {
	in := w.listed[m.Instance]
	return in != nil && in.Healthy && !in.Draining && !in.Leaving
}

// results takes what EC2 said of launches. One of an attempt that is over says nothing.
func (w *work) results() {
	for _, r := range w.o.Results {
		i := slices.IndexFunc(w.s.Members, func(m Member) bool {
			return m.Intent == r.Intent && m.Attempt == r.Attempt && m.Phase == Launching
		})
		if i < 0 {
			continue
		}
		switch m := &w.s.Members[i]; {
		case r.Instance != "":
			m.Instance, m.Asked = r.Instance, w.now
		case r.NoCapacity:
			w.s.Zones[m.Zone] = w.now.Add(w.c.ZonePause)
			m.Zone, m.Asked, m.Attempt = "", time.Time{}, m.Attempt+1
			m.Reason = "no capacity in its zone"
		}
	}
}

// match finds each listed instance's member, and makes those that nobody asked for
// members, too.
func (w *work) match() {
	for _, in := range slices.SortedFunc(slices.Values(w.o.Instances), func(a, b Instance) int { return cmp.Compare(a.ID, b.ID) }) {
		if slices.ContainsFunc(w.s.Members, func(m Member) bool { return m.Instance == in.ID }) {
			continue
		}
		if i := slices.IndexFunc(w.s.Members, func(m Member) bool { return m.Intent == in.Intent && m.Instance == "" }); i >= 0 && in.Intent != "" {
			w.s.Members[i].Instance = in.ID
			continue
		}
		if !in.Leaving {
			orphan := Member{Intent: "orphan-" + in.ID, Zone: in.Zone, Instance: in.ID}
			orphan.enter(Booting, w.now, "found: nobody asked for it (tag "+strconv.Quote(in.Intent)+")")
			w.s.Members = append(w.s.Members, orphan)
		}
	}
}

// follow moves members along with what became of their instances.
func (w *work) follow() {
	patience := w.c.UnreadyTimeout
	if w.massive() {
		patience *= 3
	}
	w.s.Members = slices.DeleteFunc(w.s.Members, func(m Member) bool { return w.gone(&m) })
	for i := range w.s.Members {
		m := &w.s.Members[i]
		in := w.listed[m.Instance]
		if in == nil {
			continue
		}
		if m.Phase == Launching {
			m.enter(Booting, w.now, "")
			m.Zone = in.Zone
		}
		if !w.o.Known {
			m.Unready = time.Time{}
			continue
		}
		since(&m.Unready, !in.Healthy, w.interrupted, w.now)
		switch {
		case m.Phase == Booting && in.Healthy:
			m.enter(Serving, w.now, "")
			m.Served = true
			w.s.Failed = 0
		case m.Phase == Booting && w.now.Sub(m.Since) >= w.c.BootTimeout && lasted(m.Unready, w.c.UnreadyTimeout/2, w.now):
			// Looked at long enough: when everything was gone, everything boots again.
			m.enter(Draining, w.now, "never came up")
			w.failed()
		case m.Phase == Serving && lasted(m.Unready, patience, w.now):
			m.enter(Draining, w.now, "dead: not heard of, or not healthy, for "+patience.String())
		case m.Phase == Serving && in.Draining:
			m.enter(Draining, w.now, "drained by hand")
		}
	}
}

// gone says whether a member's instance is no more. One that was never listed is only
// gone once the listing has had time to know it.
func (w *work) gone(m *Member) bool {
	if m.Instance == "" {
		return false
	}
	if in := w.listed[m.Instance]; in != nil {
		return in.Leaving
	}
	return m.Phase != Launching || w.now.Sub(m.Asked) >= w.c.Settle
}

// massive says whether half of those that serve, and more than one, are not healthy at
// once: then it is most likely the looking that failed, or what all have in common.
func (w *work) massive() bool {
	serve := w.count(func(m *Member) bool { return m.Phase == Serving })
	not := w.count(func(m *Member) bool {
		in := w.listed[m.Instance]
		return m.Phase == Serving && in != nil && !in.Healthy
	})
	return not > 1 && 2*not >= serve
}

// failed pauses launches, longer each time that what was launched never came up. What
// was launched together fails together, and counts once.
func (w *work) failed() {
	if w.now.Before(w.s.Pause) {
		return
	}
	w.s.Pause = w.now.Add(min(time.Minute<<min(w.s.Failed, 4), w.c.BootTimeout))
	w.s.Failed++
}

// keep finds those that were to be drained, are not marked yet, and are needed after
// all: others may have died since, or more may be wanted. They are not drained, and
// serve again once no mark can be on its way any more.
func (w *work) keep() {
	spare := w.count(w.ready) - max(w.c.Min, w.s.Desired)
	for i := range w.s.Members {
		m := &w.s.Members[i]
		switch {
		case m.Phase != Draining || !w.ready(m):
		case spare > 0:
			spare--
		case w.now.Sub(m.Asked) >= w.c.Settle:
			m.enter(Serving, w.now, "kept after all")
			m.Served = true
		default:
			w.kept[m.Intent] = true
		}
	}
}

// adjust makes as many members as are wanted: new ones are asked for, or those that
// are too many begin to leave. What is marked is never taken back.
func (w *work) adjust() {
	have := w.count(func(m *Member) bool { return !m.leaving() || w.kept[m.Intent] })
	for ; have < w.s.Desired && len(w.s.Members) < w.c.Max+surge; have++ {
		m := Member{Intent: fmt.Sprintf("%s-%d-%d", w.c.Region, w.s.Born.Unix(), w.s.Next)}
		m.enter(Launching, w.now, w.s.Reason)
		w.s.Next++
		w.s.Members = append(w.s.Members, m)
	}
	for have > w.s.Desired && w.o.Known && w.retire() {
		have--
	}
}

// surge is how many instances may be billed beyond the maximum, while others leave.
const surge = 4

// retire begins to drain the member that is least missed: one that is not asked for
// yet, or of which nothing came and which would be asked for again, then one that is not ready, then one of the zone that has most. It does nothing
// that would leave fewer ready than are wanted, or than the minimum.
func (w *work) retire() bool {
	for i := range w.s.Members {
		if m := &w.s.Members[i]; m.Phase == Launching && m.Instance == "" && (m.Asked.IsZero() || w.now.Sub(m.Asked) >= w.c.Settle) {
			w.s.Members = slices.Delete(w.s.Members, i, i+1)
			return true
		}
	}
	perZone := map[string]int{}
	ready := 0
	for i := range w.s.Members {
		if m := &w.s.Members[i]; !m.leaving() {
			perZone[m.Zone]++
			if w.ready(m) {
				ready++
			}
		}
	}
	rank := func(m *Member) int { // the lower, the less it is missed
		if !w.ready(m) {
			return math.MinInt
		}
		return -perZone[m.Zone]
	}
	var least *Member
	for i := range w.s.Members {
		m := &w.s.Members[i]
		if !m.leaving() && w.listed[m.Instance] != nil && (least == nil || rank(m) < rank(least)) {
			least = m
		}
	}
	if least == nil {
		return false
	}
	if w.ready(least) {
		ready--
	}
	if ready < max(w.c.Min, w.s.Desired) { // also one that is not ready: it may be the next that is
		return false
	}
	least.enter(Draining, w.now, w.s.Reason)
	return true
}

// batch is how many launches one step asks for, so that the last is asked for soon
// after it was noted that it is.
const batch = 5

// launch asks for what is not listed yet: in the zone with the fewest that has
// capacity, and again after Settle when nothing came of it.
func (w *work) launch() {
	asked := 0
	for i := range w.s.Members {
		m := &w.s.Members[i]
		if m.Phase != Launching || m.Instance != "" || w.now.Before(w.s.Pause) || asked == batch {
			continue
		}
		if !m.Asked.IsZero() && w.now.Sub(m.Asked) < w.c.Settle && w.now.After(m.Asked) {
			continue
		}
		if m.Zone == "" {
			if m.Zone = w.zone(); m.Zone == "" {
				m.Reason = "no zone has capacity"
				continue
			}
		}
		m.Asked = w.now
		asked++
		w.act(Launch, m, m.Reason)
	}
}

// zone is the one with the fewest members among those that are not without capacity;
// empty: there is none now.
func (w *work) zone() (best string) {
	fewest := 0
	for _, zone := range w.c.Zones {
		if w.now.Before(w.s.Zones[zone]) {
			continue
		}
		n := w.count(func(m *Member) bool { return m.Zone == zone && !m.leaving() })
		if best == "" || n < fewest {
			best, fewest = zone, n
		}
	}
	return best
}

// leave takes members that are on their way out one step further, when what was done
// before is seen. What does not take requests and never did, or is dead, has nothing to
// drain and nothing that could wash it; but it is marked first, lest it come up meanwhile.
func (w *work) leave() {
	if !w.o.Known {
		return
	}
	for i := range w.s.Members {
		m := &w.s.Members[i]
		in := w.listed[m.Instance]
		if in == nil || in.Leaving || w.kept[m.Intent] {
			continue
		}
		nothing := !in.Registered || in.Draining && !in.Healthy && (!m.Served || lasted(m.Unready, w.c.UnreadyTimeout, w.now))
		switch {
		case m.Phase == Draining && in.Drained && in.Healthy:
			m.enter(Washing, w.now, m.Reason)
		case m.Phase == Washing && in.Drained && in.Washed, (m.Phase == Draining || m.Phase == Washing) && nothing:
			m.enter(Leaving, w.now, m.Reason)
		case m.Phase == Leaving && in.Registered && !in.Draining:
			m.enter(Draining, w.now, m.Reason)
		}
		switch {
		case m.Phase == Draining && !in.Draining:
			m.Asked = w.now
			w.act(Drain, m, m.Reason)
		case m.Phase == Washing:
			w.act(Wash, m, m.Reason)
		case m.Phase == Leaving:
			w.act(Terminate, m, m.Reason)
		}
	}
}
