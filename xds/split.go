package xds

import (
	"net/netip"
	"slices"
	"time"

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

// firstChecks is how long Envoy may take until a new endpoint is healthy for it: one
// check that is lost, and the next.
const firstChecks = 2*healthCheckTimeout + healthCheckInterval

// split gives the endpoints of models that are divided the weights that keep to
// it, priority by priority, and leaves out those that are to get nothing.
//
// Where one is new, and none beside it was published before, those that were stay for as
// long as firstChecks: when a version takes all of another's requests at once, Envoy has
// no healthy endpoint else, and answers 503. before is what was published last.
func (p *plan) split(splits map[string]routing.Split, usable []dialableInstance, before []clusterPlan, now time.Time) {
	byID := map[string]dialableInstance{}
	for _, in := range usable {
		byID[in.ID] = in
	}
	for i := range p.clusters {
		c := &p.clusters[i]
		split := splits[c.model]
		if len(split) == 0 {
			continue
		}
		others := make([][]endpoint, len(c.endpoints)) // that are to get nothing
		for priority, endpoints := range c.endpoints {
			scored := make([]routing.Scored, len(endpoints))
			for k, e := range endpoints {
				scored[k] = routing.Scored{Instance: byID[e.id].Instance, Score: e.weight}
			}
			var divided []endpoint
			for k, weight := range split.Weights(c.model, scored) {
				e := endpoints[k]
				if e.weight = weight; weight > 0 {
					divided = append(divided, e)
				} else {
					others[priority] = append(others[priority], e)
				}
			}
			c.endpoints[priority] = divided
		}
		if k := slices.IndexFunc(before, func(b clusterPlan) bool { return b.name == c.name }); k >= 0 {
			c.keep(others, before[k], now)
		}
	}
}

// keep adds those of others, by priority, that have to stay for a while.
func (c *clusterPlan) keep(others [][]endpoint, was clusterPlan, now time.Time) {
	before := make([]map[netip.AddrPort]bool, len(was.endpoints)) // by priority: whether it is leaving
	known := map[netip.AddrPort]bool{}
	for priority, endpoints := range was.endpoints {
		before[priority] = map[netip.AddrPort]bool{}
		for _, e := range endpoints {
			before[priority][e.address], known[e.address] = e.leaving, true
		}
	}
	fresh := slices.ContainsFunc(c.endpoints, func(endpoints []endpoint) bool {
		return slices.ContainsFunc(endpoints, func(e endpoint) bool { return !known[e.address] })
	})
	for priority := range min(len(c.endpoints), len(before)) {
		begins := fresh && !slices.ContainsFunc(c.endpoints[priority], func(e endpoint) bool {
			_, was := before[priority][e.address]
			return was
		})
		for _, e := range others[priority] {
			leaving, there := before[priority][e.address]
			switch {
			case begins && there:
				c.until = now.Add(firstChecks)
			case leaving && now.Before(was.until):
				if was.until.After(c.until) {
					c.until = was.until
				}
			default:
				continue
			}
			e.weight, e.leaving = 1, true
			c.endpoints[priority] = append(c.endpoints[priority], e)
		}
	}
}
