package tenant

import (
	"cmp"
	"fmt"
)

// Limits are how much a tenant may ask for, and what it gets when there is not
// enough for all. The zero value is no limit, and a weight of 1: package quota
// enforces both.
type Limits struct {
	// RequestsPerSecond and TokensPerMinute are what it may ask for, in whichever
	// regions; 0: as much as it likes. A request's tokens are those of its prompt
	// and the most that its answer may have, as it declares them, until it has ended
	// and says what it has used.
	RequestsPerSecond int `json:"requests_per_second,omitempty"`
	TokensPerMinute   int `json:"tokens_per_minute,omitempty"`
	// Weight is its share of what is in flight while nothing is free: twice that
	// of a tenant with half the weight. 0 is 1.
	Weight int `json:"weight,omitempty"`
}

// Share is the weight, 1 where none is given.
func (l Limits) Share() int { return cmp.Or(l.Weight, 1) }

// And is the lower of both in each respect; what other does not give stays.
func (l Limits) And(other Limits) Limits {
	both := Limits{
		RequestsPerSecond: lower(l.RequestsPerSecond, other.RequestsPerSecond),
		TokensPerMinute:   lower(l.TokensPerMinute, other.TokensPerMinute),
		Weight:            l.Weight,
	}
	if other.Weight > 0 {
		both.Weight = min(l.Share(), other.Weight)
	}
	return both
}

// lower is the smaller of two limits, of which 0 is none.
func lower(a, b int) int {
	if a == 0 || b == 0 {
		return max(a, b)
	}
	return min(a, b)
}

// Limits of limits: more is a mistake, and reckoning with it would overflow.
const (
	maxRequestsPerSecond = 1_000_000
	maxTokensPerMinute   = 1_000_000_000
	maxWeight            = 1000
)

// Check says which limit is none.
func (l Limits) Check() error {
	for _, limit := range []struct {
		name      string
		value, to int
	}{
		{"requests_per_second", l.RequestsPerSecond, maxRequestsPerSecond},
		{"tokens_per_minute", l.TokensPerMinute, maxTokensPerMinute},
		{"weight", l.Weight, maxWeight},
	} {
		if limit.value < 0 || limit.value > limit.to {
			return fmt.Errorf("%s is %d: want 1 to %d, or nothing", limit.name, limit.value, limit.to)
		}
	}
	return nil
}
