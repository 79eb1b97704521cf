package parent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/mrgc/mrgc/internal/api"
	"github.com/mrgc/mrgc/internal/fleet"
	"github.com/mrgc/mrgc/internal/size"
	"github.com/mrgc/mrgc/internal/state"
	"github.com/mrgc/mrgc/parent/wash"
)

// metrics is what a parent publishes.
type metrics struct {
	tokens   *prometheus.CounterVec   // by kind
	requests *prometheus.CounterVec   // by where they were sent
	parts    *prometheus.GaugeVec     // by part
	releases *prometheus.HistogramVec // of tenants' data keys, by outcome
}

// Where requests are sent.
const (
	toEnclave = "enclave"
	toPeer    = "peer"
)

// Outcomes of asking KMS for a data key.
const (
	keyReleased = "released"
	keyRefused  = "refused"
)

// newMetrics registers with reg.
func newMetrics(reg *prometheus.Registry, self fleet.Instance) (*metrics, error) {
	m := &metrics{
		tokens: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "mrgc_parent_tokens_total",
			Help: "Tokens that answers have used, each answer's rounded up to a power of two by the enclave.",
		}, []string{"kind"}),
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "mrgc_parent_requests_total",
			Help: "Sealed requests that were sent on: to the instance's enclave, or to the parent of another instance that they are sealed to.",
		}, []string{"to"}),
		parts: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "mrgc_parent_part_healthy",
			Help: "1 while a part of the instance is well: enclave, engine, gpu (where one is seen), model_files (where they are known).",
		}, []string{"part"}),
		releases: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "mrgc_parent_key_release_seconds", Help: "How long KMS's releases of tenants' data keys took the enclave: attestation, the call, and opening its answer.",
			Buckets: prometheus.ExponentialBuckets(0.005, 2, 11),
		}, []string{"outcome"}),
	}
	for _, outcome := range []string{keyReleased, keyRefused} {
		m.releases.WithLabelValues(outcome) // so that none is 0, not missing
	}
	for _, to := range []string{toEnclave, toPeer} {
		m.requests.WithLabelValues(to) // so that none is 0, not missing
	}
	labels := prometheus.Labels{"region": string(self.Region), "instance": self.ID}
	wrapped := prometheus.WrapRegistererWith(labels, reg)
	return m, errors.Join(wrapped.Register(m.tokens), wrapped.Register(m.requests), wrapped.Register(m.parts), wrapped.Register(m.releases))
}

// part says how a part of the instance is.
func (m *metrics) part(name string, healthy bool) {
	value := 0.0
	if healthy {
		value = 1
	}
	m.parts.WithLabelValues(name).Set(value)
}

// keyReleases accounts for what an enclave says of data keys.
func (m *metrics) keyReleases(said []api.KeyRelease) {
	for _, r := range said {
		if r.Fleet != nil || r.Host != nil || r.Took == 0 {
			continue
		}
		outcome := keyReleased
		if r.Error != "" {
			outcome = keyRefused
		}
		m.releases.WithLabelValues(outcome).Observe(r.Took.Seconds())
	}
}

// washMetrics is what a parent publishes of washes. The share that passed is
// sum(rate(mrgc_parent_washes_total{outcome="passed"}[1h])) / sum(rate(mrgc_parent_washes_total[1h])).
type washMetrics struct {
	washes      *prometheus.CounterVec   // by outcome and trigger
	steps       *prometheus.HistogramVec // by step
	aside       prometheus.Histogram
	waiting     prometheus.Gauge
	quarantined prometheus.Gauge
}

// Outcomes of washes.
const (
	washPassed = "passed"
	washFailed = "failed"
)

func newWashMetrics(reg *prometheus.Registry, self fleet.Instance) (*washMetrics, error) {
	m := &washMetrics{
		washes: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "mrgc_parent_washes_total", Help: "Full washes of the instance that have ended.",
		}, []string{"outcome", "trigger"}),
		steps: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "mrgc_parent_wash_step_seconds", Help: "How long the steps of full washes took.",
			Buckets: prometheus.ExponentialBuckets(0.01, 3, 10),
		}, []string{"step"}),
		aside: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "mrgc_parent_wash_aside_seconds", Help: "How long full washes that restarted the engine took the instance out of traffic.",
			Buckets: prometheus.ExponentialBuckets(0.5, 2, 11),
		}),
		waiting: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "mrgc_parent_wash_waiting", Help: "1 while a full wash is due that may not restart the engine yet; mrgc_parent_wash_step_seconds has how long they waited, as step await_turn.",
		}),
		quarantined: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "mrgc_parent_quarantined", Help: "1 while the instance takes no request because its last full wash has failed.",
		}),
	}
	for _, outcome := range []string{washPassed, washFailed} {
		m.washes.WithLabelValues(outcome, wash.TriggerOperator) // so that none is 0, not missing
	}
	labels := prometheus.Labels{"region": string(self.Region), "instance": self.ID}
	wrapped := prometheus.WrapRegistererWith(labels, reg)
	return m, errors.Join(wrapped.Register(m.washes), wrapped.Register(m.steps), wrapped.Register(m.aside), wrapped.Register(m.waiting), wrapped.Register(m.quarantined))
}

// ended accounts for a wash.
func (m *washMetrics) ended(w state.Wash) {
	outcome := washFailed
	if w.Passed {
		outcome = washPassed
	}
	m.washes.WithLabelValues(outcome, w.Trigger).Inc()
	var aside time.Duration
	for _, step := range w.Steps {
		m.steps.WithLabelValues(step.Name).Observe(step.Duration.Seconds())
		if aside > 0 || step.Name == string(wash.StepAside) {
			aside += step.Duration
		}
	}
	if aside > 0 {
		m.aside.Observe(aside.Seconds())
	}
}

// waits says whether a wash does.
func (m *washMetrics) waits(waiting bool) {
	value := 0.0
	if waiting {
		value = 1
	}
	m.waiting.Set(value)
}

// use accounts for an answer of the instance's own enclave.
func (m *metrics) use(used size.Buckets) {
	m.tokens.WithLabelValues("prompt").Add(float64(used.Prompt))
	m.tokens.WithLabelValues("output").Add(float64(used.Output))
}

// checkMetricsListener says whether metrics may be served there: they are in
// clear, and nobody is asked who it is.
func checkMetricsListener(l net.Listener) error {
	if tcp, ok := l.Addr().(*net.TCPAddr); ok && !tcp.IP.IsLoopback() {
		return fmt.Errorf("metrics at %s could be read by other machines: listen on loopback, such as 127.0.0.1:9090", tcp)
	}
	return nil
}

// serveMetrics answers GET /metrics until ctx ends.
func (p *Parent) serveMetrics(ctx context.Context) error {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(p.config.Metrics, promhttp.HandlerOpts{}))
	server := &http.Server{
		Handler: mux, ReadHeaderTimeout: 10 * time.Second, ErrorLog: slog.NewLogLogger(p.log.Handler(), slog.LevelDebug),
	}
	defer context.AfterFunc(ctx, func() { _ = server.Close() })()
	if err := server.Serve(p.config.MetricsListener); ctx.Err() == nil {
		return fmt.Errorf("serve metrics: %w", err)
	}
	return nil
}
