package routing

import (
	"cmp"
	"math"
	"slices"

	"github.com/mrgc/mrgc/internal/fleet"
)

// standing comes before everything else in the order of instances.
type standing uint8

const (
	probed  standing = iota // fails, and this request shall see whether it still does
	sound                   // does not fail, or all do
	failing                 // fails
)

// ranked is a candidate that can serve, with all that its place depends on.
type ranked struct {
	at       int // its index among the candidates
	instance *fleet.Instance
	distance int // index of its region in the order of preference
	turn     int // the same, unless requests overflow to the region
	version  int // place of its version in the order that the split has for the request
	drawn    int // the same in the order drawn for an offer, which sorts by nothing of it
	standing standing
	fails    bool

	requests float64 // in the engine and waiting
	slots    float64 // 0: not known
	share    float64 // of its capacity to count on
	ramp     float64 // how far its slow start has come
	atHome   float64 // the key, were the instance the request's home
	key      float64 // the policy's measure, less is better
	score    int     // decides among equal keys; 0 where the policy has no use for it

	tie uint64 // rendezvous hash with the request's id
}

// weigh works out what the places of those that can serve depend on.
func (req *Request) weigh(able []ranked, candidates []Candidate) {
	id := hashOf(req.ID)
	for i := range able {
		r, c := &able[i], &candidates[able[i].at]
		load := c.load()
		r.requests, r.slots = count(load.Running)+count(load.Queued), count(load.Slots)
		r.share, r.ramp, r.fails = c.share(), c.ramp(), c.failing()
		r.tie = id.rendezvous(c.Instance.ID)
	}
	standIn := slowest(able, candidates)
	for i := range able {
		r, c := &able[i], &candidates[able[i].at]
		switch req.Policy {
		case PolicyGateThenLoad:
			r.key = c.firstToken(UncachedTokens(req.PromptTokens, false), r, standIn)
			if r.instance.ID == req.Home {
				r.atHome = c.firstToken(UncachedTokens(req.PromptTokens, true), r, standIn)
			}
		case PolicyScore:
			// Not [Score] times share: a new instance among busy ones would wait for
			// the end of its slow start.
			r.key = -float64(score(c.Instance.Health, c.load(), (r.requests+1)/r.share-1))
		case PolicyLeastInFlight, PolicyPowerOfTwo:
			r.key = (count(c.InFlight) + 1) / r.share
			r.score = score(c.Instance.Health, c.load(), r.requests)
		case PolicyRoundRobin:
			r.key = 0
		}
	}
}

// demote gives everyone a standing. A share of the failing are probed, no further
// away than the request would go without it, and of the version that it is for.
func demote(able []ranked, probes float64) {
	nearest := math.MaxInt
	for i := range able {
		if !able[i].fails {
			nearest = min(nearest, able[i].distance)
		}
	}
	for i := range able {
		r := &able[i]
		switch {
		case !r.fails || nearest == math.MaxInt:
			r.standing = sound
		case r.version == 0 && r.distance <= nearest && fraction(r.tie, forProbe) < probes:
			r.standing = probed
		default:
			r.standing = failing
		}
	}
}

// compare orders the better one first. It is total over distinct instances, so
// that the order of the input never shows.
func (r ranked) compare(o ranked) int {
	return cmp.Or(
		cmp.Compare(r.standing, o.standing),
		cmp.Compare(r.version, o.version),
		cmp.Compare(r.turn, o.turn),
		cmp.Compare(r.key, o.key),
		cmp.Compare(o.score, r.score),
		cmp.Compare(r.tie, o.tie),
		cmp.Compare(r.instance.ID, o.instance.ID),
	)
}

// betterOfTwo draws two of those that are in the order of load, and gives the
// index of the one that comes first.
func betterOfTwo(sorted []ranked) int {
	var drawn [2]int // by tie, which is random
	for n := range drawn {
		best := -1
		for i := range sorted {
			if n == 1 && i == drawn[0] {
				continue
			}
			if best < 0 || sorted[i].tie < sorted[best].tie {
				best = i
			}
		}
		if best < 0 { // only one to draw from
			return drawn[0]
		}
		drawn[n] = best
	}
	return min(drawn[0], drawn[1])
}

// rotate orders instances by ID, beginning with the one whose turn it is. One
// that starts slowly is passed over, and comes last, as often as it is not
// ready for its full share.
func rotate(rs []ranked, turn uint64) {
	late := func(r ranked) int {
		if fraction(r.tie, forSlowStart) < r.ramp {
			return 0
		}
		return 1
	}
	slices.SortFunc(rs, func(a, b ranked) int {
		return cmp.Or(cmp.Compare(late(a), late(b)), cmp.Compare(a.instance.ID, b.instance.ID))
	})
	n := 0
	for n < len(rs) && late(rs[n]) == 0 {
		n++
	}
	if n == 0 {
		n = len(rs) // all are new
	}
	for range turn % uint64(n) {
		first := rs[0]
		copy(rs[:n-1], rs[1:n])
		rs[n-1] = first
	}
}
