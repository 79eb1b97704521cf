package routing

import (
	"slices"
	"time"
)

// queueShare is how many requests may wait at an engine, over its slots: so many
// that a slot which becomes free finds another one at once, and no more.
const queueShare = 1.0 / 16

// Saturation is how much there is to do where a request would go.
type Saturation struct {
	// Overload is how many requests there are at the least busy instance, over its
	// slots and a small queue. Above 1 nothing is free.
	Overload float64
	// Clears is when that one will be down to 1 if it gets no more, by the time that
	// its requests last.
	Clears time.Duration
}

// SaturationOf looks at the instances among which [Pick] would choose one for the
// request, whatever the policy. Without any, nothing is known to be saturated.
func SaturationOf(req Request, candidates []Candidate) Saturation {
	var buf [8]ranked
	able, _ := req.able(buf[:0], candidates)
	if len(able) == 0 {
		return Saturation{}
	}
	req.weigh(able, candidates)
	demote(able, 0)
	slices.SortFunc(able, ranked.compare)
	req.overflow(able, candidates)
	var least Saturation
	standIn := slowest(able, candidates)
	for i, r := range foremost(able) {
		if s := saturationOf(&r, &candidates[r.at], standIn); i == 0 || s.Overload < least.Overload {
			least = s
		}
	}
	return least
}

func saturationOf(r *ranked, c *Candidate, standIn pace) Saturation {
	slots := r.slots
	if slots == 0 {
		slots = standIn.slots
	}
	duration := standIn.duration
	if told := c.Report.RequestDuration.Seconds(); c.Report.Age != AgeMissing && told > 0 {
		duration = told
	}
	most := slots * (1 + queueShare)
	return Saturation{
		Overload: r.requests / most,
		Clears:   time.Duration(max(r.requests-most, 0) * duration / slots * float64(time.Second)),
	}
}
