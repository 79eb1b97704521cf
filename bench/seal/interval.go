package main

import (
	"fmt"
	"math/rand/v2"

	"github.com/mrgc/mrgc/bench/result"
)

// interval is an estimate with the bounds of its 95 % interval.
type interval struct{ low, mid, high float64 }

func (i interval) text(format string) string {
	return fmt.Sprintf(format+" ["+format+", "+format+"]", i.mid, i.low, i.high)
}

const resamples = 2000

// bootstrap gives a statistic of n pairs and its interval: percentiles over
// resamples of the pairs (Efron and Tibshirani, An Introduction to the Bootstrap,
// 13.3). statistic gets the indices of the pairs that count, some of them several
// times.
func bootstrap(n int, statistic func(pairs []int) float64) interval {
	random := rand.New(rand.NewPCG(1, 2)) //nolint:gosec // the same figures give the same interval
	pairs := make([]int, n)
	for i := range pairs {
		pairs[i] = i
	}
	mid := statistic(pairs)
	all := make([]float64, resamples)
	for i := range all {
		for j := range pairs {
			pairs[j] = random.IntN(n)
		}
		all[i] = statistic(pairs)
	}
	return interval{result.Quantile(all, 0.025), mid, result.Quantile(all, 0.975)}
}

// median is of the samples of those pairs.
func median(samples []float64, pairs []int) float64 {
	chosen := make([]float64, len(pairs))
	for i, pair := range pairs {
		chosen[i] = samples[pair]
	}
	return result.Quantile(chosen, 0.5)
}
