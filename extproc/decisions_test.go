package extproc_test

import (
	"bytes"
	"strings"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"

	"github.com/mrgc/mrgc/extproc"
	"github.com/mrgc/mrgc/internal/decision"
	"github.com/mrgc/mrgc/internal/fleet"
	"github.com/mrgc/mrgc/internal/routing"
)

const requestID = "0123456789abcdef0123456789abcdef" // of sealed

var _ = Describe("A picker's record", func() {
	It("has what a decision was made of, so that it can be made again, and no secret", func(ctx SpecContext) {
		h := start(func(c *extproc.Config) { c.ConfigVersion = "c0ffee" })
		h.ask(ctx, sealed("first").with("mrgc-affinity", "conversation-key"))
		h.advance(time.Second)
		answer := h.ask(ctx, sealed("second").with("mrgc-affinity", "conversation-key").with("mrgc-size", "4096/512"))

		found := h.picker.Decisions().Find("second")
		Expect(found).To(HaveLen(1))
		r := found[0]
		Expect(r.At).To(Equal(epoch().Add(time.Second)))
		Expect(r.FleetAt).To(Equal(epoch()))
		Expect(r.Tenant).To(Equal(tenant))
		Expect(r.Config).To(Equal("c0ffee"))
		Expect(r.Request.ID).To(Equal(requestID))
		Expect(r.Request.Home).NotTo(BeEmpty())
		Expect(r.Request.PromptTokens).To(Equal(4096))
		Expect(r.Candidates).To(HaveLen(2))
		Expect(r.Refusal).To(BeZero())
		Expect(r.Decision).To(Equal(routing.Pick(r.Request, r.Candidates)))
		Expect(picked(answer)).To(HavePrefix(r.Decision.Instances[0].Address))

		var trace bytes.Buffer
		Expect(decision.Write(&trace, h.picker.Decisions().Last(10)...)).To(Succeed())
		Expect(strings.Count(trace.String(), "\n")).To(Equal(2))
		Expect(trace.String()).NotTo(Or(ContainSubstring(token), ContainSubstring("conversation-key")))
	})

	It("of a request that nobody could serve has who could not", func(ctx SpecContext) {
		h := start()
		h.see(instance("use1-0", "use1", kidA, draining), instance("use1-1", "use1", kidB, sick))
		h.ask(ctx, sealed("1"))
		r := h.picker.Decisions().Last(1)[0]
		Expect(r.Refusal.Code).To(Equal("no_instance_ready"))
		Expect(r.Decision.Reason).To(Equal(routing.ReasonNoRecipientReady))
		Expect(r.Candidates).To(HaveLen(2))
		Expect(h.picker.Decisions().Find("1")).To(HaveLen(1)) // once
	})

	DescribeTable("of a request that was refused at once says which rule refused it",
		func(ctx SpecContext, request headers, code, param string) {
			h := start()
			h.ask(ctx, request)
			found := h.picker.Decisions().Find("1")
			Expect(found).To(HaveExactElements(HaveField("Refusal", decision.Refusal{Code: code, Param: param})))
			Expect(found[0].Decision).To(BeZero())
			Expect(h.picker.Decisions().Last(1)).To(BeEmpty()) // strangers push out no decision
			Expect(found[0].Tenant).To(Or(BeEmpty(), Equal(tenant)))
		},
		Entry("the key", sealed("1").with("authorization", "Bearer wrong"), "invalid_api_key", ""),
		Entry("the model", sealed("1").with("mrgc-model", "other"), "model_not_found", "model"),
		Entry("a header", sealed("1").with("mrgc-tenant", "with space"), "invalid_header", "Mrgc-Tenant"),
		Entry("the form", sealed("1").with("content-type", "application/json"), "request_not_sealed", ""),
	)

	It("takes no more of a stranger's headers than is well formed", func(ctx SpecContext) {
		h := start()
		h.ask(ctx, sealed(strings.Repeat("e", 10_000)).with("mrgc-request-id", "short").with("mrgc-model", strings.Repeat("m", 10_000)))
		found := h.picker.Decisions().Find("")
		Expect(found).To(HaveLen(1))
		Expect(found[0].EnvoyID + found[0].Request.ID + found[0].Request.Model).To(BeEmpty())
	})

	It("learns from Envoy's log where the request went, and how it ended", func(ctx SpecContext) {
		h := logged()
		h.ask(ctx, toA("1"))
		h.advance(time.Second)
		h.log(ctx, ended("1", at(1), logType("UpstreamPoolReady")), ended("1", at(2), logType("UpstreamPoolReady")))
		Expect(h.picker.Decisions().Last(1)[0].Outcome).To(Equal(decision.Outcome{Instance: "use1-1", Attempts: 2}))
		h.advance(time.Second)
		h.log(ctx, status(200, ended("1", at(2))))
		Expect(h.picker.Decisions().Last(1)[0].Outcome).To(Equal(decision.Outcome{
			Instance: "use1-1", Attempts: 2, End: decision.EndServed, After: 2 * time.Second,
		}))
	})

	DescribeTable("tells ends apart", func(ctx SpecContext, code uint32, end decision.End) {
		h := logged()
		h.ask(ctx, toA("1"))
		h.log(ctx, status(code, ended("1", at(1))))
		Expect(h.picker.Decisions().Last(1)[0].Outcome.End).To(Equal(end))
	},
		Entry("served", uint32(404), decision.EndServed), Entry("failed", uint32(503), decision.EndFailed), Entry("nobody knows", uint32(0), decision.EndUnknown),
	)

	It("is of the regions that may serve", func(ctx SpecContext) {
		h := start()
		h.ask(ctx, sealed("1"))
		Expect(h.picker.Decisions().Last(1)[0].Request.Regions).To(Equal([]fleet.Region{"use1", "use2", "usw2"}))
	})
})
