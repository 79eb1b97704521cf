package routing_test

import (
	"fmt"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	"pgregory.net/rapid"

	"github.com/mrgc/mrgc/internal/fleet"
	"github.com/mrgc/mrgc/internal/routing"
)

// far is a request in use1 to which use2 is 20 ms and usw2 60 ms away.
func far(policy routing.Policy) routing.Request {
	req := request("a", "b", "c", "d")
	req.Policy = policy
	req.Detours = []time.Duration{0, 20 * time.Millisecond, 60 * time.Millisecond}
	return req
}

func wasSaturated(c *routing.Candidate) { c.Saturated = true }

// full has all four slots taken and more waiting, each for a second.
func full(waiting int) func(*routing.Candidate) {
	return func(c *routing.Candidate) {
		reports(4 + waiting)(c)
		lasts(time.Second)(c)
	}
}

func idle(c *routing.Candidate) {
	reports(0)(c)
	lasts(time.Second)(c)
}

var _ = Describe("Overflow", func() {
	DescribeTable("sends to another region what the first has no room for",
		func(reason routing.Reason, first string, all ...routing.Candidate) {
			for _, policy := range policies {
				got := routing.Pick(far(policy), all)
				Expect(got.Reason).To(Equal(reason), policy.String())
				Expect(got.Instances[0].ID).To(Equal(first), policy.String())
				Expect(got.Instances).To(HaveLen(len(all)), "the others are for retries")
			}
		},
		Entry("nothing while there is room", routing.ReasonPicked, "a", candidate("a", "use1", reports(4)), candidate("c", "use2", idle)),
		Entry("when all here are", routing.ReasonOverflow, "c", candidate("a", "use1", full(2)), candidate("c", "use2", idle)),
		Entry("not where it comes no sooner", routing.ReasonPicked, "a", candidate("a", "use1", full(2)), candidate("c", "use2", full(2))),
		Entry("where it comes sooner though that is saturated, too", routing.ReasonOverflow, "c", candidate("a", "use1", full(4)), candidate("c", "use2", full(1))),
		Entry("to the nearer one", routing.ReasonOverflow, "c", candidate("a", "use1", full(2)), candidate("c", "use2", idle), candidate("d", "usw2", idle)),
		Entry("to the one further away when it has less to do", routing.ReasonOverflow, "d",
			candidate("a", "use1", full(4)), candidate("c", "use2", full(0)), candidate("d", "usw2", idle)),
		Entry("not to one of which nothing new is known", routing.ReasonPicked, "a",
			candidate("a", "use1", full(2)), candidate("c", "use2", idle, func(c *routing.Candidate) { c.Report.Age = routing.AgeStale })),
		Entry("not to one that fails", routing.ReasonPicked, "a", candidate("a", "use1", full(2)), candidate("c", "use2", idle, errorRate(0.6))),
		Entry("as before until there is a good deal less to do", routing.ReasonOverflow, "c",
			candidate("a", "use1", full(0), wasSaturated), candidate("c", "use2", idle)),
		Entry("nothing once there is", routing.ReasonPicked, "a", candidate("a", "use1", reports(3), wasSaturated), candidate("c", "use2", idle)),
	)

	It("sends nothing away while one here is not saturated", func() {
		for _, policy := range policies {
			got := routing.Pick(far(policy), []routing.Candidate{candidate("a", "use1", full(9)), candidate("b", "use1", reports(4)), candidate("c", "use2", idle)})
			Expect(got.Reason).To(Equal(routing.ReasonPicked), policy.String())
		}
	})

	It("counts the way there", func() {
		req := far(routing.PolicyGateThenLoad)
		all := []routing.Candidate{candidate("a", "use1", full(1)), candidate("c", "use2", idle)}
		Expect(routing.Pick(req, all).Reason).To(Equal(routing.ReasonOverflow))
		req.Detours[1] = 2 * time.Second
		Expect(routing.Pick(req, all).Reason).To(Equal(routing.ReasonPicked))
		req.Detours = req.Detours[:1] // nobody knows how far it is
		Expect(routing.Pick(req, all).Reason).To(Equal(routing.ReasonOverflow))
		req.Detours = nil
		Expect(routing.Pick(req, all).Reason).To(Equal(routing.ReasonPicked), "regions come before load where no detours are given")
	})

	It("leaves a conversation at home abroad until there is room again", func() {
		req := far(routing.PolicyGateThenLoad)
		req.Home = "c"
		got := routing.Pick(req, []routing.Candidate{candidate("a", "use1", full(2)), candidate("c", "use2", idle)})
		Expect(got.Gate).To(Equal(routing.GateHome))
		got = routing.Pick(req, []routing.Candidate{candidate("a", "use1", idle), candidate("c", "use2", idle)})
		Expect(got.Instances[0].ID).To(Equal("a"))
		Expect(got.Gate).To(Equal(routing.GateReleased))
	})

	It("keeps to the version", func() {
		req := far(routing.PolicyGateThenLoad)
		req.Split = routing.Split{{Name: "v1", Weight: 1000}, {Name: "v2", Weight: 0}}
		of := func(version string) func(*routing.Candidate) {
			return func(c *routing.Candidate) { c.Instance.Versions = map[string]string{model: version} }
		}
		got := routing.Pick(req, []routing.Candidate{candidate("a", "use1", full(2), of("v1")), candidate("c", "use2", idle, of("v2")), candidate("d", "usw2", idle, of("v1"))})
		Expect(ids(got.Instances)).To(Equal([]string{"d", "a"}))
	})

	It("is explained", func() {
		_, places := routing.Explain(far(routing.PolicyGateThenLoad), []routing.Candidate{candidate("a", "use1", full(2)), candidate("c", "use2", idle)})
		Expect(places[1].Instance.ID).To(Equal("a"))
		Expect(places[1].After).To(Equal(routing.CriterionOverflow))
	})

	It("ends shares: nobody is refused for being over its own while another region has room", func() {
		all := []routing.Candidate{candidate("a", "use1", full(9)), candidate("c", "use2", idle)}
		Expect(routing.SaturationOf(by(routing.PolicyGateThenLoad), all).Overload).To(BeNumerically(">", 1))
		Expect(routing.SaturationOf(far(routing.PolicyGateThenLoad), all).Overload).To(BeZero())
	})

	It("has no request wait longer than where it would have stayed", func() {
		rapid.Check(GinkgoT(), func(t *rapid.T) {
			req, all := anyPick(t)
			req.Policy = routing.PolicyGateThenLoad
			stays, _ := routing.Explain(req, all)
			req.Detours = []time.Duration{0, 20 * time.Millisecond, 60 * time.Millisecond}
			goes, places := routing.Explain(req, all)
			if len(stays.Instances) == 0 || goes.Reason != routing.ReasonOverflow {
				return
			}
			at := map[string]routing.Place{}
			for _, p := range places {
				at[p.Instance.ID] = p
			}
			if is, was := at[goes.Instances[0].ID], at[stays.Instances[0].ID]; is.FirstToken >= was.FirstToken {
				t.Fatalf("%s after %v instead of %s after %v", is.Instance.ID, is.FirstToken, was.Instance.ID, was.FirstToken)
			}
		})
	})
})

var _ = Describe("Recipients with detours", func() {
	It("are of whichever other region has something free", func() {
		all := []routing.Candidate{candidate("a", "use1", full(3)), candidate("b", "use1", full(3)), candidate("c", "use2", full(9)), candidate("d", "usw2", idle)}
		away := map[string]int{}
		for seed := range 1000 {
			o := routing.Offer{
				Model: model, N: 3, Seed: uint64(seed),
				Regions: []fleet.Region{"use1", "use2", "usw2"}, Detours: []time.Duration{0, 20 * time.Millisecond, 60 * time.Millisecond},
			}
			got := routing.Candidates(o, all)
			Expect(got).To(HaveLen(3))
			Expect(got[0].Region).To(Equal(fleet.Region("use1")))
			away[got[2].ID]++
		}
		Expect(away["d"]).To(BeNumerically(">", 900), fmt.Sprint(away))
	})
})
