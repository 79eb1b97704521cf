package sim

import (
	"strconv"
	"time"

	"github.com/mrgc/mrgc/controller/autoscaler"
)

// faults are how likely a seed's small faults are. Larger ones are drawn one after
// another.
type faults struct {
	loss, repeat, slow float64       // of messages
	blip               float64       // of a look at a door
	never              float64       // of an instance that does not come up
	every              time.Duration // between two large ones, on average
}

// drawFaults makes some seeds calm and others wild.
func (w *world) drawFaults() faults {
	wild := w.random.Float64()
	return faults{
		loss: 0.02 * wild * wild, repeat: 0.02 * wild, slow: 0.03 * wild, blip: 0.01 * wild, never: 0.1 * wild,
		every: time.Duration((30 + 400*(1-wild)) * float64(time.Second)),
	}
}

// nextFault does something, and schedules the next, until the time for it is over.
func (w *world) nextFault() {
	if w.now >= faultsFor {
		w.calm()
		return
	}
	w.oneFault()
	w.after(w.between(0, 2*w.faults.every), w.nextFault)
}

// calm ends all small faults; large ones end by themselves.
func (w *world) calm() {
	w.say("fault", "no more")
	w.faults = faults{}
}

func (w *world) region() place { return place(w.random.IntN(regions)) }

// lasting draws how long a fault lasts: mostly seconds, sometimes many minutes.
func (w *world) lasting() time.Duration {
	return min(w.between(time.Second, 30*time.Second)<<w.random.IntN(7), 12*time.Minute)
}

func (w *world) oneFault() {
	w.watch.counts.Faults++
	r, d := w.region(), w.lasting()
	name := names[r]
	switch w.random.IntN(14) {
	case 0:
		w.regionDies(r, d)
	case 1, 2: // one link
		other := (r + 1 + place(w.random.IntN(2))) % regions
		w.say("fault", "link %s-%s cut for %v", name, names[other], d.Round(time.Second))
		w.cutLink(r, other, d)
	case 3: // a region from both others
		w.say("fault", "%s isolated for %v", name, d.Round(time.Second))
		w.cutLink(r, (r+1)%regions, d)
		w.cutLink(r, (r+2)%regions, d)
	case 4: // all from all
		w.say("fault", "every region alone for %v", d.Round(time.Second))
		for i := range place(regions) {
			w.cutLink(i, (i+1)%regions, d)
		}
	case 5: // the accelerator's API
		w.say("fault", "accelerator's API not reached from %s for %v", name, d.Round(time.Second))
		w.cut[r][regions]++
		w.after(d, func() { w.cut[r][regions]-- })
	case 6, 7: // crash
		if c := w.controllerOf(r); c != nil {
			w.say("fault", "%s crashes", c.name)
			w.watch.counts.Crashes++
			c.kill()
			w.after(w.between(time.Second, time.Minute), func() { w.restart(r) })
		}
	case 8: // pause
		if c := w.controllerOf(r); c != nil {
			c.stalled = w.now + min(d, 2*time.Minute)
			w.say("fault", "%s stands still until %v", c.name, c.stalled.Round(time.Second))
		}
	case 9: // a clock steps
		if c := w.controllerOf(r); c != nil {
			c.skew = w.between(-2*time.Second, 2*time.Second)
			w.say("fault", "%s's clock is now off by %v", c.name, c.skew.Round(time.Millisecond))
		}
	case 10:
		w.instancesDie(r)
	case 11:
		w.capacity(r, d)
	case 12:
		w.byHandOrBlind(r, d)
	case 13:
		w.say("fault", "%s's disks are slow for %v", name, d.Round(time.Second))
		w.watch.counts.SlowDisks++
		w.slow[r]++
		w.after(d, func() { w.slow[r]-- })
	}
}

func (w *world) cutLink(a, b place, d time.Duration) {
	w.watch.counts.Cuts++
	w.cut[a][b]++
	w.cut[b][a]++
	w.after(d, func() {
		w.cut[a][b]--
		w.cut[b][a]--
	})
}

// regionDies ends all of a region's processes at once, for a while.
func (w *world) regionDies(r place, d time.Duration) {
	if !w.up[r] {
		return
	}
	w.say("fault", "%s dies for %v", names[r], d.Round(time.Second))
	w.watch.counts.RegionsLost++
	w.up[r] = false
	for c := w.controllerOf(r); c != nil; c = w.controllerOf(r) {
		c.kill()
	}
	w.watch.died[r] = w.now
	w.after(d, func() {
		w.up[r] = true
		w.say("fault", "%s is back", names[r])
		w.restart(r)
		w.restart(r)
		for _, in := range w.clouds[r].instances { // their engines load their models again
			if in.boots < w.now {
				in.boots = w.now + w.between(30*time.Second, 2*time.Minute)
			}
		}
	})
}

// restart starts a controller where fewer than two run.
func (w *world) restart(r place) {
	n := 0
	for _, c := range w.controllers {
		if c.region == r {
			n++
		}
	}
	if w.up[r] && n < 2 {
		w.start(r)
	}
}

// controllerOf draws one of a region's.
func (w *world) controllerOf(r place) *controller {
	var all []*controller
	for _, c := range w.controllers {
		if c.region == r {
			all = append(all, c)
		}
	}
	if len(all) == 0 {
		return nil
	}
	return all[w.random.IntN(len(all))]
}

func (w *world) instancesDie(r place) {
	for _, in := range w.clouds[r].instances {
		if !in.gone && !in.died && w.chance(0.25) {
			if w.chance(0.2) {
				w.say("fault", "%s is taken away", in.id)
				w.clouds[r].terminate(in.id, false)
			} else {
				w.clouds[r].die(in)
			}
		}
	}
}

func (w *world) capacity(r place, d time.Duration) {
	c := &w.clouds[r]
	if w.random.IntN(4) == 0 {
		w.say("fault", "what %s launches does not come up for %v", names[r], d.Round(time.Second))
		c.bad = true
		w.after(d, func() { c.bad = false })
		return
	}
	zone := w.random.IntN(zonesCount)
	if w.random.IntN(4) == 0 {
		w.say("operator", "launches one in %s, with no intent", names[r])
		c.run(autoscaler.Action{Zone: zoneNames[zone], Token: "by hand " + strconv.Itoa(c.launched)})
		return
	}
	w.say("fault", "no capacity in zone %s of %s for %v", zoneNames[zone], names[r], d.Round(time.Second))
	c.full[zone] = true
	w.after(d, func() { c.full[zone] = false })
}

func (w *world) byHandOrBlind(r place, d time.Duration) {
	if w.random.IntN(2) == 0 {
		w.say("fault", "the rows of %s's fleet cannot be read for %v", names[r], d.Round(time.Second))
		w.clouds[r].blind = true
		w.after(d, func() { w.clouds[r].blind = false })
		return
	}
	n := w.random.IntN(25)
	w.say("operator", "desired capacity of %s by hand: %d, for %v", names[r], n, d.Round(time.Second))
	w.tables.hand[r] = n
	w.after(d, func() { w.tables.hand[r] = 0 })
}
