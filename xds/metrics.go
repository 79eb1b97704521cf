package xds

import (
	"errors"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/mrgc/mrgc/internal/fleet"
)

// metrics is what a server publishes.
type metrics struct {
	rejections *prometheus.CounterVec // by type
}

// newMetrics registers with reg, unless it is nil.
func newMetrics(reg prometheus.Registerer, s *Server) (*metrics, error) {
	m := &metrics{rejections: prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "mrgc_xds_rejections_total",
		Help: "Responses that an Envoy rejected, by resource type.",
	}, []string{"type"})}
	if reg == nil {
		return m, nil
	}
	reg = prometheus.WrapRegistererWith(prometheus.Labels{"region": string(s.config.Region)}, reg)
	return m, errors.Join(reg.Register(m.rejections), reg.Register(&envoyCollector{
		server: s,
		envoys: prometheus.NewDesc("mrgc_xds_envoys", "Envoys that are connected, by their region and state.", []string{"envoy_region", "state"}, nil),
		held: prometheus.NewDesc("mrgc_xds_held_back",
			"Published resources that no other Envoy is sent because the first one rejected them.", []string{"envoy_region"}, nil),
	}))
}

// envoyCollector reads the Envoys' states when they are collected.
type envoyCollector struct {
	server       *Server
	envoys, held *prometheus.Desc
}

// Describe implements prometheus.Collector.
func (c *envoyCollector) Describe(out chan<- *prometheus.Desc) {
	out <- c.envoys
	out <- c.held
}

// Collect implements prometheus.Collector.
func (c *envoyCollector) Collect(out chan<- prometheus.Metric) {
	count := map[fleet.Region]map[State]int{}
	for region, st := range c.server.stages {
		count[region] = map[State]int{Synced: 0, Stale: 0, Rejected: 0}
		st.mu.Lock()
		held := len(st.heldBack())
		st.mu.Unlock()
		out <- prometheus.MustNewConstMetric(c.held, prometheus.GaugeValue, float64(held), string(region))
	}
	for _, envoy := range c.server.Envoys() {
		count[envoy.Region][envoy.State()]++
	}
	for region, byState := range count {
		for state, n := range byState {
			out <- prometheus.MustNewConstMetric(c.envoys, prometheus.GaugeValue, float64(n), string(region), string(state))
		}
	}
}
