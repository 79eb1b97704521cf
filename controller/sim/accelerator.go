package sim

import (
	"time"

	"github.com/mrgc/mrgc/internal/fleet"
)

// accelerator is AWS Global Accelerator as it is documented: it checks endpoints every
// 10 or 30 s, takes three failures for one, and comes back some 30 s after an endpoint
// has; new connections go to the nearest region by its dial, but dials are ignored for
// those whose region is not healthy; established connections stay where they are.
type accelerator struct {
	dials   [regions]int
	healthy [regions]bool
	failed  [regions]int
	passed  [regions]int
}

func (a *accelerator) init() {
	for i := range regions {
		a.dials[i], a.healthy[i] = 100, true
	}
}

// check is one round of health checks.
func (a *accelerator) check(w *world, interval time.Duration) {
	back := int((30*time.Second + interval - 1) / interval)
	for i := range regions {
		if w.up[i] && w.clouds[i].ready() > 0 {
			a.failed[i], a.passed[i] = 0, a.passed[i]+1
			a.healthy[i] = a.healthy[i] || a.passed[i] >= back
		} else {
			a.failed[i], a.passed[i] = a.failed[i]+1, 0
			a.healthy[i] = a.healthy[i] && a.failed[i] < 3
		}
	}
}

func (a *accelerator) describe() map[fleet.Region]int {
	dials := map[fleet.Region]int{}
	for i, name := range names {
		dials[name] = a.dials[i]
	}
	return dials
}

func (a *accelerator) set(w *world, region place, dial int) {
	before := a.dials[region]
	a.dials[region] = dial
	w.say("accelerator", "dial of %s is %d", names[region], dial)
	w.watch.dialled(region, before, dial)
}

// route divides the new connections of tenants near a region among regions.
func (a *accelerator) route(near place) (share [regions]float64) {
	left := 1.0
	for i := range place(regions) {
		r := (near + i) % regions
		if !a.healthy[r] {
			continue
		}
		part := left * float64(a.dials[r]) / 100
		if i > 0 && !a.healthy[near] { // failing over: dials are ignored
			part = left
		}
		share[r] += part
		left -= part
	}
	for i := range place(regions) { // nowhere to go by dials: to the nearest that is healthy
		if r := (near + i) % regions; left > 0 && a.healthy[r] {
			share[r] += left
			left = 0
		}
	}
	share[near] += left // everything is down
	return share
}
