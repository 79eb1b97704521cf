package routing_test

import (
	"fmt"
	"math"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"

	"github.com/mrgc/mrgc/internal/routing"
)

var _ = Describe("Policy", func() {
	DescribeTable("has one name",
		func(policy routing.Policy, name string) {
			Expect(policy.String()).To(Equal(name))
			Expect(routing.ParsePolicy(name)).To(Equal(policy))
			read := routing.Policy(99)
			Expect(read.UnmarshalText([]byte(name))).To(Succeed())
			Expect(read).To(Equal(policy))
		},
		Entry(nil, routing.PolicyGateThenLoad, "gate-then-load"),
		Entry(nil, routing.PolicyScore, "score"),
		Entry(nil, routing.PolicyLeastInFlight, "least-in-flight"),
		Entry(nil, routing.PolicyPowerOfTwo, "power-of-two"),
		Entry(nil, routing.PolicyRoundRobin, "round-robin"),
	)

	It("is gate-then-load when nothing is said", func() {
		var policy routing.Policy
		Expect(policy).To(Equal(routing.PolicyGateThenLoad))
	})

	DescribeTable("is refused by any other name, with those that there are",
		func(name string) {
			_, err := routing.ParsePolicy(name)
			Expect(err).To(MatchError(fmt.Sprintf(
				"policy %q: want gate-then-load, score, least-in-flight, power-of-two or round-robin", name)))
			policy := routing.PolicyScore
			Expect(policy.UnmarshalText([]byte(name))).To(MatchError(err))
			Expect(policy).To(Equal(routing.PolicyScore))
		},
		Entry(nil, ""), Entry(nil, "Score"), Entry(nil, "random"), Entry(nil, routing.Policy(5).String()),
	)
})

// by asks for recipients a, b and c under a policy.
func by(policy routing.Policy) routing.Request {
	req := request("a", "b", "c")
	req.Policy = policy
	return req
}

var _ = Describe("Load", func() {
	DescribeTable("decides as the policy says",
		func(policy routing.Policy, a, b routing.Candidate, first string) {
			Expect(ids(routing.Pick(by(policy), []routing.Candidate{a, b}).Instances)[0]).To(Equal(first))
		},
		Entry("gate-then-load: fewer tokens to read", routing.PolicyGateThenLoad,
			candidate("a", "use1", inFlight(1), tokens(3000)), candidate("b", "use1", inFlight(2), tokens(1000)), "b"),
		Entry("gate-then-load: fewer tokens to read, as reports say", routing.PolicyGateThenLoad,
			candidate("a", "use1", unread(3000)), candidate("b", "use1", inFlight(2), tokens(9000), unread(1000)), "b"),
		Entry("gate-then-load: what has been sent since the report", routing.PolicyGateThenLoad,
			candidate("a", "use1", unread(1000), sent(3000)), candidate("b", "use1", unread(2000), sent(1000)), "b"),
		Entry("gate-then-load: what has been read since the report", routing.PolicyGateThenLoad,
			candidate("a", "use1", unread(3000), reads(10_000), since(100*time.Millisecond)), candidate("b", "use1", unread(2500), reads(10_000)), "a"),
		Entry("gate-then-load: a report that is made longer ago has not been read more than it had", routing.PolicyGateThenLoad,
			candidate("a", "use1", unread(1), sent(1000), reads(10_000), since(900*time.Millisecond)), candidate("b", "use1", unread(500), reads(10_000)), "b"),
		Entry("gate-then-load: who reads faster", routing.PolicyGateThenLoad,
			candidate("a", "use1", unread(1000), reads(5_000)), candidate("b", "use1", unread(2000), reads(10_000)), "b"),
		Entry("gate-then-load: a full engine, however little it has to read", routing.PolicyGateThenLoad,
			candidate("a", "use1", reports(4)), candidate("b", "use1", reports(3), unread(5_000)), "b"),
		Entry("gate-then-load: a full engine whose requests are short", routing.PolicyGateThenLoad,
			candidate("a", "use1", reports(4), lasts(200*time.Millisecond)), candidate("b", "use1", reports(3), unread(5_000), lasts(time.Second)), "a"),
		Entry("gate-then-load: fewer streams, when tokens are the same", routing.PolicyGateThenLoad,
			candidate("a", "use1", inFlight(2), tokens(1000)), candidate("b", "use1", inFlight(1), tokens(1000)), "b"),
		Entry("gate-then-load: more slots for the same work", routing.PolicyGateThenLoad,
			candidate("a", "use1", inFlight(3), slots(4)), candidate("b", "use1", inFlight(3), slots(16)), "b"),
		Entry("gate-then-load: what others have sent", routing.PolicyGateThenLoad,
			candidate("a", "use1", reports(5)), candidate("b", "use1", inFlight(3)), "b"),
		Entry("score: what others have sent", routing.PolicyScore,
			candidate("a", "use1", reports(5)), candidate("b", "use1", inFlight(3)), "b"),
		Entry("score: latency, which load may outweigh", routing.PolicyScore,
			candidate("a", "use1", latency(time.Second)), candidate("b", "use1", inFlight(2)), "b"),
		Entry("score: load, which latency may outweigh", routing.PolicyScore,
			candidate("a", "use1", latency(time.Second)), candidate("b", "use1", inFlight(4)), "a"),
		Entry("least-in-flight: the picker's own, before the score", routing.PolicyLeastInFlight,
			candidate("a", "use1", inFlight(1)), candidate("b", "use1", reports(8)), "b"),
		Entry("least-in-flight: the score among as many", routing.PolicyLeastInFlight,
			candidate("a", "use1", reports(4)), candidate("b", "use1", reports(1)), "b"),
		Entry("power-of-two: the better of two", routing.PolicyPowerOfTwo,
			candidate("a", "use1", inFlight(2)), candidate("b", "use1", inFlight(1)), "b"),
	)

	DescribeTable("includes the request's own prompt",
		func(prompt int, first string) {
			req := by(routing.PolicyGateThenLoad)
			req.PromptTokens = prompt
			candidates := []routing.Candidate{candidate("a", "use1", reads(10_000)), candidate("b", "use1", reads(40_000), unread(5000))}
			Expect(ids(routing.Pick(req, candidates).Instances)[0]).To(Equal(first))
		},
		// The first has prompt / 10,000 s to do, the other (5,000 + prompt) / 40,000.
		Entry("short: sooner read where there is nothing else", 1000, "a"), Entry("long: sooner where reading is fast", 4000, "b"),
		Entry("not known: of average length", 0, "a"),
	)

	It("is that of the slowest where an instance does not say how fast it is", func() {
		candidates := []routing.Candidate{
			candidate("a", "use1", unread(1000)), candidate("b", "use1", unread(1100), reads(10_000)), candidate("c", "use1", unread(900), reads(5_000)),
		}
		Expect(ids(routing.Pick(by(routing.PolicyGateThenLoad), candidates).Instances)).To(Equal([]string{"b", "c", "a"}))
	})

	It("is that of the smallest known instance where slots are not known", func() {
		candidates := []routing.Candidate{
			candidate("a", "use1", inFlight(4), slots(0)), candidate("b", "use1", inFlight(4), slots(5)), candidate("c", "use1", inFlight(9), slots(4)),
		}
		Expect(ids(routing.Pick(by(routing.PolicyGateThenLoad), candidates).Instances)).To(Equal([]string{"b", "a", "c"}))
	})

	It("is of two drawn at random under power-of-two: the busiest of three is never first, the others are", func() {
		candidates := []routing.Candidate{candidate("a", "use1"), candidate("b", "use1", inFlight(1)), candidate("c", "use1", inFlight(2))}
		first := map[string]int{}
		for i := range 3000 {
			req := by(routing.PolicyPowerOfTwo)
			req.ID = fmt.Sprint(i)
			first[ids(routing.Pick(req, candidates).Instances)[0]]++
		}
		// Of the three pairs, a wins two.
		Expect(first).To(HaveLen(2))
		Expect(first["a"]).To(BeNumerically("~", 2000, 130)) // five standard deviations
	})

	It("does not matter to round robin, which takes turns in order of ID", func() {
		candidates := []routing.Candidate{candidate("b", "use1", inFlight(9)), candidate("c", "use1"), candidate("a", "use1"), candidate("d", "use1")}
		var order [][]string
		for i := range 4 {
			req := by(routing.PolicyRoundRobin)
			req.Sequence = uint64(i)
			order = append(order, ids(routing.Pick(req, candidates).Instances))
		}
		Expect(order).To(Equal([][]string{{"a", "b", "c"}, {"b", "c", "a"}, {"c", "a", "b"}, {"a", "b", "c"}}))
	})
})

var _ = Describe("A report", func() {
	busy := func(age routing.Age) func(*routing.Candidate) {
		return func(c *routing.Candidate) {
			reports(3)(c)
			c.Report.Age = age
		}
	}
	DescribeTable("counts by its age, and what the picker itself has in flight unless that shows that it has ended",
		func(a, b routing.Candidate, first string) {
			Expect(ids(routing.Pick(by(routing.PolicyGateThenLoad), []routing.Candidate{a, b}).Instances)).To(
				And(HaveLen(2), HaveExactElements(first, Not(BeEmpty()))))
		},
		Entry("fresh", candidate("a", "use1", busy(routing.AgeFresh)), candidate("b", "use1", inFlight(2)), "b"),
		Entry("fresh, but less than the picker knows of", candidate("a", "use1", inFlight(5), sentRequests(2), busy(routing.AgeFresh)), candidate("b", "use1", inFlight(4)), "b"),
		Entry("fresh, and what it lacks has ended", candidate("a", "use1", inFlight(5), busy(routing.AgeFresh)), candidate("b", "use1", inFlight(4)), "a"),
		Entry("fresh, and what the picker knows of is part of it", candidate("a", "use1", inFlight(3), busy(routing.AgeFresh)), candidate("b", "use1", inFlight(4)), "a"),
		Entry("stale", candidate("a", "use1", busy(routing.AgeStale)), candidate("b", "use1", inFlight(2)), "a"),
		Entry("stale, with load of the picker's own", candidate("a", "use1", inFlight(3), busy(routing.AgeStale)), candidate("b", "use1", inFlight(2)), "b"),
		Entry("missing", candidate("a", "use1", busy(routing.AgeMissing)), candidate("b", "use1", inFlight(2)), "a"),
		Entry("missing, with load of the picker's own", candidate("a", "use1", inFlight(3), busy(routing.AgeMissing)), candidate("b", "use1", inFlight(2)), "b"),
		Entry("of figures that cannot be", candidate("a", "use1", reports(math.MaxInt), inFlight(math.MinInt)), candidate("b", "use1", inFlight(math.MaxInt)), "a"),
	)

	It("that is missing for every instance rejects none", func() {
		for _, policy := range policies {
			got := routing.Pick(by(policy), []routing.Candidate{candidate("a", "use1"), candidate("b", "use1"), candidate("c", "use1")})
			Expect(got.Reason).To(Equal(routing.ReasonPicked))
			Expect(got.Instances).To(HaveLen(3))
		}
	})
})

// shareOf is how often an instance is first of all the requests that could go there.
func shareOf(id string, req routing.Request, candidates []routing.Candidate) float64 {
	const requests = 20_000
	first := 0
	for i := range requests {
		req.ID, req.Sequence = fmt.Sprintf("%032x", i), uint64(i)
		if routing.Pick(req, candidates).Instances[0].ID == id {
			first++
		}
	}
	return float64(first) / requests
}

var _ = Describe("An instance that fails", func() {
	It("gets probes and nothing else, under every policy and whatever its load", func() {
		candidates := []routing.Candidate{
			candidate("a", "use1", errorRate(routing.FailingRate)),
			candidate("b", "use1", inFlight(9), tokens(90_000)), candidate("c", "use1", inFlight(9), tokens(90_000)),
		}
		for _, policy := range policies {
			Expect(shareOf("a", by(policy), candidates)).To(And(
				BeNumerically(">", routing.ProbeShare/2), BeNumerically("<=", 0.01)), policy.String())
		}
	})

	It("is the last to be tried, behind those of other regions", func() {
		candidates := []routing.Candidate{candidate("a", "use1", errorRate(1)), candidate("b", "use2"), candidate("c", "usw2", inFlight(9))}
		got := routing.Pick(by(routing.PolicyGateThenLoad), candidates)
		Expect(ids(got.Instances)).To(Equal([]string{"b", "c", "a"}))
		Expect(got.Reason).To(Equal(routing.ReasonSpilled))
	})

	It("is not probed in a region where the request would not go", func() {
		candidates := []routing.Candidate{candidate("a", "use1"), candidate("b", "use2", errorRate(1))}
		Expect(shareOf("a", by(routing.PolicyGateThenLoad), candidates)).To(Equal(1.0))
	})

	It("is nothing special when all fail", func() {
		for _, policy := range policies {
			candidates := []routing.Candidate{
				candidate("a", "use1", errorRate(1)), candidate("b", "use1", errorRate(0.6), inFlight(30)), candidate("c", "use2", errorRate(0.6)),
			}
			Expect(ids(routing.Pick(by(policy), candidates).Instances)).To(ConsistOf("a", "b", "c"))
			Expect(routing.Pick(by(policy), candidates).Reason).To(Equal(routing.ReasonPicked))
		}
	})

	It("now and then counts as busier by what it sheds", func() {
		candidates := []routing.Candidate{candidate("a", "use1", inFlight(3), errorRate(0.4)), candidate("b", "use1", inFlight(5))}
		Expect(ids(routing.Pick(by(routing.PolicyLeastInFlight), candidates).Instances)).To(Equal([]string{"b", "a"})) // 4/0.6 > 6
	})

	It("has a rate that is a number, or none", func() {
		candidates := []routing.Candidate{candidate("a", "use1", errorRate(math.NaN())), candidate("b", "use1", inFlight(1))}
		Expect(ids(routing.Pick(by(routing.PolicyGateThenLoad), candidates).Instances)).To(Equal([]string{"a", "b"}))
	})
})

var _ = Describe("An instance that has just become ready", func() {
	DescribeTable("is spared in proportion",
		func(policy routing.Policy, since time.Duration, others int, first string) {
			req := by(policy)
			candidates := []routing.Candidate{candidate("a", "use1", sinceReady(since)), candidate("b", "use1", inFlight(others), slots(16))}
			candidates[0].Instance.Load.Slots = 16
			Expect(ids(routing.Pick(req, candidates).Instances)[0]).To(Equal(first))
		},
		Entry("at first, even idle", routing.PolicyLeastInFlight, time.Millisecond, 8, "b"),
		Entry("at first, unless the others are very busy", routing.PolicyLeastInFlight, time.Millisecond, 10, "a"),
		Entry("halfway", routing.PolicyLeastInFlight, routing.SlowStart/2, 2, "a"),
		Entry("halfway, among idle ones", routing.PolicyLeastInFlight, routing.SlowStart/2, 0, "b"),
		Entry("by the first token", routing.PolicyGateThenLoad, time.Millisecond, 8, "b"),
		Entry("by the first token, halfway", routing.PolicyGateThenLoad, routing.SlowStart/2, 20, "a"),
		Entry("by score", routing.PolicyScore, time.Millisecond, 8, "b"),
		Entry("by score, unless the others are very busy", routing.PolicyScore, time.Millisecond, 10, "a"),
		Entry("not longer", routing.PolicyLeastInFlight, routing.SlowStart, 1, "a"),
		Entry("not when it has always been ready", routing.PolicyLeastInFlight, time.Duration(0), 1, "a"),
	)

	It("is passed over by round robin as often as it is not ready for its share", func() {
		candidates := []routing.Candidate{candidate("a", "use1", sinceReady(routing.SlowStart/2)), candidate("b", "use1"), candidate("c", "use1")}
		Expect(shareOf("a", by(routing.PolicyRoundRobin), candidates)).To(BeNumerically("~", 1.0/6, 0.02))
	})

	It("serves when there are only such", func() {
		for _, policy := range policies {
			req := by(policy)
			req.Home = "a"
			got := routing.Pick(req, []routing.Candidate{candidate("a", "use1", sinceReady(1)), candidate("b", "use1", sinceReady(1))})
			Expect(got.Instances).To(HaveLen(2), policy.String())
		}
	})
})
