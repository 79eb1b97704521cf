package routing

import (
	"slices"
	"time"

	"github.com/mrgc/mrgc/internal/fleet"
)

// Way is which regions serve a request: [Request.Regions] and [Request.Detours].
type Way struct {
	Regions []fleet.Region
	Detours []time.Duration
}

// Preference is a region where an operator wants requests served rather than in the
// ones that come later.
type Preference struct {
	Region fleet.Region
	// Handicap is how much later the first token may come from the regions before this
	// one, when they are saturated, until this one is used: what a request costs
	// here more than there, in time that tenants are to wait rather.
	Handicap time.Duration
}

// NewWay gives the way of requests that come to a region: first to the preferred
// regions, then to those of the region itself, which are itself and the ones to spill
// to. A preferred region that is none of those is none of the way. A round trip that
// is not known is [UnknownDetour].
func NewWay(own []fleet.Region, prefer []Preference, roundTrip func(fleet.Region) (time.Duration, bool)) Way {
	var w Way
	add := func(region fleet.Region, handicap time.Duration) {
		detour := UnknownDetour
		if region == own[0] {
			detour = 0
		} else if known, ok := roundTrip(region); ok {
			detour = known
		}
		w.Regions, w.Detours = append(w.Regions, region), append(w.Detours, detour+handicap)
	}
	for _, p := range prefer {
		if slices.Contains(own, p.Region) && !slices.Contains(w.Regions, p.Region) {
			add(p.Region, p.Handicap)
		}
	}
	for _, region := range own {
		if !slices.Contains(w.Regions, region) {
			add(region, 0)
		}
	}
	return w
}

// Within is the part of the way that is in regions which are allowed.
func (w Way) Within(allowed func(fleet.Region) bool) Way {
	var in Way
	for i, region := range w.Regions {
		if !allowed(region) {
			continue
		}
		in.Regions = append(in.Regions, region)
		if i < len(w.Detours) {
			in.Detours = append(in.Detours, w.Detours[i])
		}
	}
	return in
}

// drainedDetour keeps requests away from a drained region, however saturated others
// are.
const drainedDetour = time.Hour

// Avoiding is the way while regions are drained: those come last, for what no other
// can serve.
func (w Way) Avoiding(drained func(fleet.Region) bool) Way {
	var first, last Way
	for i, region := range w.Regions {
		part, more := &first, time.Duration(0)
		if drained(region) {
			part, more = &last, drainedDetour
		}
		part.Regions = append(part.Regions, region)
		if i < len(w.Detours) {
			part.Detours = append(part.Detours, w.Detours[i]+more)
		}
	}
	if len(first.Regions) == 0 {
		return w
	}
	return Way{Regions: append(first.Regions, last.Regions...), Detours: append(first.Detours, last.Detours...)}
}

const (
	// Two regions change places in the order of nearness when the one behind is nearer
	// by a fifth and by this: what is measured wavers.
	nearerBy    = 0.8
	nearerByAll = 2 * time.Millisecond
)

// Nearest puts regions in the order of their round trips, those that are not known
// last. It moves nothing for a small difference from the order that they are in.
func Nearest(order []fleet.Region, roundTrip func(fleet.Region) (time.Duration, bool)) []fleet.Region {
	sorted := slices.Clone(order)
	nearer := func(a, b fleet.Region) bool {
		ra, knownA := roundTrip(a)
		rb, knownB := roundTrip(b)
		if !knownA || !knownB {
			return knownA && !knownB
		}
		return float64(ra) < nearerBy*float64(rb) && ra < rb-nearerByAll
	}
	// By insertion: the relation is not transitive, and each region passes those before
	// it only as long as it is clearly nearer.
	for i := 1; i < len(sorted); i++ {
		for k := i; k > 0 && nearer(sorted[k], sorted[k-1]); k-- {
			sorted[k], sorted[k-1] = sorted[k-1], sorted[k]
		}
	}
	return sorted
}
