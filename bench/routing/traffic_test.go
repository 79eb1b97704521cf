package main

import (
	"slices"
	"testing"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
)

func TestRouting(t *testing.T) {
	RegisterFailHandler(Fail)
	RunSpecs(t, "bench/routing")
}

var _ = Describe("Traffic", func() {
	recording, err := readRecording()
	of := func(reuse bool, seed uint64) []request {
		return traffic(recording, shape{rate: 20, duration: 30 * time.Second, reuse: reuse}, seed)
	}

	It("is read from the recording", func() {
		Expect(err).NotTo(HaveOccurred())
		Expect(recording).To(HaveLen(4000))
	})

	It("is the same for the same seed, and another for another", func() {
		Expect(of(true, 1)).To(Equal(of(true, 1)))
		Expect(of(true, 1)).NotTo(Equal(of(true, 2)))
	})

	DescribeTable("has its rate, and requests that engines take", func(reuse bool) {
		requests := of(reuse, 3)
		Expect(requests).To(HaveLen(600))
		Expect(slices.IsSortedFunc(requests, func(a, b request) int { return int(a.at - b.at) })).To(BeTrue())
		Expect(requests[599].at).To(BeNumerically("<", 30*time.Second))
		for _, r := range requests {
			text := 0
			for _, m := range r.messages {
				text += len(m.content)
			}
			Expect(text).To(Equal(4 * r.promptTokens))
			Expect(r.promptTokens).To(BeNumerically("<=", maxContextTokens+16))
			Expect(r.outputTokens).To(And(BeNumerically(">=", 1), BeNumerically("<=", maxOutputTokens)))
		}
	}, Entry("with reuse", true), Entry("without", false))

	It("goes on with conversations where there is reuse", func() {
		last := map[int]request{}
		returns := 0
		for _, r := range of(true, 4) {
			Expect(r.messages[0].role).To(Equal("system"))
			if before, ok := last[r.conversation]; ok {
				returns++
				Expect(r.messages[:len(before.messages)]).To(Equal(before.messages))
			}
			last[r.conversation] = r
		}
		Expect(returns).To(BeNumerically("~", 400, 60))
	})

	It("has no two requests that begin alike where there is none", func() {
		seen := map[string]bool{}
		for _, r := range of(false, 4) {
			beginning := r.messages[0].content[:40]
			Expect(seen).NotTo(HaveKey(beginning))
			seen[beginning] = true
		}
	})
})

var _ = Describe("A ratio", func() {
	It("is the geometric mean, within its interval", func() {
		r := ratio([]float64{2, 8, 4}, []float64{1, 2, 2})
		Expect(r.mid).To(BeNumerically("~", 2.52, 0.01))
		Expect(r.low).To(BeNumerically("<", r.mid))
		Expect(r.high).To(BeNumerically(">", r.mid))
		Expect(r.low).To(BeNumerically(">=", 2))
		Expect(r.high).To(BeNumerically("<=", 4))
	})
})
