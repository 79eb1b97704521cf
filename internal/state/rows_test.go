package state_test

import (
	"slices"
	"testing"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"

	"github.com/mrgc/mrgc/internal/fleet"
	"github.com/mrgc/mrgc/internal/state"
	"github.com/mrgc/mrgc/internal/state/schema"
)

func TestState(t *testing.T) {
	RegisterFailHandler(Fail)
	RunSpecs(t, "internal/state")
}

var _ = DescribeTable("A row is refused with", func(row state.Row, why string) {
	Expect(row.Validate()).To(MatchError(ContainSubstring(why)))
},
	Entry("an unknown failover state", routing("DOWN", 0), `use1: failover_state "DOWN"`),
	Entry("no failover state", routing("", 0), `failover_state ""`),
	Entry("a dial below 0", routing(state.Normal, -1), "use1: dial_percent -1"),
	Entry("a dial above 100", routing(state.Normal, 101), "dial_percent 101"),
	Entry("a negative capacity", state.Autoscaling{DesiredCapacity: -1}, "desired_capacity -1"),
	Entry("a negative minimum", state.Autoscaling{Min: -1}, "want 0 <= min <= max"),
	Entry("a maximum below the minimum", state.Autoscaling{Min: 2, Max: 1}, "want 0 <= min <= max"),
	Entry("a wash of no region", state.Wash{Trigger: "strict"}, "region"),
	Entry("a wash for no reason", state.Wash{Region: "use1"}, `trigger ""`),
	Entry("a wash that did nothing and passed", state.Wash{Region: "use1", Trigger: "strict", Passed: true}, "not whole: a wash that passed has the steps plant_canary, clear_gpu, check_model, restart_enclave, check_health, check_canary, and this one has no other"),
	Entry("a wash of strict mode that restarted the engine", wash(true, passed(state.RestartingWashSteps())...), "not whole"),
	Entry("a wash that says what it did in blanks", wash(true, change(passed(state.WashSteps()), 2, func(s *state.WashStep) { s.Detail = "; ; " })...), `not whole: step "check_model" does not say`),
	Entry("a step without a name", wash(false, state.WashStep{Passed: true}), `step ""`),
	Entry("a step that took less than no time", wash(false, state.WashStep{Name: "a", Duration: -1}), "not negative"),
	Entry("a wash that is nowhere", state.Wash{Region: "use1", Trigger: "strict", Open: "lost"}, `open "lost"`),
	Entry("a wash that passed and is under way", state.Wash{Region: "use1", Trigger: "strict", Passed: true, Open: state.WashUnderWay, Steps: passed(state.WashSteps())}, "under_way cannot have passed"),
	Entry("a step that failed, of a wash that passed", wash(true, change(passed(state.WashSteps()), 5, func(s *state.WashStep) { s.Passed = false })...), `step "check_canary" of a wash that passed has not`),
	Entry("a heartbeat of no beat", state.Heartbeat{}, "beat 0"),
	Entry("a minute without samples", state.Minute{}, "samples 0"),
)

func routing(is state.Failover, dial int) state.Routing {
	return state.Routing{Regions: map[fleet.Region]state.RegionRouting{"use1": {State: is, Dial: dial}}}
}

func wash(passed bool, steps ...state.WashStep) state.Wash {
	return state.Wash{Region: "use1", Trigger: "strict", Passed: passed, Steps: steps}
}

// passed are steps that have.
func passed(names []string) (steps []state.WashStep) {
	for _, name := range names {
		steps = append(steps, state.WashStep{Name: name, Duration: time.Second, Passed: true, Detail: "seen"})
	}
	return steps
}

func change(steps []state.WashStep, i int, change func(*state.WashStep)) []state.WashStep {
	change(&steps[i])
	return steps
}

var _ = Describe("A wash that has passed", func() {
	for kind, names := range map[string][]string{
		"that leaves the engine": state.WashSteps(), "that restarts it": state.RestartingWashSteps(),
		"that waited and then had no engine to restart": append([]string{"await_turn"}, state.WashSteps()...),
	} {
		It("shows every step of its kind, "+kind, func() {
			row := state.Wash{Region: "use1", Trigger: "operator", Passed: true, Steps: passed(names)}
			Expect(row.Validate()).To(Succeed())
			refused := func(what string, steps []state.WashStep) {
				GinkgoHelper()
				row := row
				row.Steps = steps
				Expect(row.Validate()).To(MatchError(state.ErrNotWhole), what)
				row.Passed, row.Reason = false, "it has failed"
				Expect(row.Validate()).To(Succeed(), "of one that failed it is what there is: "+what)
			}
			for i, name := range names {
				if name != "await_turn" || kind == "that restarts it" { // else it is one that did not have to wait
					refused(name+" is missing", slices.Delete(passed(names), i, i+1))
				}
				refused(name+" is there twice", slices.Insert(passed(names), i, passed(names)[i]))
				refused(name+" is another", change(passed(names), i, func(s *state.WashStep) { s.Name += "2" }))
				refused(name+" has not passed", change(passed(names), i, func(s *state.WashStep) { s.Passed = false }))
				refused(name+" says nothing", change(passed(names), i, func(s *state.WashStep) { s.Detail = "" }))
				if i > 0 {
					swapped := passed(names)
					swapped[i-1], swapped[i] = swapped[i], swapped[i-1]
					refused(name+" came too early", swapped)
				}
			}
			negative := row
			negative.Steps = change(passed(names), 1, func(s *state.WashStep) { s.Duration = -1 })
			Expect(negative.Validate()).To(MatchError(ContainSubstring("not negative")))
		})
	}
})

var _ = DescribeTable("A row is accepted:", func(row state.Row) {
	Expect(row.Validate()).To(Succeed())
},
	Entry(nil, state.Routing{}),
	Entry(nil, routing(state.Degraded, 50)),
	Entry(nil, state.Autoscaling{DesiredCapacity: 25, Min: 2, Max: 20}), // by hand, beyond the maximum: the autoscaler's to judge
	Entry(nil, wash(true, passed(state.WashSteps())...)),
	Entry(nil, wash(false, state.WashStep{Name: "a"})),
	Entry(nil, state.Wash{Region: "use1", Trigger: "strict", Open: state.WashWaiting}),
	Entry(nil, state.Heartbeat{Beat: 1}),
	Entry(nil, state.Minute{Samples: 1}),
)

var _ = Describe("Keys", func() {
	It("of washes and minutes are in order of time, whatever the zone", func() {
		early := time.Date(2026, time.March, 14, 9, 26, 53, 0, time.FixedZone("", 3600))
		late := time.Date(2026, time.March, 14, 9, 26, 53, 100_000, time.UTC)
		Expect(state.WashKey("a", early).Sort).To(Equal("2026-03-14T08:26:53.000000Z"))
		Expect(state.WashKey("a", early).Sort < state.WashKey("a", late).Sort).To(BeTrue())
		Expect(state.MinuteKey("use1", early)).To(Equal(state.Key{Partition: "minute/use1", Sort: "2026-03-14T08:26Z"}))
		Expect(state.MinutesOf("use1", late)).To(Equal(state.Query{Partition: "minute/use1", From: "2026-03-14T09:26Z"}))
	})

	It("fit their tables", func() {
		Expect(state.LeaseKey("region/use1").Check(schema.RoutingState)).To(Succeed())
		Expect(state.HeartbeatKey("use1").Check(schema.Metrics)).To(Succeed())
		Expect(state.MinuteKey("use1", time.Now()).Check(schema.Metrics)).To(Succeed())
		Expect(state.WashKey("use1-0", time.Now()).Check(schema.CleanupValidation)).To(Succeed())
	})

	DescribeTable("of leases are refused:", func(name string) {
		Expect(state.CheckLeaseName(name)).To(MatchError(ContainSubstring("lease")))
	},
		Entry(nil, ""), Entry(nil, "/a"), Entry(nil, "A"), Entry(nil, "a b"),
		Entry(nil, "a234567890123456789012345678901234567890123456789012345678901234"))
})

var _ = DescribeTable("JSON is the same or not:", func(a, b string, same bool) {
	Expect(state.SameJSON([]byte(a), []byte(b))).To(Equal(same))
	Expect(state.SameJSON([]byte(b), []byte(a))).To(Equal(same))
},
	Entry(nil, `{"a":1,"b":[true,null,"x"]}`, ` { "b": [true, null, "x"], "a": 1.0 }`, true),
	Entry(nil, `[1,2]`, `[2,1]`, false),
	Entry(nil, `1700000000000000001`, `1700000000000000002`, false),
	Entry(nil, `1e3`, `1000`, true),
	Entry(nil, `0.5`, `5e-1`, true),
	Entry(nil, `1e300`, `1e+300`, true),
	Entry(nil, `"1"`, `1`, false),
	Entry(nil, ``, `null`, true),
	Entry(nil, ``, `0`, false),
	Entry(nil, `{`, `{`, false),
)
