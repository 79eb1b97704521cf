package parent

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/mrgc/mrgc/internal/fleet"
	"github.com/mrgc/mrgc/internal/size"
)

// metrics is what a parent publishes.
type metrics struct {
	tokens *prometheus.CounterVec // by kind
}

// newMetrics registers with reg, unless it is nil.
func newMetrics(reg prometheus.Registerer, self fleet.Instance) (*metrics, error) {
	m := &metrics{tokens: prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "mrgc_parent_tokens_total",
		Help: "Tokens that answers have used, each answer's rounded up to a power of two by the enclave.",
	}, []string{"kind"})}
	if reg == nil {
		return m, nil
	}
	labels := prometheus.Labels{"region": string(self.Region), "instance": self.ID}
	return m, prometheus.WrapRegistererWith(labels, reg).Register(m.tokens)
}

// use accounts for an answer by the enclave's trailer. One without has used
// nothing: it was refused, or a peer has answered, which accounts for it itself.
func (m *metrics) use(trailer string) {
	used, err := size.Parse(trailer)
	if err != nil {
		return
	}
	m.tokens.WithLabelValues("prompt").Add(float64(used.Prompt))
	m.tokens.WithLabelValues("output").Add(float64(used.Output))
}
