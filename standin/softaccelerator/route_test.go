package softaccelerator

import (
	"math"
	"slices"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	"pgregory.net/rapid"
)

// at is a group with one endpoint for each weight, all healthy or none.
func at(dial float64, takes bool, weights ...int) choice {
	c := choice{dial: dial}
	for _, weight := range weights {
		c.endpoints = append(c.endpoints, weighed{weight: weight, takes: takes})
	}
	return c
}

// well and ill are groups with one endpoint.
func well(dial float64) choice { return at(dial, true, defaultWeight) }
func ill(dial float64) choice  { return at(dial, false, defaultWeight) }

var _ = Describe("A connection's way", func() {
	DescribeTable("by dials and health", func(nearest []choice, wantShares ...float64) {
		const draws = 1000
		shares := make([]float64, len(nearest))
		for i := range draws {
			group, _, ok := route(nearest, (float64(i)+0.5)/draws, 0)
			Expect(ok).To(BeTrue())
			shares[group] += 100.0 / draws
		}
		Expect(shares).To(HaveLen(len(wantShares)))
		for i, want := range wantShares {
			Expect(shares[i]).To(BeNumerically("~", want, 0.11), "group %d of %v", i, shares)
		}
	},
		Entry("is to the nearest", []choice{well(100), well(100), well(100)}, 100.0, 0.0, 0.0),
		Entry("is in part to the next, by the nearest's dial", []choice{well(30), well(100), well(100)}, 30.0, 70.0, 0.0),
		Entry("leaves out one at 0", []choice{well(0), well(100), well(100)}, 0.0, 100.0, 0.0),
		Entry("is shared by two at 50, as AWS's example has it", []choice{well(50), well(50)}, 50.0, 50.0),
		Entry("takes each dial's share of what nearer ones leave", []choice{well(50), well(50), well(100)}, 50.0, 25.0, 25.0),
		Entry("ends at the last that has a dial", []choice{well(10), well(0), well(0)}, 100.0, 0.0, 0.0),
		Entry("is to the nearest when all are at 0", []choice{well(0), well(0)}, 100.0, 0.0),
		Entry("fails over to the next", []choice{ill(100), well(100), well(100)}, 0.0, 100.0, 0.0),
		Entry("fails over to one at 0: dials are ignored", []choice{ill(100), well(0), well(100)}, 0.0, 100.0, 0.0),
		Entry("fails over from one that dials have chosen to the nearest, which is at 0", []choice{well(0), ill(100), well(100)}, 100.0, 0.0, 0.0),
		Entry("does so with the part that the dial keeps only", []choice{ill(40), well(100), well(50)}, 0.0, 100.0, 0.0),
		Entry("is not to one whose weights are 0", []choice{at(100, true, 0), well(100)}, 0.0, 100.0),
		Entry("is to the nearest when nobody is well: it fails open", []choice{ill(0), ill(100), ill(100)}, 100.0, 0.0, 0.0),
		Entry("tries three others and no fourth", []choice{ill(100), ill(100), ill(100), ill(100), well(100)}, 100.0, 0.0, 0.0, 0.0, 0.0),
		Entry("reaches the third other", []choice{ill(100), ill(100), ill(100), well(100)}, 0.0, 0.0, 0.0, 100.0),
		Entry("is past one that has no endpoint, even when nobody is well", []choice{at(100, true), ill(100)}, 0.0, 100.0),
	)

	DescribeTable("within a group", func(c choice, random float64, want int) {
		_, endpoint, ok := route([]choice{c}, 0, random)
		Expect(ok).To(BeTrue())
		Expect(endpoint).To(Equal(want))
	},
		Entry("is by weight: the first of 1 and 255", at(100, true, 1, 255), 0.0039, 0),
		Entry("is by weight: the second of 1 and 255", at(100, true, 1, 255), 0.004, 1),
		Entry("leaves out weight 0", at(100, true, 0, 10, 0), 0.0, 1),
		Entry("leaves out who is not healthy", choice{100, []weighed{{100, false}, {1, true}}}, 0.0, 1),
		Entry("is by chance when it fails open", at(100, false, 0, 0, 0, 0), 0.75, 3),
	)

	It("leads nowhere when there is nothing", func() {
		_, _, ok := route([]choice{{dial: 100}, {dial: 100}}, 0.5, 0.5)
		Expect(ok).To(BeFalse())
	})

	It("is to somebody healthy when one of four is, and by dials when all are", func() {
		rapid.Check(GinkgoT(), func(t *rapid.T) {
			var nearest []choice
			healthy, full := 0, true
			for range rapid.IntRange(1, 4).Draw(t, "groups") {
				c := choice{dial: float64(rapid.IntRange(0, 100).Draw(t, "dial"))}
				for range rapid.IntRange(1, 3).Draw(t, "endpoints") {
					c.endpoints = append(c.endpoints, weighed{weight: rapid.IntRange(0, 2).Draw(t, "weight"), takes: rapid.Bool().Draw(t, "takes")})
				}
				if _, ok := c.weighted(0); ok {
					healthy++
				} else {
					full = false
				}
				nearest = append(nearest, c)
			}
			u, v := rapid.Float64Range(0, math.Nextafter(1, 0)).Draw(t, "u"), rapid.Float64Range(0, math.Nextafter(1, 0)).Draw(t, "v")
			group, endpoint, ok := route(nearest, u, v)
			if !ok {
				t.Fatal("leads nowhere")
			}
			to := nearest[group].endpoints[endpoint]
			if good := to.takes && to.weight > 0; good != (healthy > 0) {
				t.Fatalf("to %+v, while %d groups are well", to, healthy)
			}
			atAll := slices.ContainsFunc(nearest, func(c choice) bool { return c.dial > 0 })
			if full && atAll && nearest[group].dial == 0 {
				t.Fatalf("to group %d, which is at 0, while all are well", group)
			}
		})
	})
})

var _ = Describe("An endpoint's health", func() {
	begin := time.Date(2026, time.March, 14, 9, 26, 0, 0, time.UTC)

	// play gives the health after checks 10 s apart, "." passed, "x" failed.
	play := func(checks string) (h health, end time.Time) {
		h, end = health{state: stateInitial}, begin
		for _, check := range checks {
			end = end.Add(10 * time.Second)
			h = h.after(check == '.', 3, 30*time.Second, end)
		}
		return h, end
	}

	DescribeTable("after checks of threshold 3, each 10 s", func(checks, state string, takes bool) {
		h, end := play(checks)
		Expect(h.state).To(Equal(state))
		Expect(h.takes(end)).To(Equal(takes))
	},
		Entry("at first", "", stateInitial, false),
		Entry("two passed", "..", stateInitial, false),
		Entry("three passed: it takes connections at once", "...", stateHealthy, true),
		Entry("three failed", "xxx", stateUnhealthy, false),
		Entry("passed and failed in turn, from the start", ".x.x.x.x", stateInitial, false),
		Entry("well, two failed", "...xx", stateHealthy, true),
		Entry("well, three failed", "...xxx", stateUnhealthy, false),
		Entry("well, failed in turn", "...xx.xx.xx.", stateHealthy, true),
		Entry("ill, two passed", "xxx..", stateUnhealthy, false),
		Entry("ill, three passed: healthy, but 20 s after the first only", "xxx...", stateHealthy, false),
		Entry("ill, four passed: it takes connections 30 s after the first", "xxx....", stateHealthy, true),
		Entry("ill, and once more while it came back", "xxx..x...", stateHealthy, false),
	)

	It("takes connections 30 s after the first check that passed, to the instant", func() {
		h, end := play("xxx...")
		Expect(h.takes(end.Add(10*time.Second - 1))).To(BeFalse())
		Expect(h.takes(end.Add(10 * time.Second))).To(BeTrue())
	})
})
