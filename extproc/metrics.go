package extproc

import (
	"errors"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/mrgc/mrgc/internal/fleet"
)

// metrics is what a picker publishes.
type metrics struct {
	picks    *prometheus.CounterVec // by outcome: a routing.Reason that picks, or a refusal's code
	duration prometheus.Histogram   // of a decision, without gRPC
}

// newMetrics registers with reg, unless it is nil. Requests in flight are asked
// for when somebody looks and not counted a second time.
func newMetrics(reg prometheus.Registerer, region fleet.Region, inFlight func() map[string]int) (*metrics, error) {
	m := &metrics{
		picks: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "mrgc_picks_total",
			Help: "Requests that the picker decided over, by outcome: picked, spilled, or the code of the refusal.",
		}, []string{"outcome"}),
		duration: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name:    "mrgc_pick_duration_seconds",
			Help:    "Time that the picker took to decide over a request.",
			Buckets: prometheus.ExponentialBuckets(2e-6, 4, 8), // 2 µs to 33 ms
		}),
	}
	if reg == nil {
		return m, nil
	}
	reg = prometheus.WrapRegistererWith(prometheus.Labels{"region": string(region)}, reg)
	return m, errors.Join(
		reg.Register(m.picks),
		reg.Register(m.duration),
		reg.Register(inFlightCollector{
			counts: inFlight,
			desc: prometheus.NewDesc("mrgc_in_flight",
				"Requests that this picker sent to an instance and has not seen end.", []string{"instance"}, nil),
		}),
	)
}

// inFlightCollector reads the counts when they are collected.
type inFlightCollector struct {
	counts func() map[string]int
	desc   *prometheus.Desc
}

func (c inFlightCollector) Describe(ch chan<- *prometheus.Desc) { ch <- c.desc }

func (c inFlightCollector) Collect(ch chan<- prometheus.Metric) {
	for instance, n := range c.counts() {
		ch <- prometheus.MustNewConstMetric(c.desc, prometheus.GaugeValue, float64(n), instance)
	}
}
