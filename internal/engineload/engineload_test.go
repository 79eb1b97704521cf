package engineload_test

import (
	_ "embed"
	"strings"
	"testing"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"

	"github.com/mrgc/mrgc/internal/engineload"
)

func TestEngineLoad(t *testing.T) {
	RegisterFailHandler(Fail)
	RunSpecs(t, "engineload")
}

const llamaMetrics = `# HELP llamacpp:requests_processing Number of requests processing
# TYPE llamacpp:requests_processing gauge
llamacpp:requests_processing 4
# TYPE llamacpp:requests_deferred gauge
llamacpp:requests_deferred 24
`

const vllmMetrics = `# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="m"} 3.0
vllm:num_requests_running{engine="1",model_name="m"} 2.0
# TYPE vllm:num_requests_waiting gauge
vllm:num_requests_waiting{engine="0",model_name="m"} 7.0
# TYPE vllm:kv_cache_usage_perc gauge
vllm:kv_cache_usage_perc{engine="0",model_name="m"} 0.5
vllm:kv_cache_usage_perc{engine="1",model_name="m"} 0.25
`

// recorded is a real page, without what is said of the process and of times. vLLM's
// name for who waits begins another name, too (num_requests_waiting_by_reason).
//
//go:embed testdata/vllm-0.32.0.txt
var recorded string

var _ = Describe("Read", func() {
	DescribeTable("reads",
		func(text string, want engineload.Metrics) {
			Expect(engineload.Read(strings.NewReader(text))).To(Equal(want))
		},
		Entry("llama.cpp", llamaMetrics, engineload.Metrics{Running: 4, Queued: 24}),
		Entry("vLLM with two engines", vllmMetrics, engineload.Metrics{Running: 5, Queued: 7, KVCacheUse: 0.375}),
		Entry("vLLM 0.32.0 with 7 requests for 4 places, as recorded", recorded, engineload.Metrics{Running: 4, Queued: 3, KVCacheUse: 0.006837606837606813}),
		Entry("metrics without types", "llamacpp:requests_processing 1\nllamacpp:requests_deferred 2\n", engineload.Metrics{Running: 1, Queued: 2}),
	)
	DescribeTable("refuses",
		func(text, reason string) {
			_, err := engineload.Read(strings.NewReader(text))
			Expect(err).To(MatchError(And(ContainSubstring(reason), Not(ContainSubstring("SECRET")))))
		},
		Entry("nothing", "", "neither"),
		Entry("half of it", "llamacpp:requests_processing 1\n", "neither"),
		Entry("something else", "<html>SECRET {{", "not Prometheus"),
		Entry("less than none", strings.Replace(llamaMetrics, "processing 4", "processing -4", 1), "requests_processing is not a count"),
		Entry("no number", strings.Replace(llamaMetrics, "deferred 24", "deferred NaN", 1), "requests_deferred is not a count"),
		Entry("a cache that is more than full", strings.Replace(vllmMetrics, "0.25", "1.25", 1), "kv_cache_usage_perc is not between 0 and 1"),
		Entry("a cache of NaN", strings.Replace(vllmMetrics, "0.25", "NaN", 1), "kv_cache_usage_perc is not between 0 and 1"),
		Entry("too many", strings.Replace(llamaMetrics, "processing 4", "processing 1e300", 1), "is not a count"),
	)
})

func FuzzRead(f *testing.F) {
	f.Add(llamaMetrics)
	f.Add(vllmMetrics)
	f.Add(recorded)
	f.Add("vllm:num_requests_running 1\nvllm:num_requests_waiting 0\nvllm:kv_cache_usage_perc -Inf\n")
	f.Add("vllm:num_requests_running +Inf\nvllm:num_requests_waiting 0\n")
	f.Fuzz(func(t *testing.T, text string) {
		load, err := engineload.Read(strings.NewReader(text))
		if err == nil && (load.Running < 0 || load.Queued < 0 || load.KVCacheUse < 0 || load.KVCacheUse > 1) {
			t.Errorf("impossible load %+v", load)
		}
	})
}
