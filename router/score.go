package router

import (
	"slices"
	"strings"
	"sync"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/mrgc/mrgc/internal/fleet"
)

// scores notices when an instance's score becomes another. It is safe for
// concurrent use.
type scores struct {
	of      func(*fleet.Instance) uint32
	view    func() *fleet.Snapshot
	changes prometheus.Counter
	desc    *prometheus.Desc

	mu   sync.Mutex
	last map[string]uint32 // guarded by mu: by instance of which there was a report
}

func newScores(of func(*fleet.Instance) uint32, view func() *fleet.Snapshot) *scores {
	return &scores{
		of: of, view: view, last: map[string]uint32{},
		changes: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "mrgc_score_changes_total",
			Help: "Load reports after which an instance's score was another; Envoy is sent far fewer weights.",
		}),
		desc: prometheus.NewDesc("mrgc_score", "What an instance has to give, from 0 to 100, by its newest load report.", []string{"instance"}, nil),
	}
}

func (s *scores) register(reg prometheus.Registerer, region fleet.Region) error {
	return prometheus.WrapRegistererWith(prometheus.Labels{"region": string(region)}, reg).Register(s)
}

// rescore looks at an instance of which there is a new load report, and says
// whether its score has changed.
func (s *scores) rescore(instanceID string) bool {
	snapshot := s.view()
	if snapshot == nil {
		return false
	}
	at, found := slices.BinarySearchFunc(snapshot.Instances, instanceID, func(in *fleet.Instance, id string) int { return strings.Compare(in.ID, id) })
	if !found {
		return false
	}
	score := s.of(snapshot.Instances[at])
	s.mu.Lock()
	before, known := s.last[instanceID]
	s.last[instanceID] = score
	s.mu.Unlock()
	if known && score == before {
		return false
	}
	s.changes.Inc()
	return true
}

// keep forgets all instances but these.
func (s *scores) keep(ready []*fleet.Instance) {
	s.mu.Lock()
	defer s.mu.Unlock()
	before := s.last
	s.last = make(map[string]uint32, len(ready))
	for _, in := range ready {
		if score, known := before[in.ID]; known {
			s.last[in.ID] = score
		}
	}
}

// Describe is prometheus.Collector's.
func (s *scores) Describe(ch chan<- *prometheus.Desc) {
	s.changes.Describe(ch)
	ch <- s.desc
}

// Collect gives the present score of every instance of the fleet.
func (s *scores) Collect(ch chan<- prometheus.Metric) {
	s.changes.Collect(ch)
	if snapshot := s.view(); snapshot != nil {
		for _, in := range snapshot.Instances {
			ch <- prometheus.MustNewConstMetric(s.desc, prometheus.GaugeValue, float64(s.of(in)), in.ID)
		}
	}
}
