package sim

import (
	"math"
	"time"

	"github.com/mrgc/mrgc/controller/autoscaler"
)

// tenants are what is asked for near each region, in requests/s.
type tenants struct {
	w      *world
	base   [regions]float64
	burst  [regions]float64 // times the base
	load   [regions]float64 // what reaches each region
	seenAt [regions]time.Duration
}

func (t *tenants) init(w *world) {
	t.w = w
	for i := range regions {
		t.base[i], t.burst[i] = 20+80*w.random.Float64(), 1
	}
}

// spread sends everyone's requests where the accelerator has them go.
func (t *tenants) spread() {
	w := t.w
	if int(w.now/(5*time.Second))%2 == 0 {
		w.accelerator.check(w, 10*time.Second)
	}
	t.load = [regions]float64{}
	hours := min(w.now, faultsFor+15*time.Minute).Hours() // then it stays, so that all can settle
	for near := range place(regions) {
		if w.now < faultsFor && w.chance(0.01) {
			t.burst[near] = math.Exp(w.random.NormFloat64() * 0.7)
		}
		tide := 1 + 0.3*math.Sin(2*math.Pi*(hours+float64(near)))
		for r, share := range w.accelerator.route(near) {
			rate := share * tide * t.base[near] * t.burst[near]
			t.load[r] += rate
			w.watch.counts.Requests += 5 * rate
			if !w.up[r] {
				w.watch.counts.DeadDoor += 5 * rate
			}
		}
	}
}

// seen is what a region's controller knows of its load.
func (t *tenants) seen(region place) autoscaler.Load {
	return autoscaler.Load{Fresh: !t.w.clouds[region].blind, Requests: t.load[region]}
}
