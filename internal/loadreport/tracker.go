package loadreport

import (
	"slices"
	"strings"
	"sync"
	"time"
)

// Age says what a report is still good for.
type Age int

// The ages. The zero value is Missing: what nobody has heard of.
const (
	Missing Age = iota // nothing was heard for MissingAfter, or ever: there is no report
	Stale              // to be extrapolated from what the reader knows itself
	Fresh              // as good as now
)

// When a report ages. Parents send every 100 ms while there is work and every
// 500 ms while there is none, so that a fresh report is one of the last two in
// either case.
const (
	FreshFor     = time.Second
	MissingAfter = time.Minute
	// FarFreshFor is FreshFor where reports are taken once a second, from another
	// region: one of the last three.
	FarFreshFor = 3 * time.Second
)

// AgeOf is the age of a report that was received so long ago.
func AgeOf(since time.Duration) Age { return ageOf(since, FreshFor) }

func ageOf(since, freshFor time.Duration) Age {
	switch {
	case since <= freshFor:
		return Fresh
	case since <= MissingAfter:
		return Stale
	default:
		return Missing
	}
}

// String is the name as people and metrics have it.
func (a Age) String() string {
	switch a {
	case Fresh:
		return "fresh"
	case Stale:
		return "stale"
	default:
		return "missing"
	}
}

// Tracker holds the newest report of each instance that is followed. Time is an
// argument. It is safe for concurrent use; its zero value follows nobody.
type Tracker struct {
	mu   sync.RWMutex
	held map[string]received // guarded by mu: by instance
}

// received is the newest report of an instance; at is zero before the first.
type received struct {
	report Report
	at     time.Time
	far    bool
}

// Follow says whose reports count from now on; those of far instances are fresh for
// [FarFreshFor]. What is held of others is forgotten, and what still comes from them
// is not taken.
func (t *Tracker) Follow(instances []string, far ...string) {
	held := make(map[string]received, len(instances)+len(far))
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, id := range instances {
		held[id] = received{report: t.held[id].report, at: t.held[id].at}
	}
	for _, id := range far {
		held[id] = received{report: t.held[id].report, at: t.held[id].at, far: true}
	}
	t.held = held
}

// Put takes a report that was received at a time, unless a later one is held or
// the instance is not followed. The tracker keeps the report: its models may
// not be changed any more.
func (t *Tracker) Put(instance string, report Report, at time.Time) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if last, followed := t.held[instance]; followed && !at.Before(last.at) {
		t.held[instance] = received{report: report, at: at, far: last.far}
	}
}

// Get gives an instance's newest report, and how long ago it was received. A
// report that is [Missing] is zero.
func (t *Tracker) Get(instance string, now time.Time) (report Report, since time.Duration, age Age) {
	t.mu.RLock()
	last := t.held[instance]
	t.mu.RUnlock()
	if age := last.age(now); age != Missing {
		return last.report, max(now.Sub(last.at), 0), age
	}
	return Report{}, 0, Missing
}

func (r *received) age(now time.Time) Age {
	if r.at.IsZero() {
		return Missing
	}
	if r.far {
		return ageOf(now.Sub(r.at), FarFreshFor)
	}
	return AgeOf(now.Sub(r.at))
}

// Entry is an instance that is followed, for people to look at.
type Entry struct {
	Instance string
	Report   Report // the newest, however old
	Age      Age
	Heard    bool          // whether there was any
	Since    time.Duration // since it was received
}

// All lists the instances that are followed, in order of ID.
func (t *Tracker) All(now time.Time) []Entry {
	t.mu.RLock()
	entries := make([]Entry, 0, len(t.held))
	for id, last := range t.held {
		entry := Entry{Instance: id, Report: last.report, Age: last.age(now)}
		if !last.at.IsZero() {
			entry.Heard, entry.Since = true, max(now.Sub(last.at), 0)
		}
		entries = append(entries, entry)
	}
	t.mu.RUnlock()
	slices.SortFunc(entries, func(a, b Entry) int { return strings.Compare(a.Instance, b.Instance) })
	return entries
}
