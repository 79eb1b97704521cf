package extproc

import (
	"errors"
	"sync"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/mrgc/mrgc/internal/fleet"
	"github.com/mrgc/mrgc/internal/quota"
)

// maxTenantLabels is how many tenants have a label of their own: those that were
// refused first since the router began.
const maxTenantLabels = 100

// metrics is what a picker publishes.
type metrics struct {
	picks    *prometheus.CounterVec // by outcome: a routing.Reason that picks, or a refusal's code
	affinity *prometheus.CounterVec // by outcome: a routing.Gate that is not none
	refusals *prometheus.CounterVec // by tenant and quota.Reason; see refused
	duration prometheus.Histogram   // of a decision, without gRPC
	wait     prometheus.Histogram   // of Envoy for a decision

	mu      sync.Mutex
	tenants map[string]bool // guarded by mu: those with a label of their own
}

// refused counts a request that its tenant's limits or share refuse. The name is
// that of a tenant on the list: no other makes a label.
func (m *metrics) refused(tenant string, reason quota.Reason) {
	m.mu.Lock()
	if !m.tenants[tenant] {
		if len(m.tenants) < maxTenantLabels {
			m.tenants[tenant] = true
		} else {
			tenant = "other"
		}
	}
	m.mu.Unlock()
	m.refusals.WithLabelValues(tenant, string(reason)).Inc()
}

// newMetrics registers with reg, unless it is nil. Requests in flight are asked
// for when somebody looks and not counted a second time.
func newMetrics(reg prometheus.Registerer, region fleet.Region, perInstance func() map[string]figures) (*metrics, error) {
	m := &metrics{
		tenants: map[string]bool{},
		picks: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "mrgc_picks_total",
			Help: "Requests that the picker decided over, by outcome: picked, spilled, or the code of the refusal.",
		}, []string{"outcome"}),
		affinity: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "mrgc_affinity_picks_total",
			Help: "Requests of conversations that the picker sent home, or released because their home is saturated, failing or gone.",
		}, []string{"outcome"}),
		refusals: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "mrgc_tenant_refusals_total",
			Help: "Requests that were refused because of their tenant's limits or share, by reason. Tenants beyond the first 100 are \"other\".",
		}, []string{"tenant", "reason"}),
		duration: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name:    "mrgc_pick_duration_seconds",
			Help:    "Time that the picker took to decide over a request.",
			Buckets: prometheus.ExponentialBuckets(2e-6, 4, 8), // 2 µs to 33 ms
		}),
		wait: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name:    "mrgc_pick_wait_seconds",
			Help:    "Time for which Envoy held a request until the picker answered, by its own clock; it gives up after 50 ms, or what is configured.",
			Buckets: []float64{1e-4, 2e-4, 3e-4, 5e-4, 75e-5, 1e-3, 15e-4, 2e-3, 3e-3, 5e-3, 1e-2, 2e-2, 4e-2, 8e-2},
		}),
	}
	if reg == nil {
		return m, nil
	}
	reg = prometheus.WrapRegistererWith(prometheus.Labels{"region": string(region)}, reg)
	return m, errors.Join(
		reg.Register(m.picks),
		reg.Register(m.affinity),
		reg.Register(m.refusals),
		reg.Register(m.duration),
		reg.Register(m.wait),
		reg.Register(newInstanceCollector(perInstance)),
	)
}

// figures are what a picker publishes of an instance.
type figures struct {
	work      Work // by this picker
	elsewhere Work // by the region's other routers
	errorRate float64
}

// instanceCollector reads figures when they are collected.
type instanceCollector struct {
	figures                    func() map[string]figures
	requests, tokens           *prometheus.Desc
	peersRequests, peersTokens *prometheus.Desc
	errorRate                  *prometheus.Desc
}

func newInstanceCollector(read func() map[string]figures) instanceCollector {
	desc := func(name, help string) *prometheus.Desc {
		return prometheus.NewDesc(name, help, []string{"instance"}, nil)
	}
	return instanceCollector{
		figures:       read,
		requests:      desc("mrgc_in_flight", "Requests that this picker sent to an instance and has not seen end."),
		tokens:        desc("mrgc_in_flight_tokens", "Tokens of their prompts that the instance has to read, as far as clients declare them."),
		peersRequests: desc("mrgc_peers_in_flight", "Requests that the region's other routers say they have in flight on an instance."),
		peersTokens:   desc("mrgc_peers_in_flight_tokens", "Tokens of their prompts that the instance has to read."),
		errorRate:     desc("mrgc_error_rate", "Recent share of an instance's requests that failed; from 0.5 it gets probes only."),
	}
}

func (c instanceCollector) Describe(ch chan<- *prometheus.Desc) {
	ch <- c.requests
	ch <- c.tokens
	ch <- c.peersRequests
	ch <- c.peersTokens
	ch <- c.errorRate
}

func (c instanceCollector) Collect(ch chan<- prometheus.Metric) {
	for instance, f := range c.figures() {
		ch <- prometheus.MustNewConstMetric(c.requests, prometheus.GaugeValue, float64(f.work.Requests), instance)
		ch <- prometheus.MustNewConstMetric(c.tokens, prometheus.GaugeValue, float64(f.work.Tokens), instance)
		ch <- prometheus.MustNewConstMetric(c.peersRequests, prometheus.GaugeValue, float64(f.elsewhere.Requests), instance)
		ch <- prometheus.MustNewConstMetric(c.peersTokens, prometheus.GaugeValue, float64(f.elsewhere.Tokens), instance)
		ch <- prometheus.MustNewConstMetric(c.errorRate, prometheus.GaugeValue, f.errorRate, instance)
	}
}
