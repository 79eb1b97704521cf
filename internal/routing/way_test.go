package routing_test

import (
	"slices"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	"pgregory.net/rapid"

	"github.com/mrgc/mrgc/internal/fleet"
	"github.com/mrgc/mrgc/internal/routing"
)

const ms = time.Millisecond

// trips are round trips to the regions that are named.
type trips map[fleet.Region]time.Duration

func (t trips) to(region fleet.Region) (time.Duration, bool) {
	took, known := t[region]
	return took, known
}

var _ = Describe("A way", func() {
	own := []fleet.Region{"use1", "use2", "usw2"}
	far := trips{"use2": 12 * ms, "usw2": 65 * ms}

	DescribeTable("goes to preferred regions first", func(prefer []routing.Preference, round trips, want routing.Way) {
		Expect(routing.NewWay(own, prefer, round.to)).To(Equal(want))
	},
		Entry("none", nil, far, routing.Way{Regions: own, Detours: []time.Duration{0, 12 * ms, 65 * ms}}),
		Entry("how far is not known", nil, trips{"usw2": 65 * ms}, routing.Way{Regions: own, Detours: []time.Duration{0, routing.UnknownDetour, 65 * ms}}),
		Entry("another one", []routing.Preference{{Region: "usw2"}}, far,
			routing.Way{Regions: []fleet.Region{"usw2", "use1", "use2"}, Detours: []time.Duration{65 * ms, 0, 12 * ms}}),
		Entry("one that costs more", []routing.Preference{{Region: "use1"}, {Region: "usw2"}, {Region: "use2", Handicap: time.Second}}, far,
			routing.Way{Regions: []fleet.Region{"use1", "usw2", "use2"}, Detours: []time.Duration{0, 65 * ms, 1012 * ms}}),
		Entry("one that is none of the region's", []routing.Preference{{Region: "euw1"}}, far, routing.Way{Regions: own, Detours: []time.Duration{0, 12 * ms, 65 * ms}}),
	)

	It("keeps within regions that are allowed", func() {
		way := routing.NewWay(own, nil, far.to)
		Expect(way.Within(func(r fleet.Region) bool { return r != "use2" })).To(Equal(routing.Way{Regions: []fleet.Region{"use1", "usw2"}, Detours: []time.Duration{0, 65 * ms}}))
		drained := func(regions ...fleet.Region) func(fleet.Region) bool {
			return func(r fleet.Region) bool { return slices.Contains(regions, r) }
		}
		Expect(way.Avoiding(drained("use1", "use2")).Regions).To(Equal([]fleet.Region{"usw2", "use1", "use2"}))
		Expect(way.Avoiding(drained("use1")).Detours[2]).To(BeNumerically(">", time.Minute), "no room elsewhere is no reason to go there")
		Expect(way.Avoiding(drained("use2", "usw2")).Detours[0]).To(BeZero())
		Expect(way.Avoiding(drained())).To(Equal(way))
		Expect(way.Avoiding(drained(own...))).To(Equal(way), "when all are, none is")
		Expect(routing.Way{Regions: own}.Avoiding(drained("use1"))).To(Equal(routing.Way{Regions: []fleet.Region{"use2", "usw2", "use1"}}))
		Expect(routing.Way{Regions: own}.Within(func(fleet.Region) bool { return true })).To(Equal(routing.Way{Regions: own}))
	})
})

var _ = Describe("The nearest region", func() {
	DescribeTable("is first", func(round trips, want ...fleet.Region) {
		Expect(routing.Nearest([]fleet.Region{"a", "b", "c"}, round.to)).To(Equal(want))
	},
		Entry("by far", trips{"a": 60 * ms, "b": 50 * ms, "c": 10 * ms}, fleet.Region("c"), fleet.Region("a"), fleet.Region("b")),
		Entry("clearly, all of them", trips{"a": 90 * ms, "b": 50 * ms, "c": 10 * ms}, fleet.Region("c"), fleet.Region("b"), fleet.Region("a")),
		Entry("hardly: nothing moves", trips{"a": 60 * ms, "b": 55 * ms, "c": 50 * ms}, fleet.Region("a"), fleet.Region("b"), fleet.Region("c")),
		Entry("by little in all: nothing moves", trips{"a": 3 * ms, "b": 2 * ms, "c": 2 * ms}, fleet.Region("a"), fleet.Region("b"), fleet.Region("c")),
		Entry("how far is not known, last", trips{"b": 55 * ms, "c": 50 * ms}, fleet.Region("b"), fleet.Region("c"), fleet.Region("a")),
		Entry("nothing is known", trips{}, fleet.Region("a"), fleet.Region("b"), fleet.Region("c")),
	)

	It("stays first when round trips waver by less than makes it so", func() {
		rapid.Check(GinkgoT(), func(t *rapid.T) {
			round := trips{}
			for _, region := range []fleet.Region{"a", "b", "c"} {
				round[region] = time.Duration(rapid.IntRange(10_000, 100_000).Draw(t, string(region))) * time.Microsecond
			}
			order := routing.Nearest([]fleet.Region{"a", "b", "c"}, round.to)
			for region := range round {
				round[region] = time.Duration(float64(round[region]) * rapid.Float64Range(0.999, 1.001).Draw(t, "wavers"))
			}
			again := routing.Nearest(order, round.to)
			for region := range round {
				if again[0] != order[0] && float64(round[again[0]]) >= 0.81*float64(round[order[0]]) {
					t.Fatalf("%v, then %v, of %v at %v", order, again, round, region)
				}
			}
		})
	})
})
