// Package engineload reads what an engine's metrics say about its load. Engines
// agree on the format and on nothing else: this package knows their names, so
// that nobody else has to.
package engineload

import (
	"errors"
	"fmt"
	"io"
	"math"

	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
)

// Metrics is what an engine says of its load.
type Metrics struct {
	Running    int     // requests in work
	Queued     int     // requests that wait
	KVCacheUse float64 // share of the KV cache in use, 0 to 1; 0 also when the engine does not tell
}

// kvCache is vLLM's gauge; llama.cpp has none. "perc" notwithstanding it is a
// fraction.
const kvCache = "vllm:kv_cache_usage_perc"

// GuardWaiting is the gauge of an engine's guard, beside the engine's own: requests
// that wait for a slot before the engine has heard of them.
const GuardWaiting = "mrgc_guard_requests_waiting"

// Read reads how busy an engine is from its metrics in Prometheus' text
// format. It knows llama.cpp's names (llamacpp:requests_processing and
// _deferred) and vLLM's (vllm:num_requests_running and _waiting, and
// kv_cache_usage_perc). vLLM has a series for each of its engines: requests are
// added up, and of the caches, which are alike, the mean is taken. Who waits in
// the engine's guard is queued, too.
func Read(metrics io.Reader) (Metrics, error) {
	parser := expfmt.NewTextParser(model.LegacyValidation)
	families, err := parser.TextToMetricFamilies(metrics)
	if err != nil {
		// The parser's error quotes what it read, which need not be metrics.
		return Metrics{}, errors.New("engine metrics: not Prometheus' text format")
	}
	for _, names := range [][2]string{
		{"llamacpp:requests_processing", "llamacpp:requests_deferred"},
		{"vllm:num_requests_running", "vllm:num_requests_waiting"},
	} {
		running, queued := families[names[0]], families[names[1]]
		if running == nil || queued == nil {
			continue
		}
		var load Metrics
		if load.Running, err = sum(running); err != nil {
			return Metrics{}, err
		}
		if load.Queued, err = sum(queued); err != nil {
			return Metrics{}, err
		}
		waiting, err := sum(families[GuardWaiting])
		if err != nil {
			return Metrics{}, err
		}
		load.Queued += waiting
		if load.KVCacheUse, err = share(families[kvCache]); err != nil {
			return Metrics{}, err
		}
		return load, nil
	}
	return Metrics{}, errors.New("engine metrics: neither llama.cpp's nor vLLM's request counts are there")
}

// maxRequests is beyond what any engine can have; larger numbers are an error.
const maxRequests = 1 << 30

func sum(family *dto.MetricFamily) (int, error) {
	total := 0.0
	for _, m := range family.GetMetric() {
		v := value(m)
		if math.IsNaN(v) || v < 0 {
			return 0, fmt.Errorf("engine metrics: %s is not a count", family.GetName())
		}
		total += v
	}
	if total > maxRequests {
		return 0, fmt.Errorf("engine metrics: %s is not a count", family.GetName())
	}
	return int(total), nil
}

// share is the mean of a family of fractions; 0 of one that is not there.
func share(family *dto.MetricFamily) (float64, error) {
	if len(family.GetMetric()) == 0 {
		return 0, nil
	}
	total := 0.0
	for _, m := range family.GetMetric() {
		v := value(m)
		if math.IsNaN(v) || v < 0 || v > 1 {
			return 0, fmt.Errorf("engine metrics: %s is not between 0 and 1", family.GetName())
		}
		total += v
	}
	return min(total/float64(len(family.GetMetric())), 1), nil
}

// value is what a metric says, whatever it calls itself.
func value(m *dto.Metric) float64 {
	return m.GetGauge().GetValue() + m.GetCounter().GetValue() + m.GetUntyped().GetValue() // one of them is set
}
