package xds

import (
	"maps"
	"slices"
	"strings"
	"time"
)

// staged are the types of which a change goes to one Envoy of a region first:
// each of them can take a whole front door down. Endpoints are not among them;
// weights and membership must be quick, and Envoy's own health checks stand
// behind them.
var staged = []string{typeCluster, typeSecret, typeListener, typeRoute}

// refersTo says which types a type's resources refer to. What refers to a
// rejected version is not sent either.
var refersTo = map[string][]string{
	typeListener: {typeSecret},
	typeRoute:    {typeCluster, typeListener},
}

// stage decides which Envoy of a region tries what has changed, and when all
// others have it. It has no clock and does no I/O; these things can happen:
//
//   - publish: there is something new,
//   - join, leave: an Envoy comes or goes,
//   - report: the Envoy that tries says how far it is,
//   - tick: time has passed.
//
// At any time one Envoy at most has what no Envoy has accepted.
type stage struct {
	patience time.Duration // how long one Envoy may take to try

	want    resourceSet // the newest publication
	good    resourceSet // what every Envoy may have; nil before the first trial has ended
	refused map[resourceKey]verdict
	trial   *trial
	queue   []candidate // connected Envoys; the first is the next to try

	revision uint64 // rises with each change of what an Envoy should have
	verdicts uint64 // rises with each verdict
}

// candidate is an Envoy that could try something.
type candidate struct {
	node    string
	streams int // an old one may not have ended yet
}

// resourceKey names a version of a resource.
type resourceKey struct {
	typeURL string
	version
}

// is says whether the version is that of a set; "" is when it is not in it.
func (k resourceKey) is(set resourceSet) bool {
	return set[k.typeURL].byName[k.name].version == k.hash
}

// verdict is why a version is held back from everyone.
type verdict struct {
	node string // which tried it
	rejection
}

// trial is one Envoy that has more than the others.
type trial struct {
	node   string
	target resourceSet
	since  time.Time
	idle   bool // it has accepted all that it asks for, which is not all that has changed
}

// report is how far an Envoy is with its trial.
type report struct {
	rejected map[resourceKey]rejection // of what it should have now
	complete bool                      // it has accepted all that has changed
	idle     bool                      // it has accepted all that it asks for
}

func newStage(patience time.Duration) *stage {
	return &stage{patience: patience, refused: map[resourceKey]verdict{}}
}

// publish takes a new set. A trial that runs goes on with what it began with,
// so that it ends even when there is always something new; unless all that it
// waits for is that nobody asks for the rest.
func (s *stage) publish(want resourceSet, now time.Time) {
	s.want = want
	maps.DeleteFunc(s.refused, func(key resourceKey, _ verdict) bool {
		_, wanted := want[key.typeURL].byName[key.name]
		return !wanted
	})
	if s.trial != nil && s.trial.idle {
		s.trial = nil
	}
	s.revision++
	s.begin(now)
}

// join adds an Envoy. One that has just started may have been changed so that it
// takes what it refused before.
func (s *stage) join(node string, fresh bool, now time.Time) {
	if fresh {
		maps.DeleteFunc(s.refused, func(_ resourceKey, v verdict) bool { return v.node == node })
	}
	if i := s.position(node); i >= 0 {
		s.queue[i].streams++
	} else {
		s.queue = append(s.queue, candidate{node: node, streams: 1})
	}
	s.begin(now)
}

// leave removes an Envoy. Its trial waits for it to come back.
func (s *stage) leave(node string) {
	i := s.position(node)
	if i < 0 {
		return
	}
	if s.queue[i].streams--; s.queue[i].streams == 0 {
		s.queue = slices.Delete(s.queue, i, i+1)
	}
}

func (s *stage) position(node string) int {
	return slices.IndexFunc(s.queue, func(c candidate) bool { return c.node == node })
}

// report takes how far the Envoy that tries is; reports of others mean nothing.
func (s *stage) report(node string, r report, now time.Time) {
	if s.trial == nil || s.trial.node != node {
		return
	}
	refused := false
	for key, why := range r.rejected {
		if key.is(s.good) || !key.is(s.trial.target) {
			continue // others have it: this Envoy alone is odd
		}
		if len(s.refused) >= maxRejections {
			clear(s.refused) // to try them once more is better than to grow
		}
		s.refused[key] = verdict{node: node, rejection: why}
		s.verdicts++
		refused = true
	}
	switch {
	case refused:
		s.trial.target, s.trial.since = withhold(s.trial.target, s.good, s.refused), now
		s.revision++
		if s.trial.target.alike(s.good) {
			s.giveUp(now)
		}
	case r.complete:
		s.release(now)
	default:
		s.trial.idle = r.idle
	}
}

// tick ends a trial that takes too long: because its Envoy hangs or has gone,
// or because it asks for less than has changed, which is then no risk.
func (s *stage) tick(now time.Time) {
	switch {
	case s.trial == nil || now.Sub(s.trial.since) < s.patience:
	case s.trial.idle:
		s.release(now)
	default:
		s.giveUp(now)
	}
}

// release gives everyone what was tried.
func (s *stage) release(now time.Time) {
	before := s.good
	s.good, s.trial = s.trial.target, nil
	maps.DeleteFunc(s.refused, func(key resourceKey, _ verdict) bool {
		// A new version is good: the one before may be tried again one day.
		return s.good[key.typeURL].byName[key.name].version != before[key.typeURL].byName[key.name].version
	})
	s.revision++
	s.begin(now)
}

// giveUp ends a trial without an answer, or with a bad one. Its Envoy comes last
// from now on: it may be the odd one.
func (s *stage) giveUp(now time.Time) {
	if i := s.position(s.trial.node); i >= 0 {
		c := s.queue[i]
		s.queue = append(slices.Delete(s.queue, i, i+1), c)
	}
	s.trial = nil
	s.revision++
	s.begin(now)
}

// begin starts a trial when there is something to try and someone to do it.
func (s *stage) begin(now time.Time) {
	if s.trial != nil || s.want == nil || len(s.queue) == 0 {
		return
	}
	target := withhold(s.want, s.good, s.refused)
	if target.alike(s.good) {
		return
	}
	s.trial = &trial{node: s.queue[0].node, target: target, since: now}
	s.revision++
}

// target is what an Envoy should have; nil while that is not known.
func (s *stage) target(node string) resourceSet {
	base := s.good
	if s.trial != nil && s.trial.node == node {
		base = s.trial.target
	}
	if base == nil {
		return nil
	}
	out := maps.Clone(base)
	out[typeEndpoint] = s.want[typeEndpoint]
	return out
}

// withhold is want without what was refused and what refers to that: both stay
// as they are in good. Where good has nothing to stay on, what refers to a
// refused resource is in all the same: a model that has no cluster is better
// than a front door that has no routes.
func withhold(want, good resourceSet, refused map[resourceKey]verdict) resourceSet {
	out, lacks := resourceSet{}, map[string]bool{}
	for _, typeURL := range staged {
		before := good[typeURL]
		if len(before.byName) > 0 && slices.ContainsFunc(refersTo[typeURL], func(t string) bool { return lacks[t] }) {
			out[typeURL] = before
		} else {
			out[typeURL] = want[typeURL].replaced(before, func(name, hash string) bool {
				_, is := refused[resourceKey{typeURL, version{name, hash}}]
				return is
			})
		}
		lacks[typeURL] = !out[typeURL].alike(want[typeURL])
	}
	if lacks[typeRoute] {
		out[typeCluster] = out[typeCluster].union(good[typeCluster]) // routes to them stay
	}
	return out
}

// replaced is the set with those that are out as they were before, if they were.
func (ts typeSet) replaced(before typeSet, out func(name, version string) bool) typeSet {
	byName := maps.Clone(ts.byName)
	for name, r := range ts.byName {
		if !out(name, r.version) {
			continue
		}
		if old, was := before.byName[name]; was {
			byName[name] = old
		} else {
			delete(byName, name)
		}
	}
	if maps.Equal(byName, ts.byName) {
		return ts
	}
	return ts.with(byName)
}

// union adds what other has more.
func (ts typeSet) union(other typeSet) typeSet {
	byName := maps.Clone(other.byName)
	if byName == nil {
		return ts
	}
	maps.Copy(byName, ts.byName)
	return ts.with(byName)
}

// with is another content under the same count.
func (ts typeSet) with(byName map[string]resource) typeSet {
	count, _, _ := strings.Cut(ts.version, "-")
	return typeSet{version: count + "-" + hashOf(byName), byName: byName}
}

// alike says whether two sets hold the same resources, whatever came before
// each.
func (ts typeSet) alike(other typeSet) bool {
	_, hash, _ := strings.Cut(ts.version, "-")
	_, otherHash, _ := strings.Cut(other.version, "-")
	return hash == otherHash
}

// alike says whether two sets hold the same resources of the staged types.
func (s resourceSet) alike(other resourceSet) bool {
	return !slices.ContainsFunc(staged, func(typeURL string) bool { return !s[typeURL].alike(other[typeURL]) })
}
