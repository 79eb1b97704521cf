package main

import (
	"errors"
	"math/rand/v2"
	"testing"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"

	"github.com/mrgc/mrgc/bench/rig"
)

func TestPicker(t *testing.T) {
	RegisterFailHandler(Fail)
	RunSpecs(t, "bench/picker")
}

var _ = Describe("A page of metrics", func() {
	const before = metrics(`# HELP wait_seconds Time.
wait_seconds_bucket{region="a",le="0.001"} 10
wait_seconds_bucket{region="a",le="0.002"} 10
wait_seconds_bucket{region="a",le="0.01"} 10
wait_seconds_bucket{region="a",le="+Inf"} 10
wait_seconds_count{region="a"} 10
picks_total{outcome="picked"} 3
picks_total{outcome="spilled"} 4
`)
	const after = metrics(`wait_seconds_bucket{region="a",le="0.001"} 60
wait_seconds_bucket{region="a",le="0.002"} 100
wait_seconds_bucket{region="a",le="0.01"} 109
wait_seconds_bucket{region="a",le="+Inf"} 110
wait_seconds_count{region="a"} 110
`)

	It("is summed up by the beginning of its series", func() {
		Expect(before.sum("picks_total")).To(Equal(7.0))
		Expect(before.sum(`picks_total{outcome="spilled"}`)).To(Equal(4.0))
		Expect(before.sum("none")).To(BeZero())
	})

	DescribeTable("has quantiles of what was counted since another", func(share, want float64) {
		Expect(quantile("wait_seconds", before, after, share)).To(BeNumerically("~", want, 1e-9))
	},
		Entry("within the first bucket", 0.25, 0.0005),
		Entry("at a bound", 0.5, 0.001),
		Entry("within a bucket", 0.7, 0.0015),
		Entry("within the last", 0.945, 0.006),
		Entry("beyond the last bound: that, at least", 1.0, 0.01),
	)
})

var _ = Describe("Arrivals", func() {
	of := func(seed uint64) []rig.Request {
		return arrivals(100, 20*time.Second, seed, func(random *rand.Rand) rig.Request { return chat(random, 20, 5) })
	}

	It("are the same for the same seed, and another for another", func() {
		Expect(of(1)).To(Equal(of(1)))
		Expect(of(1)).NotTo(Equal(of(2)))
	})

	It("have their rate", func() {
		requests := of(3)
		Expect(len(requests)).To(BeNumerically("~", 2000, 200))
		Expect(requests[len(requests)-1].At).To(BeNumerically("<", 20*time.Second))
	})
})

var _ = It("What was due before counts for nothing", func() {
	a := sumUp([]rig.Outcome{
		{At: 0, First: time.Hour}, {At: time.Second, First: 2 * time.Millisecond, Total: 3 * time.Millisecond}, {At: 2 * time.Second, Err: errPicker},
	}, time.Second)
	Expect(a).To(Equal(answered{first: []float64{2}, total: []float64{3}, failed: 1, err: errPicker}))
})

var errPicker = errors.New("cut off")
