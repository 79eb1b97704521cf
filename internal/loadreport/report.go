// Package loadreport is how an instance's load travels from its parent to the
// routers of its region: as an ORCA report (xds.data.orca.v3.OrcaLoadReport in
// github.com/cncf/xds, the open request cost aggregation that gRPC and Envoy
// read too).
//
// A parent fills in a [Report] and sends [Encode] of it out of band, over
// OpenRcaService, and [Report.Text] of it in band, in the response header
// [Header]. A router decodes what it receives with [Decode], which believes
// nothing, and keeps the newest of each instance in a [Tracker], which says of
// each how old it is: [Fresh], [Stale] or [Missing].
//
// Where a figure goes:
//
//	Report               OrcaLoadReport
//	Queued               named_metrics[num_requests_waiting]   vLLM's names, as vLLM's own
//	Running              named_metrics[num_requests_running]   ORCA header has them
//	KVCacheUse           named_metrics[kv_cache_usage_perc]    a fraction all the same
//	Slots                named_metrics[slots]                  absent: not known
//	TokensInFlight       named_metrics[tokens_in_flight]
//	UnreadTokens         named_metrics[unread_tokens]
//	ReadTokensPerSecond  named_metrics[read_tokens_per_second] absent: not known
//	RequestDuration      named_metrics[request_seconds]        absent: not known
//	RequestsPerSecond    rps_fractional
//	ErrorsPerSecond      eps
//	GPU.Utilization      utilization[gpu]                      absent: no GPU is seen
//	GPU.Memory           mem_utilization
//	GPU.TemperatureC     named_metrics[gpu_temperature_celsius]
//	Models               named_metrics[model:NAME@VERSION] = 1
//	(derived)            application_utilization = (Running + Queued) / Slots
//
// The package does no I/O and reads no clock.
package loadreport

import (
	"cmp"
	"fmt"
	"math"
	"regexp"
	"slices"
	"time"

	"github.com/mrgc/mrgc/internal/fleet"
)

// Report is what an instance is doing. It carries counts and readings, and
// nothing that a tenant has said.
type Report struct {
	Queued         int     // requests that wait for a slot
	Running        int     // requests in the engine, or on their way to it
	Slots          int     // requests that the engine runs at once; 0: not known
	KVCacheUse     float64 // share of the engine's KV cache in use, 0 to 1; 0 also when the engine does not tell
	TokensInFlight int     // declared by the requests under way, prompt and maximum output

	// What a new request has to expect; see routing.Meter.
	UnreadTokens        int           // of prompts whose answers have not begun, as far as they are not cached
	ReadTokensPerSecond float64       // 0: not known
	RequestDuration     time.Duration // mean of the last requests; 0: not known

	RequestsPerSecond float64 // that ended, over the last second or so
	ErrorsPerSecond   float64 // of these, those that the instance failed to answer

	GPU    GPU
	Models []Model // in order of name
}

// GPU is what the instance's GPUs say, all of them together. Its zero value
// means that none is seen.
type GPU struct {
	Utilization  float64 // share of time in which a kernel ran, 0 to 1: mean of the GPUs
	Memory       float64 // share of memory in use, 0 to 1, of all GPUs
	TemperatureC float64 // of the hottest GPU, in degrees Celsius
}

// Model is a model that the instance serves.
type Model struct {
	Name    string
	Version string // up to 128 of A-Z, a-z, 0-9 and ._+-; empty: not known
}

// Bounds of what a report may say; whatever lies beyond is a fault.
const (
	maxCount        = 1 << 30
	maxRate         = 1e9
	maxDuration     = 24 * time.Hour
	maxTemperatureC = 150
	maxModels       = 256
)

var modelVersion = regexp.MustCompile(`^[A-Za-z0-9._+-]{0,128}$`)

// Busy says whether there is any request.
func (r *Report) Busy() bool { return r.Queued > 0 || r.Running > 0 }

// Utilization is the number of requests for each slot, ORCA's
// application_utilization: 1 is full, more is a queue. Slots that are not known
// count as one.
func (r *Report) Utilization() float64 {
	return float64(r.Running+r.Queued) / float64(max(r.Slots, 1))
}

// Validate checks every field. The error names the first at fault.
func (r *Report) Validate() error {
	for _, field := range []struct {
		name       string
		value, max float64
	}{
		{"queued", float64(r.Queued), maxCount},
		{"running", float64(r.Running), maxCount},
		{"slots", float64(r.Slots), maxCount},
		{"KV-cache use", r.KVCacheUse, 1},
		{"tokens in flight", float64(r.TokensInFlight), maxCount},
		{"unread tokens", float64(r.UnreadTokens), maxCount},
		{"read tokens per second", r.ReadTokensPerSecond, maxRate},
		{"request duration", r.RequestDuration.Seconds(), maxDuration.Seconds()},
		{"requests per second", r.RequestsPerSecond, maxRate},
		{"errors per second", r.ErrorsPerSecond, maxRate},
	} {
		if err := within(field.name, field.value, field.max); err != nil {
			return err
		}
	}
	if err := r.GPU.Validate(); err != nil {
		return err
	}
	return validateModels(r.Models)
}

// Validate checks every reading. The error names the first at fault.
func (g GPU) Validate() error {
	for _, field := range []struct {
		name       string
		value, max float64
	}{
		{"GPU utilization", g.Utilization, 1},
		{"GPU memory", g.Memory, 1},
		{"GPU temperature", g.TemperatureC, maxTemperatureC},
	} {
		if err := within(field.name, field.value, field.max); err != nil {
			return err
		}
	}
	return nil
}

func within(name string, value, limit float64) error {
	switch {
	case math.IsNaN(value):
		return fmt.Errorf("load report: %s is not a number", name)
	case value < 0:
		return fmt.Errorf("load report: %s is negative", name)
	case value > limit:
		return fmt.Errorf("load report: %s is larger than %g", name, limit)
	}
	return nil
}

func validateModels(models []Model) error {
	if len(models) > maxModels {
		return fmt.Errorf("load report: there are more than %d models", maxModels)
	}
	for i, model := range models {
		if err := fleet.ValidateModel(model.Name); err != nil {
			return fmt.Errorf("load report: %w", err)
		}
		if !modelVersion.MatchString(model.Version) {
			return fmt.Errorf("load report: version %q of model %s: want up to 128 of A-Z, a-z, 0-9 and ._+-", model.Version, model.Name)
		}
		if i > 0 && model.Name <= models[i-1].Name {
			return fmt.Errorf("load report: model %s is listed twice or out of order", model.Name)
		}
	}
	return nil
}

func sortModels(models []Model) {
	slices.SortFunc(models, func(a, b Model) int {
		return cmp.Or(cmp.Compare(a.Name, b.Name), cmp.Compare(a.Version, b.Version))
	})
}
