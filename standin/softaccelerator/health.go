package softaccelerator

import "time"

// Health states, as DescribeEndpointGroup shows them.
const (
	stateInitial   = "INITIAL"
	stateHealthy   = "HEALTHY"
	stateUnhealthy = "UNHEALTHY"
)

// health is what checks have shown of an endpoint.
type health struct {
	state  string
	passed int       // checks in a row, up to the last
	failed int       // likewise
	since  time.Time // when the first of those passed
	back   time.Time // when one that has recovered gets connections again
}

// after is the health after one more check: so many in a row, the threshold, change
// the state. An endpoint that has recovered gets connections again once it has passed
// checks for as long as the return takes, "about 30 seconds or so".
func (h health) after(passed bool, threshold int, back time.Duration, now time.Time) health {
	if !passed {
		h.passed, h.failed = 0, h.failed+1
		if h.failed >= threshold {
			h.state = stateUnhealthy
		}
		return h
	}
	if h.passed == 0 {
		h.since = now
	}
	h.passed, h.failed = h.passed+1, 0
	if h.passed >= threshold && h.state != stateHealthy {
		if h.state == stateUnhealthy {
			h.back = h.since.Add(back)
		}
		h.state = stateHealthy
	}
	return h
}

// takes says whether connections go there.
func (h health) takes(now time.Time) bool {
	return h.state == stateHealthy && !now.Before(h.back)
}
