package routing

import (
	"math"
	"slices"
	"time"
)

const (
	// OverflowMargin is how much sooner a request's first token must be predicted in
	// another region, the way there included, for it to leave one that is saturated.
	OverflowMargin = 50 * time.Millisecond
	// OverflowPart is in which part of the time that it would take here it must come
	// besides. The longer a queue is, the less is its end known: where all regions have
	// too much to do, they would else exchange their requests for nothing.
	OverflowPart = 0.75
	// UnknownDetour is how much later a first token is taken to come from a region of
	// which [Request.Detours] says nothing: about as far as regions lie apart.
	UnknownDetour = 150 * time.Millisecond

	// An instance is saturated from as many requests on as it should have, and is so
	// until it has a quarter less ([SaturationOf] says how many that is): else the one
	// request that ends would call back what the next sends away.
	saturatedFrom, saturatedUntil = 1.0, 0.75
)

// IsSaturated says whether an instance has as much to do as it should have, or had
// when that was last asked ([Candidate.Saturated]) and is not down to a good deal
// less yet.
func (c *Candidate) IsSaturated() bool {
	load := c.load()
	slots := count(load.Slots)
	if slots == 0 {
		slots = typicalSlots
	}
	overload := (count(load.Running) + count(load.Queued)) / (slots * (1 + queueShare))
	if c.Saturated {
		return overload >= saturatedUntil
	}
	return overload >= saturatedFrom
}

// overflow has another region take the turn of the first, among those that are
// sorted, when every instance of the first is saturated and the other gives the
// request's first token sooner by more than [OverflowMargin], the detour included. What
// is not known for certain to be free is not: an instance of the other region counts
// if its report is fresh.
//
// Requests then go to each region until both are as late, and no more: only of
// those that are saturated is any sent away, and only as far as it gains.
func (req *Request) overflow(sorted []ranked, candidates []Candidate) {
	here := foremost(sorted)
	if len(req.Detours) == 0 || len(here) == 0 {
		return
	}
	for i := range here {
		if !candidates[here[i].at].IsSaturated() {
			return
		}
	}
	first, standIn := &here[0], slowest(sorted, candidates)
	stay, leave, to := math.Inf(1), math.Inf(1), -1
	for i := range sorted {
		r := &sorted[i]
		if r.standing != first.standing || r.version != first.version {
			continue
		}
		c := &candidates[r.at]
		soon := c.firstToken(UncachedTokens(req.PromptTokens, r.instance.ID == req.Home), r, standIn) + req.detour(r.distance)
		switch {
		case r.distance == first.distance:
			stay = min(stay, soon)
		case c.Report.Age == AgeFresh && soon < leave:
			leave, to = soon, r.distance
		}
	}
	if leave+OverflowMargin.Seconds() >= stay || leave >= OverflowPart*stay {
		return
	}
	for i := range sorted {
		if r := &sorted[i]; r.distance == to {
			r.turn = beforeAll
		}
	}
	slices.SortFunc(sorted, ranked.compare)
}

// beforeAll is the turn of a region that requests overflow to.
const beforeAll = -1

// detour is how much later a first token comes from a region, in seconds.
func (req *Request) detour(distance int) float64 {
	return detourOf(req.Detours, distance)
}

func detourOf(detours []time.Duration, distance int) float64 {
	if distance < len(detours) {
		return detours[distance].Seconds()
	}
	return UnknownDetour.Seconds()
}
