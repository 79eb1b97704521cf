package router

import "github.com/mrgc/mrgc/internal/routing"

// SetSplits divides models' requests between their versions, by name, from now on:
// in the picker, among the recipients that clients are offered, and in the weights
// that Envoy balances by without a picker. A model without is not divided. It does
// not block, may be called at any time, and keeps the map, which must not change.
func (r *Router) SetSplits(splits map[string]routing.Split) {
	r.splits.Store(&splits)
	r.xds.SetSplits(splits)
}

// split is how a model's requests are divided now.
func (r *Router) split(model string) routing.Split {
	if splits := r.splits.Load(); splits != nil {
		return (*splits)[model]
	}
	return nil
}
