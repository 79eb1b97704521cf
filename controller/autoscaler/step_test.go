package autoscaler_test

import (
	"fmt"
	"slices"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"

	"github.com/mrgc/mrgc/controller/autoscaler"
)

var epoch = time.Unix(1_790_000_000, 0)

// region is EC2 and the fleet's store, which do what they are told at once, but for
// what a spec changes.
type region struct {
	config    autoscaler.Config
	state     autoscaler.State
	now       time.Time
	obs       autoscaler.Observation
	instances []*autoscaler.Instance
	boots     map[string]time.Time // when it was launched, by ID
	bootTime  time.Duration
	full      map[string]bool // zones without capacity
	deaf      bool            // launches do nothing and have no answer
	done      []autoscaler.Action
	launched  int
}

func newRegion() *region {
	r := &region{
		config: autoscaler.Config{Region: "use1", Zones: []string{"a", "b", "c"}}, now: epoch,
		boots: map[string]time.Time{}, bootTime: 3 * time.Minute, full: map[string]bool{},
	}
	Expect(r.config.Check()).To(Succeed())
	r.obs = autoscaler.Observation{Term: 1, Listed: true, Known: true, Load: autoscaler.Load{Fresh: true}}
	r.state = autoscaler.Initial(r.config, epoch)
	return r
}

// loaded is a region that has so many ready, and so many requests/s for each.
func loaded(n int, each float64) *region {
	r := newRegion()
	r.obs.Hand = n
	r.goes(10 * time.Minute)
	r.obs.Hand = 0
	r.obs.Load.Requests = each * float64(n)
	Expect(r.ready()).To(Equal(n))
	return r
}

func (r *region) find(id string) *autoscaler.Instance {
	for _, in := range r.instances {
		if in.ID == id {
			return in
		}
	}
	return nil
}

func (r *region) step() {
	r.obs.Instances = nil
	for _, in := range r.instances {
		if at, ok := r.boots[in.ID]; ok && r.now.Sub(at) >= r.bootTime {
			in.Registered, in.Healthy = true, true
			delete(r.boots, in.ID)
		}
		r.obs.Instances = append(r.obs.Instances, *in)
	}
	var actions []autoscaler.Action
	r.state, actions = autoscaler.Step(r.config, r.state, r.obs, r.now)
	r.obs.Results = nil
	for _, a := range actions {
		r.do(a)
	}
	r.done = append(r.done, actions...)
	r.now = r.now.Add(10 * time.Second)
}

func (r *region) do(a autoscaler.Action) {
	switch a.Kind {
	case autoscaler.Launch:
		switch {
		case r.deaf:
		case r.full[a.Zone]:
			r.obs.Results = append(r.obs.Results, autoscaler.Result{Intent: a.Intent, Attempt: a.Attempt, NoCapacity: true})
		default:
			id := r.launch(a.Intent, a.Zone)
			r.obs.Results = append(r.obs.Results, autoscaler.Result{Intent: a.Intent, Attempt: a.Attempt, Instance: id})
		}
	case autoscaler.Drain:
		if in := r.find(a.Instance); in.Registered {
			in.Draining, in.Drained = true, in.Healthy
		}
	case autoscaler.Wash:
		r.find(a.Instance).Washed = true
	case autoscaler.Terminate:
		r.instances = slices.DeleteFunc(r.instances, func(in *autoscaler.Instance) bool { return in.ID == a.Instance })
	}
}

func (r *region) launch(intent, zone string) string {
	id := fmt.Sprintf("i-%03d", r.launched)
	r.launched++
	r.instances = append(r.instances, &autoscaler.Instance{ID: id, Intent: intent, Zone: zone})
	r.boots[id] = r.now
	return id
}

func (r *region) goes(d time.Duration) {
	for end := r.now.Add(d); r.now.Before(end); {
		r.step()
	}
}

func (r *region) ready() (n int) {
	for _, in := range r.instances {
		if in.Healthy && !in.Draining {
			n++
		}
	}
	return n
}

// did counts actions of a kind.
func (r *region) did(kind autoscaler.ActionKind) (n int) {
	for _, a := range r.done {
		if a.Kind == kind {
			n++
		}
	}
	return n
}

var _ = Describe("The number of instances", func() {
	It("follows its limits when these change, at once", func() {
		r := loaded(4, 12)
		r.config.Max = 3
		r.step()
		Expect(r.state.Desired).To(Equal(3))
		Expect(r.state.Reason).To(Equal("4 is not within 2 to 3"))
		r.config.Min, r.config.Max = 6, 9
		r.obs.Load.Fresh = false
		r.step()
		Expect(r.state.Desired).To(Equal(6), "whatever the load")
		r.goes(10 * time.Minute)
		Expect(r.ready()).To(Equal(6))
	})

	It("begins with the minimum, over the zones", func() {
		r := newRegion()
		r.goes(10 * time.Minute)
		Expect(r.ready()).To(Equal(2))
		Expect(r.instances[0].Zone).NotTo(Equal(r.instances[1].Zone))
		Expect(r.did(autoscaler.Launch)).To(Equal(2))
	})

	It("rises after two minutes above the target, to its middle, and not before", func() {
		r := loaded(4, 16)
		r.goes(2 * time.Minute)
		Expect(r.state.Desired).To(Equal(4))
		r.goes(20 * time.Second)
		Expect(r.state.Desired).To(Equal(6), "64 requests/s at 12.5 each")
		Expect(r.state.Reason).To(ContainSubstring("64.0 requests/s"))
		r.goes(10 * time.Minute)
		Expect(r.ready()).To(Equal(6))
	})

	It("stays within the band, at both ends of it", func() {
		for _, each := range []float64{6.3, 10, 15} {
			r := loaded(4, each)
			r.goes(2 * time.Hour)
			Expect(r.state.Desired).To(Equal(4), "%v", each)
		}
	})

	It("does not rise when the load falls in between", func() {
		r := loaded(4, 16)
		for range 20 {
			r.obs.Load.Requests = 64
			r.goes(110 * time.Second)
			r.obs.Load.Requests = 56
			r.goes(10 * time.Second)
		}
		Expect(r.state.Desired).To(Equal(4))
	})

	It("falls after ten minutes below half of the target", func() {
		r := loaded(8, 6)
		r.goes(10 * time.Minute)
		Expect(r.state.Desired).To(Equal(8))
		r.goes(20 * time.Second)
		Expect(r.state.Desired).To(Equal(4), "48 requests/s at 12.5 each")
		r.goes(2 * time.Minute)
		Expect(r.ready()).To(Equal(4))
	})

	It("changes once in five minutes", func() {
		r := loaded(4, 16)
		r.goes(150 * time.Second)
		Expect(r.state.Desired).To(Equal(6))
		r.obs.Load.Requests = 150
		r.goes(4 * time.Minute)
		Expect(r.state.Desired).To(Equal(6))
		r.goes(2 * time.Minute)
		Expect(r.state.Desired).To(Equal(12))
	})

	It("is between 2 and 20", func() {
		r := loaded(4, 100)
		r.goes(time.Hour)
		Expect(r.ready()).To(Equal(20))
		r.obs.Load.Requests = 0
		r.goes(time.Hour)
		Expect(r.ready()).To(Equal(2))
	})

	It("is what a hand wrote, within the bounds, until it is taken back", func() {
		r := loaded(4, 100)
		r.obs.Hand = 7
		r.goes(time.Hour)
		Expect(r.ready()).To(Equal(7))
		Expect(r.state.Reason).To(Equal("7 by hand"))
		r.obs.Hand = 100
		r.goes(time.Hour)
		Expect(r.ready()).To(Equal(20))
		Expect(r.state.Reason).To(Equal("100 by hand, within 2 to 20"))
		r.obs.Hand, r.obs.Load.Requests = 0, 12
		r.goes(time.Hour)
		Expect(r.ready()).To(Equal(2))
	})

	It("stays while nobody knows the load, and what came before does not count", func() {
		r := loaded(4, 16)
		r.goes(100 * time.Second)
		r.obs.Load.Fresh = false
		r.goes(time.Hour)
		Expect(r.state.Desired).To(Equal(4))
		r.obs.Load.Fresh = true
		r.goes(time.Minute)
		Expect(r.state.Desired).To(Equal(4))
	})

	It("does not count what another leader saw, or what was before a gap", func() {
		r := loaded(4, 16)
		for range 10 {
			r.goes(90 * time.Second)
			r.obs.Term++
		}
		for range 10 {
			r.goes(90 * time.Second)
			r.now = r.now.Add(2 * time.Minute)
		}
		Expect(r.state.Desired).To(Equal(4))
	})
})

var _ = Describe("A launch", func() {
	It("goes to the next zone where there is no capacity, and back when there is", func() {
		r := newRegion()
		r.full["a"], r.full["b"] = true, true
		r.goes(10 * time.Minute)
		Expect(r.ready()).To(Equal(2))
		Expect(r.instances[0].Zone + r.instances[1].Zone).To(Equal("cc"))
		delete(r.full, "a")
		r.obs.Hand = 4
		r.goes(10 * time.Minute)
		Expect(r.ready()).To(Equal(4))
		Expect(r.instances[2].Zone + r.instances[3].Zone).To(Equal("aa"))
	})
	It("waits while no zone has capacity, and tries each once in five minutes", func() {
		r := newRegion()
		r.full["a"], r.full["b"], r.full["c"] = true, true, true
		r.goes(20 * time.Minute)
		Expect(r.ready()).To(Equal(0))
		Expect(r.did(autoscaler.Launch)).To(BeNumerically("<=", 2*3*5))
		r.full = map[string]bool{}
		r.goes(20 * time.Minute)
		Expect(r.ready()).To(Equal(2))
	})
	It("without an answer is repeated with the same token, every two minutes", func() {
		r := newRegion()
		r.deaf = true
		r.goes(10 * time.Minute)
		tokens := map[string]int{}
		for _, a := range r.done {
			tokens[a.Token]++
		}
		Expect(tokens).To(HaveLen(2))
		for _, n := range tokens {
			Expect(n).To(Equal(5))
		}
	})
	It("without an answer is not repeated once it is not wanted any more", func() {
		const before = 4
		r := loaded(before, 10)
		r.deaf, r.obs.Hand = true, before+4
		r.goes(time.Minute)
		asked := r.did(autoscaler.Launch)
		r.obs.Hand = before
		r.goes(time.Minute) // the answers may come yet
		r.deaf = false
		r.goes(time.Hour)
		Expect(r.did(autoscaler.Launch)).To(Equal(asked))
		Expect(r.state.Members).To(HaveLen(before))
		Expect(r.did(autoscaler.Drain)).To(BeZero())
	})

	It("is one of five at most in a step", func() {
		r := newRegion()
		r.obs.Hand = 12
		r.step()
		Expect(r.launched).To(Equal(5))
		r.step()
		r.step()
		Expect(r.launched).To(Equal(12))
	})
	It("with a lost answer is found by its tag", func() {
		r := newRegion()
		for range 20 {
			r.step()
			r.obs.Results = nil
		}
		r.goes(5 * time.Minute)
		Expect(r.did(autoscaler.Launch)).To(Equal(2))
		Expect(r.ready()).To(Equal(2))
	})
	It("waits for the listing: what is not listed whole is not acted upon", func() {
		r := newRegion()
		r.obs.Listed = false
		r.goes(time.Hour)
		Expect(r.done).To(BeEmpty())
	})
	It("that never comes up is replaced, ever more slowly", func() {
		r := newRegion()
		r.bootTime = 100 * time.Hour
		r.goes(18 * time.Minute)
		Expect(r.did(autoscaler.Terminate)).To(Equal(2))
		Expect(r.did(autoscaler.Launch)).To(Equal(4))
		r.goes(10 * time.Hour)
		Expect(r.did(autoscaler.Launch)).To(BeNumerically("<=", 4+2*20), "every half an hour")
		r.bootTime = 3 * time.Minute
		r.goes(2 * time.Hour)
		Expect(r.ready()).To(Equal(2))
	})
})

var _ = Describe("A crash", func() {
	// The state is stored, and then the controller dies before, between or after its
	// actions; or it dies before the state is stored, and nothing happened.
	for lost := range 3 {
		It(fmt.Sprintf("after %d of its actions loses and doubles nothing", lost), func() {
			r := newRegion()
			r.obs.Hand = 5
			crashed := false
			for range 200 {
				r.obs.Instances = nil
				for _, in := range r.instances {
					if at, ok := r.boots[in.ID]; ok && r.now.Sub(at) >= r.bootTime {
						in.Registered, in.Healthy = true, true
					}
					r.obs.Instances = append(r.obs.Instances, *in)
				}
				next, actions := autoscaler.Step(r.config, r.state, r.obs, r.now)
				r.obs.Results = nil
				r.state = next
				for i, a := range actions {
					if !crashed && i == lost {
						crashed = true
						r.obs.Term++
						r.obs.Results = nil // their answers die with it
						break
					}
					r.do(a)
				}
				r.now = r.now.Add(10 * time.Second)
			}
			Expect(crashed).To(BeTrue())
			Expect(r.launched).To(Equal(5))
			Expect(r.ready()).To(Equal(5))
		})
	}
})

var _ = Describe("An instance", func() {
	It("is terminated only when it is drained and washed, in this order", func() {
		r := loaded(3, 10)
		r.obs.Hand = 2
		r.done = nil
		r.step()
		var leaving *autoscaler.Instance
		for _, in := range r.instances {
			if in.Draining {
				leaving = in
			}
		}
		Expect(leaving).NotTo(BeNil())
		leaving.Drained, leaving.Washed = false, false // a stream goes on for an hour
		for range 360 {
			leaving.Drained, leaving.Washed = false, false
			r.step()
		}
		Expect(r.instances).To(HaveLen(3))
		r.obs.Known = false // nobody knows whether it is drained
		leaving.Drained = true
		r.goes(time.Hour)
		Expect(r.instances).To(HaveLen(3))
		r.obs.Known = true
		r.goes(time.Minute)
		Expect(r.instances).To(HaveLen(2))
		var kinds []autoscaler.ActionKind
		for _, a := range r.done {
			kinds = append(kinds, a.Kind)
		}
		Expect(slices.Compact(kinds)).To(HaveExactElements(autoscaler.Drain, autoscaler.Wash, autoscaler.Terminate))
	})
	It("is not drained while those that are to stay are not ready", func() {
		r := loaded(4, 10)
		r.instances[0].Healthy, r.instances[1].Healthy, r.instances[2].Healthy = false, false, false
		r.obs.Hand = 2
		r.goes(time.Hour)
		Expect(r.instances[len(r.instances)-1].Draining).To(BeFalse())
		Expect(r.ready()).To(BeNumerically(">=", 1))
	})
	It("that was to be drained waits when others died before it was", func() {
		r := loaded(5, 10)
		r.obs.Hand = 2
		r.obs.Instances = nil
		for _, in := range r.instances {
			r.obs.Instances = append(r.obs.Instances, *in)
		}
		r.state, _ = autoscaler.Step(r.config, r.state, r.obs, r.now) // and then the controller dies
		r.obs.Term++
		r.done = nil
		serving := map[string]bool{}
		for _, m := range r.state.Members {
			serving[m.Instance] = m.Phase == autoscaler.Serving
		}
		for _, in := range r.instances {
			if serving[in.ID] {
				in.Healthy = false // those that were to stay
			}
		}
		r.goes(5 * time.Minute)
		Expect(r.ready()).To(Equal(2))
	})
	It("that is dead is replaced after ten minutes, drained or not", func() {
		r := loaded(3, 12)
		r.instances[1].Healthy = false
		dead := r.instances[1].ID
		r.goes(9 * time.Minute)
		Expect(r.find(dead)).NotTo(BeNil())
		r.goes(2 * time.Minute)
		Expect(r.find(dead)).To(BeNil())
		r.goes(5 * time.Minute)
		Expect(r.ready()).To(Equal(3))
	})
	It("is replaced later when half of them look dead at once", func() {
		r := loaded(4, 12)
		r.instances[0].Healthy, r.instances[1].Healthy = false, false
		r.goes(30 * time.Minute)
		Expect(r.did(autoscaler.Drain)).To(BeZero())
		r.goes(10 * time.Minute)
		Expect(r.did(autoscaler.Terminate)).To(Equal(2))
		Expect(r.ready()).To(Equal(4))
	})
	It("that nobody asked for is kept if there are too few, else drained", func() {
		r := loaded(4, 12)
		r.launch("", "a")
		r.launch("somebody-else", "b")
		r.obs.Hand = 5
		r.goes(10 * time.Minute)
		Expect(r.ready()).To(Equal(5))
		Expect(r.launched).To(Equal(6), "no other was launched")
		Expect(r.did(autoscaler.Terminate)).To(Equal(1))
	})
	It("that was launched twice is one too many", func() {
		r := loaded(4, 12)
		r.launch(r.instances[0].Intent, "a")
		r.obs.Hand = 4
		r.goes(10 * time.Minute)
		Expect(r.ready()).To(Equal(4))
		Expect(r.did(autoscaler.Terminate)).To(Equal(1))
	})
	It("that somebody drains by hand is replaced", func() {
		r := loaded(4, 12)
		r.instances[0].Draining, r.instances[0].Drained = true, true
		id := r.instances[0].ID
		r.goes(10 * time.Minute)
		Expect(r.find(id)).To(BeNil())
		Expect(r.ready()).To(Equal(4))
	})
	It("that is gone is replaced", func() {
		r := loaded(4, 12)
		r.instances = r.instances[1:]
		r.goes(10 * time.Minute)
		Expect(r.ready()).To(Equal(4))
	})
})

var _ = DescribeTable("A configuration is refused", func(change func(*autoscaler.Config), message string) {
	c := autoscaler.Config{Region: "use1", Zones: []string{"a"}}
	Expect(c.Check()).To(Succeed())
	change(&c)
	Expect(c.Check()).To(MatchError(ContainSubstring(message)))
},
	Entry("without a region", func(c *autoscaler.Config) { c.Region = "" }, "region"),
	Entry("without zones", func(c *autoscaler.Config) { c.Zones = nil }, "no zones"),
	Entry("with less than its minimum", func(c *autoscaler.Config) { c.Min, c.Max = 3, 2 }, "min ≤ max"),
	Entry("with more than can be remembered", func(c *autoscaler.Config) { c.Max = 251 }, "max ≤ 250"),
	Entry("with a band upside down", func(c *autoscaler.Config) { c.TargetLow = 16 }, "low ≤ high"),
	Entry("with a negative duration", func(c *autoscaler.Config) { c.Settle = -1 }, "negative"),
)
