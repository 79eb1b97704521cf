package loadreport

import (
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"

	orcav3 "github.com/cncf/xds/go/xds/data/orca/v3"
)

// Names in ORCA's maps; the package comment says what they hold.
const (
	namedQueued      = "num_requests_waiting"
	namedRunning     = "num_requests_running"
	namedKVCache     = "kv_cache_usage_perc"
	namedSlots       = "slots"
	namedTokens      = "tokens_in_flight"
	namedUnread      = "unread_tokens"
	namedReadRate    = "read_tokens_per_second"
	namedDuration    = "request_seconds"
	namedTemperature = "gpu_temperature_celsius"
	namedModel       = "model:" // and NAME@VERSION
	utilizationGPU   = "gpu"
)

// Encode gives the report as ORCA has it. It expects a valid report.
func Encode(r Report) *orcav3.OrcaLoadReport {
	out := &orcav3.OrcaLoadReport{
		ApplicationUtilization: r.Utilization(),
		RpsFractional:          r.RequestsPerSecond,
		Eps:                    r.ErrorsPerSecond,
		NamedMetrics: map[string]float64{
			namedQueued:  float64(r.Queued),
			namedRunning: float64(r.Running),
			namedKVCache: r.KVCacheUse,
			namedTokens:  float64(r.TokensInFlight),
			namedUnread:  float64(r.UnreadTokens),
		},
	}
	if r.ReadTokensPerSecond > 0 {
		out.NamedMetrics[namedReadRate] = r.ReadTokensPerSecond
	}
	if r.RequestDuration > 0 {
		out.NamedMetrics[namedDuration] = r.RequestDuration.Seconds()
	}
	if r.Slots > 0 {
		out.NamedMetrics[namedSlots] = float64(r.Slots)
	}
	if r.GPU != (GPU{}) {
		out.MemUtilization = r.GPU.Memory
		out.Utilization = map[string]float64{utilizationGPU: r.GPU.Utilization}
		out.NamedMetrics[namedTemperature] = r.GPU.TemperatureC
	}
	for _, model := range r.Models {
		out.NamedMetrics[namedModel+model.Name+"@"+model.Version] = 1
	}
	return out
}

// Decode reads a report as a parent sends it. Names that it does not know are
// passed over; of those that it knows, num_requests_waiting and _running have
// to be there. A figure that is not a number, negative, out of range, or
// fractional where it is a count is an error that names it.
func Decode(in *orcav3.OrcaLoadReport) (Report, error) {
	if in == nil {
		return Report{}, errors.New("load report: there is none")
	}
	named := in.GetNamedMetrics()
	r := Report{
		KVCacheUse:          named[namedKVCache],
		ReadTokensPerSecond: named[namedReadRate],
		RequestsPerSecond:   in.GetRpsFractional(),
		ErrorsPerSecond:     in.GetEps(),
	}
	seconds := named[namedDuration]
	if err := within(namedDuration, seconds, maxDuration.Seconds()); err != nil {
		return Report{}, err
	}
	r.RequestDuration = time.Duration(math.Round(seconds * float64(time.Second)))
	for _, name := range []string{namedQueued, namedRunning} {
		if _, ok := named[name]; !ok {
			return Report{}, fmt.Errorf("load report: %s is missing", name)
		}
	}
	for _, count := range []struct {
		name string
		to   *int
	}{
		{namedQueued, &r.Queued},
		{namedRunning, &r.Running},
		{namedSlots, &r.Slots},
		{namedTokens, &r.TokensInFlight},
		{namedUnread, &r.UnreadTokens},
	} {
		value := named[count.name]
		if err := within(count.name, value, maxCount); err != nil {
			return Report{}, err
		}
		if value != math.Trunc(value) {
			return Report{}, fmt.Errorf("load report: %s is not a whole number", count.name)
		}
		*count.to = int(value)
	}
	if use, ok := in.GetUtilization()[utilizationGPU]; ok {
		r.GPU = GPU{Utilization: use, Memory: in.GetMemUtilization(), TemperatureC: named[namedTemperature]}
	}
	var err error
	if r.Models, err = decodeModels(named); err != nil {
		return Report{}, err
	}
	if err := r.Validate(); err != nil {
		return Report{}, err
	}
	return r, nil
}

func decodeModels(named map[string]float64) ([]Model, error) {
	var models []Model
	for key := range named {
		model, ok := strings.CutPrefix(key, namedModel)
		if !ok {
			continue
		}
		name, version, ok := strings.Cut(model, "@")
		if !ok {
			return nil, fmt.Errorf("load report: %q names a model without a version", key)
		}
		models = append(models, Model{Name: name, Version: version})
	}
	sortModels(models)
	return models, nil
}

// Header is the response header that carries a report in band: "TEXT " and
// ORCA's native HTTP encoding. Envoy's client_side_weighted_round_robin reads
// it, and takes rps_fractional / application_utilization for the weight.
const Header = "Endpoint-Load-Metrics"

// textDigits is how exact the header is: figures are rounded to so many places.
const textDigits = 4

// Text is the value of [Header]. It leaves out what Envoy would refuse the
// whole header for (the utilization map) and what is longer than it is useful
// on every answer (models).
func (r *Report) Text() string {
	b := make([]byte, 0, 320)
	b = append(b, "TEXT "...)
	add := func(name string, value float64) {
		if len(b) > len("TEXT ") {
			b = append(b, ',')
		}
		b = append(b, name...)
		b = append(b, '=')
		scale := math.Pow10(textDigits)
		b = strconv.AppendFloat(b, math.Round(value*scale)/scale, 'f', -1, 64)
	}
	add("application_utilization", r.Utilization())
	add("rps_fractional", r.RequestsPerSecond)
	add("eps", r.ErrorsPerSecond)
	if r.GPU != (GPU{}) {
		add("mem_utilization", r.GPU.Memory)
	}
	add("named_metrics."+namedQueued, float64(r.Queued))
	add("named_metrics."+namedRunning, float64(r.Running))
	add("named_metrics."+namedKVCache, r.KVCacheUse)
	add("named_metrics."+namedTokens, float64(r.TokensInFlight))
	add("named_metrics."+namedUnread, float64(r.UnreadTokens))
	if r.Slots > 0 {
		add("named_metrics."+namedSlots, float64(r.Slots))
	}
	return string(b)
}
