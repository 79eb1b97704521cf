package sim

import (
	"bytes"
	"fmt"
	"slices"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"

	"github.com/mrgc/mrgc/controller/autoscaler"
	"github.com/mrgc/mrgc/controller/failover"
	"github.com/mrgc/mrgc/internal/fleet"
)

// smoke is how many seeds every test run plays; `make sim` plays thousands.
const smoke = 12

var _ = Describe("Three regions", func() {
	It("keep every invariant, whatever goes wrong", func() {
		var all Counts
		for seed := range uint64(smoke) {
			o := Run(seed, Options{})
			Expect(o.Violation).To(BeEmpty(), "seed %d: go run ./bench/sim -seed %d -v", seed, seed)
			all.Add(o.Counts)
		}
		// What is asserted has happened: none of it is kept because nothing goes on.
		Expect(all.RegionsLost).To(BeNumerically(">", smoke))
		Expect(all.Failovers).To(BeNumerically(">", smoke))
		Expect(all.Terminations).To(BeNumerically(">", smoke))
		Expect(all.Crashes).To(BeNumerically(">", smoke))
		Expect(all.SlowDisks).To(BeNumerically(">", smoke))
		Expect(all.Cuts).To(BeNumerically(">", smoke))
		Expect(all.Leaderships).To(BeNumerically(">", 4*smoke))
	})

	It("fail one over, within some ten seconds when it dies and nothing else goes wrong", func() {
		for seed := range uint64(5) {
			o := Run(seed, Options{Calm: true})
			Expect(o.Violation).To(BeEmpty())
			Expect(o.Counts.Failover).To(HaveLen(1))
			Expect(o.Counts.Failover[0]).To(BeNumerically("<", 12*time.Second))
		}
	})

	It("play the same story for the same seed, told or not", func() {
		var story, again bytes.Buffer
		first := Run(3, Options{Tell: &story})
		Expect(Run(3, Options{Tell: &again})).To(Equal(first))
		Expect(Run(3, Options{})).To(Equal(first))
		Expect(story.String()).To(Equal(again.String()))
		Expect(story.String()).To(And(ContainSubstring("fault"), ContainSubstring("leads"), ContainSubstring("dial of")))
		Expect(Run(4, Options{})).NotTo(Equal(first))
	})
})

// Each invariant is shown to catch a bug that breaks it. The bugs are planted here, in
// what the simulation calls: nothing that is deployed has a switch for them.
var _ = Describe("A planted bug", func() {
	DescribeTable("is caught", func(caughtBy Invariant, plant func(*rules)) {
		const within = 60
		var others []string
		for seed := range uint64(within) {
			r := theRules()
			plant(&r)
			switch o := run(seed, r, Options{}); o.Invariant {
			case caughtBy:
				return
			case "":
			default:
				others = append(others, fmt.Sprintf("seed %d: %s: %s", seed, o.Invariant, o.Violation))
			}
		}
		Fail(fmt.Sprintf("not caught by %q within %d seeds; others: %v", caughtBy, within, others))
	},
		Entry("takes every instance that EC2 lists for ready", Minimum, func(r *rules) {
			r.autoscaler = func(c autoscaler.Config, s autoscaler.State, o autoscaler.Observation, now time.Time) (autoscaler.State, []autoscaler.Action) {
				for i := range o.Instances {
					o.Instances[i].Healthy = true
				}
				return autoscaler.Step(c, s, o, now)
			}
		}),
		Entry("decides about each region as if it were alone", Dials, func(r *rules) { r.failover = eachAlone }),
		Entry("leads until somebody tells it otherwise", Leader, func(r *rules) {
			r.mayAct = func(held lead, _ time.Duration) bool { return held.token > 0 }
		}),
		Entry("acts first and stores then", Doubled, func(r *rules) { r.storeFirst = false }),
		Entry("repeats a launch as soon as it is not listed", Doubled, func(r *rules) {
			r.scaling = func(c *autoscaler.Config) { c.Settle = 1 }
		}),
		Entry("lets dials follow health", Flap, func(r *rules) {
			r.dials = func(c *failover.Config) { c.FlapWindow, c.MaxSkew, c.Validate = 1, 1, time.Second }
		}),
		Entry("terminates at once", Drained, func(r *rules) {
			r.autoscaler = func(c autoscaler.Config, s autoscaler.State, o autoscaler.Observation, now time.Time) (autoscaler.State, []autoscaler.Action) {
				next, actions := autoscaler.Step(c, s, o, now)
				for i := range actions {
					if actions[i].Kind == autoscaler.Drain {
						actions[i].Kind = autoscaler.Terminate
					}
				}
				return next, actions
			}
		}),
		Entry("does not wash", Drained, func(r *rules) {
			r.autoscaler = func(c autoscaler.Config, s autoscaler.State, o autoscaler.Observation, now time.Time) (autoscaler.State, []autoscaler.Action) {
				for i := range o.Instances {
					o.Instances[i].Washed = true
				}
				return autoscaler.Step(c, s, o, now)
			}
		}),
		Entry("does not look for what it did not launch", Restored, func(r *rules) {
			r.autoscaler = func(c autoscaler.Config, s autoscaler.State, o autoscaler.Observation, now time.Time) (autoscaler.State, []autoscaler.Action) {
				o.Instances = slices.DeleteFunc(o.Instances, func(in autoscaler.Instance) bool { return in.Intent == "" })
				return autoscaler.Step(c, s, o, now)
			}
		}),
		Entry("never brings a region back", Restored, func(r *rules) {
			r.dials = func(c *failover.Config) { c.Validate, c.MaxValidate = 100*time.Hour, 100*time.Hour }
		}),
	)
})

// eachAlone runs a machine for each region that takes all others to be well and at
// 100 %, and believes any one view.
func eachAlone(c failover.Config, s failover.State, o failover.Observation, now time.Time) (failover.State, []failover.Action) {
	all := s
	all.Regions = map[fleet.Region]failover.Region{}
	var actions []failover.Action
	for _, name := range c.Regions {
		own := failover.State{Regions: map[fleet.Region]failover.Region{}, Term: s.Term, Stepped: s.Stepped}
		seen := failover.Observation{Term: o.Term, Views: map[fleet.Region]failover.View{}, Dials: map[fleet.Region]int{}}
		verdict := failover.Up
		for _, view := range o.Views {
			if view.Freshness == failover.Fresh && view.Of[name] == failover.Down {
				verdict = failover.Down
			}
		}
		for _, other := range c.Regions {
			own.Regions[other] = failover.Region{Phase: failover.Normal, Dial: 100}
			seen.Dials[other] = 100
			of := map[fleet.Region]failover.Verdict{}
			for _, r := range c.Regions {
				of[r] = failover.Up
			}
			of[name] = verdict
			seen.Views[other] = failover.View{Freshness: failover.Fresh, Of: of}
		}
		own.Regions[name], seen.Dials[name] = s.Regions[name], o.Dials[name]
		next, does := failover.Step(c, own, seen, now)
		all.Regions[name] = next.Regions[name]
		for _, a := range does {
			if a.Region == name {
				actions = append(actions, a)
			}
		}
		all.Term, all.Stepped = next.Term, next.Stepped
	}
	return all, actions
}
