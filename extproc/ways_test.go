package extproc_test

import (
	"strings"
	"sync/atomic"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"

	"github.com/mrgc/mrgc/extproc"
	"github.com/mrgc/mrgc/internal/fleet"
	"github.com/mrgc/mrgc/internal/routing"
	rules "github.com/mrgc/mrgc/internal/tenant"
)

// ways has a picker know how far the regions are, and how many of 16 slots are
// taken in its own, where requests last 4 s; elsewhere nothing is.
func ways(taken *atomic.Int64, way routing.Way) func(*extproc.Config) {
	return func(c *extproc.Config) {
		c.Way = func(_, _ string) routing.Way { return way }
		c.Report = func(in *fleet.Instance) routing.Report {
			r := routing.Report{Age: routing.AgeFresh, Load: fleet.Load{Slots: 16}, RequestDuration: 4 * time.Second}
			if in.Region == "use1" {
				r.Load.Running = int(taken.Load())
			}
			return r
		}
	}
}

var _ = Describe("A picker that knows how far other regions are", func() {
	everyone := sealed("").with("mrgc-recipients", kidA+","+kidB+","+kidC)
	here := routing.Way{Regions: []fleet.Region{"use1", "usw2"}, Detours: []time.Duration{0, 60 * time.Millisecond}}

	It("sends requests there while its own is saturated, until that is so no more by a good deal", func(ctx SpecContext) {
		var taken atomic.Int64
		h := start(ways(&taken, here))
		for _, step := range []struct {
			taken int64
			first string
		}{
			{16, "addr-use1-"}, {19, "addr-usw2-0"}, {16, "addr-usw2-0"}, // there is no room yet
			{14, "addr-use1-"}, {16, "addr-usw2-0"}, // room for this one alone
			{12, "addr-use1-"}, {16, "addr-use1-"},
		} {
			taken.Store(step.taken)
			Expect(picked(h.ask(ctx, everyone))).To(HavePrefix(step.first), "%d slots taken", step.taken)
		}
		Expect(h.metrics()).To(HaveKeyWithValue("mrgc_picks_total overflow use1", 3.0))
	})

	It("sends none where the tenant's data may not be", func(ctx SpecContext) {
		var taken atomic.Int64
		taken.Store(40)
		h := start(ways(&taken, here), func(c *extproc.Config) {
			admit := c.Admit
			c.Admit = func(name string, bearer []byte, now time.Time) (*rules.Tenant, error) {
				t, err := admit(name, bearer, now)
				if err == nil {
					t.Regions = rules.Names{"use1"}
				}
				return t, err
			}
		})
		Expect(strings.Split(picked(h.ask(ctx, everyone)), ",")).To(ConsistOf("addr-use1-0", "addr-use1-1"))
	})

	It("takes the preferred region first", func(ctx SpecContext) {
		var taken atomic.Int64
		h := start(ways(&taken, routing.Way{Regions: []fleet.Region{"usw2", "use1"}, Detours: []time.Duration{60 * time.Millisecond, 0}}))
		Expect(picked(h.ask(ctx, everyone))).To(HavePrefix("addr-usw2-0,"))
	})
})
