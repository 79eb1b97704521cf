package router

import (
	"net/http"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/mrgc/mrgc/internal/fleet"
	"github.com/mrgc/mrgc/internal/loadreport"
)

// loadEntry is an instance on the admin's page /load.
type loadEntry struct {
	Instance          string            `json:"instance"`
	Age               string            `json:"age"`                   // fresh, stale or missing
	AgeSec            float64           `json:"age_seconds,omitempty"` // since the report below was received
	Queued            int               `json:"queued"`
	Running           int               `json:"running"`
	Slots             int               `json:"slots"`
	KVCacheUse        float64           `json:"kv_cache_use"`
	TokensInFlight    int               `json:"tokens_in_flight"`
	UnreadTokens      int               `json:"unread_tokens"`
	ReadRate          float64           `json:"read_tokens_per_second"` // 0: not known
	RequestSec        float64           `json:"request_seconds"`        // 0: not known
	RequestsPerSecond float64           `json:"requests_per_second"`
	ErrorsPerSecond   float64           `json:"errors_per_second"`
	GPU               *gpuEntry         `json:"gpu,omitempty"` // absent: none is seen
	Models            map[string]string `json:"models"`        // name → version
}

type gpuEntry struct {
	Utilization  float64 `json:"utilization"`
	Memory       float64 `json:"memory"`
	TemperatureC float64 `json:"temperature_celsius"`
}

// serveLoad shows the newest report of each instance, however old.
func (l *loads) serveLoad(w http.ResponseWriter, _ *http.Request) {
	page := []loadEntry{}
	for _, e := range l.tracker.All(time.Now()) {
		entry := loadEntry{
			Instance: e.Instance, Age: e.Age.String(), AgeSec: e.Since.Seconds(),
			Queued: e.Report.Queued, Running: e.Report.Running, Slots: e.Report.Slots,
			KVCacheUse: e.Report.KVCacheUse, TokensInFlight: e.Report.TokensInFlight,
			UnreadTokens: e.Report.UnreadTokens, ReadRate: e.Report.ReadTokensPerSecond, RequestSec: e.Report.RequestDuration.Seconds(),
			RequestsPerSecond: e.Report.RequestsPerSecond, ErrorsPerSecond: e.Report.ErrorsPerSecond,
			Models: map[string]string{},
		}
		if g := e.Report.GPU; g != (loadreport.GPU{}) {
			entry.GPU = &gpuEntry{Utilization: g.Utilization, Memory: g.Memory, TemperatureC: g.TemperatureC}
		}
		for _, model := range e.Report.Models {
			entry.Models[model.Name] = model.Version
		}
		page = append(page, entry)
	}
	writeJSON(w, http.StatusOK, map[string]any{"instances": page})
}

// loadMetrics are read from the newest reports when they are collected. Figures
// of a report that is missing are left out, its age is not.
type loadMetrics struct {
	tracker *loadreport.Tracker
	age     *prometheus.Desc
	figures []loadFigure
}

type loadFigure struct {
	desc *prometheus.Desc
	gpu  bool // left out when no GPU is seen
	of   func(*loadreport.Report) float64
}

func registerLoadMetrics(reg prometheus.Registerer, region fleet.Region, tracker *loadreport.Tracker) error {
	desc := func(name, help string) *prometheus.Desc {
		return prometheus.NewDesc("mrgc_load_"+name, help, []string{"instance"}, nil)
	}
	m := &loadMetrics{
		tracker: tracker,
		age:     desc("report_age_seconds", "Time since the instance's newest load report was received; -1 when there was none."),
	}
	for _, f := range []struct {
		name, help string
		of         func(*loadreport.Report) float64
	}{
		{"queued", "Requests that wait in the instance's engine.", func(r *loadreport.Report) float64 { return float64(r.Queued) }},
		{"running", "Requests that the instance works on.", func(r *loadreport.Report) float64 { return float64(r.Running) }},
		{"slots", "Requests that the instance's engine runs at once; 0: not known.", func(r *loadreport.Report) float64 { return float64(r.Slots) }},
		{"kv_cache_ratio", "Share of the engine's KV cache in use.", func(r *loadreport.Report) float64 { return r.KVCacheUse }},
		{"tokens_in_flight", "Tokens that the requests under way declare.", func(r *loadreport.Report) float64 { return float64(r.TokensInFlight) }},
		{"unread_tokens", "Tokens of prompts, as far as not cached, whose answers have not begun.", func(r *loadreport.Report) float64 { return float64(r.UnreadTokens) }},
		{"read_tokens_per_second", "How fast the instance reads prompts; 0: not known.", func(r *loadreport.Report) float64 { return r.ReadTokensPerSecond }},
		{"request_seconds", "How long the instance's last requests took on average; 0: not known.", func(r *loadreport.Report) float64 { return r.RequestDuration.Seconds() }},
		{"gpu_utilization_ratio", "Share of time in which the instance's GPUs work.", func(r *loadreport.Report) float64 { return r.GPU.Utilization }},
		{"gpu_memory_ratio", "Share of the GPUs' memory in use.", func(r *loadreport.Report) float64 { return r.GPU.Memory }},
		{"gpu_temperature_celsius", "Temperature of the instance's hottest GPU.", func(r *loadreport.Report) float64 { return r.GPU.TemperatureC }},
	} {
		m.figures = append(m.figures, loadFigure{desc: desc(f.name, f.help), gpu: strings.HasPrefix(f.name, "gpu_"), of: f.of})
	}
	return prometheus.WrapRegistererWith(prometheus.Labels{"region": string(region)}, reg).Register(m)
}

func (m *loadMetrics) Describe(ch chan<- *prometheus.Desc) {
	ch <- m.age
	for _, f := range m.figures {
		ch <- f.desc
	}
}

func (m *loadMetrics) Collect(ch chan<- prometheus.Metric) {
	for _, e := range m.tracker.All(time.Now()) {
		age := -1.0
		if e.Heard {
			age = e.Since.Seconds()
		}
		ch <- prometheus.MustNewConstMetric(m.age, prometheus.GaugeValue, age, e.Instance)
		if e.Age == loadreport.Missing {
			continue
		}
		for _, f := range m.figures {
			if f.gpu && e.Report.GPU == (loadreport.GPU{}) {
				continue
			}
			ch <- prometheus.MustNewConstMetric(f.desc, prometheus.GaugeValue, f.of(&e.Report), e.Instance)
		}
	}
}
