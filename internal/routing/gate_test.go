package routing_test

import (
	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	"pgregory.net/rapid"

	"github.com/mrgc/mrgc/internal/routing"
)

// talk is a request of a conversation whose home is a.
func talk() routing.Request {
	req := by(routing.PolicyGateThenLoad)
	req.Home = "a"
	req.PromptTokens = 1000
	return req
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
		// Of the 1,000 tokens of the prompt, 200 are to be read at home: 800 and the
		// margin, 500 tokens at this speed, is what the home may be behind.
		Entry("busier, but within the margin", candidate("a", "use1", unread(1299), reads(10_000)), candidate("b", "use1", reads(10_000)), routing.GateHome),
		Entry("busier by more than the margin", candidate("a", "use1", unread(1301), reads(10_000)), candidate("b", "use1", reads(10_000)), routing.GateReleased),
		Entry("the margin is against what the other has to read", candidate("a", "use1", unread(1301), reads(10_000)),
			candidate("b", "use1", unread(1), reads(10_000)), routing.GateHome),
		Entry("slower, but not by as much as is cached", candidate("a", "use1", reads(5_000)), candidate("b", "use1", reads(10_000)), routing.GateHome),
		Entry("slower than is worth its cache", candidate("a", "use1", reads(2_000)), candidate("b", "use1", reads(10_000)), routing.GateReleased),
		Entry("every slot taken, and free ones elsewhere", candidate("a", "use1", inFlight(4)), candidate("b", "use1", inFlight(3)), routing.GateReleased),
		Entry("every slot taken, here and elsewhere", candidate("a", "use1", inFlight(4)), candidate("b", "use1", inFlight(4)), routing.GateHome),
		Entry("every slot taken, and a shorter queue elsewhere", candidate("a", "use1", inFlight(7)), candidate("b", "use1", inFlight(4)), routing.GateReleased),
		Entry("a slot free", candidate("a", "use1", inFlight(3)), candidate("b", "use1"), routing.GateHome),
		Entry("slots not known", candidate("a", "use1", inFlight(15), slots(0)), candidate("b", "use1", slots(0)), routing.GateHome),
		Entry("every slot taken, as a fresh report says", candidate("a", "use1", reports(4)), candidate("b", "use1"), routing.GateReleased),
		Entry("every slot taken, as a stale report says", candidate("a", "use1", reports(4), func(c *routing.Candidate) { c.Report.Age = routing.AgeStale }),
			candidate("b", "use1"), routing.GateHome),
		Entry("the free slots are of an instance that starts slowly, and would take longer", candidate("a", "use1", inFlight(4)),
			candidate("b", "use1", inFlight(1), sinceReady(1)), routing.GateHome),
		Entry("the free slots are in another region", candidate("a", "use1", inFlight(9)), candidate("b", "use2"), routing.GateHome),
	)
})

var _ = Describe("A home", func() {
	DescribeTable("is left", func(all ...routing.Candidate) {
		got := routing.Pick(talk(), all)
		Expect(got.Instances[0].ID).To(Equal("b"))
		Expect(got.Gate).To(Equal(routing.GateReleased))
	},
		Entry("while it fails", candidate("a", "use1", errorRate(1)), candidate("b", "use1", inFlight(2))),
		Entry("while a nearer region serves", candidate("a", "use2"), candidate("b", "use1", inFlight(2))),
		Entry("when it takes no requests", candidate("a", "use1", notReady), candidate("b", "use1", inFlight(2))),
		Entry("when it has gone", candidate("c", "use1", inFlight(3)), candidate("b", "use1", inFlight(2))),
	)

	It("is returned to in another region, where there is nothing nearer", func() {
		got := routing.Pick(talk(), []routing.Candidate{candidate("a", "use2", inFlight(2)), candidate("b", "use2")})
		Expect(got.Instances[0].ID).To(Equal("a"))
		Expect(got.Gate).To(Equal(routing.GateHome))
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

	It("or the instance with the soonest first token is first, whatever the fleet", func() {
		rapid.Check(GinkgoT(), func(t *rapid.T) {
			req, candidates := anyPick(t)
			req.Policy = routing.PolicyGateThenLoad
			if req.Home == "" {
				req.Home = "use1-0"
			}
			alone := req
			alone.Home = ""
			got, byLoad := routing.Pick(req, candidates), routing.Pick(alone, candidates)
			if len(got.Instances) == 0 {
				return
			}
			if got.Gate == routing.GateReleased && got.Instances[0] != byLoad.Instances[0] {
				t.Fatalf("released to %v, soonest is %v", ids(got.Instances), ids(byLoad.Instances))
			}
			if got.Gate == routing.GateNone || byLoad.Gate != routing.GateNone {
				t.Fatalf("gate %q, without a home %q", got.Gate, byLoad.Gate)
			}
		})
	})
})
