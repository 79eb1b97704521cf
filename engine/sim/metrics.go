package sim

import (
	"strconv"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/mrgc/mrgc/engine/sim/batching"
)

// metrics are an engine's metrics under vLLM's names
// (docs.vllm.ai/en/v0.32.0/usage/metrics). Times are virtual: those of the
// hardware that is imitated.
type metrics struct {
	registry                     *prometheus.Registry
	firstToken, nextToken, whole prometheus.Histogram
	ended                        *prometheus.CounterVec // by reason
}

func newMetrics(model string) *metrics {
	m := &metrics{registry: prometheus.NewRegistry()}
	labels := prometheus.Labels{"engine": "0", "model_name": model}
	histogram := func(name, help string, buckets ...float64) prometheus.Histogram {
		h := prometheus.NewHistogram(prometheus.HistogramOpts{Name: name, Help: help, ConstLabels: labels, Buckets: buckets})
		m.registry.MustRegister(h)
		return h
	}
	m.firstToken = histogram("vllm:time_to_first_token_seconds", "Time to first token in seconds.",
		.001, .005, .01, .02, .04, .06, .08, .1, .25, .5, .75, 1, 2.5, 5, 7.5, 10, 20, 40, 80, 160, 640, 2560)
	m.nextToken = histogram("vllm:inter_token_latency_seconds", "Time between tokens in seconds.",
		.01, .025, .05, .075, .1, .15, .2, .3, .4, .5, .75, 1, 2.5, 5, 7.5, 10, 20, 40, 80)
	m.whole = histogram("vllm:e2e_request_latency_seconds", "Time from a request's arrival to its last token in seconds.",
		.3, .5, .8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 240, 480, 960, 1920, 7680)
	m.ended = prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "vllm:request_success_total", Help: "Requests that ended well.", ConstLabels: labels,
	}, []string{"finished_reason"})
	m.registry.MustRegister(m.ended)
	return m
}

// collector reads a core's counts when they are asked for, all at one moment.
type collector struct {
	driver *driver
	counts []count
	info   *prometheus.Desc
}

type count struct {
	desc  *prometheus.Desc
	kind  prometheus.ValueType
	value func(batching.Stats) float64
}

func newCollector(d *driver, model string) *collector {
	labels := prometheus.Labels{"engine": "0", "model_name": model}
	c := &collector{driver: d, info: prometheus.NewDesc("vllm:cache_config_info", "The KV cache.", []string{"block_size", "num_gpu_blocks"}, labels)}
	add := func(kind prometheus.ValueType, name, help string, value func(batching.Stats) float64) {
		c.counts = append(c.counts, count{prometheus.NewDesc(name, help, nil, labels), kind, value})
	}
	gauge, counter := prometheus.GaugeValue, prometheus.CounterValue
	add(gauge, "vllm:num_requests_running", "Requests that run.",
		func(s batching.Stats) float64 { return float64(s.Running) })
	add(gauge, "vllm:num_requests_waiting", "Requests that wait.",
		func(s batching.Stats) float64 { return float64(s.Waiting) })
	add(gauge, "vllm:kv_cache_usage_perc", "Used part of the KV cache, from 0 to 1.",
		func(s batching.Stats) float64 { return float64(s.UsedBlocks) / float64(max(1, s.AllBlocks)) })
	add(counter, "vllm:prefix_cache_queries_total", "Tokens looked for in the prefix cache.",
		func(s batching.Stats) float64 { return float64(s.QueriedTokens) })
	add(counter, "vllm:prefix_cache_hits_total", "Tokens found in the prefix cache.",
		func(s batching.Stats) float64 { return float64(s.HitTokens) })
	add(counter, "vllm:num_preemptions_total", "Requests that lost their blocks to others and started over.",
		func(s batching.Stats) float64 { return float64(s.Preemptions) })
	add(counter, "vllm:prompt_tokens_total", "Tokens of prompts.",
		func(s batching.Stats) float64 { return float64(s.PromptTokens) })
	add(counter, "vllm:generation_tokens_total", "Tokens of answers.",
		func(s batching.Stats) float64 { return float64(s.GeneratedTokens) })
	return c
}

// Describe implements prometheus.Collector.
func (c *collector) Describe(to chan<- *prometheus.Desc) {
	to <- c.info
	for _, v := range c.counts {
		to <- v.desc
	}
}

// Collect implements prometheus.Collector.
func (c *collector) Collect(to chan<- prometheus.Metric) {
	var stats batching.Stats
	c.driver.with(func(core core) { stats = core.Stats() })
	for _, v := range c.counts {
		to <- prometheus.MustNewConstMetric(v.desc, v.kind, v.value(stats))
	}
	if stats.AllBlocks > 0 {
		to <- prometheus.MustNewConstMetric(c.info, prometheus.GaugeValue, 1, strconv.Itoa(batching.BlockTokens), strconv.Itoa(stats.AllBlocks))
	}
}
