package router

import (
	"context"
	"maps"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/mrgc/mrgc/internal/fleet"
	"github.com/mrgc/mrgc/internal/routing"
)

// roundTrips are those to other regions, measured on the connections on which load
// reports come from there. It is safe for concurrent use.
type roundTrips struct {
	configured func() map[fleet.Region]time.Duration

	mu       sync.Mutex
	measured map[string]measuredTrip // guarded by mu: by instance
}

type measuredTrip struct {
	region fleet.Region
	took   time.Duration
}

func (t *roundTrips) put(in *fleet.Instance, took time.Duration) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.measured == nil {
		t.measured = map[string]measuredTrip{}
	}
	t.measured[in.ID] = measuredTrip{in.Region, took}
}

func (t *roundTrips) forget(instanceID string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.measured, instanceID)
}

// to is the round trip to a region: the least that was measured to any of its
// instances that are followed, or else what the configuration says.
func (t *roundTrips) to(region fleet.Region) (took time.Duration, known bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, m := range t.measured {
		if m.region == region && (!known || m.took < took) {
			took, known = m.took, true
		}
	}
	if !known {
		took, known = t.configured()[region]
	}
	return took, known
}

// ways are those of requests that come to the region, worked out ahead of them.
type ways struct {
	usual    routing.Way
	byModel  map[string]routing.Way
	byTenant map[string]routing.Way
}

// waysInterval is how often ways are worked out anew: round trips hardly change.
const waysInterval = time.Second

// updateWays works the ways out, and has Envoys keep to their order while no picker
// answers; what is preferred for a tenant they know by [Settings.xds]. The order of spilling is that of the round trips unless the configuration
// has one. Only one may at a time: see applying.
func (r *Router) updateWays() {
	now := ways{byModel: map[string]routing.Way{}, byTenant: map[string]routing.Way{}}
	settings := r.settings.Load()
	if r.waysOf == nil || !slices.Equal(r.waysOf.SpillTo, settings.SpillTo) || !settings.SpillNearest {
		r.spillTo = settings.SpillTo
	}
	r.waysOf, r.spillTo = settings, slices.Clone(r.spillTo)
	if settings.SpillNearest {
		r.spillTo = routing.Nearest(r.spillTo, r.trips.to)
	}
	own := append([]fleet.Region{r.config.Region}, r.spillTo...)
	way := func(prefer []routing.Preference) routing.Way {
		return routing.NewWay(own, prefer, r.trips.to).Avoiding(func(region fleet.Region) bool { return r.drained[region] })
	}
	now.usual = way(nil)
	for model, prefer := range settings.PreferByModel {
		now.byModel[model] = way(prefer)
	}
	for name, prefer := range settings.PreferByTenant {
		now.byTenant[name] = way(prefer)
	}
	r.ways.Store(&now)
	orders := map[string][]fleet.Region{"": now.usual.Regions}
	for model, way := range now.byModel {
		orders[model] = way.Regions
	}
	if !maps.EqualFunc(orders, r.orders, slices.Equal[[]fleet.Region]) {
		r.orders = orders
		r.xds.SetOrders(orders)
	}
}

func (r *Router) keepWays(ctx context.Context) {
	tick := time.NewTicker(waysInterval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			r.applying.Lock()
			r.updateWays()
			r.applying.Unlock()
		}
	}
}

// way is that of a tenant's request for a model, wherever the tenant may be: what is
// preferred for the tenant comes before what is for the model.
func (r *Router) way(model, tenant string) routing.Way {
	w := r.ways.Load()
	if way, ok := w.byTenant[tenant]; ok {
		return way
	}
	if way, ok := w.byModel[model]; ok {
		return way
	}
	return w.usual
}

// serveRegions shows the way of requests for which no other is preferred.
func (r *Router) serveRegions(w http.ResponseWriter, _ *http.Request) {
	type entry struct {
		Region       fleet.Region `json:"region"`
		RoundTripSec *float64     `json:"round_trip_seconds"` // null: not known
		Drained      bool         `json:"drained,omitempty"`
	}
	r.applying.Lock()
	drained := r.drained
	r.applying.Unlock()
	page := []entry{}
	for _, region := range r.ways.Load().usual.Regions {
		e := entry{Region: region, Drained: drained[region]}
		if took, known := r.trips.to(region); known || region == r.config.Region {
			seconds := took.Seconds()
			e.RoundTripSec = &seconds
		}
		page = append(page, e)
	}
	writeJSON(w, http.StatusOK, map[string]any{"regions": page})
}

// tripMetrics are read when they are collected.
type tripMetrics struct {
	trips *roundTrips
	to    func() []fleet.Region
	desc  *prometheus.Desc
}

func registerTripMetrics(reg prometheus.Registerer, region fleet.Region, trips *roundTrips, to func() []fleet.Region) error {
	return prometheus.WrapRegistererWith(prometheus.Labels{"region": string(region)}, reg).Register(&tripMetrics{
		trips: trips, to: to,
		desc: prometheus.NewDesc("mrgc_region_round_trip_seconds", "Round trip to another region, measured or as configured; absent: not known.", []string{"to"}, nil),
	})
}

func (m *tripMetrics) Describe(ch chan<- *prometheus.Desc) { ch <- m.desc }

func (m *tripMetrics) Collect(ch chan<- prometheus.Metric) {
	for _, region := range m.to() {
		if took, known := m.trips.to(region); known {
			ch <- prometheus.MustNewConstMetric(m.desc, prometheus.GaugeValue, took.Seconds(), string(region))
		}
	}
}
