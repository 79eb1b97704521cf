package extproc

import (
	"slices"
	"strings"
	"time"

	"github.com/mrgc/mrgc/internal/fleet"
	"github.com/mrgc/mrgc/internal/routing"
)

// index is what a pick asks of a snapshot, worked out once for each snapshot
// and not once for each request. It is immutable.
type index struct {
	snapshot   *fleet.Snapshot
	staleAfter time.Duration
	models     map[string]struct{}
	address    map[string]*fleet.Instance
	// ready has the ids of the instances that take new requests, and since when:
	// as of the first snapshot that showed it, or zero where that was the first
	// snapshot of all, which says nothing about when.
	ready map[string]time.Time
}

// index gives the present snapshot's index; nil while nothing is known of the
// fleet. Requests that see a new snapshot at the same moment may each build it:
// the results are equal, and nobody waits.
func (p *Picker) index() *index {
	snapshot := p.view()
	if snapshot == nil || len(snapshot.Instances) == 0 {
		return nil
	}
	before, staleAfter := p.latest.Load(), p.settings.Load().staleAfter
	if before != nil && before.snapshot == snapshot && before.staleAfter == staleAfter {
		return before
	}
	ix := newIndex(snapshot, before, staleAfter)
	p.latest.Store(ix)
	p.saturated.forget(func(id string) bool { return !ix.has(id) })
	p.outcomes.forget(func(id string) bool { return !ix.has(id) || ix.newlyReady(id, before) })
	return ix
}

func newIndex(snapshot *fleet.Snapshot, before *index, staleAfter time.Duration) *index {
	ix := &index{
		snapshot:   snapshot,
		staleAfter: staleAfter,
		models:     make(map[string]struct{}),
		address:    make(map[string]*fleet.Instance, len(snapshot.Instances)),
		ready:      make(map[string]time.Time),
	}
	for _, in := range snapshot.Ready(staleAfter) {
		var since time.Time
		if before != nil {
			var already bool
			if since, already = before.ready[in.ID]; !already {
				since = snapshot.At
			}
		}
		ix.ready[in.ID] = since
	}
	for _, in := range snapshot.Instances {
		ix.address[in.Address] = in
		for _, model := range in.Models {
			ix.models[model] = struct{}{}
		}
	}
	return ix
}

// has says whether an instance is in the fleet; none is if ix is nil.
func (ix *index) has(id string) bool { return ix.get(id) != nil }

// get gives an instance by ID; nil if it is not in the fleet, or ix is nil.
func (ix *index) get(id string) *fleet.Instance {
	if ix == nil {
		return nil
	}
	i, found := slices.BinarySearchFunc(ix.snapshot.Instances, id, func(in *fleet.Instance, id string) int {
		return strings.Compare(in.ID, id)
	})
	if !found {
		return nil
	}
	return ix.snapshot.Instances[i]
}

// newlyReady says whether an instance has become ready, since an index that may
// be nil: what it did before says nothing about it any more.
func (ix *index) newlyReady(id string, before *index) bool {
	if before == nil {
		return false
	}
	_, is := ix.ready[id]
	_, was := before.ready[id]
	return is && !was
}

// serves says whether any instance serves a model, ready or not.
func (ix *index) serves(model string) bool {
	_, ok := ix.models[model]
	return ok
}

// at gives the instance that has an address; nil if none has, or ix is nil.
func (ix *index) at(address string) *fleet.Instance {
	if ix == nil {
		return nil
	}
	return ix.address[address]
}

// candidates appends the instances that hold the recipients' keys to dst, each
// once: an instance may hold several while its enclave changes keys, and a fleet's
// key is held by many.
func (p *Picker) candidates(dst []routing.Candidate, ix *index, recipients []string, now time.Time) []routing.Candidate {
	for _, kid := range recipients {
		for _, in := range ix.snapshot.Holders(kid) {
			if !slices.ContainsFunc(dst, func(c routing.Candidate) bool { return c.Instance == in }) {
				dst = append(dst, p.candidate(ix, in, now))
			}
		}
	}
	return dst
}

// reportOf is what an instance last said of its load.
func (p *Picker) reportOf(ix *index, in *fleet.Instance) routing.Report {
	switch {
	case p.report != nil:
		return p.report(in)
	case !ix.snapshot.Stale(in, ix.staleAfter):
		return routing.Report{Load: in.Load, Age: routing.AgeStale} // seconds old
	}
	return routing.Report{}
}

// work is what the picker itself has in flight on an instance that has last
// reported so.
func (p *Picker) work(in *fleet.Instance, report routing.Report, now time.Time) Work {
	work := p.inFlight.On(in.ID)
	work.SentRequests = work.Requests // any of them may still be on its way
	if report.Age != routing.AgeFresh {
		return work
	}
	var requests int
	requests, work.SentTokens = p.inFlight.SentSince(in.ID, now.Add(-report.Since-onTheWay))
	if in.Region == p.region {
		work.SentRequests = requests
	}
	return work
}

// onTheWay is how long a request is at most on its way from the picker to an instance
// of its region, or the instance's report to the picker, unless something is wrong: a
// request picked so long before a report came is in the report.
const onTheWay = 5 * time.Millisecond

// candidate is all that the picker knows of an instance.
func (p *Picker) candidate(ix *index, in *fleet.Instance, now time.Time) routing.Candidate {
	report := p.reportOf(ix, in)
	work := p.work(in, report, now).Plus(p.shared.views.On(in.ID, now.Add(-report.Since), now))
	c := routing.Candidate{
		Instance: in,
		InFlight: work.Requests, InFlightTokens: work.Tokens, SentRequests: work.SentRequests, SentTokens: work.SentTokens,
		Report:    report,
		Saturated: p.saturated.was(in.ID),
		ErrorRate: p.outcomes.errorRate(in.ID),
	}
	var since time.Time
	if since, c.Ready = ix.ready[in.ID]; !since.IsZero() {
		c.SinceReady = max(now.Sub(since), 1) // 0 would be a long time
	}
	return c
}
