package extproc_test

import (
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"

	"github.com/mrgc/mrgc/extproc"
	"github.com/mrgc/mrgc/internal/fleet"
	"github.com/mrgc/mrgc/internal/routing"
)

var _ = Describe("A picker's settings", func() {
	now := func(change func(*extproc.Settings)) extproc.Settings {
		s := config(nil).Settings
		change(&s)
		return s
	}
	last := func(h *harness) (policy, version string) {
		r := h.picker.Decisions().Last(1)[0]
		return r.Request.Policy.String(), r.Config
	}

	It("hold for the next pick: policy and version, and who counts where it was", func(ctx SpecContext) {
		h := start(func(c *extproc.Config) {
			c.Policies, c.ConfigVersion = map[string]routing.Policy{model: routing.PolicyRoundRobin}, "first"
		})
		first := picked(h.ask(ctx, sealed("1")))
		Expect(h.picker.SetSettings(now(func(s *extproc.Settings) {
			s.Policies, s.ConfigVersion = map[string]routing.Policy{model: routing.PolicyRoundRobin}, "second"
		}))).To(Succeed())
		Expect(picked(h.ask(ctx, sealed("2")))).NotTo(Equal(first), "round robin goes on where it was")
		policy, version := last(h)
		Expect(policy).To(Equal("round-robin"))
		Expect(version).To(Equal("second"))
		Expect(h.picker.SetSettings(now(func(s *extproc.Settings) { s.Policies = map[string]routing.Policy{model: routing.PolicyScore} }))).To(Succeed())
		h.ask(ctx, sealed("3"))
		policy, _ = last(h)
		Expect(policy).To(Equal("score"))
		Expect(h.picker.InFlight("use1-0") + h.picker.InFlight("use1-1")).To(Equal(3))
	})

	It("say which regions take over, and how old a heartbeat may be", func(ctx SpecContext) {
		h := start()
		h.see(instance("use1-0", "use1", kidA, draining), instance("use2-0", "use2", kidB))
		Expect(picked(h.ask(ctx, sealed("1")))).To(Equal("addr-use2-0"))
		Expect(h.picker.SetSettings(now(func(s *extproc.Settings) { s.SpillTo = nil }))).To(Succeed())
		Expect(h.ask(ctx, sealed("2")).GetImmediateResponse().GetStatus().GetCode()).To(BeEquivalentTo(503))

		h.see(instance("use1-0", "use1", kidA, func(in *fleet.Instance) { in.HeartbeatAt = epoch().Add(-10 * time.Second) }), instance("use1-1", "use1", kidB))
		Expect(h.picker.SetSettings(now(func(s *extproc.Settings) { s.StaleAfter = 5 * time.Second }))).To(Succeed())
		for _, id := range []string{"3", "4"} {
			Expect(picked(h.ask(ctx, sealed(id)))).To(Equal("addr-use1-1"))
		}
	})

	DescribeTable("that are not valid change nothing", func(ctx SpecContext, change func(*extproc.Settings), reason string) {
		h := start(func(c *extproc.Config) { c.ConfigVersion = "first" })
		Expect(h.picker.SetSettings(now(change))).To(MatchError(ContainSubstring(reason)))
		h.ask(ctx, sealed("1"))
		_, version := last(h)
		Expect(version).To(Equal("first"))
	},
		Entry("no age", func(s *extproc.Settings) { s.StaleAfter = 0 }, "StaleAfter"),
		Entry("its own region", func(s *extproc.Settings) { s.SpillTo = []fleet.Region{"use1"} }, "SpillTo[0]"),
		Entry("a policy that is none", func(s *extproc.Settings) { s.Policies = map[string]routing.Policy{model: 99} }, "Policies"),
	)
})
