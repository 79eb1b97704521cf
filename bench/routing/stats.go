package main

import (
	"math"
	"math/rand/v2"

	"github.com/mrgc/mrgc/bench/result"
)

// quantile is by nearest rank; NaN of nothing.
func quantile(samples []float64, share float64) float64 { return result.Quantile(samples, share) }

// interval is an estimate with the bounds of its 95 % interval.
type interval struct{ low, mid, high float64 }

// ratio is the geometric mean of a[i]/b[i], where both come from the same
// traffic; its interval is by bootstrap over the pairs (percentiles of 10,000
// resamples: Efron and Tibshirani, An Introduction to the Bootstrap, 13.3).
func ratio(a, b []float64) interval {
	logs := make([]float64, len(a))
	for i := range a {
		logs[i] = math.Log(a[i] / b[i])
	}
	random := rand.New(rand.NewPCG(1, 2)) //nolint:gosec // the same figures give the same interval
	means := make([]float64, 10_000)
	for i := range means {
		for range logs {
			means[i] += logs[random.IntN(len(logs))]
		}
		means[i] /= float64(len(logs))
	}
	return interval{math.Exp(quantile(means, 0.025)), math.Exp(mean(logs)), math.Exp(quantile(means, 0.975))}
}

func mean(v []float64) float64 {
	sum := 0.0
	for _, x := range v {
		sum += x
	}
	return sum / float64(len(v))
}

// middle is the median, which is what tables say of seeds; its interval is by
// bootstrap, as that of ratio.
func middle(v []float64) interval {
	if len(v) == 0 {
		return interval{math.NaN(), math.NaN(), math.NaN()}
	}
	random := rand.New(rand.NewPCG(1, 2)) //nolint:gosec // the same figures give the same interval
	medians := make([]float64, 10_000)
	again := make([]float64, len(v))
	for i := range medians {
		for j := range again {
			again[j] = v[random.IntN(len(v))]
		}
		medians[i] = quantile(again, 0.5)
	}
	return interval{quantile(medians, 0.025), quantile(v, 0.5), quantile(medians, 0.975)}
}
