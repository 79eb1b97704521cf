package parent_test

import (
	"io"
	"net"
	"net/http"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"

	"github.com/mrgc/mrgc/internal/api"
	"github.com/mrgc/mrgc/internal/fleet"
	"github.com/mrgc/mrgc/parent"
)

// tokens is what a parent has accounted for, by kind.
func tokens(registry *prometheus.Registry) map[string]float64 {
	GinkgoHelper()
	return counters(registry, "mrgc_parent_tokens_total", "kind")
}

// counters are a counter's values, by its one label that is not the instance's.
func counters(registry *prometheus.Registry, name, label string) map[string]float64 {
	GinkgoHelper()
	return metricsOf(registry, name, label, func(m *dto.Metric) float64 { return m.GetCounter().GetValue() })
}

// observations are how often histograms were told something, likewise.
func observations(registry *prometheus.Registry, name, label string) map[string]uint64 {
	GinkgoHelper()
	return metricsOf(registry, name, label, func(m *dto.Metric) uint64 { return m.GetHistogram().GetSampleCount() })
}

func metricsOf[V any](registry *prometheus.Registry, name, label string, value func(*dto.Metric) V) map[string]V {
	GinkgoHelper()
	families, err := registry.Gather()
	Expect(err).NotTo(HaveOccurred())
	values := map[string]V{}
	for _, family := range families {
		if family.GetName() != name {
			continue
		}
		for _, metric := range family.GetMetric() {
			labels := map[string]string{}
			for _, label := range metric.GetLabel() {
				labels[label.GetName()] = label.GetValue()
			}
			Expect(labels).To(And(HaveKeyWithValue("region", region), HaveKeyWithValue("instance", instanceID), HaveLen(3)))
			values[labels[label]] = value(metric)
		}
	}
	return values
}

// metered starts a parent whose metrics are published.
func metered() (*instance, *prometheus.Registry) {
	registry := prometheus.NewRegistry()
	return start(func(c *parent.Config) { c.Metrics = registry }), registry
}

// uses is an enclave whose answers have used this.
func uses(trailers ...string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		_, _ = io.WriteString(w, "sealed answer")
		_ = http.NewResponseController(w).Flush() // as enclaves do with each chunk; else it would be of known length
		w.Header()[http.TrailerPrefix+api.HeaderUsage] = trailers
	}
}

var _ = Describe("What answers have used", func() {
	It("is added up, and goes on to Envoy", func(ctx SpecContext) {
		in, registry := metered()
		for _, used := range []string{"64/1024", "128/64"} {
			in.enclave.answers(uses(used))
			resp := in.send(in.sealed(ctx, "request"))
			Expect(readAll(resp)).To(Equal("sealed answer"))
			Expect(resp.Trailer).To(Equal(http.Header{api.HeaderUsage: {used}}))
			Expect(resp.Header).NotTo(HaveKey(api.HeaderUsage))
		}
		Eventually(ctx, func() map[string]float64 { return tokens(registry) }).Should(Equal(map[string]float64{"prompt": 192, "output": 1088}))
	}, NodeTimeout(specTimeout))

	DescribeTable("is nothing", func(ctx SpecContext, answer http.HandlerFunc) {
		in, registry := metered()
		in.enclave.answers(answer)
		resp, err := in.envoy.Do(in.sealed(ctx, "request"))
		Expect(err).NotTo(HaveOccurred())
		defer resp.Body.Close()
		_, _ = io.Copy(io.Discard, resp.Body)
		Expect(resp.Trailer).To(BeEmpty())
		// Another answer's tokens say that this one's would have been counted.
		in.enclave.answers(uses("64/64"))
		in.send(in.sealed(ctx, "request"))
		Eventually(ctx, func() map[string]float64 { return tokens(registry) }).Should(Equal(map[string]float64{"prompt": 64, "output": 64}))
	},
		Entry("when the enclave does not say", NodeTimeout(specTimeout), uses()),
		Entry("when what it says is no size", NodeTimeout(specTimeout), uses("1/1")),
		Entry("when it comes as a header", NodeTimeout(specTimeout), http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set(api.HeaderUsage, "64/64")
			_, _ = io.WriteString(w, "sealed answer")
		})),
		Entry("when the answer was cut", NodeTimeout(specTimeout), http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			uses("64/64")(w, nil)
			panic(http.ErrAbortHandler)
		})),
	)

	It("is the peer's to count that has answered", func(ctx SpecContext) {
		in, registry := metered()
		in.peer(ctx, "use1-1", fleet.Load{}, true, elsewhere)
		Expect(in.eventuallyAnswered(ctx, "use1-1 got sealed", elsewhere).Trailer).To(Equal(http.Header{api.HeaderUsage: {"128/128"}}), "and goes on")
		in.enclave.answers(uses("64/64"))
		in.send(in.sealed(ctx, "request"))
		Eventually(ctx, func() map[string]float64 { return tokens(registry) }).Should(Equal(map[string]float64{"prompt": 64, "output": 64}))
	}, NodeTimeout(specTimeout))

	It("is not all that is told: whether the engine failed goes on to Envoy, in one of three words", func(ctx SpecContext) {
		in := start()
		for said, passed := range map[string]string{"failed": "failed", "refused": "refused", "rejected": "rejected", "": "", "the prompt": ""} {
			in.enclave.answers(func(w http.ResponseWriter, r *http.Request) {
				uses("64/64")(w, r)
				w.Header().Set(http.TrailerPrefix+api.HeaderOutcome, said)
			})
			resp := in.send(in.sealed(ctx, "request"))
			Expect(readAll(resp)).To(Equal("sealed answer"))
			Expect(resp.Trailer.Get(api.HeaderOutcome)).To(Equal(passed))
		}
		Expect(in.parent.Failed()).To(BeEquivalentTo(1), "of these the engine failed one")
	}, NodeTimeout(specTimeout))

	It("can be published by one parent in a process", func() {
		in := surroundings()
		config := in.config()
		config.Metrics = prometheus.NewRegistry()
		_, err := parent.New(config)
		Expect(err).NotTo(HaveOccurred())
		_, err = parent.New(config)
		Expect(err).To(MatchError(ContainSubstring("parent: duplicate metrics")))
	})
})

var _ = Describe("Requests", func() {
	It("are counted by where they were sent", func(ctx SpecContext) {
		in, registry := metered()
		sent := func() map[string]float64 { return counters(registry, "mrgc_parent_requests_total", "to") }
		Expect(sent()).To(Equal(map[string]float64{"enclave": 0, "peer": 0}))
		in.send(in.sealed(ctx, "request"))
		Expect(sent()).To(Equal(map[string]float64{"enclave": 1, "peer": 0}))
		in.peer(ctx, "use1-1", fleet.Load{}, true, elsewhere)
		in.eventuallyAnswered(ctx, "use1-1 got sealed", elsewhere)
		before := sent()
		Expect(before).To(HaveKeyWithValue("peer", 1.0))
		in.send(in.sealedTo(ctx, elsewhere))
		Expect(sent()).To(Equal(map[string]float64{"enclave": before["enclave"], "peer": 2}))
	}, NodeTimeout(specTimeout))
})

var _ = Describe("A metrics page", func() {
	listen := func(address string) net.Listener {
		GinkgoHelper()
		listener, err := net.Listen("tcp", address)
		Expect(err).NotTo(HaveOccurred())
		DeferCleanup(func() { _ = listener.Close() })
		return listener
	}

	It("says what the parent has counted, and nothing else is served there", func(ctx SpecContext) {
		listener := listen("127.0.0.1:0")
		in := start(func(c *parent.Config) { c.MetricsListener = listener })
		in.enclave.answers(uses("64/1024"))
		Expect(readAll(in.send(in.sealed(ctx, "request")))).To(Equal("sealed answer"))
		plain := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
		page := func(path string) (int, string) {
			GinkgoHelper()
			resp, err := plain.Get("http://" + listener.Addr().String() + path)
			Expect(err).NotTo(HaveOccurred())
			defer resp.Body.Close()
			body, err := io.ReadAll(resp.Body)
			Expect(err).NotTo(HaveOccurred())
			return resp.StatusCode, string(body)
		}
		Eventually(ctx, func() string { _, body := page("/metrics"); return body }).Should(And(
			ContainSubstring(`mrgc_parent_requests_total{instance="use1-0",region="use1",to="enclave"} 1`),
			ContainSubstring(`mrgc_parent_tokens_total{instance="use1-0",kind="output",region="use1"} 1024`),
		))
		for _, path := range []string{"/", api.PathKeys, "/recipients"} {
			status, _ := page(path)
			Expect(status).To(Equal(http.StatusNotFound), path)
		}
	}, NodeTimeout(specTimeout))

	It("is on loopback alone", func() {
		in := surroundings()
		config := in.config()
		config.MetricsListener = listen("0.0.0.0:0")
		_, err := parent.New(config)
		Expect(err).To(MatchError(ContainSubstring("could be read by other machines")))
	})
})
