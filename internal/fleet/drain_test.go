package fleet_test

import (
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"

	"github.com/mrgc/mrgc/internal/fleet"
)

var _ = Describe("An instance that drains", func() {
	beat := func(seconds, running, queued int) *fleet.Instance {
		return &fleet.Instance{ID: "i", Draining: true, HeartbeatAt: at.Add(time.Duration(seconds) * time.Second), Load: fleet.Load{Running: running, Queued: queued}}
	}
	DescribeTable("has no requests when it has said so twice since", func(done bool, left int, seen ...*fleet.Instance) {
		var d fleet.Drain
		for i, in := range seen {
			Expect(d.See(in)).To(Equal(done && i == len(seen)-1))
		}
		Expect(d.Requests()).To(Equal(left))
	},
		Entry("before the drain", false, 0, beat(0, 0, 0)),
		Entry("once", false, 0, beat(0, 0, 0), beat(5, 0, 0), beat(5, 0, 0)),
		Entry("twice", true, 0, beat(0, 9, 9), beat(5, 0, 0), beat(10, 0, 0)),
		Entry("and not in between", false, 0, beat(0, 0, 0), beat(5, 0, 0), beat(10, 0, 1), beat(15, 0, 0)),
		Entry("and does while it has some", false, 3, beat(0, 0, 0), beat(5, 0, 0), beat(10, 1, 2)),
	)

	It("has some again when one came late", func() {
		var d fleet.Drain
		for _, in := range []*fleet.Instance{beat(0, 0, 0), beat(5, 0, 0), beat(10, 0, 0)} {
			d.See(in)
		}
		Expect(d.See(beat(15, 1, 0))).To(BeFalse())
	})
})
