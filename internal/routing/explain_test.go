package routing_test

import (
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	"pgregory.net/rapid"

	"github.com/mrgc/mrgc/internal/fleet"
	"github.com/mrgc/mrgc/internal/routing"
)

var _ = Describe("Explain", func() {
	It("says what Pick says, and something of every candidate", func() {
		rapid.Check(GinkgoT(), func(t *rapid.T) {
			req, candidates := anyPick(t)
			req.Policy = rapid.SampledFrom(policies).Draw(t, "policy")
			want := routing.Pick(req, candidates)
			got, places := routing.Explain(req, candidates)
			var order []*fleet.Instance
			excluded := 0
			for i, p := range places {
				switch {
				case p.Rule != routing.RuleNone:
					excluded++
				case excluded > 0:
					t.Fatalf("%s may serve and comes after one that may not", p.Instance.ID)
				case (i == 0) != (p.After == routing.CriterionNone):
					t.Fatalf("place %d comes after %q", i, p.After)
				default:
					order = append(order, p.Instance)
				}
			}
			if len(places) != len(candidates) {
				t.Fatalf("%d places of %d candidates", len(places), len(candidates))
			}
			gm := NewWithT(t)
			gm.Expect(got).To(Equal(want))
			gm.Expect(ids(order)).To(Equal(ids(want.Instances)))
		})
	})

	home := func(id string) routing.Request { req := request("a", "b"); req.Home = id; return req }
	DescribeTable("names by what the second comes second",
		func(policy routing.Policy, req routing.Request, a, b routing.Candidate, want routing.Criterion) {
			req.Policy = policy
			_, places := routing.Explain(req, []routing.Candidate{a, b})
			Expect(places).To(HaveLen(2))
			Expect(places[0].Instance.ID).To(Equal("a"))
			Expect(places[1].After).To(Equal(want))
		},
		Entry("it fails", routing.PolicyGateThenLoad, request("a", "b"), candidate("a", "use1"), candidate("b", "use1", errorRate(0.9)), routing.CriterionStanding),
		Entry("it is further away", routing.PolicyGateThenLoad, request("a", "b"), candidate("a", "use1"), candidate("b", "use2"), routing.CriterionRegion),
		Entry("the other is the home", routing.PolicyGateThenLoad, home("a"), candidate("a", "use1", inFlight(1)), candidate("b", "use1"), routing.CriterionGate),
		Entry("its first token is later", routing.PolicyGateThenLoad, request("a", "b"), candidate("a", "use1"), candidate("b", "use1", inFlight(1)), routing.CriterionMeasure),
		Entry("its score is lower", routing.PolicyLeastInFlight, request("a", "b"), candidate("a", "use1"), candidate("b", "use1", latency(time.Second)), routing.CriterionScore),
		Entry("its turn has not come", routing.PolicyRoundRobin, request("a", "b"), candidate("a", "use1"), candidate("b", "use1"), routing.CriterionDraw),
	)

	It("names a hash where both are equally good", func() {
		_, places := routing.Explain(request("a", "b"), []routing.Candidate{candidate("a", "use1"), candidate("b", "use1")})
		Expect(places[1].After).To(Equal(routing.CriterionHash))
	})

	DescribeTable("names the rule that keeps one out", func(c routing.Candidate, want routing.Rule) {
		_, places := routing.Explain(request("a", "b"), []routing.Candidate{candidate("a", "use1"), c})
		Expect(places[1].Instance.ID).To(Equal(c.Instance.ID))
		Expect(places[1].Rule).To(Equal(want))
	},
		Entry("no key", candidate("c", "use1"), routing.RuleKey),
		Entry("another model", candidate("b", "use1", otherModel), routing.RuleModel),
		Entry("not ready", candidate("b", "use1", notReady), routing.RuleReady),
		Entry("a region that the request may not use", candidate("b", "euw1"), routing.RuleRegion),
	)

	It("predicts the home's first token with most of the prompt cached, whatever the policy", func() {
		for _, policy := range policies {
			req := home("a")
			req.Policy, req.PromptTokens = policy, 10_000
			_, places := routing.Explain(req, []routing.Candidate{candidate("a", "use1", reads(10_000)), candidate("b", "use1", reads(10_000))})
			byID := map[string]routing.Place{}
			for _, p := range places {
				byID[p.Instance.ID] = p
			}
			Expect(byID["b"].FirstToken - byID["a"].FirstToken).To(BeNumerically("~", 800*time.Millisecond, time.Millisecond))
		}
	})
})

var _ = Describe("The score's terms", func() {
	It("add up to it", func() {
		rapid.Check(GinkgoT(), func(t *rapid.T) {
			h := fleet.Health{Enclave: rapid.Bool().Draw(t, "enclave"), Engine: rapid.Bool().Draw(t, "engine")}
			l := fleet.Load{
				Running: rapid.IntRange(-1, 20).Draw(t, "running"), Queued: rapid.IntRange(0, 20).Draw(t, "queued"),
				Slots: rapid.IntRange(0, 8).Draw(t, "slots"), Latency: time.Duration(rapid.IntRange(0, 3000).Draw(t, "ms")) * time.Millisecond,
			}
			terms := routing.TermsOf(h, l)
			gm := NewWithT(t)
			gm.Expect(terms.Score()).To(Equal(routing.Score(h, l)))
			gm.Expect(terms.Queue).To(And(BeNumerically(">=", 0), BeNumerically("<=", 50)))
			gm.Expect(terms.Latency).To(And(BeNumerically(">=", 0), BeNumerically("<=", 30)))
			gm.Expect(terms.Health).To(BeElementOf(0.0, 10.0, 20.0))
		})
	})
})
