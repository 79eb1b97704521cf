package routing

import (
	"math"
	"slices"
	"time"

	"github.com/mrgc/mrgc/internal/fleet"
)

// Offer is what [Candidates] knows of a client that asks for recipients.
type Offer struct {
	Model string // name of the model, aliases resolved
	N     int    // recipients wanted
	// Regions are those that may serve the client: the picker's own first, then
	// the ones to spill to, in order of preference. No other is used.
	Regions []fleet.Region
	// Detours are those of [Request].
	Detours []time.Duration
	// Seed is drawn anew for each answer, so that clients do not herd.
	Seed uint64
	// Split is the model's.
	Split Split
	// Taken counts, by instance, in how many sets for the same client it is already.
	Taken map[string]int
}

const repeated = 2

// Candidates chooses up to N instances to seal requests to, best first, among
// those that are ready and serve the model in a version that gets requests:
//
//   - of the nearest region, one of each version that it has, so that the picker can
//     keep to the split, the versions drawn by their weights;
//   - others of that region, drawn at random, one whose first token is
//     predicted in half the time twice as likely, and at least one of another zone than the first
//     where there is one;
//   - as the last, one of another region, for when the local ones have gone or are
//     saturated: of a version that the nearest has not, or else drawn like the
//     others, where the detour counts as time until the first token; without
//     detours of the first in the order of preference that has any. An only recipient
//     is local, and no version gives way to another region.
//
// What the nearest region lacks the others make up for, and the other way
// round.
//
// One that fails comes after all that do not, unless all do. But of three or
// more recipients it may be drawn for the last local place, one that does nothing
// but fail less often by a factor of 20: it must be a recipient for requests to
// show that it serves again, and [Pick] passes it over meanwhile.
func Candidates(o Offer, candidates []Candidate) []*fleet.Instance {
	drawn := o.draw(candidates)
	if o.N <= 0 || len(drawn) == 0 {
		return nil
	}
	local := foremost(drawn)
	away := drawn[len(local):]
	o.sortAway(away)
	n := min(o.N, len(local))
	if n == o.N && n > max(1, versions(local)) && len(away) > 0 && away[0].standing == sound {
		n-- // a place for another region
	}
	taken := cover(local, n)
	if failed := luckiest(away, local[0].distance); o.N > 2 && n > 1 && failed >= 0 && away[failed].key < local[n-1].key &&
		(taken < n || away[failed].drawn == local[n-1].drawn) {
		local[n-1], away[failed] = away[failed], local[n-1]
	}
	otherZone(local, n, taken == n)
	lacking(local, away)
	out := make([]*fleet.Instance, 0, min(o.N, len(drawn)))
	for _, r := range local[:n] {
		out = append(out, r.instance)
	}
	for _, r := range away[:min(len(away), o.N-n)] {
		out = append(out, r.instance)
	}
	return out
}

// draw gives all that can serve by standing and region, in an order drawn by
// weight within each: Efraimidis and Spirakis's, in which each has an
// exponentially distributed key whose rate is its weight, and the lowest win.
func (o *Offer) draw(candidates []Candidate) []ranked {
	var able []ranked
	var buf [maxVersions]string
	order := o.Split.order(buf[:0], hash(mix(o.Seed)))
	for i := range candidates {
		in := candidates[i].Instance
		distance := slices.Index(o.Regions, in.Region)
		version := o.Split.rank(order, in, o.Model)
		if candidates[i].Ready && distance >= 0 && version >= 0 && slices.Contains(in.Models, o.Model) {
			able = append(able, ranked{at: i, instance: in, distance: distance, turn: distance, drawn: version})
		}
	}
	load := Request{Policy: PolicyGateThenLoad}
	load.weigh(able, candidates)
	demote(able, 0)
	for i := range able {
		r := &able[i]
		r.tie = mix(r.tie ^ o.Seed)
		if len(o.Detours) > 0 {
			r.key += detourOf(o.Detours, r.distance)
		}
		r.key *= repeated*float64(o.Taken[r.instance.ID]) - math.Log(1-fraction(r.tie, forOffer)) // of 1 to just above 0
	}
	slices.SortFunc(able, ranked.compare)
	return able
}

// sortAway puts what is not of the nearest region in the order of luck alone,
// whatever its region, if it is known how far those are.
func (o *Offer) sortAway(away []ranked) {
	if len(o.Detours) == 0 {
		return
	}
	for i := range away {
		away[i].turn = 0
	}
	slices.SortFunc(away, ranked.compare)
}

// luckiest gives the index of the failing instance of a region, or a nearer one,
// that is drawn first; below 0 if there is none.
func luckiest(rs []ranked, distance int) int {
	lucky := -1
	for i, r := range rs {
		if r.standing == failing && r.distance <= distance && (lucky < 0 || r.key < rs[lucky].key) {
			lucky = i
		}
	}
	return lucky
}

// otherZone makes sure that the first n are of two zones, where there are two:
// the last of them gives way to the next of another zone, which is of the same
// version if that has no other.
func otherZone(rs []ranked, n int, sameVersion bool) {
	if n < 2 {
		return
	}
	elsewhere := func(r ranked) bool { return r.instance.Zone != rs[0].instance.Zone }
	if slices.ContainsFunc(rs[:n], elsewhere) {
		return
	}
	other := slices.IndexFunc(rs, func(r ranked) bool {
		return elsewhere(r) && (!sameVersion || r.drawn == rs[n-1].drawn)
	})
	if other >= n {
		rs[n-1], rs[other] = rs[other], rs[n-1]
	}
}

// lacking moves the first that does not fail and is of a version that the nearest
// region lacks to the head of those further away.
func lacking(local, away []ranked) {
	for i := range away {
		if away[i].standing == sound && !versionIn(local, away[i].drawn) {
			toFront(away, i)
			return
		}
	}
}
