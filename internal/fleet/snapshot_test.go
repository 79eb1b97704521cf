package fleet_test

import (
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	"pgregory.net/rapid"

	"github.com/mrgc/mrgc/internal/fleet"
)

const staleAfter = 15 * time.Second

var at = time.Date(2026, time.March, 14, 9, 26, 53, 0, time.UTC)

// healthy is an instance heard of some time before the snapshot.
func healthy(id string, age time.Duration) *fleet.Instance {
	return &fleet.Instance{ID: id, Health: fleet.Health{Enclave: true, Engine: true}, HeartbeatAt: at.Add(-age)}
}

func with(in *fleet.Instance, change func(*fleet.Instance)) *fleet.Instance {
	change(in)
	return in
}

func draining(in *fleet.Instance)      { in.Draining = true }
func withoutEngine(in *fleet.Instance) { in.Health.Engine = false }

var _ = Describe("A snapshot", func() {
	DescribeTable("takes for ready",
		func(instances []*fleet.Instance, ready ...string) {
			got := []string{}
			for _, in := range fleet.NewSnapshot(at, instances).Ready(staleAfter) {
				got = append(got, in.ID)
			}
			Expect(got).To(HaveExactElements(ready))
		},
		Entry("nothing of nothing", nil),
		Entry("what is healthy, in order of ID",
			[]*fleet.Instance{healthy("c", 0), healthy("a", 0), healthy("b", 0)}, "a", "b", "c"),
		Entry("not what drains",
			[]*fleet.Instance{healthy("a", 0), with(healthy("b", 0), draining)}, "a"),
		Entry("not what has no engine",
			[]*fleet.Instance{healthy("a", 0), with(healthy("b", 0), withoutEngine)}, "a"),
		Entry("not what has no enclave",
			[]*fleet.Instance{healthy("a", 0), with(healthy("b", 0), func(in *fleet.Instance) { in.Health.Enclave = false })}, "a"),
		Entry("what was heard of just in time, and nothing later",
			[]*fleet.Instance{healthy("a", staleAfter), healthy("b", staleAfter+1)}, "a"),
		Entry("all that is stale, when everything is",
			[]*fleet.Instance{healthy("a", time.Minute), healthy("b", time.Hour)}, "a", "b"),
		Entry("of a fleet that is stale all over, only what was healthy and not draining",
			[]*fleet.Instance{
				healthy("a", time.Minute), with(healthy("b", time.Minute), draining),
				with(healthy("c", time.Minute), withoutEngine),
			}, "a"),
		Entry("nothing stale while anyone is heard of, even one that takes nothing",
			[]*fleet.Instance{healthy("a", time.Minute), with(healthy("b", 0), withoutEngine)}),
		Entry("what a clock that runs ahead stamped",
			[]*fleet.Instance{healthy("a", -time.Second), healthy("b", time.Minute)}, "a"),
	)

	It("finds an instance by each of its keys, and none by another", func() {
		a := with(healthy("a", 0), func(in *fleet.Instance) { in.KeyIDs = []string{"1", "2"} })
		snapshot := fleet.NewSnapshot(at, []*fleet.Instance{healthy("b", 0), a})
		Expect(snapshot.Holders("1")).To(HaveExactElements(BeIdenticalTo(a)))
		Expect(snapshot.Holders("2")).To(HaveExactElements(BeIdenticalTo(a)))
		Expect(snapshot.Holders("3")).To(BeEmpty())
	})

	It("finds all that hold one key", func() {
		holds := func(in *fleet.Instance) { in.KeyIDs = []string{"1"} }
		snapshot := fleet.NewSnapshot(at, []*fleet.Instance{with(healthy("b", 0), holds), healthy("c", 0), with(healthy("a", 0), holds)})
		Expect(snapshot.Holders("1")).To(HaveExactElements(HaveField("ID", "a"), HaveField("ID", "b")))
	})

	It("has someone ready whenever someone is healthy and every heartbeat is equally old", func() {
		rapid.Check(GinkgoT(), func(t *rapid.T) {
			age := time.Duration(rapid.Int64Range(0, int64(time.Hour)).Draw(t, "age"))
			var instances []*fleet.Instance
			want := 0
			for _, id := range rapid.SliceOfDistinct(rapid.StringMatching(`[a-z]{1,4}`), rapid.ID).Draw(t, "ids") {
				in := healthy(id, age)
				in.Health.Engine = rapid.Bool().Draw(t, "engine")
				in.Draining = rapid.Bool().Draw(t, "draining")
				if in.Health.OK() && !in.Draining {
					want++
				}
				instances = append(instances, in)
			}
			if got := len(fleet.NewSnapshot(at, instances).Ready(staleAfter)); got != want {
				t.Fatalf("%d ready, want %d", got, want)
			}
		})
	})
})
