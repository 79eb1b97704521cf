package controller

import (
	"errors"

	"github.com/prometheus/client_golang/prometheus"
)

type metrics struct {
	leading *prometheus.GaugeVec   // lease
	rounds  *prometheus.CounterVec // loop, result
	actions *prometheus.CounterVec // loop, result
	lag     *prometheus.GaugeVec   // from
	alarm   *prometheus.GaugeVec   // from
}

func newMetrics(registry prometheus.Registerer, region string) (*metrics, error) {
	constant := prometheus.Labels{"region": region}
	gauge := func(name, help string, labels ...string) *prometheus.GaugeVec {
		return prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: name, Help: help, ConstLabels: constant}, labels)
	}
	counter := func(name, help string, labels ...string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help, ConstLabels: constant}, labels)
	}
	m := &metrics{
		leading: gauge("mrgc_controller_leading", "1 while this controller holds the lease.", "lease"),
		rounds:  counter("mrgc_controller_rounds_total", "Rounds of a control loop, by what came of them: ok, error or fenced.", "loop", "result"),
		actions: counter("mrgc_controller_action_tries_total", "Tries to carry an action out: done, failed (to be tried again) or given_up.", "loop", "result"),
		lag:     gauge("mrgc_replication_lag_seconds", "How far another region's rows lag in the replicated tables; gone while that is not known.", "from"),
		alarm:   gauge("mrgc_replication_lag_alarm", "1 while another region's rows lag too far.", "from"),
	}
	return m, errors.Join(registry.Register(m.leading), registry.Register(m.rounds), registry.Register(m.actions),
		registry.Register(m.lag), registry.Register(m.alarm))
}

// A nil *metrics counts nothing.

func (m *metrics) countRound(loop, result string) {
	if m != nil {
		m.rounds.WithLabelValues(loop, result).Inc()
	}
}

func (m *metrics) countTry(loop, result string) {
	if m != nil {
		m.actions.WithLabelValues(loop, result).Inc()
	}
}
