package extproc_test

import (
	"context"
	"net/http"
	"strings"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	extprocv3 "github.com/envoyproxy/go-control-plane/envoy/service/ext_proc/v3"
	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/mrgc/mrgc/extproc"
	"github.com/mrgc/mrgc/internal/api"
	"github.com/mrgc/mrgc/internal/fleet"
	rules "github.com/mrgc/mrgc/internal/tenant"
)

var _ = Describe("New", func() {
	view := func() *fleet.Snapshot { return nil }

	DescribeTable("names what is wrong",
		func(change func(*extproc.Config), fault string) {
			cfg := config(view)
			change(&cfg)
			_, err := extproc.New(cfg)
			Expect(err).To(MatchError(ContainSubstring(fault)))
		},
		Entry(nil, func(c *extproc.Config) { c.Region = "" }, "Region is empty"),
		Entry(nil, func(c *extproc.Config) { c.View = nil }, "View is nil"),
		Entry(nil, func(c *extproc.Config) { c.Admit = nil }, "Admit is nil"),
		Entry(nil, func(c *extproc.Config) { c.StaleAfter = 0 }, "StaleAfter is 0s"),
		Entry(nil, func(c *extproc.Config) { c.InFlightTimeout = -1 }, "InFlightTimeout is -1ns"),
		Entry(nil, func(c *extproc.Config) { c.SpillTo = []fleet.Region{"use2", "use1"} }, `SpillTo[1] is "use1"`),
		Entry(nil, func(c *extproc.Config) { c.SpillTo = []fleet.Region{"use2", "use2"} }, `SpillTo[1] is "use2"`),
		Entry(nil, func(c *extproc.Config) { c.SpillTo = []fleet.Region{""} }, `SpillTo[0] is ""`),
	)

	It("takes a configuration without optional fields", func() {
		cfg := config(view)
		cfg.Now = nil
		Expect(extproc.New(cfg)).NotTo(BeNil())
	})

	It("says when metrics are registered twice", func() {
		h := start()
		cfg := config(view)
		cfg.Metrics = h.registry
		_, err := extproc.New(cfg)
		Expect(err).To(MatchError(ContainSubstring("register metrics")))
	})
})

var _ = Describe("Process", func() {
	It("answers with metadata and a header, and nothing else", func(ctx SpecContext) {
		h := start()
		answer := h.ask(ctx, sealed("1").with("mrgc-recipients", kidA))
		var want extprocv3.ProcessingResponse
		Expect(protojson.Unmarshal([]byte(`{
			"requestHeaders": {"response": {"headerMutation": {"setHeaders": [{
				"header": {"key": "x-gateway-destination-endpoint", "rawValue": "YWRkci11c2UxLTA="},
				"appendAction": "OVERWRITE_IF_EXISTS_OR_ADD"}, {
				"header": {"key": "mrgc-uncached", "rawValue": "MTAyNA=="},
				"appendAction": "OVERWRITE_IF_EXISTS_OR_ADD"}]}}},
			"dynamicMetadata": {"envoy.lb": {"x-gateway-destination-endpoint": "addr-use1-0"}}
		}`), &want)).To(Succeed())
		Expect(proto.Equal(answer, &want)).To(BeTrue(), "got %v", answer)
	})

	It("sends to the instance with fewest in flight, the others behind it", func(ctx SpecContext) {
		h := start()
		first := picked(h.ask(ctx, sealed("1")))
		second := picked(h.ask(ctx, sealed("2")))
		Expect([]string{first, second}).To(ConsistOf("addr-use1-0,addr-use1-1", "addr-use1-1,addr-use1-0"))
	})

	It("leaves the region only when no local recipient is ready", func(ctx SpecContext) {
		h := start()
		to := sealed("1").with("mrgc-recipients", kidC+","+kidA)
		Expect(picked(h.ask(ctx, to))).To(Equal("addr-use1-0,addr-usw2-0"))
		h.see(instance("use1-0", "use1", kidA, draining), instance("usw2-0", "usw2", kidC))
		Expect(picked(h.ask(ctx, to))).To(Equal("addr-usw2-0"))
	})

	It("follows the fleet from one request to the next", func(ctx SpecContext) {
		h := start()
		to := sealed("1").with("mrgc-recipients", kidA)
		Expect(picked(h.ask(ctx, to))).To(Equal("addr-use1-0"))
		h.see(instance("use1-9", "use1", kidA))
		Expect(picked(h.ask(ctx, to))).To(Equal("addr-use1-9"))
	})

	It("names an instance once that holds several of the keys", func(ctx SpecContext) {
		h := start()
		h.see(instance("use1-0", "use1", kidA, func(in *fleet.Instance) { in.KeyIDs = append(in.KeyIDs, kidB) }))
		Expect(picked(h.ask(ctx, sealed("1")))).To(Equal("addr-use1-0"))
	})

	It("names every instance that holds a key, as with a fleet's", func(ctx SpecContext) {
		h := start()
		h.see(instance("use1-0", "use1", kidA), instance("use1-1", "use1", kidA), instance("use1-2", "use1", kidB))
		Expect(strings.Split(picked(h.ask(ctx, sealed("1").with("mrgc-recipients", kidA))), ",")).To(ConsistOf("addr-use1-0", "addr-use1-1"))
	})

	It("counts a request once, however often its stream asks", func(ctx SpecContext) {
		h := start()
		stream := h.open(ctx)
		for range 3 {
			Expect(stream.Send(sealed("1").with("mrgc-recipients", kidA).message())).To(Succeed())
			_, err := stream.Recv()
			Expect(err).NotTo(HaveOccurred())
		}
		Expect(stream.CloseSend()).To(Succeed())
		Expect(h.picker.InFlight("use1-0")).To(Equal(1))
	})

	DescribeTable("lets messages pass that it did not ask for",
		func(ctx SpecContext, given, want string) {
			h := start()
			stream := h.open(ctx)
			var message extprocv3.ProcessingRequest
			var answer extprocv3.ProcessingResponse
			Expect(protojson.Unmarshal([]byte(given), &message)).To(Succeed())
			Expect(protojson.Unmarshal([]byte(want), &answer)).To(Succeed())
			Expect(stream.Send(&message)).To(Succeed())
			got, err := stream.Recv()
			Expect(err).NotTo(HaveOccurred())
			Expect(proto.Equal(got, &answer)).To(BeTrue(), "got %v", got)

			By("going on with the stream")
			Expect(stream.Send(sealed("1").message())).To(Succeed())
			got, err = stream.Recv()
			Expect(err).NotTo(HaveOccurred())
			Expect(picked(got)).NotTo(BeEmpty())
			Expect(stream.CloseSend()).To(Succeed())
		},
		Entry(nil, `{"responseHeaders": {}}`, `{"responseHeaders": {"response": {}}}`),
		Entry(nil, `{"requestBody": {"body": "eA=="}}`, `{"requestBody": {"response": {}}}`),
		Entry(nil, `{"responseBody": {"body": "eA=="}}`, `{"responseBody": {"response": {}}}`),
		Entry(nil, `{"requestTrailers": {}}`, `{"requestTrailers": {}}`),
		Entry(nil, `{"responseTrailers": {}}`, `{"responseTrailers": {}}`),
	)

	It("does not answer a message of no kind", func(ctx SpecContext) {
		h := start()
		stream := h.open(ctx)
		Expect(stream.Send(&extprocv3.ProcessingRequest{})).To(Succeed())
		Expect(stream.CloseSend()).To(Succeed())
		_, err := stream.Recv()
		Expect(err).To(MatchError("EOF"))
	})

	It("keeps nothing of a stream that is aborted", func(ctx SpecContext) {
		h := start()
		for range 20 {
			streamCtx, abort := context.WithCancel(ctx)
			Expect(h.open(streamCtx).Send(sealed("1").message())).To(Succeed())
			abort()
		}
		// The harness checks for goroutines at the end.
	})

	It("counts how long Envoy has waited, where Envoy says so", func(ctx SpecContext) {
		h := start()
		notes := func(value proto.Message) func(*accessLogCommon) {
			packed, err := anypb.New(value)
			Expect(err).NotTo(HaveOccurred())
			return func(c *accessLogCommon) {
				c.FilterStateObjects = map[string]*anypb.Any{"envoy.filters.http.ext_proc": packed}
			}
		}
		of := func(name string, value any) *structpb.Struct {
			s, err := structpb.NewStruct(map[string]any{name: value})
			Expect(err).NotTo(HaveOccurred())
			return s
		}
		h.log(ctx,
			ended("1", notes(of("request_header_latency_us", 900))),
			ended("2", notes(of("request_header_latency_us", "900"))),
			ended("3", notes(of("another", 900))),
			ended("4", notes(&wrapperspb.StringValue{Value: "900"})),
			ended("5"),
			ended("6", notes(of("request_header_latency_us", 900)), logType("UpstreamPoolReady")),
		)
		Expect(h.metrics()).To(HaveKeyWithValue("mrgc_pick_wait_seconds use1", 1.0))
	})

	It("counts outcomes and durations", func(ctx SpecContext) {
		h := start()
		h.ask(ctx, sealed("1"))
		h.ask(ctx, sealed("2"))
		h.ask(ctx, sealed("3").with("mrgc-recipients", kidC))
		h.ask(ctx, sealed("4").without("mrgc-model"))
		metrics := h.metrics()
		Expect(metrics).To(HaveKeyWithValue("mrgc_picks_total picked use1", 2.0))
		Expect(metrics).To(HaveKeyWithValue("mrgc_picks_total spilled use1", 1.0))
		Expect(metrics).To(HaveKeyWithValue("mrgc_picks_total invalid_header use1", 1.0))
		Expect(metrics).To(HaveKeyWithValue("mrgc_pick_duration_seconds use1", 4.0))
		Expect(metrics).To(HaveKeyWithValue("mrgc_in_flight use1-0 use1", 1.0))
		Expect(metrics).To(HaveKeyWithValue("mrgc_in_flight use1-1 use1", 1.0))
		Expect(metrics).To(HaveKeyWithValue("mrgc_in_flight usw2-0 use1", 1.0))
	})

	It("publishes idle instances as such", func() {
		Expect(start().metrics()).To(HaveKeyWithValue("mrgc_in_flight use1-0 use1", 0.0))
	})
})

// metrics are the published figures by name and label values; a histogram's is
// its count.
func (h *harness) metrics() map[string]float64 {
	GinkgoHelper()
	families, err := h.registry.Gather()
	Expect(err).NotTo(HaveOccurred())
	figures := map[string]float64{}
	for _, family := range families {
		for _, m := range family.GetMetric() {
			key := []string{family.GetName()}
			for _, label := range m.GetLabel() {
				key = append(key, label.GetValue())
			}
			figures[strings.Join(key, " ")] = m.GetCounter().GetValue() + m.GetGauge().GetValue() +
				float64(m.GetHistogram().GetSampleCount())
		}
	}
	return figures
}

var _ = Describe("A refusal", func() {
	DescribeTable("says what is wrong, in OpenAI's shape",
		func(ctx SpecContext, request headers, view func(*harness), status int, code, param string) {
			h := start()
			if view != nil {
				view(h)
			}
			answer := h.ask(ctx, request)
			Expect(answer.GetDynamicMetadata()).To(BeNil())
			refusal := answer.GetImmediateResponse()
			Expect(refusal).NotTo(BeNil(), "got %v", answer)
			Expect(refusal.GetStatus().GetCode()).To(BeNumerically("==", status))
			Expect(refusal.GetDetails()).To(Equal("mrgc_" + code))

			parsed := api.ParseError(status, refusal.GetBody())
			Expect(parsed.Code).To(Equal(code))
			Expect(parsed.Param).To(Equal(param))

			want := map[string]string{"content-type": "application/json"}
			switch code {
			case "stale_recipients":
				want["mrgc-key-status"] = "stale"
			case "no_instance_ready":
				want["retry-after"] = "1"
			}
			Expect(setHeaders(refusal)).To(Equal(want))

			By("keeping the credential to itself, and counting nothing as in flight")
			Expect(string(refusal.GetBody())).NotTo(ContainSubstring(token))
			Expect(h.logs.String()).To(And(ContainSubstring(code), Not(ContainSubstring(token))))
			for _, id := range []string{"use1-0", "use1-1", "usw2-0"} {
				Expect(h.picker.InFlight(id)).To(BeZero())
			}
		},
		refused("no content type", sealed("1").without("content-type"), 400, "request_not_sealed", ""),
		refused("another content type", sealed("1").with("content-type", "application/json"), 400, "request_not_sealed", ""),
		refused("two content types", sealed("1").and("content-type", "application/mrgc-chunked-req"), 400, "request_not_sealed", ""),
		refused("joined content types", sealed("1").with("content-type", "application/mrgc-chunked-req,text/plain"), 400, "request_not_sealed", ""),
		refused("no headers at all", nil, 400, "request_not_sealed", ""),
		refused("not sealed before anything else", headers{}.and("content-type", "application/json"), 400, "request_not_sealed", ""),

		invalid("no model", sealed("1").without("mrgc-model"), "Mrgc-Model"),
		invalid("an empty model", sealed("1").with("mrgc-model", ""), "Mrgc-Model"),
		invalid("two models", sealed("1").and("mrgc-model", model), "Mrgc-Model"),
		invalid("a second model in capitals", sealed("1").and("MRGC-MODEL", "large"), "Mrgc-Model"),
		invalid("joined models", sealed("1").with("mrgc-model", "smol,smol"), "Mrgc-Model"),
		invalid("a space in the model", sealed("1").with("mrgc-model", "smol 2"), "Mrgc-Model"),
		invalid("a model that is not ASCII", sealed("1").with("mrgc-model", "smöl"), "Mrgc-Model"),
		invalid("a model that is not UTF-8", sealed("1").with("mrgc-model", "smol\xff"), "Mrgc-Model"),
		invalid("a model too long", sealed("1").with("mrgc-model", strings.Repeat("m", 257)), "Mrgc-Model"),
		invalid("no tenant", sealed("1").without("mrgc-tenant"), "Mrgc-Tenant"),
		invalid("two tenants", sealed("1").and("mrgc-tenant", tenant), "Mrgc-Tenant"),
		invalid("no recipients", sealed("1").without("mrgc-recipients"), "Mrgc-Recipients"),
		invalid("empty recipients", sealed("1").with("mrgc-recipients", ""), "Mrgc-Recipients"),
		invalid("two lists of recipients", sealed("1").and("mrgc-recipients", kidC), "Mrgc-Recipients"),
		invalid("a repeated recipient", sealed("1").with("mrgc-recipients", kidA+","+kidA), "Mrgc-Recipients"),
		invalid("a recipient in capitals", sealed("1").with("mrgc-recipients", strings.ToUpper(kidA)), "Mrgc-Recipients"),
		invalid("a short recipient", sealed("1").with("mrgc-recipients", kidA[1:]), "Mrgc-Recipients"),
		invalid("a space between recipients", sealed("1").with("mrgc-recipients", kidA+", "+kidB), "Mrgc-Recipients"),
		invalid("an empty recipient", sealed("1").with("mrgc-recipients", kidA+","), "Mrgc-Recipients"),
		invalid("too many recipients", sealed("1").with("mrgc-recipients", strings.Repeat(kidA+",", 64)+kidB), "Mrgc-Recipients"),
		invalid("no request id", sealed("1").without("mrgc-request-id"), "Mrgc-Request-Id"),
		invalid("a short request id", sealed("1").with("mrgc-request-id", "0123"), "Mrgc-Request-Id"),
		invalid("a request id that is not hex", sealed("1").with("mrgc-request-id", strings.Repeat("g", 32)), "Mrgc-Request-Id"),
		invalid("two affinities", sealed("1").and("mrgc-affinity", "a").and("mrgc-affinity", "a"), "Mrgc-Affinity"),
		invalid("an empty affinity", sealed("1").and("mrgc-affinity", ""), "Mrgc-Affinity"),
		invalid("a size of one number", sealed("1").and("mrgc-size", "100"), "Mrgc-Size"),
		invalid("a size that is no number", sealed("1").and("mrgc-size", "100/-1"), "Mrgc-Size"),
		invalid("a size too long", sealed("1").and("mrgc-size", "1234567890/1"), "Mrgc-Size"),
		invalid("malformed before bad credentials", sealed("1").without("mrgc-model").without("authorization"), "Mrgc-Model"),

		refused("no token", sealed("1").without("authorization"), 401, "invalid_api_key", ""),
		refused("another token", sealed("1").with("authorization", "Bearer "+token+"x"), 401, "invalid_api_key", ""),
		refused("an empty token", sealed("1").with("authorization", "Bearer "), 401, "invalid_api_key", ""),
		refused("another scheme", sealed("1").with("authorization", "Basic "+token), 401, "invalid_api_key", ""),
		refused("a token alone", sealed("1").with("authorization", token), 401, "invalid_api_key", ""),
		refused("the token twice", sealed("1").and("authorization", "Bearer "+token), 401, "invalid_api_key", ""),
		refused("joined tokens", sealed("1").with("authorization", "Bearer "+token+",Bearer "+token), 401, "invalid_api_key", ""),
		refused("another tenant's token", sealed("1").with("mrgc-tenant", "other"), 401, "invalid_api_key", ""),
		refused("bad credentials before an unknown model",
			sealed("1").without("authorization").with("mrgc-model", "x"), 401, "invalid_api_key", ""),

		refused("a model that nobody serves", sealed("1").with("mrgc-model", "gpt"), 404, "model_not_found", "model"),
		refused("keys that nobody holds", sealed("1").with("mrgc-recipients", "0123456789abcdef"), 409, "stale_recipients", ""),
		Entry("keys of instances that serve another model", sealed("1"), func(h *harness) {
			h.see(instance("use1-0", "use1", kidA, otherModel), instance("use1-1", "use1", kidC))
		}, 409, "stale_recipients", ""),

		unready("no snapshot yet", func(h *harness) { h.seeSnapshot(nil) }),
		unready("an empty fleet", func(h *harness) { h.see() }),
		elsewhere("recipients that drain, while others are ready", instance("use1-0", "use1", kidA, draining)),
		elsewhere("recipients that are sick, while others are ready", instance("use1-0", "use1", kidA, sick)),
		elsewhere("recipients not heard of, while others are", instance("use1-0", "use1", kidA, stale)),
		unready("recipients that drain, and others of another model", func(h *harness) {
			h.see(instance("use1-0", "use1", kidA, draining), instance("use1-1", "use1", kidC, otherModel))
		}),
		unready("recipients that are sick, and others that drain", func(h *harness) {
			h.see(instance("use1-0", "use1", kidA, sick), instance("use1-1", "use1", kidC, draining))
		}),
		unready("recipients not heard of, and others in a region that may not be used", func(h *harness) {
			h.see(instance("use1-0", "use1", kidA, stale), instance("use1-1", "use1", kidC, sick), instance("euw1-0", "euw1", kidC))
		}),
		unready("recipients in a region that may not be used", func(h *harness) { h.see(instance("euw1-0", "euw1", kidA)) }),
	)
})

func refused(what string, request headers, status int, code, param string) TableEntry {
	return Entry(what, request, nil, status, code, param)
}

func invalid(what string, request headers, header string) TableEntry {
	return Entry(what, request, nil, http.StatusBadRequest, "invalid_header", header)
}

func unready(what string, view func(*harness)) TableEntry {
	return Entry(what, sealed("1"), view, http.StatusServiceUnavailable, "no_instance_ready", "")
}

// elsewhere is a recipient that takes no requests beside an instance that does: the client
// is to seal the request to that one.
func elsewhere(what string, recipient *fleet.Instance) TableEntry {
	return Entry(what, sealed("1"), func(h *harness) { h.see(recipient, instance("use1-1", "use1", kidC)) },
		http.StatusConflict, "stale_recipients", "")
}

func setHeaders(refusal *extprocv3.ImmediateResponse) map[string]string {
	GinkgoHelper()
	set := map[string]string{}
	for _, option := range refusal.GetHeaders().GetSetHeaders() {
		Expect(option.GetAppendAction()).To(Equal(corev3.HeaderValueOption_OVERWRITE_IF_EXISTS_OR_ADD))
		Expect(option.GetHeader().GetValue()).To(BeEmpty())
		set[option.GetHeader().GetKey()] = string(option.GetHeader().GetRawValue())
	}
	return set
}

var _ = Describe("Headers", func() {
	DescribeTable("are understood however they come",
		func(ctx SpecContext, change func(headers) headers) {
			h := start()
			Expect(picked(h.ask(ctx, change(sealed("1"))))).NotTo(BeEmpty())
		},
		Entry("names in capitals", func(h headers) headers {
			for _, v := range h {
				v.Key = strings.ToUpper(v.Key)
			}
			return h
		}),
		Entry("in value and not raw_value", func(h headers) headers {
			for _, v := range h {
				v.Value, v.RawValue = string(v.RawValue), nil
			}
			return h
		}),
		Entry("the scheme in lower case", func(h headers) headers { return h.with("authorization", "bearer "+token) }),
		Entry("the content type in capitals", func(h headers) headers {
			return h.with("content-type", "Application/MRGC-chunked-req")
		}),
		Entry("optional ones too", func(h headers) headers {
			return h.and("mrgc-affinity", "k=/+").and("mrgc-size", "4096/256")
		}),
		Entry("unknown ones too", func(h headers) headers { return h.and("mrgc-new", "a").and("mrgc-new", "b") }),
		Entry("without Envoy's id", func(h headers) headers { return h.without("x-request-id") }),
		Entry("with a destination of the client's own", func(h headers) headers {
			return h.and("x-gateway-destination-endpoint", "10.0.0.1:1")
		}),
	)

	It("takes 64 recipients, and finds the one that is there", func(ctx SpecContext) {
		var kids []string
		for i := range 63 {
			kids = append(kids, strings.Repeat(string("0123456789"[i%10]), 8)+strings.Repeat(string("abcdef0"[i/10]), 8))
		}
		h := start()
		Expect(picked(h.ask(ctx, sealed("1").with("mrgc-recipients", strings.Join(append(kids, kidA), ","))))).
			To(Equal("addr-use1-0"))
	})

	It("hand the bearer token out once and wipe it", func() {
		var seen, kept []byte
		cfg := config(usual)
		cfg.Admit = func(_ string, bearer []byte, _ time.Time) (*rules.Tenant, error) {
			seen, kept = append(seen, bearer...), bearer
			return &rules.Tenant{}, nil
		}
		picker, err := extproc.New(cfg)
		Expect(err).NotTo(HaveOccurred())
		request := sealed("1")
		for _, v := range request { // as value: the token is a copy then, to be wiped by itself
			v.Value, v.RawValue = string(v.RawValue), nil
		}
		Expect(picker.Process(&memoryStream{messages: []*extprocv3.ProcessingRequest{request.message()}})).To(Succeed())
		Expect(string(seen)).To(Equal(token))
		Expect(kept).To(HaveEach(BeZero()))
	})

	DescribeTable("are wiped of credentials, also of those that are not looked at",
		func(request headers) {
			picker, err := extproc.New(config(usual))
			Expect(err).NotTo(HaveOccurred())
			Expect(picker.Process(&memoryStream{messages: []*extprocv3.ProcessingRequest{request.message()}})).To(Succeed())
			for _, header := range request {
				Expect(string(header.GetRawValue())).NotTo(ContainSubstring(token))
			}
		},
		Entry("a good one", sealed("1")),
		Entry("two", sealed("1").and("authorization", "Bearer "+token)),
		Entry("another scheme", sealed("1").with("authorization", "Basic "+token)),
		Entry("of a request that is not sealed", sealed("1").without("content-type")),
	)
})

var _ = Describe("Requests in flight", func() {
	It("end with the last entry of the access log", func(ctx SpecContext) {
		h := start()
		h.ask(ctx, sealed("1").with("mrgc-recipients", kidA))
		h.ask(ctx, sealed("2").with("mrgc-recipients", kidA))
		Expect(h.picker.InFlight("use1-0")).To(Equal(2))
		h.log(ctx, ended("1"), ended("1"), ended("unknown"), ended(""))
		Expect(h.picker.InFlight("use1-0")).To(Equal(1))
		h.log(ctx, ended("2", logType("NotSet")))
		Expect(h.picker.InFlight("use1-0")).To(BeZero())
	})

	DescribeTable("go on with entries that are not its end",
		func(ctx SpecContext, change func(*accessLogCommon)) {
			h := start()
			h.ask(ctx, sealed("1").with("mrgc-recipients", kidA))
			h.log(ctx, ended("1", change))
			Expect(h.picker.InFlight("use1-0")).To(Equal(1))
		},
		Entry(nil, logType("DownstreamStart")),
		Entry(nil, logType("DownstreamPeriodic")),
		Entry(nil, logType("UpstreamPoolReady")),
		Entry(nil, logType("UpstreamEnd")),
	)

	It("end after the time-out when nobody says so", func(ctx SpecContext) {
		h := start()
		h.ask(ctx, sealed("1").with("mrgc-recipients", kidA))
		h.advance(extproc.DefaultInFlightTimeout)
		Expect(h.picker.InFlight("use1-0")).To(Equal(1))
		h.advance(time.Nanosecond)
		Expect(h.picker.InFlight("use1-0")).To(BeZero())
	})

	It("may have ended unheard where Envoy had its log before it came here", func(ctx SpecContext) {
		h := start()
		h.ask(ctx, sealed("lost").with("mrgc-recipients", kidA))
		h.log(ctx)
		h.advance(time.Millisecond)
		h.ask(ctx, sealed("later").with("mrgc-recipients", kidA))
		h.advance(extproc.DoubtedFor - 2*time.Millisecond)
		Expect(h.picker.InFlight("use1-0")).To(Equal(2))
		h.advance(time.Millisecond)
		Expect(h.picker.InFlight("use1-0")).To(Equal(1))
	})

	It("are not those whose pick Envoy never heard of", func() {
		picker, err := extproc.New(config(usual))
		Expect(err).NotTo(HaveOccurred())
		gone := &memoryStream{messages: []*extprocv3.ProcessingRequest{sealed("1").message()}, sendErr: context.Canceled}
		Expect(picker.Process(gone)).To(MatchError(context.Canceled))
		Expect(picker.InFlight("use1-0") + picker.InFlight("use1-1")).To(BeZero())
	})

	It("are not those that Envoy has given up before the pick", func() {
		picker, err := extproc.New(config(usual))
		Expect(err).NotTo(HaveOccurred())
		ctx, giveUp := context.WithCancel(context.Background())
		giveUp()
		late := &memoryStream{messages: []*extprocv3.ProcessingRequest{sealed("1").message()}, ctx: ctx}
		Expect(picker.Process(late)).To(MatchError(context.Canceled))
		Expect(late.last).To(BeNil())
		Expect(picker.InFlight("use1-0") + picker.InFlight("use1-1")).To(BeZero())
	})

	It("go on when the stream is aborted after the pick", func(ctx SpecContext) {
		h := start()
		streamCtx, abort := context.WithCancel(ctx)
		stream := h.open(streamCtx)
		Expect(stream.Send(sealed("1").with("mrgc-recipients", kidA).message())).To(Succeed())
		_, err := stream.Recv()
		Expect(err).NotTo(HaveOccurred())
		abort()
		Consistently(func() int { return h.picker.InFlight("use1-0") }, "50ms").Should(Equal(1))
		h.log(ctx, ended("1"))
		Expect(h.picker.InFlight("use1-0")).To(BeZero())
	})
})
