package extproc_test

import (
	"fmt"
	"maps"
	"strconv"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	accesslogdatav3 "github.com/envoyproxy/go-control-plane/envoy/data/accesslog/v3"
	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/mrgc/mrgc/extproc"
	"github.com/mrgc/mrgc/internal/fleet"
	"github.com/mrgc/mrgc/internal/routing"
)

// Two local instances whose addresses a log can name.
func portA(in *fleet.Instance) { in.Address = "10.0.0.1:8080" }
func portB(in *fleet.Instance) { in.Address = "10.0.0.2:8080" }

func logged(change ...func(*extproc.Config)) *harness {
	h := start(change...)
	h.see(instance("use1-0", "use1", kidA, portA), instance("use1-1", "use1", kidB, portB))
	return h
}

// toA sends to the first of the two only.
func toA(id string) headers { return sealed(id).with("mrgc-recipients", kidA) }

// at makes an entry one of an attempt at a host of the network 10.0.0.0/24.
func at(host int) func(*accessLogCommon) {
	return func(c *accessLogCommon) {
		c.UpstreamRemoteAddress = &corev3.Address{Address: &corev3.Address_SocketAddress{SocketAddress: &corev3.SocketAddress{
			Address: "10.0.0." + strconv.Itoa(host), PortSpecifier: &corev3.SocketAddress_PortValue{PortValue: 8080},
		}}}
	}
}

func flags(f *accesslogdatav3.ResponseFlags) func(*accessLogCommon) {
	return func(c *accessLogCommon) { c.ResponseFlags = f }
}

func status(code uint32, entry *accesslogdatav3.HTTPAccessLogEntry) *accesslogdatav3.HTTPAccessLogEntry {
	entry.Response = &accesslogdatav3.HTTPResponseProperties{ResponseCode: wrapperspb.UInt32(code)}
	return entry
}

// engine makes an entry one of an answer that says, beside what is sealed, how the
// engine did.
func engine(outcome string, entry *accesslogdatav3.HTTPAccessLogEntry) *accesslogdatav3.HTTPAccessLogEntry {
	entry = status(200, entry)
	entry.Response.ResponseTrailers = map[string]string{"mrgc-outcome": outcome}
	return entry
}

// seen is an instance as the picker sees it.
func (h *harness) seen(id string) routing.Candidate {
	GinkgoHelper()
	for _, c := range h.picker.Candidates() {
		if c.Instance.ID == id {
			return c
		}
	}
	Fail(id + " is not in the fleet")
	return routing.Candidate{}
}

var _ = Describe("An instance's error rate", func() {
	DescribeTable("is learned from how its requests end",
		func(ctx SpecContext, entry func(id string) *accesslogdatav3.HTTPAccessLogEntry, want float64) {
			h := logged()
			h.log(ctx, status(200, ended("before", at(1)))) // known, so that a failure is one of several
			for i := range 4 {
				h.ask(ctx, toA(fmt.Sprint(i)))
				h.log(ctx, entry(fmt.Sprint(i)))
			}
			Expect(h.picker.InFlight("use1-0")).To(BeZero())
			Expect(h.seen("use1-0").ErrorRate).To(BeNumerically("~", want, 1e-9))
			Expect(h.seen("use1-1").ErrorRate).To(BeZero())
		},
		Entry("served", func(id string) *accesslogdatav3.HTTPAccessLogEntry { return status(200, ended(id, at(1))) }, 0.0),
		Entry("the request was at fault", func(id string) *accesslogdatav3.HTTPAccessLogEntry { return status(400, ended(id, at(1))) }, 0.0),
		Entry("its engine failed, under seal", func(id string) *accesslogdatav3.HTTPAccessLogEntry { return engine("failed", ended(id, at(1))) }, 4.0/7),
		Entry("its engine would not, under seal", func(id string) *accesslogdatav3.HTTPAccessLogEntry { return engine("refused", ended(id, at(1))) }, 0.0),
		Entry("status 500", func(id string) *accesslogdatav3.HTTPAccessLogEntry { return status(500, ended(id, at(1))) }, 4.0/7),
		Entry("status 503, as an access log of older kind has it", func(id string) *accesslogdatav3.HTTPAccessLogEntry {
			return status(503, ended(id, at(1), logType("NotSet")))
		}, 4.0/7),
		Entry("cut off", func(id string) *accesslogdatav3.HTTPAccessLogEntry {
			return status(200, ended(id, at(1), flags(&accesslogdatav3.ResponseFlags{UpstreamRemoteReset: true})))
		}, 4.0/7),
		Entry("cut off with its connection", func(id string) *accesslogdatav3.HTTPAccessLogEntry {
			return status(200, ended(id, at(1), flags(&accesslogdatav3.ResponseFlags{UpstreamConnectionTermination: true})))
		}, 4.0/7),
		Entry("no connection, which leaves no address", func(id string) *accesslogdatav3.HTTPAccessLogEntry {
			return status(503, ended(id, flags(&accesslogdatav3.ResponseFlags{UpstreamConnectionFailure: true})))
		}, 4.0/7),
		Entry("no answer in time", func(id string) *accesslogdatav3.HTTPAccessLogEntry {
			return status(504, ended(id, at(1), flags(&accesslogdatav3.ResponseFlags{UpstreamRequestTimeout: true})))
		}, 4.0/7),
		Entry("no HTTP", func(id string) *accesslogdatav3.HTTPAccessLogEntry {
			return status(502, ended(id, at(1), flags(&accesslogdatav3.ResponseFlags{UpstreamProtocolError: true})))
		}, 4.0/7),
		Entry("the client has gone", func(id string) *accesslogdatav3.HTTPAccessLogEntry {
			return status(0, ended(id, at(1), flags(&accesslogdatav3.ResponseFlags{DownstreamConnectionTermination: true})))
		}, 0.0),
		Entry("Envoy had nobody to ask", func(id string) *accesslogdatav3.HTTPAccessLogEntry {
			return status(503, ended(id, flags(&accesslogdatav3.ResponseFlags{NoHealthyUpstream: true})))
		}, 0.0),
		Entry("Envoy may not ask so many at once", func(id string) *accesslogdatav3.HTTPAccessLogEntry {
			return status(503, ended(id, at(1), flags(&accesslogdatav3.ResponseFlags{UpstreamOverflow: true})))
		}, 0.0),
		Entry("someone else answered", func(id string) *accesslogdatav3.HTTPAccessLogEntry { return status(500, ended(id, at(9))) }, 4.0/7),
	)

	It("is raised by a request that had to go elsewhere, and counts there", func(ctx SpecContext) {
		h := logged()
		for i := range 4 {
			id := fmt.Sprint(i)
			h.ask(ctx, toA(id))
			h.log(ctx, ended(id, at(2), logType("UpstreamPoolReady")))
		}
		Expect(h.picker.InFlight("use1-0")).To(BeZero())
		Expect(h.picker.InFlight("use1-1")).To(Equal(4))
		Expect(h.seen("use1-0").ErrorRate).To(BeNumerically(">", routing.FailingRate))
		Expect(h.seen("use1-1").ErrorRate).To(BeZero())

		By("not counting an attempt that repeats, nor one of a request that is not known")
		h.log(ctx, ended("0", at(2), logType("UpstreamPoolReady")), ended("unknown", at(1), logType("UpstreamPoolReady")))
		Expect(h.seen("use1-1").ErrorRate).To(BeZero())
	})

	It("is not lowered by what Envoy answers itself", func(ctx SpecContext) {
		h := logged()
		h.log(ctx, status(500, ended("unknown", at(1))))
		rate := h.seen("use1-0").ErrorRate
		h.ask(ctx, toA("1"))
		h.log(ctx, status(413, ended("1")))
		Expect(h.picker.InFlight("use1-0")).To(BeZero())
		Expect(h.seen("use1-0").ErrorRate).To(Equal(rate))
	})

	It("is learned of requests that the picker never saw, too", func(ctx SpecContext) {
		h := logged()
		for range 4 {
			h.log(ctx, status(500, ended("unknown", at(1))))
		}
		Expect(h.seen("use1-0").ErrorRate).To(BeNumerically(">", routing.FailingRate))
	})

	It("sends requests elsewhere, until the instance has become ready again", func(ctx SpecContext) {
		h := logged()
		for range 4 {
			h.log(ctx, status(500, ended("unknown", at(1))))
		}
		for i := range 5 { // some more on the other, which is not failing
			Expect(picked(h.ask(ctx, sealed(fmt.Sprint(i))))).To(Equal("10.0.0.2:8080,10.0.0.1:8080"))
		}
		Expect(h.metrics()).To(HaveKeyWithValue("mrgc_error_rate use1-0 use1", BeNumerically(">", 0.5)))

		h.see(instance("use1-0", "use1", kidA, portA, sick), instance("use1-1", "use1", kidB, portB))
		Expect(h.seen("use1-0").ErrorRate).To(BeNumerically(">", 0))
		h.see(instance("use1-0", "use1", kidA, portA), instance("use1-1", "use1", kidB, portB))
		Expect(h.seen("use1-0").ErrorRate).To(BeZero())
	})

	It("is forgotten when the instance leaves", func(ctx SpecContext) {
		h := logged()
		h.log(ctx, status(500, ended("unknown", at(1))))
		h.see(instance("use1-1", "use1", kidB, portB))
		Expect(h.picker.Candidates()).To(HaveLen(1))
		h.see(instance("use1-0", "use1", kidA, portA, sick), instance("use1-1", "use1", kidB, portB))
		Expect(h.seen("use1-0").ErrorRate).To(BeZero())
	})
})

var _ = Describe("A conversation", func() {
	It("is sent home, however its requests are called", func(ctx SpecContext) {
		h := logged()
		home := picked(h.ask(ctx, sealed("0").and("mrgc-affinity", "c7")))
		for i := range 3 {
			talk := sealed(fmt.Sprint(i+1)).with("mrgc-request-id", fmt.Sprintf("%032x", i)).and("mrgc-affinity", "c7")
			Expect(picked(h.ask(ctx, talk))).To(Equal(home))
		}
		Expect(h.metrics()).To(HaveKeyWithValue("mrgc_affinity_picks_total home use1", 3.0))

		By("releasing it when every slot of its home is taken")
		Expect(picked(h.ask(ctx, sealed("5").and("mrgc-affinity", "c7")))).NotTo(Equal(home))
		Expect(h.metrics()).To(HaveKeyWithValue("mrgc_affinity_picks_total released use1", 1.0))
	})

	It("has a fifth of its prompt to read where its last request went", func(ctx SpecContext) {
		h := logged()
		turn := toA("0").and("mrgc-affinity", "c7").and("mrgc-size", "1024/64")
		h.ask(ctx, turn)
		Expect(h.seen("use1-0").InFlightTokens).To(Equal(1024))
		h.ask(ctx, turn.with("x-request-id", "1"))
		Expect(h.seen("use1-0").InFlightTokens).To(Equal(1024 + 204))

		By("all of it where another conversation did")
		h.ask(ctx, turn.with("x-request-id", "2").with("mrgc-affinity", "c8"))
		Expect(h.seen("use1-0").InFlightTokens).To(Equal(1024 + 204 + 1024))

		By("all of it elsewhere, and again where it was before")
		h.ask(ctx, turn.with("x-request-id", "3").with("mrgc-recipients", kidB))
		Expect(h.seen("use1-1").InFlightTokens).To(Equal(1024))
		h.ask(ctx, turn.with("x-request-id", "4"))
		Expect(h.seen("use1-0").InFlightTokens).To(Equal(1024 + 204 + 1024 + 1024))
		Expect(h.metrics()).To(HaveKeyWithValue("mrgc_in_flight_tokens use1-0 use1", 3276.0))
	})

	It("has a usual prompt when it does not say its size", func(ctx SpecContext) {
		h := logged()
		h.ask(ctx, toA("0"))
		Expect(h.seen("use1-0").InFlightTokens).To(Equal(routing.UnknownPromptTokens))
	})
})

var _ = Describe("What the picker knows of an instance", func() {
	It("is since when it has been ready, if it saw that", func() {
		h := start()
		h.see(instance("use1-0", "use1", kidA), instance("use1-1", "use1", kidB, sick))
		Expect(h.seen("use1-0").SinceReady).To(BeZero())
		Expect(h.seen("use1-1").Ready).To(BeFalse())

		h.see(instance("use1-0", "use1", kidA), instance("use1-1", "use1", kidB), instance("use1-2", "use1", kidC))
		Expect(h.seen("use1-0").SinceReady).To(BeZero())
		Expect(h.seen("use1-1").SinceReady).To(Equal(time.Duration(1))) // not 0, which would be always
		h.advance(3 * time.Second)
		h.see(instance("use1-0", "use1", kidA), instance("use1-1", "use1", kidB), instance("use1-2", "use1", kidC))
		Expect(h.seen("use1-1").SinceReady).To(Equal(3 * time.Second))
		Expect(h.seen("use1-2").SinceReady).To(Equal(3 * time.Second))
	})

	It("is what it said of its load: stale by heartbeats, or as it is given", func() {
		h := start()
		h.see(instance("use1-0", "use1", kidA), instance("use1-1", "use1", kidB, stale))
		Expect(h.seen("use1-0").Report).To(Equal(routing.Report{Load: fleet.Load{Slots: 4}, Age: routing.AgeStale}))
		Expect(h.seen("use1-1").Report).To(Equal(routing.Report{}))

		cfg := config(usual)
		cfg.Report = func(in *fleet.Instance) routing.Report {
			return routing.Report{Load: fleet.Load{Queued: len(in.ID)}, Age: routing.AgeFresh}
		}
		picker, err := extproc.New(cfg)
		Expect(err).NotTo(HaveOccurred())
		Expect(picker.Candidates()).To(HaveEach(HaveField("Report.Load.Queued", 6)))
	})

	It("is nothing before there is a fleet", func() {
		h := start()
		h.seeSnapshot(nil)
		Expect(h.picker.Candidates()).To(BeEmpty())
	})
})

var _ = Describe("A model's policy", func() {
	It("is refused when there is none such", func() {
		cfg := config(usual)
		cfg.Policies = map[string]routing.Policy{model: 99}
		_, err := extproc.New(cfg)
		Expect(err).To(MatchError(ContainSubstring(`Policies["smol"]: policy "policy(99)"`)))
	})

	It("decides about its requests, and counts them apart from other models'", func(ctx SpecContext) {
		h := start(func(c *extproc.Config) {
			c.Policies = map[string]routing.Policy{model: routing.PolicyRoundRobin, "large": routing.PolicyRoundRobin}
		})
		both := func(in *fleet.Instance) { in.Models = append(in.Models, "large") }
		h.see(instance("use1-0", "use1", kidA, both), instance("use1-1", "use1", kidB, both))
		turns := map[string]map[string]int{model: {}, "large": {}}
		for i := range 6 { // in turn, which would hide a count in common
			for _, name := range []string{model, "large"} {
				turns[name][picked(h.ask(ctx, sealed(fmt.Sprint(name, i)).with("mrgc-model", name)))]++
			}
		}
		want := map[string]int{"addr-use1-0,addr-use1-1": 3, "addr-use1-1,addr-use1-0": 3}
		Expect(maps.Equal(turns[model], want) && maps.Equal(turns["large"], want)).To(BeTrue(), "%v", turns)
	})
})
