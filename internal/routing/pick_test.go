package routing_test

import (
	"fmt"
	"math"
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

var policies = []routing.Policy{
	routing.PolicyGateThenLoad, routing.PolicyScore, routing.PolicyLeastInFlight, routing.PolicyPowerOfTwo, routing.PolicyRoundRobin,
}

func inFlight(n int) func(*routing.Candidate) { return func(c *routing.Candidate) { c.InFlight = n } }

func tokens(n int) func(*routing.Candidate) {
	return func(c *routing.Candidate) { c.InFlightTokens = n }
}

// reports has just said how many requests it has, all slots counted.
func reports(requests int) func(*routing.Candidate) {
	return func(c *routing.Candidate) {
		fresh(c).Load.Queued = requests
	}
}

// fresh is the candidate's report, which has just been made.
func fresh(c *routing.Candidate) *routing.Report {
	if c.Report.Age != routing.AgeFresh {
		c.Report = routing.Report{Age: routing.AgeFresh, Load: fleet.Load{Slots: c.Instance.Load.Slots}}
	}
	return &c.Report
}

func stale(c *routing.Candidate) { c.Report.Age = routing.AgeStale }

// What its report says that the engine has yet to read, how fast it reads, and
// how long its requests last.
func unread(tokens int) func(*routing.Candidate) {
	return func(c *routing.Candidate) { fresh(c).UnreadTokens = tokens }
}

func reads(tokensPerSecond float64) func(*routing.Candidate) {
	return func(c *routing.Candidate) { fresh(c).ReadTokensPerSecond = tokensPerSecond }
}

func lasts(d time.Duration) func(*routing.Candidate) {
	return func(c *routing.Candidate) { fresh(c).RequestDuration = d }
}

// How long ago the report was made, and what has been sent there since.
func since(d time.Duration) func(*routing.Candidate) {
	return func(c *routing.Candidate) { fresh(c).Since = d }
}

func sent(tokens int) func(*routing.Candidate) {
	return func(c *routing.Candidate) { c.SentTokens = tokens }
}

func sentRequests(n int) func(*routing.Candidate) {
	return func(c *routing.Candidate) { c.SentRequests = n }
}

func latency(d time.Duration) func(*routing.Candidate) {
	return func(c *routing.Candidate) {
		c.Report = routing.Report{Age: routing.AgeStale, Load: fleet.Load{Slots: 4, Latency: d}}
	}
}

func slots(n int) func(*routing.Candidate) {
	return func(c *routing.Candidate) { c.Instance.Load.Slots = n }
}

func sinceReady(d time.Duration) func(*routing.Candidate) {
	return func(c *routing.Candidate) { c.SinceReady = d }
}

func errorRate(rate float64) func(*routing.Candidate) {
	return func(c *routing.Candidate) { c.ErrorRate = rate }
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
		Entry("recipients only", request("b"),
			[]routing.Candidate{candidate("a", "use1"), candidate("b", "use1", inFlight(9))},
			routing.ReasonPicked, "b"),
		Entry("ready ones only, whatever they score", request("a", "b"),
			[]routing.Candidate{candidate("a", "use1", notReady), candidate("b", "use1", inFlight(9), reports(9))},
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

			busier := &candidates[at]
			busier.Report.Load.Queued += rapid.IntRange(0, 5).Draw(t, "queued")
			busier.Report.Load.Running += rapid.IntRange(0, 5).Draw(t, "running")
			busier.Report.Load.Latency += time.Duration(rapid.IntRange(0, 500).Draw(t, "ms")) * time.Millisecond
			busier.InFlight += rapid.IntRange(0, 5).Draw(t, "inFlight")
			busier.InFlightTokens += rapid.IntRange(0, 5000).Draw(t, "tokens")
			busier.SentRequests += rapid.IntRange(0, 5).Draw(t, "sent requests")
			busier.SentTokens += rapid.IntRange(0, 5000).Draw(t, "sent")
			busier.Report.UnreadTokens += rapid.IntRange(0, 5000).Draw(t, "unread")
			if after := slices.Index(ids(routing.Pick(req, candidates).Instances), id); after < before {
				t.Fatalf("%s moved from place %d to %d", id, before, after)
			}
		})
	})

	It("never prefers an instance because it fails, though it sheds load by that", func() {
		rapid.Check(GinkgoT(), func(t *rapid.T) {
			req, candidates := anyPick(t)
			if len(candidates) == 0 {
				return
			}
			at := rapid.IntRange(0, len(candidates)-1).Draw(t, "at")
			c := &candidates[at]
			id := c.Instance.ID
			c.ErrorRate = 0
			before := slices.Index(ids(routing.Pick(req, candidates).Instances), id)

			// Of what it was sent, it has left what it did not fail.
			c.ErrorRate = float64(rapid.IntRange(1, 20).Draw(t, "failed of 20")) / 20
			left := func(n int) int { return int(math.Ceil(float64(n) * (1 - c.ErrorRate))) }
			c.InFlight, c.InFlightTokens, c.SentTokens = left(c.InFlight), left(c.InFlightTokens), left(c.SentTokens)
			c.SentRequests = left(c.SentRequests)
			c.Report.UnreadTokens, c.Report.Since = left(c.Report.UnreadTokens), 0
			c.Report.Load.Running, c.Report.Load.Queued = left(c.Report.Load.Running), left(c.Report.Load.Queued)
			after := slices.Index(ids(routing.Pick(req, candidates).Instances), id)
			if after < before && (after > 0 || !isProbe(req, candidates, at)) {
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

// isProbe says whether an instance is first only to see whether it still fails:
// that does not depend on its load.
func isProbe(req routing.Request, candidates []routing.Candidate, at int) bool {
	hopeless := slices.Clone(candidates)
	hopeless[at].ErrorRate, hopeless[at].InFlight, hopeless[at].InFlightTokens = 1, 1_000_000, 1_000_000_000
	return ids(routing.Pick(req, hopeless).Instances)[0] == candidates[at].Instance.ID
}

// anyPick draws a fleet and a request for some of it, with few different values
// so that ties and misses of every kind happen.
func anyPick(t *rapid.T) (routing.Request, []routing.Candidate) {
	candidates := anyFleet(t)
	req := routing.Request{
		ID:           rapid.StringMatching(`[0-9a-f]{8}`).Draw(t, "request"),
		Model:        model,
		Regions:      []fleet.Region{"use1", "use2"},
		Policy:       rapid.SampledFrom(policies).Draw(t, "policy"),
		Home:         rapid.SampledFrom([]string{"", "use1-0", "use1-1", "use2-0", "gone"}).Draw(t, "home"),
		PromptTokens: rapid.SampledFrom([]int{0, 100, 4000}).Draw(t, "prompt"),
		Sequence:     rapid.Uint64().Draw(t, "sequence"),
	}
	for _, c := range candidates {
		if rapid.Bool().Draw(t, "recipient") {
			req.Recipients = append(req.Recipients, c.Instance.KeyIDs[0])
		}
	}
	return req, candidates
}

func anyFleet(t *rapid.T) []routing.Candidate {
	var candidates []routing.Candidate
	for i := range rapid.IntRange(0, 12).Draw(t, "instances") {
		region := rapid.SampledFrom([]fleet.Region{"use1", "use2", "usw2"}).Draw(t, "region")
		c := candidate(fmt.Sprintf("%s-%d", region, i), region)
		c.Instance.Zone = fmt.Sprintf("%s-az%d", region, rapid.IntRange(1, 2).Draw(t, "zone"))
		c.Ready = rapid.IntRange(0, 3).Draw(t, "ready") > 0
		c.InFlight = rapid.IntRange(0, 6).Draw(t, "inFlight")
		c.InFlightTokens = c.InFlight * rapid.SampledFrom([]int{0, 500, 2000}).Draw(t, "tokens each")
		c.SentRequests = rapid.IntRange(0, c.InFlight).Draw(t, "sent requests")
		c.SentTokens = rapid.IntRange(0, c.InFlightTokens).Draw(t, "sent")
		c.Instance.Load.Slots = rapid.IntRange(0, 4).Draw(t, "slots")
		c.Report = routing.Report{
			Age: rapid.SampledFrom([]routing.Age{routing.AgeMissing, routing.AgeStale, routing.AgeFresh}).Draw(t, "age"),
			Load: fleet.Load{
				Running: rapid.IntRange(0, 4).Draw(t, "running"),
				Queued:  rapid.IntRange(0, 4).Draw(t, "queued"),
				Slots:   rapid.IntRange(0, 4).Draw(t, "slots"),
				Latency: time.Duration(rapid.IntRange(0, 3).Draw(t, "latency")) * time.Second,
			},
			Since:               time.Duration(rapid.IntRange(0, 500).Draw(t, "since")) * time.Millisecond,
			UnreadTokens:        rapid.IntRange(0, 10).Draw(t, "unread") * 500,
			ReadTokensPerSecond: rapid.SampledFrom([]float64{0, 5_000, 20_000}).Draw(t, "reads"),
			RequestDuration:     time.Duration(rapid.IntRange(0, 4).Draw(t, "lasts")) * time.Second,
		}
		c.SinceReady = time.Duration(rapid.IntRange(0, 12).Draw(t, "since ready")) * time.Second
		c.ErrorRate = rapid.SampledFrom([]float64{0, 0, 0.2, 0.6, 1}).Draw(t, "error rate")
		if rapid.IntRange(0, 4).Draw(t, "other model") == 0 {
			otherModel(&c)
		}
		candidates = append(candidates, c)
	}
	return candidates
}
