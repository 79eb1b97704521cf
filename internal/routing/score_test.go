package routing_test

import (
	"math"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	"pgregory.net/rapid"

	"github.com/mrgc/mrgc/internal/fleet"
	"github.com/mrgc/mrgc/internal/routing"
)

var healthy = fleet.Health{Enclave: true, Engine: true}

var _ = Describe("Score", func() {
	DescribeTable("against fixed scales",
		func(h fleet.Health, l fleet.Load, want int) {
			Expect(routing.Score(h, l)).To(Equal(want))
		},
		Entry("idle and healthy has all points", healthy, fleet.Load{Slots: 4}, 100),
		Entry("every slot taken costs half the queue's 50", healthy, fleet.Load{Running: 4, Slots: 4}, 75),
		Entry("queued counts like running", healthy, fleet.Load{Running: 2, Queued: 2, Slots: 4}, 75),
		Entry("a full queue costs 50", healthy, fleet.Load{Running: 4, Queued: 4, Slots: 4}, 50),
		Entry("a fuller one costs no more", healthy, fleet.Load{Running: 4, Queued: 400, Slots: 4}, 50),
		Entry("one of 100 is no more than that", healthy, fleet.Load{Running: 1, Slots: 100}, 100),
		Entry("unknown slots count as one", healthy, fleet.Load{Running: 1}, 75),
		Entry("half the latency's cap costs 15", healthy, fleet.Load{Slots: 1, Latency: time.Second}, 85),
		Entry("the cap costs 30", healthy, fleet.Load{Slots: 1, Latency: 2 * time.Second}, 70),
		Entry("beyond the cap costs no more", healthy, fleet.Load{Slots: 1, Latency: time.Hour}, 70),
		Entry("a dead engine costs 10", fleet.Health{Enclave: true}, fleet.Load{Slots: 1}, 90),
		Entry("a dead enclave costs 10", fleet.Health{Engine: true}, fleet.Load{Slots: 1}, 90),
		Entry("all that can be lost", fleet.Health{}, fleet.Load{Queued: 9, Slots: 1, Latency: time.Minute}, 0),
		Entry("negative figures count as none", healthy, fleet.Load{Running: -5, Queued: -1, Slots: -3, Latency: -1}, 100),
		Entry("figures that would overflow", healthy, fleet.Load{Running: math.MaxInt, Queued: math.MaxInt, Slots: 1}, 50),
	)

	It("is between 0 and 100 whatever is reported", func() {
		rapid.Check(GinkgoT(), func(t *rapid.T) {
			score := routing.Score(anyHealth().Draw(t, "health"), anyLoad().Draw(t, "load"))
			if score < 0 || score > 100 {
				t.Fatalf("score %d", score)
			}
		})
	})

	It("never rises with load or latency, nor falls with slots or health", func() {
		rapid.Check(GinkgoT(), func(t *rapid.T) {
			h, l := anyHealth().Draw(t, "health"), anyLoad().Draw(t, "load")
			worseH, worseL := h, l
			more := rapid.IntRange(1, 1000).Draw(t, "more")
			switch rapid.SampledFrom([]string{"running", "queued", "slots", "latency", "enclave", "engine"}).Draw(t, "term") {
			case "running":
				worseL.Running = addInt(l.Running, more)
			case "queued":
				worseL.Queued = addInt(l.Queued, more)
			case "slots":
				worseL.Slots = max(l.Slots, 1+more) - more
				l.Slots = worseL.Slots + more
			case "latency":
				worseL.Latency = l.Latency + time.Duration(more)*time.Millisecond
			case "enclave":
				h.Enclave, worseH.Enclave = true, false
			case "engine":
				h.Engine, worseH.Engine = true, false
			}
			if better, worse := routing.Score(h, l), routing.Score(worseH, worseL); worse > better {
				t.Fatalf("%+v %+v has %d, %+v %+v has %d", h, l, better, worseH, worseL, worse)
			}
		})
	})
})

func addInt(a, b int) int {
	if a > math.MaxInt-b {
		return math.MaxInt
	}
	return a + b
}

func anyHealth() *rapid.Generator[fleet.Health] {
	return rapid.Custom(func(t *rapid.T) fleet.Health {
		return fleet.Health{Enclave: rapid.Bool().Draw(t, "enclave"), Engine: rapid.Bool().Draw(t, "engine")}
	})
}

// anyLoad mixes plausible figures, on which terms differ, with wild ones.
func anyLoad() *rapid.Generator[fleet.Load] {
	number := rapid.OneOf(rapid.IntRange(0, 20), rapid.Int())
	return rapid.Custom(func(t *rapid.T) fleet.Load {
		return fleet.Load{
			Running: number.Draw(t, "running"),
			Queued:  number.Draw(t, "queued"),
			Slots:   number.Draw(t, "slots"),
			Latency: time.Duration(rapid.Int64Range(-int64(time.Second), int64(5*time.Second)).Draw(t, "latency")),
		}
	})
}
