package main

import (
	"math"
	"regexp"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"

	"github.com/mrgc/mrgc/client"
)

var _ = Describe("The middle of seeds", func() {
	It("is their median, inside of its interval", func() {
		i := middle([]float64{5, 1, 3, 2, 4, 100})
		Expect(i.mid).To(Equal(3.0))
		Expect(i.low).To(And(BeNumerically(">=", 1), BeNumerically("<", 3)))
		Expect(i.high).To(And(BeNumerically(">", 3), BeNumerically("<=", 100)))
	})

	It("of one is that one, and of none nothing", func() {
		Expect(middle([]float64{7})).To(Equal(interval{7, 7, 7}))
		Expect(middle(nil).mid).To(Satisfy(math.IsNaN))
	})
})

var _ = Describe("A sealed run", func() {
	It("is what meters have counted meanwhile", func() {
		page := []byte("# HELP mrgc_parent_requests_total x\n" +
			"mrgc_parent_requests_total{instance=\"use1-0\",to=\"enclave\"} 10\nmrgc_parent_requests_total{instance=\"use1-0\",to=\"peer\"} 3\n")
		Expect(sumOf(withLabel(page, `to="peer"`), "mrgc_parent_requests_total")).To(Equal(3.0))

		r := sealedRun{measured: measured{sent: 100}}
		r.between(
			meters{
				busy: 10, total: 100, queried: 1000, hit: 100, sent: 10, relayed: 1, tenant: client.Stats{Requests: 1},
				programs: map[string]float64{"parent": 100, "engine": 5, "envoy": 7},
			},
			meters{
				busy: 60, total: 200, queried: 3000, hit: 1100, sent: 110, relayed: 21, tenant: client.Stats{Requests: 101, Resealed: 5},
				programs: map[string]float64{"parent": 350, "engine": 5000, "envoy": 57},
			},
		)
		Expect(r.machine).To(Equal(0.5))
		Expect(r.hits).To(Equal(0.5))
		Expect(r.relayed).To(Equal(0.2))
		Expect(r.resealed).To(Equal(0.05))
		Expect(r.programs).To(Equal(map[string]float64{"parent": 2.5, "envoy": 0.5}))
		Expect(r.cpu).To(Equal(3.0))
	})

	It("is compared with the same policy's unrestricted choice, on the same traffic", func() {
		restricted := sealedField()[0]
		all := restricted
		all.recipients = engineCount
		b := sealedBook{runs: []sealedRun{
			{scenario: "s", contender: restricted, seed: 1, measured: measured{p99: 20}},
			{scenario: "s", contender: restricted, seed: 2, measured: measured{p99: 1000}}, // has no partner
			{scenario: "s", contender: all, seed: 1, measured: measured{p99: 10}},
			{scenario: "other", contender: all, seed: 2, measured: measured{p99: 1}},
		}}
		Expect(b.againstAll("s", restricted).mid).To(BeNumerically("~", 2, 1e-9))
		Expect(b.againstAll("s", all).mid).To(Satisfy(math.IsNaN))
	})
})

var _ = Describe("A sealed run's cluster", func() {
	DescribeTable("has the engines of the table in clear", func(s scenario, want ...string) {
		c := sealedField()[0]
		Expect(sealedArgs(c, s)).To(ContainElements("--policy", c.policy.String()))
		var faults []string
		args := sealedArgs(c, s)
		for i, arg := range args {
			if arg == "--sim-slow" || arg == "--sim-fail" {
				faults = append(faults, arg+" "+args[i+1])
			}
		}
		Expect(faults).To(ConsistOf(want))
	},
		Entry("all well, one slow", scenario{name: "s"}, "--sim-slow use1-3=2"),
		Entry("and one that fails", failingEngine(), "--sim-slow use1-3=2", "--sim-fail use1-0=1"),
	)

	It("is measured by every policy, and in every scenario", func() {
		var names []string
		for _, c := range sealedField() {
			names = append(names, c.name())
		}
		Expect(names).To(ContainElements("MRGC gate-then-load, sealed to 3", "MRGC power-of-two, sealed to 3", "MRGC round-robin, sealed to 3",
			"MRGC round-robin, sealed to 4", "weights alone, sealed to 3"))
		scenes, err := (&options{scene: regexp.MustCompile("")}).scenes(scenarios())
		Expect(err).NotTo(HaveOccurred())
		Expect(scenes).To(ConsistOf(scenario{name: "reuse", reuse: true}, scenario{name: "no reuse"}, failingEngine()))
	})
})
