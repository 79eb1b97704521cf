package xds

import (
	"slices"

	"github.com/mrgc/mrgc/internal/fleet"
)

// SetOrders hands over in which order regions serve the requests that come to the
// server's own: by model, "" being every other one. It replaces the order of SpillTo,
// and adds no region to it. It does not block, and keeps the map, which must not
// change.
func (s *Server) SetOrders(orders map[string][]fleet.Region) {
	s.mu.Lock()
	s.input.orders = orders
	s.mu.Unlock()
	poke(s.wake)
}

// inOrder puts regions in a model's order, or those that a tenant prefers first and
// the others as for models without an order; those that are not in it come last, as
// they are.
func inOrder(regions, prefer []fleet.Region, orders map[string][]fleet.Region, model string) []fleet.Region {
	order, ok := orders[model]
	if !ok || len(prefer) > 0 {
		order = slices.Concat(prefer, orders[""])
	}
	place := func(r fleet.Region) int {
		if i := slices.Index(order, r); i >= 0 {
			return i
		}
		return len(order)
	}
	sorted := slices.Clone(regions)
	slices.SortStableFunc(sorted, func(a, b fleet.Region) int { return place(a) - place(b) })
	return sorted
}
