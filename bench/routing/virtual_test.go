package main

import (
	"testing"

	. "github.com/onsi/gomega"

	"github.com/mrgc/mrgc/internal/routing"
)

// p99s simulates a few traffics.
func p99s(t *testing.T, reuse bool, of func() balancer) []float64 {
	t.Helper()
	g := NewWithT(t)
	recording, err := readRecording()
	g.Expect(err).NotTo(HaveOccurred())
	var runs []virtualRun
	for seed := range uint64(8) {
		requests := traffic(recording, shape{rate: virtualRate, duration: 20e9, reuse: reuse}, seed)
		run, err := simulate(requests, engineCount, of())
		g.Expect(err).NotTo(HaveOccurred())
		g.Expect(run.firsts).To(HaveEach(BeNumerically(">", 0)), "every request has an answer")
		runs = append(runs, run)
	}
	return quantiles(runs, 0.99)
}

func ours99(t *testing.T, reuse bool, offered offering, policy routing.Policy) []float64 {
	return p99s(t, reuse, func() balancer { return newVirtualPicker(engineCount, offered, policy) })
}

func TestVirtualTimeGivesTheSameEachTime(t *testing.T) {
	g := NewWithT(t)
	g.Expect(ours99(t, true, offered, routing.PolicyGateThenLoad)).To(Equal(ours99(t, true, offered, routing.PolicyGateThenLoad)))
}

// What the default policy is there for; in virtual time nothing disturbs it.
func TestDefaultPolicyBeatsWhatPeersDo(t *testing.T) {
	for _, reuse := range []bool{true, false} {
		g := NewWithT(t)
		ours := ours99(t, reuse, offered, routing.PolicyGateThenLoad)
		least := p99s(t, reuse, func() balancer { return newLeastRequest(engineCount, false) })
		aware := p99s(t, reuse, func() balancer { return newCacheAware(engineCount) })
		g.Expect(ratio(ours, least).mid).To(BeNumerically("<", 0.8), "reuse %v: %v, least request %v", reuse, ours, least)
		g.Expect(ratio(ours, aware).mid).To(BeNumerically("<", 0.8), "reuse %v: %v, cache-aware %v", reuse, ours, aware)
	}
}
