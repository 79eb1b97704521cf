package main

import (
	"math/rand/v2"
	"testing"

	. "github.com/onsi/gomega"
)

func TestIntervalsHoldWhatTheyAreOf(t *testing.T) {
	g := NewWithT(t)
	random := rand.New(rand.NewPCG(3, 4)) //nolint:gosec // a test's
	held, runs := 0, 60
	for range runs {
		samples := make([]float64, 200)
		for i := range samples {
			samples[i] = 5 + random.NormFloat64()
		}
		of := bootstrap(len(samples), func(pairs []int) float64 { return median(samples, pairs) })
		g.Expect(of.low).To(BeNumerically("<=", of.mid))
		g.Expect(of.high).To(BeNumerically(">=", of.mid))
		g.Expect(of.high - of.low).To(BeNumerically("<", 0.7))
		if of.low <= 5 && 5 <= of.high {
			held++
		}
	}
	g.Expect(held).To(BeNumerically(">=", runs*85/100), "of %d intervals of 95 %%", runs)
}

func TestAnIntervalOfNoSpreadIsAPoint(t *testing.T) {
	g := NewWithT(t)
	of := bootstrap(3, func(pairs []int) float64 { return median([]float64{2, 2, 2}, pairs) })
	g.Expect(of).To(Equal(interval{2, 2, 2}))
}
