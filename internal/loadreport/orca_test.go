package loadreport_test

import (
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"
	"testing"

	orcav3 "github.com/cncf/xds/go/xds/data/orca/v3"
	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"

	"github.com/mrgc/mrgc/internal/loadreport"
)

func sorted(names []string) []string { return slices.Sorted(slices.Values(names)) }

var _ = Describe("A report", func() {
	It("has its figures where ORCA has them", func() {
		got := loadreport.Encode(full())
		Expect(got.Validate()).To(Succeed())
		Expect(proto.Equal(got, &orcav3.OrcaLoadReport{
			ApplicationUtilization: 15.0 / 16, RpsFractional: 12.5, Eps: 0.25, MemUtilization: 0.88,
			Utilization: map[string]float64{"gpu": 0.97},
			NamedMetrics: map[string]float64{
				"num_requests_waiting": 3, "num_requests_running": 12, "kv_cache_usage_perc": 0.31, "slots": 16,
				"tokens_in_flight": 9216, "unread_tokens": 1024, "read_tokens_per_second": 20_000, "request_seconds": 1.5, "gpu_temperature_celsius": 64,
				"model:llama-3/8b@2026-09-01": 1, "model:smol@": 1,
			},
		})).To(BeTrue(), "%v", got)
	})

	It("says nothing of what is not known", func() {
		got := loadreport.Encode(loadreport.Report{})
		Expect(got.GetUtilization()).To(BeEmpty())
		Expect(got.GetNamedMetrics()).NotTo(Or(HaveKey("slots"), HaveKey("read_tokens_per_second"), HaveKey("request_seconds"), HaveKey("gpu_temperature_celsius")))
	})

	It("arrives as it was sent", func() {
		rapid.Check(GinkgoT(), func(t *rapid.T) {
			sent := reports().Draw(t, "report")
			wire, err := proto.Marshal(loadreport.Encode(sent))
			if err != nil {
				t.Fatal(err)
			}
			var message orcav3.OrcaLoadReport
			if err := proto.Unmarshal(wire, &message); err != nil {
				t.Fatal(err)
			}
			if err := message.Validate(); err != nil {
				t.Fatalf("ORCA's own rules: %v", err)
			}
			got, err := loadreport.Decode(&message)
			if err != nil {
				t.Fatal(err)
			}
			if got.GPU != sent.GPU || !slices.Equal(got.Models, sent.Models) || !proto.Equal(loadreport.Encode(got), &message) {
				t.Fatalf("sent %+v, got %+v", sent, got)
			}
		})
	})

	It("may say more than is known here", func() {
		message := loadreport.Encode(full())
		message.NamedMetrics["lru_blocks"], message.Utilization["tpu"] = -1, 0.5
		Expect(loadreport.Decode(message)).To(Equal(full()))
	})

	DescribeTable("is refused, by name,", func(breakIt func(*orcav3.OrcaLoadReport), reason string) {
		message := loadreport.Encode(full())
		_, err := loadreport.Decode(message)
		Expect(err).NotTo(HaveOccurred())
		breakIt(message)
		_, err = loadreport.Decode(message)
		Expect(err).To(MatchError(ContainSubstring(reason)))
	},
		Entry("without a queue", without("num_requests_waiting"), "num_requests_waiting is missing"),
		Entry("without what runs", without("num_requests_running"), "num_requests_running is missing"),
		Entry("with half a request", with("num_requests_waiting", 0.5), "num_requests_waiting is not a whole number"),
		Entry("with half a slot", with("slots", 0.5), "slots is not a whole number"),
		Entry("with half a token", with("tokens_in_flight", 0.5), "tokens_in_flight is not a whole number"),
		Entry("with a queue of NaN", with("num_requests_waiting", math.NaN()), "num_requests_waiting is not a number"),
		Entry("with fewer than none that run", with("num_requests_running", -1), "num_requests_running is negative"),
		Entry("with endless slots", with("slots", math.Inf(1)), "slots is larger than"),
		Entry("with too many tokens", with("tokens_in_flight", 1<<31), "tokens_in_flight is larger than"),
		Entry("with half an unread token", with("unread_tokens", 0.5), "unread_tokens is not a whole number"),
		Entry("with a speed of NaN", with("read_tokens_per_second", math.NaN()), "read tokens per second is not a number"),
		Entry("with requests that take less than no time", with("request_seconds", -1), "request_seconds is negative"),
		Entry("with requests that take for ever", with("request_seconds", math.Inf(1)), "request_seconds is larger than"),
		Entry("with a cache that is more than full", with("kv_cache_usage_perc", 1.01), "KV-cache use is larger than 1"),
		Entry("with a cache of NaN", with("kv_cache_usage_perc", math.NaN()), "KV-cache use is not a number"),
		Entry("with an icy GPU", with("gpu_temperature_celsius", -300), "GPU temperature is negative"),
		Entry("with a burning GPU", with("gpu_temperature_celsius", 151), "GPU temperature is larger than 150"),
		Entry("with a GPU that is more than busy", func(m *orcav3.OrcaLoadReport) { m.Utilization["gpu"] = 1.5 }, "GPU utilization is larger than 1"),
		Entry("with more memory than there is", func(m *orcav3.OrcaLoadReport) { m.MemUtilization = 2 }, "GPU memory is larger than 1"),
		Entry("with a negative rate", func(m *orcav3.OrcaLoadReport) { m.RpsFractional = -1 }, "requests per second is negative"),
		Entry("with errors of NaN", func(m *orcav3.OrcaLoadReport) { m.Eps = math.NaN() }, "errors per second is not a number"),
		Entry("with a model without a version", with("model:other", 1), "names a model without a version"),
		Entry("with a model that has no name", with("model:@v1", 1), `model ""`),
		Entry("with a version that is none", with("model:other@v 1", 1), `version "v 1" of model other`),
		Entry("with a model in two versions", with("model:smol@v2", 1), "smol is listed twice"),
		Entry("with more models than any instance", func(m *orcav3.OrcaLoadReport) {
			for i := range 300 {
				m.NamedMetrics["model:m"+strconv.Itoa(i)+"@"] = 1
			}
		}, "more than 256 models"),
	)

	It("is refused when there is none", func() {
		_, err := loadreport.Decode(nil)
		Expect(err).To(MatchError(ContainSubstring("there is none")))
	})
})

func with(name string, value float64) func(*orcav3.OrcaLoadReport) {
	return func(m *orcav3.OrcaLoadReport) { m.NamedMetrics[name] = value }
}

func without(name string) func(*orcav3.OrcaLoadReport) {
	return func(m *orcav3.OrcaLoadReport) { delete(m.NamedMetrics, name) }
}

var _ = Describe("A report in a header", func() {
	It("is ORCA's native HTTP encoding, rounded", func() {
		r := full()
		r.RequestsPerSecond = 1.0 / 3
		Expect(r.Text()).To(Equal("TEXT application_utilization=0.9375,rps_fractional=0.3333,eps=0.25,mem_utilization=0.88," +
			"named_metrics.num_requests_waiting=3,named_metrics.num_requests_running=12,named_metrics.kv_cache_usage_perc=0.31," +
			"named_metrics.tokens_in_flight=9216,named_metrics.unread_tokens=1024,named_metrics.slots=16"))
	})

	It("has names and plain numbers alone, each once, whatever the report", func() {
		rapid.Check(GinkgoT(), func(t *rapid.T) {
			r := reports().Draw(t, "report")
			list, ok := strings.CutPrefix(r.Text(), "TEXT ")
			if !ok {
				t.Fatal(r.Text())
			}
			seen := map[string]float64{}
			for _, entry := range strings.Split(list, ",") {
				name, text, _ := strings.Cut(entry, "=")
				value, err := strconv.ParseFloat(text, 64)
				if _, twice := seen[name]; twice || err != nil || value < 0 || strings.ContainsAny(text, "eE") {
					t.Fatalf("%q in %s", entry, r.Text())
				}
				seen[name] = value
			}
			want := maps.Clone(loadreport.Encode(r).GetNamedMetrics())
			for _, name := range []string{"num_requests_waiting", "num_requests_running", "tokens_in_flight"} {
				if seen["named_metrics."+name] != want[name] {
					t.Fatalf("%s is %g, want %g", name, seen["named_metrics."+name], want[name])
				}
			}
		})
	})
})

func FuzzDecode(f *testing.F) {
	for _, r := range []loadreport.Report{{}, full()} {
		wire, err := proto.Marshal(loadreport.Encode(r))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(wire)
	}
	f.Add([]byte("\x42\x1f\x0a\x14num_requests_waiting\x11\x00\x00\x00\x00\x00\x00\xf8\x7f"))
	f.Fuzz(func(t *testing.T, wire []byte) {
		var message orcav3.OrcaLoadReport
		if proto.Unmarshal(wire, &message) != nil {
			return
		}
		r, err := loadreport.Decode(&message)
		if err != nil {
			return
		}
		if err := r.Validate(); err != nil {
			t.Fatalf("decoded what is not valid: %v", err)
		}
		again, err := loadreport.Decode(loadreport.Encode(r))
		if err != nil || !slices.Equal(again.Models, r.Models) || again.GPU != r.GPU || again.Queued != r.Queued || again.KVCacheUse != r.KVCacheUse {
			t.Fatalf("%+v came back as %+v: %v", r, again, err)
		}
	})
}

func BenchmarkText(b *testing.B) {
	r := full()
	b.ReportAllocs()
	for b.Loop() {
		_ = r.Text()
	}
}
