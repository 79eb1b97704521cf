package routing

import (
	"math"
	"time"
)

// Outcomes is how an instance's requests ended of late. It is a value: Add gives
// the next one. The zero value knows of none.
//
// What is older counts less, by a factor of e every [OutcomesMemory], but
// successes and failures alike: an instance that is sent nothing keeps its error
// rate, and one that failed goes on failing until a request that probes it
// succeeds. Time alone heals nothing.
type Outcomes struct {
	succeeded, failed float64 // as of at, decayed
	at                time.Time
}

// OutcomesMemory is the time after which an outcome counts 1/e. An instance that
// served everything and now fails everything reaches [FailingRate] after ln 2
// times it, just under a second, at a steady rate of requests.
const OutcomesMemory = 1400 * time.Millisecond

// goodStanding is the number of successes, at least, that an instance is given
// credit for which is not failing: one or two failures after a quiet time
// condemn nobody, three within a second do.
const goodStanding = 2

// Add notes that a request ended, at a time that should not be before that of
// the last one; if it is, it counts as the same.
func (o Outcomes) Add(failed bool, at time.Time) Outcomes {
	if elapsed := at.Sub(o.at); elapsed > 0 {
		decay := math.Exp(-elapsed.Seconds() / OutcomesMemory.Seconds())
		o.succeeded *= decay
		o.failed *= decay
		o.at = at
	}
	if o.ErrorRate() < FailingRate {
		o.succeeded = max(o.succeeded, goodStanding)
	}
	if failed {
		o.failed++
	} else {
		o.succeeded++
	}
	return o
}

// ErrorRate is the share of requests that failed, from 0 to 1; 0 when nothing is
// known.
func (o Outcomes) ErrorRate() float64 {
	if o.failed == 0 {
		return 0
	}
	return o.failed / (o.failed + o.succeeded)
}
