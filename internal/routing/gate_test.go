package routing_test

import (
	"fmt"
	"maps"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	"pgregory.net/rapid"

	"github.com/mrgc/mrgc/internal/routing"
)

// talk is a request of a conversation whose home among a, b and c is a.
func talk() routing.Request {
	req := by(routing.PolicyGateThenLoad)
	idle := []routing.Candidate{candidate("a", "use1"), candidate("b", "use1"), candidate("c", "use1")}
	for i := 0; ; i++ {
		req.Affinity = fmt.Sprint("conversation-", i)
		if routing.Pick(req, idle).Instances[0].ID == "a" {
			return req
		}
	}
}

var _ = Describe("A conversation", func() {
	DescribeTable("stays at home until that is saturated",
		func(home, other routing.Candidate, gate routing.Gate) {
			got := routing.Pick(talk(), []routing.Candidate{other, home})
			Expect(got.Gate).To(Equal(gate))
			Expect(got.Instances).To(HaveLen(2))
			if gate == routing.GateHome {
				Expect(got.Instances[0].ID).To(Equal("a"))
			} else {
				Expect(got.Instances[0].ID).To(Equal("b"))
			}
		},
		Entry("idle", candidate("a", "use1"), candidate("b", "use1"), routing.GateHome),
		Entry("busier, but within the margin", candidate("a", "use1", inFlight(3), tokens(4*routing.SaturationTokens)), candidate("b", "use1"), routing.GateHome),
		Entry("busier by more than the margin", candidate("a", "use1", inFlight(3), tokens(4*routing.SaturationTokens+1)), candidate("b", "use1"), routing.GateReleased),
		Entry("the margin is against the other's backlog", candidate("a", "use1", inFlight(3), tokens(4*routing.SaturationTokens+1)),
			candidate("b", "use1", inFlight(1), tokens(1)), routing.GateHome),
		Entry("the margin grows with slots", candidate("a", "use1", inFlight(3), tokens(4*routing.SaturationTokens+1), slots(5)),
			candidate("b", "use1", slots(5)), routing.GateHome),
		Entry("every slot taken, and free ones elsewhere", candidate("a", "use1", inFlight(4)), candidate("b", "use1", inFlight(3)), routing.GateReleased),
		Entry("every slot taken, here and elsewhere", candidate("a", "use1", inFlight(7)), candidate("b", "use1", inFlight(4)), routing.GateHome),
		Entry("a slot free", candidate("a", "use1", inFlight(3)), candidate("b", "use1"), routing.GateHome),
		Entry("slots not known", candidate("a", "use1", inFlight(30), slots(0)), candidate("b", "use1", slots(0)), routing.GateHome),
		Entry("every slot taken, as a fresh report says", candidate("a", "use1", reports(4)), candidate("b", "use1"), routing.GateReleased),
		Entry("every slot taken, as a stale report says", candidate("a", "use1", reports(4), func(c *routing.Candidate) { c.Report.Age = routing.AgeStale }),
			candidate("b", "use1"), routing.GateHome),
		Entry("the free slots are of an instance that starts slowly, and would take longer", candidate("a", "use1", inFlight(4)),
			candidate("b", "use1", inFlight(1), sinceReady(1)), routing.GateHome),
		Entry("the free slots are in another region", candidate("a", "use1", inFlight(9)), candidate("b", "use2"), routing.GateHome),
	)
})

var _ = Describe("A home", func() {
	// homes says where each of many conversations is at home.
	homes := func(candidates ...routing.Candidate) map[string]string {
		at := map[string]string{}
		for i := range 4000 {
			req := request()
			for _, c := range candidates {
				req.Recipients = append(req.Recipients, c.Instance.KeyIDs...)
			}
			req.Affinity = fmt.Sprintf("%016x", i)
			got := routing.Pick(req, candidates)
			at[req.Affinity] = got.Instances[0].ID
		}
		return at
	}
	four := func() []routing.Candidate {
		return []routing.Candidate{candidate("a", "use1"), candidate("b", "use1"), candidate("c", "use1"), candidate("d", "use1")}
	}

	It("is as likely to be any instance", func() {
		count := map[string]int{}
		for _, home := range homes(four()...) {
			count[home]++
		}
		Expect(chiSquare(count, 4000, []string{"a", "b", "c", "d"})).To(BeNumerically("<", 16.27), "%v", count)
	})

	It("moves only when it goes, and comes back with it", func() {
		all := four()
		before, without := homes(all...), homes(all[:3]...)
		maps.DeleteFunc(before, func(_, home string) bool { return home == "d" })
		Expect(before).NotTo(BeEmpty())
		maps.DeleteFunc(without, func(conversation, _ string) bool { return before[conversation] == "" })
		Expect(without).To(Equal(before))
	})

	It("does not depend on which other recipients a request has", func() {
		all := four()
		whole := homes(all...)
		maps.DeleteFunc(whole, func(_, home string) bool { return home != "b" && home != "d" })
		Expect(whole).NotTo(BeEmpty())
		few := homes(all[1], all[3])
		maps.DeleteFunc(few, func(conversation, _ string) bool { return whole[conversation] == "" })
		Expect(few).To(Equal(whole))
	})

	It("moves to a new instance for good, a conversation after the other", func() {
		all := four()
		full, before := homes(all...), map[string]string{}
		for _, since := range []time.Duration{1, routing.SlowStart / 4, routing.SlowStart / 2, routing.SlowStart - 1} {
			d := all[3]
			d.SinceReady = since
			now := homes(all[0], all[1], all[2], d)
			maps.DeleteFunc(now, func(_, home string) bool { return home != "d" })
			Expect(len(now)).To(BeNumerically("~", 1000*max(0.1, since.Seconds()/10), 140), "after %v", since)
			for conversation := range before {
				if now[conversation] == "" {
					Fail(conversation + " has left its new home")
				}
			}
			for conversation := range now {
				if full[conversation] != "d" {
					Fail(conversation + " has gone where its home will not be")
				}
			}
			before = now
		}
	})

	It("is another instance while it fails", func() {
		got := routing.Pick(talk(), []routing.Candidate{candidate("a", "use1", errorRate(1)), candidate("b", "use1", inFlight(2))})
		Expect(ids(got.Instances)).To(Equal([]string{"b", "a"}))
		Expect(got.Gate).To(Equal(routing.GateHome))
	})

	It("is in the nearest region that has an instance", func() {
		got := routing.Pick(talk(), []routing.Candidate{candidate("a", "use2"), candidate("b", "use1", inFlight(2))})
		Expect(ids(got.Instances)).To(Equal([]string{"b", "a"}))
	})

	It("means nothing to other policies", func() {
		for _, policy := range policies[1:] {
			req := talk()
			req.Policy = policy
			req.Sequence = 1
			got := routing.Pick(req, []routing.Candidate{candidate("a", "use1", inFlight(1)), candidate("b", "use1")})
			Expect(got.Gate).To(Equal(routing.GateNone))
			Expect(got.Instances[0].ID).To(Equal("b"))
		}
	})

	It("or the instance with the least work is first, whatever the fleet", func() {
		rapid.Check(GinkgoT(), func(t *rapid.T) {
			req, candidates := anyPick(t)
			req.Policy, req.Affinity = routing.PolicyGateThenLoad, "x"
			alone := req
			alone.Affinity = ""
			got, byLoad := routing.Pick(req, candidates), routing.Pick(alone, candidates)
			if len(got.Instances) == 0 {
				return
			}
			if got.Gate == routing.GateReleased && got.Instances[0] != byLoad.Instances[0] {
				t.Fatalf("released to %v, least work is %v", ids(got.Instances), ids(byLoad.Instances))
			}
			if got.Gate == routing.GateNone || byLoad.Gate != routing.GateNone {
				t.Fatalf("gate %q, without affinity %q", got.Gate, byLoad.Gate)
			}
		})
	})
})
