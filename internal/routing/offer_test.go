package routing_test

import (
	"slices"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	"github.com/onsi/gomega/types"
	"pgregory.net/rapid"

	"github.com/mrgc/mrgc/internal/fleet"
	"github.com/mrgc/mrgc/internal/routing"
)

var _ = Describe("Candidates", func() {
	offer := func(n int) routing.Offer {
		return routing.Offer{Model: model, N: n, Regions: []fleet.Region{"use1", "use2", "usw2"}}
	}
	zone := func(z string) func(*routing.Candidate) { return func(c *routing.Candidate) { c.Instance.Zone = z } }

	It("draws the less busy more often, in proportion", func() {
		// The work is 1280 tokens of the next request for all, and as much again
		// in flight on a.
		all := []routing.Candidate{candidate("a", "use1", tokens(1280)), candidate("b", "use1"), candidate("c", "use1")}
		first := map[string]int{}
		for i := range 10_000 {
			o := offer(1)
			o.Seed = uint64(i)
			first[routing.Candidates(o, all)[0].ID]++
		}
		Expect(first["a"]).To(BeNumerically("~", 2000, 200))
		Expect(first["b"]).To(BeNumerically("~", 4000, 250))
	})

	It("has all in a client's sets as often as they are drawn, and none twice in one", func() {
		var all []routing.Candidate
		for i := range 8 {
			all = append(all, candidate(string(rune('a'+i)), "use1"))
		}
		for seed := range 100 {
			o := offer(2)
			o.Seed, o.Taken = uint64(seed), map[string]int{}
			for range 16 {
				got := ids(routing.Candidates(o, all))
				Expect(got).To(HaveLen(2))
				Expect(got[0]).NotTo(Equal(got[1]))
				for _, id := range got {
					o.Taken[id]++
				}
				o.Seed = o.Seed*31 + 1000
			}
			Expect(o.Taken).To(And(HaveLen(8), HaveEach(BeNumerically("~", 4, 2))))
		}
	})

	DescribeTable("spreads over zones and regions where it can",
		func(n int, want types.GomegaMatcher, all ...routing.Candidate) {
			for seed := range 100 {
				o := offer(n)
				o.Seed = uint64(seed)
				Expect(ids(routing.Candidates(o, all))).To(want)
			}
		},
		Entry("one of another region, as the last", 3, HaveExactElements(BeElementOf("a", "b", "c"), BeElementOf("a", "b", "c"), Equal("r")),
			candidate("a", "use1"), candidate("b", "use1"), candidate("c", "use1"), candidate("r", "use2")),
		Entry("the first region to spill to", 3, HaveExactElements(BeElementOf("a", "b"), BeElementOf("a", "b"), Equal("r")),
			candidate("a", "use1"), candidate("b", "use1"), candidate("s", "usw2"), candidate("r", "use2", inFlight(9))),
		Entry("two zones", 3, And(ContainElement("z"), HaveExactElements(Not(Equal("r")), Not(Equal("r")), Equal("r"))),
			candidate("a", "use1", zone("1")), candidate("b", "use1", zone("1")), candidate("z", "use1", zone("2"), inFlight(50)), candidate("r", "use2")),
		Entry("one only: local", 1, HaveExactElements(BeElementOf("a", "b")), candidate("a", "use1"), candidate("b", "use1"), candidate("r", "use2")),
		Entry("too few local ones", 3, HaveExactElements("a", "r", "s"), candidate("a", "use1"), candidate("r", "use2"), candidate("s", "usw2")),
		Entry("none elsewhere", 2, HaveLen(2), candidate("a", "use1"), candidate("b", "use1"), candidate("c", "use1")),
		Entry("none at all", 3, BeEmpty(), candidate("a", "euw1"), candidate("b", "use1", notReady), candidate("c", "use1", otherModel)),
		Entry("none wanted", 0, BeEmpty(), candidate("a", "use1")),
	)

	It("lets an instance that fails be the last local one now and then, and never the first", func() {
		all := []routing.Candidate{
			candidate("a", "use1", errorRate(1)), candidate("b", "use1"), candidate("c", "use1"), candidate("d", "use1"), candidate("r", "use2"),
		}
		offered := 0
		for i := range 10_000 {
			o := offer(3)
			o.Seed = uint64(i)
			got := ids(routing.Candidates(o, all))
			Expect(got[0] != "a" && got[2] == "r").To(BeTrue(), "%v", got)
			if got[1] == "a" {
				offered++
			}
		}
		for seed := range 1000 { // of two, neither would do
			o := offer(2)
			o.Regions, o.Seed = o.Regions[:1], uint64(seed)
			Expect(ids(routing.Candidates(o, all))).NotTo(ContainElement("a"))
		}
		Expect(offered).To(And(BeNumerically(">", 100), BeNumerically("<", 500)))
	})

	It("are as many as can be, each once, ready, of two zones and two regions where those given permit", func() {
		rapid.Check(GinkgoT(), func(t *rapid.T) {
			all := anyFleet(t)
			o := offer(rapid.IntRange(0, 5).Draw(t, "n"))
			o.Seed = rapid.Uint64().Draw(t, "seed")
			var able, sound []*fleet.Instance
			for _, c := range all {
				if c.Ready && c.Instance.Models[0] == model {
					able = append(able, c.Instance)
					if c.ErrorRate < routing.FailingRate {
						sound = append(sound, c.Instance)
					}
				}
			}
			got := routing.Candidates(o, all)
			if !slices.Equal(got, routing.Candidates(o, rapid.Permutation(all).Draw(t, "shuffled"))) {
				t.Fatal("the order of the input shows")
			}
			if len(got) != min(o.N, len(able)) {
				t.Fatalf("%v of %v", ids(got), ids(able))
			}
			for i, in := range got {
				if !slices.Contains(able, in) || slices.Contains(got[:i], in) {
					t.Fatalf("%v of %v", ids(got), ids(able))
				}
			}
			if len(got) < 2 {
				return
			}
			if len(sound) > 0 && !slices.Contains(sound, got[0]) {
				t.Fatalf("%v, sound are %v", ids(got), ids(sound))
			}
			if spread(sound, regionOf) > 1 && spread(got, regionOf) < 2 || spread(sound, zoneOf) > 1 && spread(got, zoneOf) < 2 {
				t.Fatalf("%v of %v", ids(got), ids(sound))
			}
		})
	})
})

func regionOf(in *fleet.Instance) string { return string(in.Region) }
func zoneOf(in *fleet.Instance) string   { return in.Zone }

// spread is how many different places instances are in.
func spread(instances []*fleet.Instance, place func(*fleet.Instance) string) int {
	places := map[string]bool{}
	for _, in := range instances {
		places[place(in)] = true
	}
	return len(places)
}
