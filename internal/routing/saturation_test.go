package routing_test

import (
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"

	"github.com/mrgc/mrgc/internal/routing"
)

var _ = Describe("Saturation", func() {
	// Four slots and a quarter of a request that waits are as much as there should be.
	DescribeTable("is that of the least busy of those that a request would go to", func(overload float64, all ...routing.Candidate) {
		for _, policy := range policies {
			Expect(routing.SaturationOf(by(policy), all).Overload).To(BeNumerically("~", overload, 1e-9), policy.String())
		}
	},
		Entry("idle", 0.0, candidate("a", "use1")),
		Entry("every slot taken", 4/4.25, candidate("a", "use1", inFlight(4))),
		Entry("one waits", 5/4.25, candidate("a", "use1", inFlight(5))),
		Entry("one has less to do", 3/4.25, candidate("a", "use1", inFlight(9)), candidate("b", "use1", inFlight(3))),
		Entry("all are busy", 6/4.25, candidate("a", "use1", inFlight(9)), candidate("b", "use1", inFlight(6))),
		Entry("as reports say", 9/4.25, candidate("a", "use1", reports(9))),
		Entry("as reports say, and what was sent since", 9/4.25, candidate("a", "use1", reports(6), inFlight(9), sentRequests(3))),
		Entry("by no count of requests that a report does not have and that were not sent since: they have ended", 4/4.25,
			candidate("a", "use1", reports(3), inFlight(9), sentRequests(1))),
		Entry("by no count while nothing else is known", 9/4.25, candidate("a", "use1", reports(3), inFlight(9), stale)),
		Entry("less what will have ended since", 5/4.25, candidate("a", "use1", reports(9), lasts(time.Second), since(time.Second))),
		Entry("less what will have ended since, of few", 1/4.25, candidate("a", "use1", reports(2), lasts(time.Second), since(900*time.Millisecond))),
		Entry("and not below nothing", 0.0, candidate("a", "use1", reports(9), lasts(4*time.Millisecond), since(100*time.Millisecond))),
		Entry("nor below what is known to be there", 5/4.25, candidate("a", "use1", reports(9), lasts(4*time.Millisecond), since(100*time.Millisecond), inFlight(5))),
		Entry("slots not known: those of the others", 8/4.25, candidate("a", "use1", inFlight(8), slots(0)), candidate("b", "use1", inFlight(9))),
		Entry("nobody's are known", 9.0/17, candidate("a", "use1", inFlight(9), slots(0))),
		Entry("who has nothing to do is not ready", 9/4.25, candidate("a", "use1", inFlight(9)), candidate("b", "use1", notReady)),
		Entry("who has nothing to do is no recipient", 9/4.25, candidate("a", "use1", inFlight(9)), candidate("d", "use1")),
		Entry("who has nothing to do fails", 9/4.25, candidate("a", "use1", inFlight(9)), candidate("b", "use1", errorRate(0.9))),
		Entry("who has nothing to do is in a region that would be used later", 9/4.25, candidate("a", "use1", inFlight(9)), candidate("b", "use2")),
		Entry("only another region serves", 5/4.25, candidate("a", "use1", notReady), candidate("b", "use2", inFlight(5))),
		Entry("nobody can serve", 0.0, candidate("a", "use1", notReady)),
	)

	It("clears as requests end, one slot after the other", func() {
		got := routing.SaturationOf(request("a"), []routing.Candidate{candidate("a", "use1", reports(9), lasts(2*time.Second))})
		Expect(got.Clears).To(Equal(2375 * time.Millisecond)) // 4.75 too many, each 2 s, in four slots
		got = routing.SaturationOf(request("a"), []routing.Candidate{candidate("a", "use1", reports(4), lasts(2*time.Second))})
		Expect(got.Clears).To(BeZero())
	})
})
