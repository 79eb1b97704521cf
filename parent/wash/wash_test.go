package wash_test

import (
	"slices"
	"testing"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	"pgregory.net/rapid"

	"github.com/mrgc/mrgc/parent/wash"
)

func TestWash(t *testing.T) {
	RegisterFailHandler(Fail)
	RunSpecs(t, "parent/wash")
}

var (
	start = time.Date(2026, 11, 26, 8, 0, 0, 0, time.UTC)
	order = []wash.Kind{
		wash.PlantCanary, wash.ClearGPU, wash.CheckModel, wash.StartStandby, wash.SwitchOver, wash.StopOld, wash.CheckHealth, wash.CheckCanary,
	}
	steps = []string{"plant_canary", "clear_gpu", "check_model", "restart_enclave", "check_health", "check_canary"}
)

func config(change ...func(*wash.Config)) wash.Config {
	c := wash.Config{Region: "use1", Instance: "use1-0", StepTimeout: time.Minute}
	for _, f := range change {
		f(&c)
	}
	return c
}

func kinds(actions []wash.Action) (all []wash.Kind) {
	for _, a := range actions {
		all = append(all, a.Kind)
	}
	return all
}

// run orders a wash and answers each action after a second as pass says, up to
// its end; it gives all actions.
func run(c wash.Config, s wash.State, pass func(wash.Kind) bool) (wash.State, []wash.Action) {
	now := start.Add(time.Hour)
	s, all := c.Step(s, wash.Observation{Ordered: true}, now)
	for last := all[len(all)-1]; s.Wash != ""; last = all[len(all)-1] {
		now = now.Add(time.Second)
		var more []wash.Action
		s, more = c.Step(s, wash.Observation{Result: wash.Result{Wash: last.Wash, Kind: last.Kind, Passed: pass(last.Kind), Detail: "seen"}}, now)
		all = append(all, more...)
	}
	return s, all
}

func always(wash.Kind) bool { return true }

var _ = Describe("A wash", func() {
	It("has failed where a step says that it passed, and not what it did", func() {
		c := config()
		s, actions := c.Step(wash.State{Washed: start}, wash.Observation{Ordered: true}, start)
		s, actions = c.Step(s, wash.Observation{Result: wash.Result{Wash: s.Wash, Kind: actions[0].Kind, Passed: true}}, start)
		Expect(kinds(actions)).To(Equal([]wash.Kind{wash.Record, wash.Quarantine}))
		Expect(s.Quarantined).To(ContainSubstring("does not say"))
	})

	DescribeTable("begins", func(change func(*wash.Config), ended []string, after time.Duration, trigger string) {
		c := config(change)
		s, actions := c.Step(wash.State{Washed: start}, wash.Observation{Ended: ended}, start.Add(after))
		if trigger == "" {
			Expect(actions).To(BeEmpty())
			Expect(s.Wash).To(BeEmpty())
			return
		}
		Expect(kinds(actions)).To(Equal([]wash.Kind{wash.PlantCanary}))
		Expect(s.Row.Trigger).To(Equal(trigger))
		Expect(s.Requests).To(BeZero())
	},
		Entry("after so many requests", func(c *wash.Config) { c.EveryRequests = 3 }, []string{"a", "a", "a"}, time.Second, wash.TriggerRequests),
		Entry("and not after fewer", func(c *wash.Config) { c.EveryRequests = 3 }, []string{"a", "a"}, time.Hour, ""),
		Entry("after so long", func(c *wash.Config) { c.Every = time.Minute }, nil, time.Minute, wash.TriggerInterval),
		Entry("and not sooner", func(c *wash.Config) { c.Every = time.Minute }, []string{"a"}, time.Minute-1, ""),
		Entry("after another tenant's request", func(c *wash.Config) { c.OnTenantChange = true }, []string{"a", "b"}, 0*time.Second, wash.TriggerTenant),
		Entry("and not after the same's", func(c *wash.Config) { c.OnTenantChange = true }, []string{"a", "a"}, time.Hour, ""),
		Entry("after every request, in strict mode", func(c *wash.Config) { c.Strict = true }, []string{"a"}, time.Second, wash.TriggerStrict),
		Entry("and not before one", func(c *wash.Config) { c.Strict = true }, nil, time.Hour, ""),
		Entry("not while the fleet cannot be told of it", func(c *wash.Config) {
			c.EveryRequests, c.Every, c.OnTenantChange, c.Untold = 1, time.Minute, true, true
		}, []string{"a", "b"}, time.Hour, ""),
		Entry("all the same in strict mode, where no request runs before it", func(c *wash.Config) { c.Strict, c.Untold = true, true }, []string{"a"}, time.Second, wash.TriggerStrict),
		Entry("never, where nothing says so", func(*wash.Config) {}, []string{"a", "b", "c"}, time.Hour, ""),
	)

	It("that passes does all in order, is recorded, and takes the time that it took", func() {
		s, actions := run(config(), wash.State{Washed: start}, always)
		Expect(kinds(actions)).To(Equal(append(slices.Clone(order), wash.Record)))
		row := actions[len(actions)-1].Row
		Expect(row.Validate()).To(Succeed())
		Expect(row.Passed).To(BeTrue())
		Expect(s.Quarantined).To(BeEmpty())
		for i, step := range row.Steps {
			Expect(step.Name).To(Equal(steps[i]))
			want := time.Second
			if step.Name == "restart_enclave" {
				want = 3 * time.Second
			}
			Expect(step.Duration).To(Equal(want))
		}
		Expect(row.Steps).To(HaveLen(len(steps)))
	})

	for i, failing := range order {
		It("whose "+string(failing)+" fails goes no further, quarantines the instance, and keeps an enclave that serves", func() {
			c := config()
			s, actions := run(c, wash.State{Washed: start}, func(k wash.Kind) bool { return k != failing })
			want := slices.Clone(order[:i+1])
			if failing == wash.StartStandby || failing == wash.SwitchOver {
				want = append(want, wash.DropStandby)
			}
			Expect(kinds(actions)).To(Equal(append(want, wash.Record, wash.Quarantine)))
			row := actions[len(actions)-1].Row
			Expect(row.Validate()).To(Succeed())
			Expect(row.Passed).To(BeFalse())
			Expect(row.Steps[len(row.Steps)-1].Passed).To(BeFalse())
			Expect(row.Reason).To(Equal(string(failing) + ": seen"))
			Expect(c.Admits(s, 0)).To(BeFalse())

			By("only a wash that somebody orders, and that passes, releases it")
			c.EveryRequests, c.Strict = 1, true
			s, again := c.Step(s, wash.Observation{Ended: []string{"a"}}, start.Add(24*time.Hour))
			Expect(again).To(BeEmpty())
			s, actions = run(c, s, always)
			Expect(kinds(actions)).To(Equal(append(slices.Clone(order), wash.Record, wash.Release)))
			Expect(c.Admits(s, 0)).To(BeTrue())
		})
	}

	It("whose action does not end in time has failed, and a result that comes then is nobody's", func() {
		c := config()
		s, begun := c.Step(wash.State{Washed: start}, wash.Observation{Ordered: true}, start)
		late := wash.Result{Wash: begun[0].Wash, Kind: begun[0].Kind, Passed: true}
		s, actions := c.Step(s, wash.Observation{}, start.Add(time.Minute-1))
		Expect(actions).To(BeEmpty())
		s, actions = c.Step(s, wash.Observation{}, start.Add(time.Minute))
		Expect(kinds(actions)).To(Equal([]wash.Kind{wash.Record, wash.Quarantine}))
		Expect(actions[0].Row.Reason).To(ContainSubstring("has not ended within 1m0s"))
		s, actions = c.Step(s, wash.Observation{Result: late}, start.Add(2*time.Minute))
		Expect(actions).To(BeEmpty())
		Expect(s.Quarantined).NotTo(BeEmpty())
	})

	It("lets requests run beside it, but in strict mode, and counts them for the next", func() {
		c := config(func(c *wash.Config) { c.EveryRequests = 2 })
		s, _ := c.Step(wash.State{Washed: start}, wash.Observation{Ended: []string{"a", "a"}}, start)
		Expect(s.Wash).NotTo(BeEmpty())
		Expect(c.Admits(s, 5)).To(BeTrue())
		s, _ = c.Step(s, wash.Observation{Ended: []string{"a", "b"}}, start.Add(time.Second))
		Expect(s.Requests).To(Equal(2))
		strict := config(func(c *wash.Config) { c.Strict = true })
		Expect(strict.Admits(wash.State{}, 0)).To(BeTrue())
		Expect(strict.Admits(wash.State{}, 1)).To(BeFalse())
		Expect(strict.Admits(wash.State{Requests: 1}, 0)).To(BeFalse())
		Expect(strict.Admits(s, 0)).To(BeFalse())
	})

	It("never stops an enclave before another serves, records each wash once, and mixes no results up, whatever happens", func() {
		rapid.Check(GinkgoT(), func(t *rapid.T) {
			c := wash.Config{
				Region: "use1", Instance: "use1-0", StepTimeout: 5 * time.Second, EveryRequests: rapid.IntRange(0, 3).Draw(t, "every"),
				OnTenantChange: rapid.Bool().Draw(t, "tenants"), Strict: rapid.Bool().Draw(t, "strict"),
			}
			s, now := wash.State{Washed: start}, start
			var under wash.Action // what was asked for last
			enclaves := 1
			recorded := map[string]int{}
			for range 60 {
				now = now.Add(time.Duration(rapid.IntRange(1, 3).Draw(t, "later")) * time.Second)
				o := wash.Observation{
					Ended:   rapid.SliceOfN(rapid.SampledFrom([]string{"a", "b"}), 0, 2).Draw(t, "ended"),
					Ordered: rapid.IntRange(0, 9).Draw(t, "ordered") == 0,
				}
				if rapid.Bool().Draw(t, "answers") {
					o.Result = wash.Result{Wash: under.Wash, Kind: under.Kind, Passed: rapid.IntRange(0, 9).Draw(t, "passes") > 0}
				}
				before := s
				var actions []wash.Action
				s, actions = c.Step(before, o, now)
				again, _ := c.Step(before, o, now)
				Expect(again).To(Equal(s), "it is a function")
				for _, a := range actions {
					switch a.Kind {
					case wash.StartStandby:
						enclaves++
					case wash.StopOld:
						Expect(under.Kind).To(Equal(wash.SwitchOver), "another serves")
						Expect(o.Result.Passed).To(BeTrue())
						enclaves--
					case wash.DropStandby:
						Expect(under.Kind).To(BeElementOf(wash.StartStandby, wash.SwitchOver))
						enclaves--
					case wash.Record:
						recorded[a.Wash]++
						Expect(a.Row.Validate()).To(Succeed())
						Expect(a.Row.Passed).To(Equal(s.Quarantined == ""))
					}
					Expect(enclaves).To(BeNumerically(">=", 1))
					if slices.Contains(order, a.Kind) {
						under = a
					}
				}
				Expect(enclaves).To(BeNumerically("<=", 2))
			}
			for id, n := range recorded {
				Expect(n).To(Equal(1), id)
			}
		})
	})
})
