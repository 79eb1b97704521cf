package main

import (
	"testing"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"

	"github.com/mrgc/mrgc/bench/result"
)

func TestFairness(t *testing.T) {
	RegisterFailHandler(Fail)
	RunSpecs(t, "fairness")
}

var _ = Describe("Shares", func() {
	simulated := func(loads ...load) sum {
		GinkgoHelper()
		s, err := simulate(1, 3*time.Minute, loads...)
		Expect(err).NotTo(HaveOccurred())
		GinkgoWriter.Printf("%v\n", s.row(loads[len(loads)-1].tenant))
		return s
	}
	p99 := func(s sum) float64 { return result.Quantile(s.firsts, 0.99) }

	It("keep one tenant's wait near what it has alone, and the fleet busy", func() {
		alone, without, with := simulated(modest), simulated(greedy.as("one"), modest.as("one")), simulated(greedy, modest)
		Expect(p99(without)).To(BeNumerically(">", 5), "it is as bad as it is meant to be")
		Expect(p99(with)).To(BeNumerically("<", p99(alone)+1))
		Expect(with.refusals[1]).To(BeZero(), "the modest tenant is below its share")
		Expect(with.refusals[0]).To(BeNumerically(">", 0))
		Expect(mean(with.busy)).To(BeNumerically(">", 97))
		Expect(mean(with.busy)).To(BeNumerically(">", mean(without.busy)-2))
	})

	// What becomes free goes to whoever asks first, which favours the lighter one.
	It("are nearly as weights are", func() {
		s := simulated(greedy.as("heavy").weighing(3), greedy.as("light").weighing(1))
		Expect(float64(s.tokens[0]) / float64(s.tokens[1])).To(And(BeNumerically(">", 2.4), BeNumerically("<", 3.3)))
	})
})
