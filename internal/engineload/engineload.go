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

	"github.com/mrgc/mrgc/internal/fleet"
)

// Read reads how busy an engine is from its metrics in Prometheus' text
// format. It knows llama.cpp's names (llamacpp:requests_processing and
// _deferred) and vLLM's (vllm:num_requests_running and _waiting); vLLM has a
// series for each of its engines, which are added up. Slots and Latency are
// not in the metrics and stay zero.
func Read(metrics io.Reader) (fleet.Load, error) {
	parser := expfmt.NewTextParser(model.LegacyValidation)
	families, err := parser.TextToMetricFamilies(metrics)
	if err != nil {
		// The parser's error quotes what it read, which need not be metrics.
		return fleet.Load{}, errors.New("engine metrics: not Prometheus' text format")
	}
	for _, names := range [][2]string{
		{"llamacpp:requests_processing", "llamacpp:requests_deferred"},
		{"vllm:num_requests_running", "vllm:num_requests_waiting"},
	} {
		running, queued := families[names[0]], families[names[1]]
		if running == nil || queued == nil {
			continue
		}
		var load fleet.Load
		if load.Running, err = sum(running); err != nil {
			return fleet.Load{}, err
		}
		if load.Queued, err = sum(queued); err != nil {
			return fleet.Load{}, err
		}
		return load, nil
	}
	return fleet.Load{}, errors.New("engine metrics: neither llama.cpp's nor vLLM's request counts are there")
}

// maxRequests is beyond what any engine can have; larger numbers are an error.
const maxRequests = 1 << 30

func sum(family *dto.MetricFamily) (int, error) {
	total := 0.0
	for _, m := range family.GetMetric() {
		v := m.GetGauge().GetValue() + m.GetCounter().GetValue() + m.GetUntyped().GetValue() // one of them is set
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
