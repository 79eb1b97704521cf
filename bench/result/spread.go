package result

import (
	"math"
	"slices"
)

// Spread is how samples lie: on a machine that others use too, a median alone
// says little.
type Spread struct {
	P10     float64 `json:"p10"`
	P50     float64 `json:"p50"`
	P90     float64 `json:"p90"`
	Samples int     `json:"samples"`
}

// SpreadOf gives quantiles by nearest rank. Of no samples all are zero.
func SpreadOf(samples []float64) Spread {
	if len(samples) == 0 {
		return Spread{}
	}
	sorted := slices.Sorted(slices.Values(samples))
	rank := func(share float64) float64 { return sorted[max(int(math.Ceil(share*float64(len(sorted))))-1, 0)] }
	return Spread{P10: rank(0.10), P50: rank(0.50), P90: rank(0.90), Samples: len(sorted)}
}
