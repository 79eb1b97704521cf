package routing_test

import (
	"fmt"
	"slices"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	"pgregory.net/rapid"

	"github.com/mrgc/mrgc/internal/fleet"
	"github.com/mrgc/mrgc/internal/routing"
)

const model = "smol"

// candidate is ready, idle and serves the model; change makes it otherwise.
// Its key id is "kid-" and its id.
func candidate(id string, region fleet.Region, change ...func(*routing.Candidate)) routing.Candidate {
	c := routing.Candidate{
		Instance: &fleet.Instance{
			ID: id, Region: region, Address: "addr-" + id,
			Models: []string{model}, KeyIDs: []string{"kid-" + id},
			Health: healthy, Load: fleet.Load{Slots: 4},
		},
		Ready: true,
	}
	for _, f := range change {
		f(&c)
	}
	return c
}

func inFlight(n int) func(*routing.Candidate) { return func(c *routing.Candidate) { c.InFlight = n } }

func queued(n int) func(*routing.Candidate) {
	return func(c *routing.Candidate) { c.Instance.Load.Queued = n }
}
func notReady(c *routing.Candidate)   { c.Ready = false }
func otherModel(c *routing.Candidate) { c.Instance.Models = []string{"large"} }

// request asks for the model from use1, with use2 and then usw2 to spill to.
func request(recipients ...string) routing.Request {
	req := routing.Request{ID: "r", Model: model, Regions: []fleet.Region{"use1", "use2", "usw2"}}
	for _, id := range recipients {
		req.Recipients = append(req.Recipients, "kid-"+id)
	}
	return req
}

func ids(instances []*fleet.Instance) []string {
	out := []string{}
	for _, in := range instances {
		out = append(out, in.ID)
	}
	return out
}

var _ = Describe("Pick", func() {
	DescribeTable("orders the recipients that can serve",
		func(req routing.Request, candidates []routing.Candidate, reason routing.Reason, want ...string) {
			got := routing.Pick(req, candidates)
			Expect(got.Reason).To(Equal(reason))
			if want == nil {
				Expect(got.Instances).To(BeEmpty())
			} else {
				Expect(ids(got.Instances)).To(Equal(want))
			}
		},
		Entry("fewest in flight first", request("a", "b", "c"),
			[]routing.Candidate{candidate("a", "use1", inFlight(2)), candidate("b", "use1"), candidate("c", "use1", inFlight(1))},
			routing.ReasonPicked, "b", "c", "a"),
		Entry("in flight before score", request("a", "b"),
			[]routing.Candidate{candidate("a", "use1", inFlight(1)), candidate("b", "use1", queued(8))},
			routing.ReasonPicked, "b", "a"),
		Entry("score among as many in flight", request("a", "b"),
			[]routing.Candidate{candidate("a", "use1", queued(4)), candidate("b", "use1", queued(1))},
			routing.ReasonPicked, "b", "a"),
		Entry("recipients only", request("b"),
			[]routing.Candidate{candidate("a", "use1"), candidate("b", "use1", inFlight(9))},
			routing.ReasonPicked, "b"),
		Entry("ready ones only, whatever they score", request("a", "b"),
			[]routing.Candidate{candidate("a", "use1", notReady), candidate("b", "use1", inFlight(9), queued(9))},
			routing.ReasonPicked, "b"),
		Entry("the own region before others, however loaded, in the order of spilling", request("a", "b", "c"),
			[]routing.Candidate{candidate("c", "usw2"), candidate("b", "use2", inFlight(5)), candidate("a", "use1", inFlight(9))},
			routing.ReasonPicked, "a", "b", "c"),
		Entry("another region when no local recipient is ready", request("a", "b"),
			[]routing.Candidate{candidate("a", "use1", notReady), candidate("b", "use2")},
			routing.ReasonSpilled, "b"),
		Entry("a local instance that is no recipient does not count", request("b"),
			[]routing.Candidate{candidate("a", "use1"), candidate("b", "usw2")},
			routing.ReasonSpilled, "b"),
		Entry("never a region that is not allowed", request("a"),
			[]routing.Candidate{candidate("a", "euw1")}, routing.ReasonNoRecipientReady),
		Entry("nobody holds the keys", request("x"),
			[]routing.Candidate{candidate("a", "use1")}, routing.ReasonRecipientsUnknown),
		Entry("no candidates", request("x"), nil, routing.ReasonRecipientsUnknown),
		Entry("no recipients", request(),
			[]routing.Candidate{candidate("a", "use1")}, routing.ReasonRecipientsUnknown),
		Entry("the holders serve another model", request("a"),
			[]routing.Candidate{candidate("a", "use1", otherModel), candidate("b", "use1")}, routing.ReasonModelNotServed),
		Entry("the holders are not ready", request("a"),
			[]routing.Candidate{candidate("a", "use1", notReady), candidate("b", "use1")}, routing.ReasonNoRecipientReady),
		Entry("the closest miss names the reason", request("a", "b"),
			[]routing.Candidate{candidate("a", "use1", notReady), candidate("b", "use1", otherModel)}, routing.ReasonNoRecipientReady),
	)

	It("gives addresses in order of preference", func() {
		one := []routing.Candidate{candidate("a", "use1")}
		two := append(one, candidate("b", "use1", inFlight(1)))
		Expect(routing.Pick(request("a", "b"), two).Destination()).To(Equal("addr-a,addr-b"))
		Expect(routing.Pick(request("a"), one).Destination()).To(Equal("addr-a"))
		Expect(routing.Decision{}.Destination()).To(BeEmpty())
	})

	It("spreads ties evenly over the instances", func() {
		const requests, instances = 10_000, 4
		var candidates []routing.Candidate
		var names []string
		for i := range instances {
			names = append(names, fmt.Sprintf("use1-%d", i))
			candidates = append(candidates, candidate(names[i], "use1"))
		}
		req := request(names...)
		first, second := map[string]int{}, map[string]int{}
		for i := range requests {
			req.ID = fmt.Sprintf("%032x", i)
			got := routing.Pick(req, candidates).Instances
			first[got[0].ID]++
			if got[0].ID == names[0] {
				second[got[1].ID]++
			}
		}
		// The 0.1 % points of chi-square with 3 and 2 degrees of freedom. What one
		// instance would have taken spreads evenly over the others too.
		Expect(chiSquare(first, requests, names)).To(BeNumerically("<", 16.27), "first: %v", first)
		Expect(chiSquare(second, first[names[0]], names[1:])).To(BeNumerically("<", 13.82), "second: %v", second)
	})

	It("picks nothing but ready recipients, and all of them", func() {
		rapid.Check(GinkgoT(), func(t *rapid.T) {
			req, candidates := anyPick(t)
			var able []string
			for _, c := range candidates {
				if c.Ready && slices.Contains(req.Recipients, c.Instance.KeyIDs[0]) && c.Instance.Models[0] == req.Model &&
					slices.Contains(req.Regions, c.Instance.Region) {
					able = append(able, c.Instance.ID)
				}
			}
			got := ids(routing.Pick(req, candidates).Instances)
			slices.Sort(got)
			slices.Sort(able)
			if !slices.Equal(got, able) {
				t.Fatalf("picked %v of %v", got, able)
			}
		})
	})

	It("does not depend on the order of its input", func() {
		rapid.Check(GinkgoT(), func(t *rapid.T) {
			req, candidates := anyPick(t)
			shuffled := rapid.Permutation(candidates).Draw(t, "shuffled")
			req2 := req
			req2.Recipients = rapid.Permutation(req.Recipients).Draw(t, "recipients")
			a, b := routing.Pick(req, candidates), routing.Pick(req2, shuffled)
			if a.Reason != b.Reason || !slices.Equal(a.Instances, b.Instances) {
				t.Fatalf("%s %v, shuffled %s %v", a.Reason, ids(a.Instances), b.Reason, ids(b.Instances))
			}
		})
	})

	It("never prefers an instance because it has more to do", func() {
		rapid.Check(GinkgoT(), func(t *rapid.T) {
			req, candidates := anyPick(t)
			if len(candidates) == 0 {
				return
			}
			at := rapid.IntRange(0, len(candidates)-1).Draw(t, "at")
			id := candidates[at].Instance.ID
			before := slices.Index(ids(routing.Pick(req, candidates).Instances), id)

			busier := *candidates[at].Instance
			busier.Load.Queued += rapid.IntRange(0, 5).Draw(t, "queued")
			busier.Load.Running += rapid.IntRange(0, 5).Draw(t, "running")
			busier.Load.Latency += time.Duration(rapid.IntRange(0, 500).Draw(t, "ms")) * time.Millisecond
			candidates[at].Instance = &busier
			candidates[at].InFlight += rapid.IntRange(0, 5).Draw(t, "inFlight")
			if after := slices.Index(ids(routing.Pick(req, candidates).Instances), id); after < before {
				t.Fatalf("%s moved from place %d to %d", id, before, after)
			}
		})
	})

	It("is not influenced by instances that are no recipients", func() {
		rapid.Check(GinkgoT(), func(t *rapid.T) {
			req, candidates := anyPick(t)
			all := routing.Pick(req, candidates)
			recipients := slices.DeleteFunc(slices.Clone(candidates), func(c routing.Candidate) bool {
				return !slices.Contains(req.Recipients, c.Instance.KeyIDs[0])
			})
			few := routing.Pick(req, recipients)
			if all.Reason != few.Reason || !slices.Equal(all.Instances, few.Instances) {
				t.Fatalf("%s %v, among recipients %s %v", all.Reason, ids(all.Instances), few.Reason, ids(few.Instances))
			}
		})
	})
})

func chiSquare(counts map[string]int, total int, names []string) float64 {
	expected, sum := float64(total)/float64(len(names)), 0.0
	for _, name := range names {
		d := float64(counts[name]) - expected
		sum += d * d / expected
	}
	return sum
}

// anyPick draws a fleet and a request for some of it, with few different values
// so that ties and misses of every kind happen.
func anyPick(t *rapid.T) (routing.Request, []routing.Candidate) {
	var candidates []routing.Candidate
	req := routing.Request{
		ID:      rapid.StringMatching(`[0-9a-f]{8}`).Draw(t, "request"),
		Model:   model,
		Regions: []fleet.Region{"use1", "use2"},
	}
	for i := range rapid.IntRange(0, 12).Draw(t, "instances") {
		region := rapid.SampledFrom([]fleet.Region{"use1", "use2", "usw2"}).Draw(t, "region")
		c := candidate(fmt.Sprintf("%s-%d", region, i), region)
		c.Ready = rapid.IntRange(0, 3).Draw(t, "ready") > 0
		c.InFlight = rapid.IntRange(0, 3).Draw(t, "inFlight")
		c.Instance.Load = fleet.Load{
			Running: rapid.IntRange(0, 4).Draw(t, "running"),
			Queued:  rapid.IntRange(0, 4).Draw(t, "queued"),
			Slots:   rapid.IntRange(0, 4).Draw(t, "slots"),
			Latency: time.Duration(rapid.IntRange(0, 3).Draw(t, "latency")) * time.Second,
		}
		if rapid.IntRange(0, 4).Draw(t, "other model") == 0 {
			otherModel(&c)
		}
		if rapid.Bool().Draw(t, "recipient") {
			req.Recipients = append(req.Recipients, c.Instance.KeyIDs[0])
		}
		candidates = append(candidates, c)
	}
	return req, candidates
}
