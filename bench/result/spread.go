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
	return Spread{P10: rank(sorted, 0.10), P50: rank(sorted, 0.50), P90: rank(sorted, 0.90), Samples: len(sorted)}
}

// Quantile is by nearest rank; NaN of nothing.
func Quantile(samples []float64, share float64) float64 {
	if len(samples) == 0 {
		return math.NaN()
	}
	return rank(slices.Sorted(slices.Values(samples)), share)
}

func rank(sorted []float64, share float64) float64 {
	return sorted[max(int(math.Ceil(share*float64(len(sorted))))-1, 0)]
}
