package routing_test

import (
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	"pgregory.net/rapid"

	"github.com/mrgc/mrgc/internal/routing"
)

var _ = Describe("Outcomes", func() {
	start := time.Date(2026, 9, 1, 12, 0, 0, 0, time.UTC)

	// run adds outcomes at a steady rate per second, until the last at end.
	run := func(o routing.Outcomes, failed bool, from, end time.Duration, rate int) routing.Outcomes {
		for at := from; at < end; at += time.Second / time.Duration(rate) {
			o = o.Add(failed, start.Add(at))
		}
		return o
	}

	It("know of no errors at first", func() {
		Expect(routing.Outcomes{}.ErrorRate()).To(BeZero())
		Expect(routing.Outcomes{}.Add(false, start).ErrorRate()).To(BeZero())
	})

	DescribeTable("condemn an instance that fails everything within a second, from three requests a second on",
		func(rate int) {
			o := run(routing.Outcomes{}, false, 0, time.Minute, rate)
			o = run(o, true, time.Minute, time.Minute+time.Second, rate)
			Expect(o.ErrorRate()).To(BeNumerically(">=", routing.FailingRate))
		},
		Entry(nil, 3), Entry(nil, 10), Entry(nil, 100), Entry(nil, 1000),
	)

	DescribeTable("forgive failures after a quiet time",
		func(failures int, condemned bool) {
			o := routing.Outcomes{}.Add(false, start)
			o = run(o, true, time.Hour, time.Hour+time.Duration(failures)*100*time.Millisecond, 10)
			Expect(o.ErrorRate() >= routing.FailingRate).To(Equal(condemned))
		},
		Entry("one", 1, false), Entry("two", 2, false), Entry("three, one after the other", 3, true),
	)

	It("forgive failures that are far between", func() {
		o := routing.Outcomes{}
		for i := range 20 {
			o = o.Add(true, start.Add(time.Duration(i)*10*time.Second))
		}
		Expect(o.ErrorRate()).To(BeNumerically("<", routing.FailingRate))
	})

	It("do not heal by time alone, but by probes that succeed", func() {
		o := run(routing.Outcomes{}, true, 0, 10*time.Second, 100)
		rate := o.ErrorRate()
		o = o.Add(true, start.Add(time.Minute))
		Expect(o.ErrorRate()).To(BeNumerically(">=", rate))
		o = o.Add(false, start.Add(2*time.Minute))
		Expect(o.ErrorRate()).To(BeNumerically("<", routing.FailingRate))
	})

	It("take what comes late as if it came now", func() {
		late := routing.Outcomes{}.Add(false, start).Add(true, start.Add(-time.Hour))
		Expect(late).To(Equal(routing.Outcomes{}.Add(false, start).Add(true, start)))
	})

	It("are a share, which a failure never lowers and a success never raises", func() {
		rapid.Check(GinkgoT(), func(t *rapid.T) {
			var o routing.Outcomes
			at := start
			for range rapid.IntRange(1, 50).Draw(t, "outcomes") {
				at = at.Add(time.Duration(rapid.IntRange(-100, 5000).Draw(t, "ms")) * time.Millisecond)
				failed := rapid.Bool().Draw(t, "failed")
				next := o.Add(failed, at)
				if rate := next.ErrorRate(); !(rate >= 0 && rate <= 1) || !failed && rate > o.ErrorRate() ||
					failed && o.ErrorRate() >= routing.FailingRate && rate < o.ErrorRate() {
					t.Fatalf("%v after %v, failed: %v", rate, o.ErrorRate(), failed)
				}
				o = next
			}
		})
	})
})
