package extproc_test

import (
	"fmt"
	"time"

	accesslogdatav3 "github.com/envoyproxy/go-control-plane/envoy/data/accesslog/v3"
	extprocv3 "github.com/envoyproxy/go-control-plane/envoy/service/ext_proc/v3"
	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"

	"github.com/mrgc/mrgc/extproc"
	"github.com/mrgc/mrgc/internal/api"
	"github.com/mrgc/mrgc/internal/decision"
	"github.com/mrgc/mrgc/internal/fleet"
	"github.com/mrgc/mrgc/internal/peers"
	"github.com/mrgc/mrgc/internal/quota"
	"github.com/mrgc/mrgc/internal/routing"
	rules "github.com/mrgc/mrgc/internal/tenant"
)

// limited admits everybody, some with limits.
func limited(limits map[string]rules.Limits) func(*extproc.Config) {
	return func(c *extproc.Config) {
		c.Admit = func(name string, _ []byte, _ time.Time) (*rules.Tenant, error) {
			return &rules.Tenant{Name: name, Limits: limits[name]}, nil
		}
	}
}

// from is a request of a tenant's, of a declared size.
func from(name, id, size string) headers {
	return toA(id).with("mrgc-tenant", name).with("mrgc-size", size)
}

// used makes an entry one of an answer whose enclave says how much it has used.
func used(size string, entry *accesslogdatav3.HTTPAccessLogEntry) *accesslogdatav3.HTTPAccessLogEntry {
	entry = status(200, entry)
	entry.Response.ResponseTrailers = map[string]string{"mrgc-usage": size}
	return entry
}

// waits is an answer that is a refusal, and how many seconds it says to wait.
func waits(answer *extprocv3.ProcessingResponse) (refusal *api.Error, retryAfter string) {
	GinkgoHelper()
	immediate := answer.GetImmediateResponse()
	Expect(immediate).NotTo(BeNil())
	return api.ParseError(int(immediate.GetStatus().GetCode()), immediate.GetBody()), setHeaders(immediate)["retry-after"]
}

// roomy is a picker whose instance is never busy.
func roomy(change func(*extproc.Config)) *harness {
	h := logged(change)
	h.see(instance("use1-0", "use1", kidA, portA, func(in *fleet.Instance) { in.Load.Slots = 1000 }))
	return h
}

var _ = Describe("A tenant's limits", func() {
	It("are requests per second", func(ctx SpecContext) {
		h := roomy(limited(map[string]rules.Limits{"acme": {RequestsPerSecond: 2}}))
		picked(h.ask(ctx, from("acme", "1", "64/64")))
		picked(h.ask(ctx, from("acme", "2", "64/64")))
		refusal, retryAfter := waits(h.ask(ctx, from("acme", "3", "64/64")))
		Expect(refusal).To(And(
			HaveField("Status", 429), HaveField("Type", api.TypeRateLimit), HaveField("Code", "rate_limit_exceeded"), HaveField("Param", "requests_per_second"),
		))
		Expect(retryAfter).To(Equal("1"))
		Expect(h.picker.InFlight("use1-0")).To(Equal(2))
		for i := range 10 {
			picked(h.ask(ctx, from("umbra", fmt.Sprint("other-", i), "64/64"))) // is another's
		}
		h.advance(500 * time.Millisecond)
		picked(h.ask(ctx, from("acme", "4", "64/64")))
		waits(h.ask(ctx, from("acme", "5", "64/64")))
	})

	It("are tokens per minute, by the sizes that requests declare", func(ctx SpecContext) {
		h := roomy(limited(map[string]rules.Limits{"acme": {TokensPerMinute: 6000}}))
		picked(h.ask(ctx, from("acme", "1", "1024/1024")))
		picked(h.ask(ctx, from("acme", "2", "1024/1024")))
		refusal, retryAfter := waits(h.ask(ctx, from("acme", "3", "1024/1024")))
		Expect(refusal).To(And(HaveField("Status", 429), HaveField("Code", "rate_limit_exceeded"), HaveField("Param", "tokens_per_minute")))
		Expect(retryAfter).To(Equal("2")) // 144 tokens are missing, at 100 a second
		picked(h.ask(ctx, from("acme", "4", "512/512")))
		h.advance(12 * time.Second)
		picked(h.ask(ctx, from("acme", "5", "1024/64")))
		picked(h.ask(ctx, from("umbra", "6", "1048576/1048576")))

		By("one that no minute has enough for")
		refusal, retryAfter = waits(h.ask(ctx, from("acme", "7", "4096/2048")))
		Expect(refusal).To(And(HaveField("Status", 413), HaveField("Code", "request_too_large"), HaveField("Param", "tokens_per_minute")))
		Expect(retryAfter).To(BeEmpty(), "waiting does not help")

		By("one that does not say")
		refusal, _ = waits(h.ask(ctx, from("acme", "8", "64/64").without("mrgc-size")))
		Expect(refusal).To(And(HaveField("Status", 400), HaveField("Param", "Mrgc-Size")))
		picked(h.ask(ctx, from("umbra", "9", "64/64").without("mrgc-size")))
	})

	It("are not used up by what nobody can serve", func(ctx SpecContext) {
		h := roomy(limited(map[string]rules.Limits{"acme": {RequestsPerSecond: 1}}))
		h.see(instance("use1-0", "use1", kidA, portA, draining))
		for range 3 {
			refusal, _ := waits(h.ask(ctx, from("acme", "1", "64/64")))
			Expect(refusal.Code).To(Equal("no_instance_ready"))
		}
		h.see(instance("use1-0", "use1", kidA, portA))
		picked(h.ask(ctx, from("acme", "1", "64/64")))
		waits(h.ask(ctx, from("acme", "2", "64/64")))
	})

	DescribeTable("count, when a request has ended, what it has used", func(ctx SpecContext, end func(id string) *accesslogdatav3.HTTPAccessLogEntry, left string) {
		h := roomy(limited(map[string]rules.Limits{"acme": {TokensPerMinute: 4096}}))
		picked(h.ask(ctx, from("acme", "1", "2048/2048")))
		waits(h.ask(ctx, from("acme", "2", "64/64")))
		h.log(ctx, end("1"))
		if left == "" {
			waits(h.ask(ctx, from("acme", "3", "64/64")))
			return
		}
		picked(h.ask(ctx, from("acme", "3", left)))
		waits(h.ask(ctx, from("acme", "4", "64/64")))
	},
		Entry("as its enclave says", func(id string) *accesslogdatav3.HTTPAccessLogEntry { return used("1024/1024", ended(id, at(1))) }, "1024/1024"),
		Entry("as it says of an answer that stopped midway", func(id string) *accesslogdatav3.HTTPAccessLogEntry {
			entry := used("2048/1024", ended(id, at(1)))
			entry.Response.ResponseTrailers["mrgc-outcome"] = "failed"
			return entry
		}, "512/512"),
		Entry("nothing when its enclave has rejected it", func(id string) *accesslogdatav3.HTTPAccessLogEntry { return engine("rejected", ended(id, at(1))) }, "2048/2048"),
		Entry("nothing when its engine has refused it", func(id string) *accesslogdatav3.HTTPAccessLogEntry { return engine("refused", ended(id, at(1))) }, "2048/2048"),
		Entry("nothing when its engine has failed it", func(id string) *accesslogdatav3.HTTPAccessLogEntry { return engine("failed", ended(id, at(1))) }, "2048/2048"),
		Entry("nothing when its envelope did not open", func(id string) *accesslogdatav3.HTTPAccessLogEntry { return status(400, ended(id, at(1))) }, "2048/2048"),
		Entry("nothing when no instance answered", func(id string) *accesslogdatav3.HTTPAccessLogEntry {
			return status(503, ended(id, flags(&accesslogdatav3.ResponseFlags{UpstreamConnectionFailure: true})))
		}, "2048/2048"),
		Entry("all that it declared when its client has gone", func(id string) *accesslogdatav3.HTTPAccessLogEntry {
			return status(0, ended(id, at(1), flags(&accesslogdatav3.ResponseFlags{DownstreamConnectionTermination: true})))
		}, ""),
		Entry("all of it when its client has gone, as some kinds of log say it", func(id string) *accesslogdatav3.HTTPAccessLogEntry {
			return status(499, ended(id, at(1), flags(&accesslogdatav3.ResponseFlags{DownstreamConnectionTermination: true})))
		}, ""),
		Entry("all of it when the answer was cut", func(id string) *accesslogdatav3.HTTPAccessLogEntry {
			return status(200, ended(id, at(1), flags(&accesslogdatav3.ResponseFlags{UpstreamRemoteReset: true})))
		}, ""),
		Entry("all of it when nobody says", func(id string) *accesslogdatav3.HTTPAccessLogEntry { return status(200, ended(id, at(1))) }, ""),
		Entry("all of it when what is said is no size", func(id string) *accesslogdatav3.HTTPAccessLogEntry { return used("1/1", ended(id, at(1))) }, ""),
	)

	It("have to be paid off by what has used more than it declared", func(ctx SpecContext) {
		h := roomy(limited(map[string]rules.Limits{"acme": {TokensPerMinute: 6000}}))
		picked(h.ask(ctx, from("acme", "1", "64/64")))
		h.log(ctx, used("64/8192", ended("1", at(1))))
		_, retryAfter := waits(h.ask(ctx, from("acme", "2", "64/64")))
		Expect(retryAfter).To(Equal("24")) // 2,256 and 128 tokens, at 100 a second
	})

	It("count what was used although another router has the log", func(ctx SpecContext) {
		p := twoPickers(ctx, limited(map[string]rules.Limits{"acme": {TokensPerMinute: 4096}}))
		picked(p.a.ask(ctx, from("acme", "1", "2048/2048")))
		p.b.log(ctx, used("64/64", ended("1", at(1))))
		waits(p.a.ask(ctx, from("acme", "2", "64/64")))
		p.tell(p.b, p.a)
		picked(p.a.ask(ctx, from("acme", "2", "2048/1024")))
	})

	It("are let through once by routers that hear each other, and by each that hears nobody", func(ctx SpecContext) {
		p := twoPickers(ctx, limited(map[string]rules.Limits{"acme": {RequestsPerSecond: 4}}))
		hear := func() { p.tell(p.a, p.b); p.tell(p.b, p.a) }
		hear()
		for i := range 3 {
			picked(p.a.ask(ctx, from("acme", fmt.Sprint(i), "64/64")))
		}
		hear()
		picked(p.b.ask(ctx, from("acme", "3", "64/64")))
		waits(p.b.ask(ctx, from("acme", "4", "64/64")))
		hear()
		waits(p.a.ask(ctx, from("acme", "5", "64/64")))
		for _, h := range []*harness{p.a, p.b} { // and nothing is heard
			h.advance(2 * quota.HeardFor)
			for i := range 4 {
				picked(h.ask(ctx, from("acme", fmt.Sprint("alone-", i), "64/64")))
			}
		}
		hear()
		for _, h := range []*harness{p.a, p.b} {
			_, retryAfter := waits(h.ask(ctx, from("acme", "6", "64/64")))
			Expect(retryAfter).To(Equal("1"), "for its own")
		}
	})

	It("are let through once by routers of other regions as well, which hear of nothing else", func(ctx SpecContext) {
		p := twoPickers(ctx, limited(map[string]rules.Limits{"acme": {TokensPerMinute: 4096}}))
		hear := func(from, to *harness) *peers.Message {
			GinkgoHelper()
			raw, err := from.picker.TellAbroad(p.told[to]).Encode()
			Expect(err).NotTo(HaveOccurred())
			message, err := peers.Decode(raw)
			Expect(err).NotTo(HaveOccurred())
			to.picker.LearnAbroad(message)
			return message
		}
		hear(p.a, p.b)
		used := p.a.picker.Used()
		picked(p.a.ask(ctx, from("umbra", "0", "2048/1024"))) // without limits
		Expect(used).NotTo(BeClosed())
		picked(p.a.ask(ctx, from("acme", "1", "2048/1024")))
		Eventually(used).Should(BeClosed())
		Expect(hear(p.a, p.b).InFlight).To(BeEmpty())
		Expect(p.b.seen("use1-0").InFlight).To(BeZero())
		waits(p.b.ask(ctx, from("acme", "2", "2048/64")))
		picked(p.b.ask(ctx, from("acme", "3", "512/512")))

		By("a request that uses less")
		used = p.a.picker.Used()
		p.a.log(ctx, status(400, ended("1", at(1))))
		Eventually(used).Should(BeClosed())
		hear(p.a, p.b)
		picked(p.b.ask(ctx, from("acme", "4", "2048/1024")))
	})

	It("are seen in the record and the metrics, which name no more than a hundred tenants", func(ctx SpecContext) {
		limits := map[string]rules.Limits{}
		for i := range 101 {
			limits[fmt.Sprintf("t-%d", i)] = rules.Limits{TokensPerMinute: 1}
		}
		h := roomy(limited(limits))
		for i := range 101 {
			for range 2 {
				waits(h.ask(ctx, from(fmt.Sprintf("t-%d", i), fmt.Sprint(i), "64/64")))
			}
		}
		record := h.picker.Decisions().Find("7")
		Expect(record).To(HaveLen(2))
		Expect(record[0].Refusal).To(Equal(decision.Refusal{Code: "request_too_large", Param: "tokens_per_minute"}))
		Expect(record[0].Tenant).To(Equal("t-7"))
		Expect(h.picker.Decisions().Last(1)).To(BeEmpty(), "a tenant that is refused pushes out no decision")
		metrics := h.metrics()
		Expect(metrics).To(HaveKeyWithValue("mrgc_tenant_refusals_total request_too_large use1 t-99", 2.0))
		Expect(metrics).NotTo(HaveKey("mrgc_tenant_refusals_total request_too_large use1 t-100"))
		Expect(metrics).To(HaveKeyWithValue("mrgc_tenant_refusals_total request_too_large use1 other", 2.0))
		Expect(metrics).To(HaveKeyWithValue("mrgc_picks_total request_too_large use1", 202.0))
	})
})

var _ = Describe("A tenant's share", func() {
	const size = "512/512"
	fourSlots := func(in *fleet.Instance) { portA(in); in.Load.Slots = 4 }
	saturated := func(ctx SpecContext, limits map[string]rules.Limits) *harness {
		h := logged(limited(limits))
		h.see(instance("use1-0", "use1", kidA, fourSlots))
		for i := range 6 {
			picked(h.ask(ctx, from("greedy", fmt.Sprint("greedy-", i), size))) // is alone, and nobody's share is less
		}
		return h
	}

	It("is all that it gets while nothing is free, and it gets that", func(ctx SpecContext) {
		h := saturated(ctx, nil)
		picked(h.ask(ctx, from("modest", "modest-0", size)))
		refusal, retryAfter := waits(h.ask(ctx, from("greedy", "greedy-6", size)))
		Expect(refusal).To(And(HaveField("Status", 429), HaveField("Code", "rate_limit_exceeded"), HaveField("Param", "share")))
		Expect(retryAfter).To(Equal("3")) // 2.75 too many, in four slots of 4 s each, where nothing says how long they last
		picked(h.ask(ctx, from("modest", "modest-1", size)))
		Expect(h.metrics()).To(HaveKeyWithValue("mrgc_tenant_refusals_total share use1 greedy", 1.0))

		By("requests ending")
		for i := range 4 {
			h.log(ctx, ended(fmt.Sprint("greedy-", i), at(1)))
		}
		picked(h.ask(ctx, from("greedy", "greedy-6", size))) // 4 in flight, in four slots
	})

	It("is greater with a greater weight", func(ctx SpecContext) {
		h := saturated(ctx, map[string]rules.Limits{"greedy": {Weight: 20}})
		picked(h.ask(ctx, from("modest", "modest-0", size)))
		refusal, _ := waits(h.ask(ctx, from("modest", "modest-1", size)))
		Expect(refusal.Param).To(Equal("share"))
	})

	It("is of the model that it asks for", func(ctx SpecContext) {
		h := logged(limited(nil))
		h.see(instance("use1-0", "use1", kidA, fourSlots), instance("use1-1", "use1", kidB, portB, otherModel))
		toB := func(id string) headers {
			return from("greedy", id, size).with("mrgc-recipients", kidB).with("mrgc-model", "large")
		}
		for i := range 9 {
			picked(h.ask(ctx, toB(fmt.Sprint("large-", i))))
		}
		for i := range 6 {
			picked(h.ask(ctx, from("modest", fmt.Sprint("modest-", i), size)))
		}
		picked(h.ask(ctx, from("greedy", "greedy-0", size)))
		waits(h.ask(ctx, from("modest", "modest-6", size)))
	})

	It("is everything again a minute after the last other one has asked", func(ctx SpecContext) {
		h := saturated(ctx, nil)
		picked(h.ask(ctx, from("modest", "modest-0", size)))
		h.advance(59 * time.Second)
		waits(h.ask(ctx, from("greedy", "greedy-6", size)))
		h.advance(time.Second)
		picked(h.ask(ctx, from("greedy", "greedy-6", size)))
	})

	It("is of what all routers of the region have in flight", func(ctx SpecContext) {
		p := twoPickers(ctx, limited(nil))
		for _, h := range []*harness{p.a, p.b} {
			h.see(instance("use1-0", "use1", kidA, fourSlots))
		}
		for i := range 6 {
			picked(p.a.ask(ctx, from("greedy", fmt.Sprint("greedy-", i), size)))
		}
		p.tell(p.a, p.b)
		picked(p.b.ask(ctx, from("modest", "modest-0", size)))
		picked(p.b.ask(ctx, from("modest", "modest-1", size))) // all of what b has, and little of what there is
		picked(p.a.ask(ctx, from("greedy", "greedy-6", size))) // nobody has told a of another
		p.tell(p.b, p.a)
		refusal, _ := waits(p.a.ask(ctx, from("greedy", "greedy-7", size)))
		Expect(refusal.Param).To(Equal("share"))
		refusal, _ = waits(p.b.ask(ctx, from("greedy", "greedy-8", size)))
		Expect(refusal.Param).To(Equal("share"), "the greedy one gains nothing by another router")
		picked(p.b.ask(ctx, from("modest", "modest-2", size)))
	})

	It("is nobody's to keep to by what a router had in flight that has died, once instances report that it has ended", func(ctx SpecContext) {
		var reported time.Time // zero: nothing was
		var p *pair
		p = twoPickers(ctx, limited(nil), func(c *extproc.Config) {
			c.Report = func(*fleet.Instance) routing.Report {
				if reported.IsZero() {
					return routing.Report{}
				}
				return routing.Report{Age: routing.AgeFresh, Since: p.b.time().Sub(reported), Load: fleet.Load{Slots: 4}}
			}
		})
		for _, h := range []*harness{p.a, p.b} {
			h.see(instance("use1-0", "use1", kidA, fourSlots))
		}
		picked(p.b.ask(ctx, from("modest", "modest-0", size)))
		for i := range 9 {
			picked(p.a.ask(ctx, from("greedy", fmt.Sprint("greedy-", i), size)))
		}
		p.tell(p.a, p.b) // its last word
		refusal, _ := waits(p.b.ask(ctx, from("greedy", "greedy-9", size)))
		Expect(refusal.Param).To(Equal("share"))

		p.b.advance(100 * time.Millisecond)
		reported = p.b.time() // the requests have ended, and there is nobody to say so but the instance
		p.b.advance(10 * time.Millisecond)
		for i := range 4 {
			picked(p.b.ask(ctx, from("greedy", fmt.Sprint("greedy-1", i), size)))
		}
		picked(p.b.ask(ctx, from("greedy", "greedy-20", size)))
		refusal, _ = waits(p.b.ask(ctx, from("greedy", "greedy-21", size)))
		Expect(refusal.Param).To(Equal("share"), "these it has been sent")
	})

	It("takes nothing from a limit when it refuses", func(ctx SpecContext) {
		h := saturated(ctx, map[string]rules.Limits{"greedy": {RequestsPerSecond: 7}})
		picked(h.ask(ctx, from("modest", "modest-0", size)))
		refusal, _ := waits(h.ask(ctx, from("greedy", "greedy-6", size)))
		Expect(refusal.Param).To(Equal("share"))
		for i := range 6 {
			h.log(ctx, ended(fmt.Sprint("greedy-", i), at(1)))
		}
		picked(h.ask(ctx, from("greedy", "greedy-6", size)))
		refusal, _ = waits(h.ask(ctx, from("greedy", "greedy-7", size)))
		Expect(refusal.Param).To(Equal("requests_per_second"))
	})
})
