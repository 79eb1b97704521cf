package router

import (
	"errors"
	"slices"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/mrgc/mrgc/controller/canary"
)

// judgeMetrics are what a router publishes of versions.
type judgeMetrics struct {
	requests            *prometheus.CounterVec   // by model, version, outcome
	firstByte, perToken *prometheus.HistogramVec // by model, version
	rollbacks, failures *prometheus.CounterVec
}

func newJudgeMetrics() judgeMetrics {
	versions := []string{"model", "version"}
	return judgeMetrics{
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "mrgc_version_requests_total", Help: "Requests of models that are divided between versions, by version and outcome: served, failed.",
		}, append(slices.Clip(versions), "outcome")),
		firstByte: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "mrgc_version_time_to_first_token_seconds", Help: "Time from when an instance was sent a request to the first byte of its answer, by version.",
			Buckets: prometheus.ExponentialBuckets(0.01, 2, 14), // to 82 s
		}, versions),
		perToken: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "mrgc_version_time_per_token_seconds", Help: "Time for each token of a streamed answer after its first byte, by version; of half as long to as long, since the number of tokens is known rounded up to powers of two.",
			Buckets: prometheus.ExponentialBuckets(0.001, 2, 12), // to 2 s
		}, versions),
		rollbacks: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "mrgc_canary_rollbacks_total", Help: "Versions that this router has rolled back, by the signal that was worse.",
		}, append(slices.Clip(versions), "signal")),
		failures: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "mrgc_canary_rollback_failures_total", Help: "Times that this router could not roll a version back; it tries on.",
		}, versions),
	}
}

func (m *judgeMetrics) observe(model, version string, o *canary.Observation) {
	outcome := "served"
	if o.Failed {
		outcome = "failed"
	}
	m.requests.WithLabelValues(model, version, outcome).Inc()
	if o.TTFT > 0 {
		m.firstByte.WithLabelValues(model, version).Observe(o.TTFT.Seconds())
	}
	if o.PerToken > 0 {
		m.perToken.WithLabelValues(model, version).Observe(o.PerToken.Seconds())
	}
}

// trialCollector reads what is on trial when it is collected.
type trialCollector struct {
	judges                           *judges
	evidence, ratio, compared, worse *prometheus.Desc
}

func (j *judges) register(reg prometheus.Registerer) error {
	reg = prometheus.WrapRegistererWith(prometheus.Labels{"region": string(j.region)}, reg)
	desc := func(name, help string, labels ...string) *prometheus.Desc {
		return prometheus.NewDesc(name, help, append([]string{"model", "version"}, labels...), nil)
	}
	return errors.Join(
		reg.Register(j.metrics.requests), reg.Register(j.metrics.firstByte), reg.Register(j.metrics.perToken),
		reg.Register(j.metrics.rollbacks), reg.Register(j.metrics.failures),
		reg.Register(&trialCollector{
			judges:   j,
			evidence: desc("mrgc_canary_evidence", "Evidence that a version is worse than the present one, by signal: a verdict at 1.", "signal"),
			ratio:    desc("mrgc_canary_time_ratio", "Times as long as at the present version, size by size, by signal.", "signal"),
			compared: desc("mrgc_canary_compared", "Requests of the version that were compared, by all routers that are heard."),
			worse:    desc("mrgc_canary_worse", "1 when the version is judged worse."),
		}))
}

func (c *trialCollector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{c.evidence, c.ratio, c.compared, c.worse} {
		ch <- d
	}
}

func (c *trialCollector) Collect(ch chan<- prometheus.Metric) {
	now := time.Now()
	for _, t := range c.judges.all() {
		entry := c.judges.entryOf(t, now)
		gauge := func(d *prometheus.Desc, value float64, labels ...string) {
			ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, value, append([]string{t.Model, t.Canary}, labels...)...)
		}
		for signal, evidence := range entry.Evidence {
			gauge(c.evidence, evidence, signal)
		}
		for signal, ratio := range entry.Ratios {
			gauge(c.ratio, ratio, signal)
		}
		gauge(c.compared, float64(entry.Compared))
		worse := 0.0
		if t.Verdict.Worse {
			worse = 1
		}
		gauge(c.worse, worse)
	}
}
