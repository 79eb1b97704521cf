package parent_test

import (
	"io"
	"net/http"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/mrgc/mrgc/internal/api"
	"github.com/mrgc/mrgc/internal/fleet"
	"github.com/mrgc/mrgc/parent"
)

// tokens is what a parent has accounted for, by kind.
func tokens(registry *prometheus.Registry) map[string]float64 {
	GinkgoHelper()
	families, err := registry.Gather()
	Expect(err).NotTo(HaveOccurred())
	counted := map[string]float64{}
	for _, family := range families {
		if family.GetName() != "mrgc_parent_tokens_total" {
			continue
		}
		for _, metric := range family.GetMetric() {
			labels := map[string]string{}
			for _, label := range metric.GetLabel() {
				labels[label.GetName()] = label.GetValue()
			}
			Expect(labels).To(And(HaveKeyWithValue("region", region), HaveKeyWithValue("instance", instanceID), HaveLen(3)))
			counted[labels["kind"]] = metric.GetCounter().GetValue()
		}
	}
	return counted
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
	It("is added up, and stays here", func(ctx SpecContext) {
		in, registry := metered()
		for _, used := range []string{"64/1024", "128/64"} {
			in.enclave.answers(uses(used))
			resp := in.send(in.sealed(ctx, "request"))
			Expect(readAll(resp)).To(Equal("sealed answer"))
			Expect(resp.Trailer).To(BeEmpty())
			Expect(resp.Header).NotTo(Or(HaveKey("Trailer"), HaveKey(api.HeaderUsage)))
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
		in.eventuallyAnswered(ctx, "use1-1 got sealed", elsewhere)
		in.enclave.answers(uses("64/64"))
		in.send(in.sealed(ctx, "request"))
		Eventually(ctx, func() map[string]float64 { return tokens(registry) }).Should(Equal(map[string]float64{"prompt": 64, "output": 64}))
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
