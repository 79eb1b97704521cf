package xds

import (
	"github.com/mrgc/mrgc/internal/routing"
)

// SetSplits hands over how models' requests are divided between their versions, by
// model. It does not block, and keeps the map, which must not change.
func (s *Server) SetSplits(splits map[string]routing.Split) {
	s.mu.Lock()
	s.input.splits = splits
	s.mu.Unlock()
	poke(s.wake)
}

// split gives the endpoints of models that are divided the weights that keep to
// it, priority by priority, and leaves out those that are to get nothing.
func (p *plan) split(splits map[string]routing.Split, usable []dialableInstance) {
	byID := map[string]dialableInstance{}
	for _, in := range usable {
		byID[in.ID] = in
	}
	for i := range p.clusters {
		split := splits[p.clusters[i].model]
		if len(split) == 0 {
			continue
		}
		for priority, endpoints := range p.clusters[i].endpoints {
			scored := make([]routing.Scored, len(endpoints))
			for k, e := range endpoints {
				scored[k] = routing.Scored{Instance: byID[e.id].Instance, Score: e.weight}
			}
			var divided []endpoint
			for k, weight := range split.Weights(p.clusters[i].model, scored) {
				if weight > 0 {
					e := endpoints[k]
					e.weight = weight
					divided = append(divided, e)
				}
			}
			p.clusters[i].endpoints[priority] = divided
		}
	}
}
