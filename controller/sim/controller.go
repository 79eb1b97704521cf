package sim

import (
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/mrgc/mrgc/controller/autoscaler"
	"github.com/mrgc/mrgc/controller/failover"
	"github.com/mrgc/mrgc/internal/fleet"
)

// controller is a process. Each region has two; the one that holds the region's lease
// scales it and reports what it sees, and of all six one holds failover's lease.
type controller struct {
	w       *world
	region  place
	start   int64 // which start of a controller this is
	name    string
	skew    time.Duration // of its clock
	threads []*proc
	dead    bool
	stalled time.Duration // until then
	held    [regions + 1]lead

	reader  *failover.Reader
	reports uint64
}

// lead is a lease that a controller holds.
type lead struct {
	token int64
	until time.Duration // by its own monotonic clock
}

// start starts a controller.
func (w *world) start(region place) {
	w.starts++
	c := &controller{w: w, region: region, start: w.starts, skew: w.between(-2*time.Second, 2*time.Second)}
	c.name = fmt.Sprintf("%s/%d", names[region], c.start)
	c.reader = failover.NewReader(failover.Defaults(names[:]...))
	w.controllers = append(w.controllers, c)
	own := int(region)
	for _, l := range []int{own, regions} {
		c.spawn(func(p *proc) { c.lead(p, l) })
	}
	c.spawn(c.report)
	c.spawn(c.scale)
	c.spawn(c.failover)
	w.say(c.name, "starts, clock off by %v", c.skew.Round(time.Millisecond))
}

// kill ends the process between two of its lines.
func (c *controller) kill() {
	c.dead = true
	for _, p := range c.threads {
		p.stop()
	}
	c.w.controllers = slices.DeleteFunc(c.w.controllers, func(other *controller) bool { return other == c })
}

// clock is the time of day as the process sees it.
func (c *controller) clock() time.Time { return begin.Add(c.w.now + c.skew) }

// leads says whether it holds a lease now.
func (c *controller) leads(l int) bool { return c.w.rules.mayAct(c.held[l], c.w.now) }

// lead keeps a lease, or waits for it.
func (c *controller) lead(p *proc, l int) {
	var seen lease
	var since time.Duration
	p.sleep(c.w.between(0, time.Second))
	for {
		if held := &c.held[l]; held.token > 0 {
			sent, token := c.w.now, held.token
			renewed, ok := call(p, strong, 2*time.Second, func() bool { return c.w.beat(l, token, c) })
			switch {
			case ok && renewed:
				held.until = sent + leaseFor - leaseMargin
			case ok, !c.leads(l):
				c.w.say(c.name, "lost lease %d", l)
				*held, seen, since = lead{}, lease{}, c.w.now
			}
			p.sleep(renewEvery)
			continue
		}
		now, ok := call(p, strong, 2*time.Second, func() lease { return c.w.tables.leases[l] })
		if !ok {
			p.sleep(watchEvery)
			continue
		}
		if now != seen {
			seen, since = now, c.w.now
		}
		if now.holder == 0 || c.w.now-since >= leaseFor {
			sent, free := c.w.now, seen
			if got, ok := call(p, strong, 2*time.Second, func() lease { return c.w.take(l, free, c) }); ok && got.holder == c.start && got.token == seen.token+1 {
				c.held[l] = lead{got.token, sent + leaseFor - leaseMargin}
				c.w.say(c.name, "leads %d under token %d", l, got.token)
				continue
			}
		}
		p.sleep(watchEvery)
	}
}

// reportRow is a report in a replica, with when it was written by its writer's clock.
type reportRow struct {
	report failover.Report
	at     time.Time
}

// report looks at every region's door and publishes it.
func (c *controller) report(p *proc) {
	for {
		if c.leads(int(c.region)) {
			c.reports++
			c.publish(failover.Report{Epoch: int64(begin.Add(c.w.now).UnixMilli()), Sequence: c.reports, At: c.clock(), Sights: c.look()})
		}
		p.sleep(2 * time.Second)
	}
}

// look is what can be seen from a region.
func (c *controller) look() map[fleet.Region]failover.Sight {
	w := c.w
	sights := map[fleet.Region]failover.Sight{}
	for r := range place(regions) {
		sight := failover.Sight{Want: w.tables.scaling[r].value.Serving(), Ready: w.clouds[r].ready()}
		sight.Door = w.up[r] && w.connected(c.region, r) && !w.chance(w.faults.blip)
		if row, ok := w.reports[c.region][names[r]]; ok && r != c.region {
			sight.Lag = max(c.clock().Sub(row.at)-3*time.Second, 0)
		}
		sights[names[r]] = sight
	}
	return sights
}

// publish writes a report into the own replica, from where it reaches the others.
func (c *controller) publish(report failover.Report) {
	w, row := c.w, reportRow{report, report.At}
	w.arrive(c.region, c.region, row)
	for r := range place(regions) {
		if r != c.region {
			w.replicate(c.region, r, row)
		}
	}
}

// replicate brings a row to another region's replica: late, and after a cut.
func (w *world) replicate(from, to place, row reportRow) {
	lag := w.between(200*time.Millisecond, time.Second)
	if w.slow[from]+w.slow[to] > 0 || w.chance(w.faults.slow) {
		lag = w.between(time.Second, 20*time.Second)
	}
	w.after(lag, func() {
		if !w.connected(from, to) {
			if w.now < faultsFor+settle {
				w.after(5*time.Second, func() { w.replicate(from, to, row) })
			}
			return
		}
		w.arrive(from, to, row)
	})
}

// arrive: the last writer wins, by the writers' clocks.
func (w *world) arrive(from, to place, row reportRow) {
	if have, ok := w.reports[to][names[from]]; !ok || row.at.After(have.at) {
		w.reports[to][names[from]] = row
	}
}

// failover is the loop of who leads it: it keeps the state in memory while it leads,
// stores what must outlive it, then acts.
func (c *controller) failover(p *proc) {
	w := c.w
	config := failover.Defaults(names[:]...)
	w.rules.dials(&config)
	watched := failover.Initial(config, c.clock()) // what it sees while it does not lead
	var state failover.State
	var version, token int64
	var dials map[fleet.Region]int
	var read time.Duration
	for ; ; p.sleep(time.Second) {
		reports := map[fleet.Region]failover.Report{}
		for from, row := range w.reports[c.region] {
			reports[from] = row.report
		}
		o := failover.Observation{Views: c.reader.Read(reports, c.clock())}
		watched, _ = w.rules.failover(config, watched, o, c.clock())
		held := c.held[regions]
		if !c.leads(regions) {
			token = 0
			continue
		}
		if token != held.token { // new to it: nobody's write of before may come after
			got, ok := call(p, strong, 2*time.Second, func() item[failover.State] {
				w.tables.failover.fence = max(w.tables.failover.fence, held.token)
				return w.tables.failover
			})
			if !ok {
				continue
			}
			state, version, token = got.value, got.version, held.token
			if !got.exists {
				state = failover.Initial(config, c.clock())
			}
			state = state.Watched(watched, token)
			dials, read = nil, 0
		}
		if dials == nil || w.now-read > 5*time.Second {
			if got, ok := call(p, global, 3*time.Second, func() map[fleet.Region]int { return w.accelerator.describe() }); ok {
				dials, read = got, w.now
			} else if w.now-read > 15*time.Second {
				dials = nil
			}
		}
		o.Term, o.Dials = token, dials
		next, actions := w.rules.failover(config, state, o, c.clock())
		store := func() bool {
			if next.Same(state) && version > 0 {
				state = next
				return true
			}
			w.tellPhases(c, &state, &next)
			over := version // a message says what was so when it was sent
			ok, answered := call(p, strong, 2*time.Second, func() bool { return put(w, &w.tables.failover, over, held.token, next) })
			if !ok || !answered {
				token = 0 // whatever is there now is read again
				return false
			}
			state, version = next, version+1
			return true
		}
		if w.rules.storeFirst && !store() {
			continue
		}
		for _, a := range actions {
			if a.Kind == failover.SetDial && c.leads(regions) {
				w.watch.acts(regions, held.token, c)
				region := slices.Index(names[:], a.Region)
				w.say(c.name, "sets dial of %s to %d", a.Region, a.Dial)
				if done, ok := call(p, global, 3*time.Second, func() bool { w.accelerator.set(w, place(region), a.Dial); return true }); done && ok {
					dials = maps.Clone(dials)
					if dials != nil {
						dials[a.Region] = a.Dial
					}
				}
			}
		}
		if !w.rules.storeFirst {
			store()
		}
	}
}

func (w *world) tellPhases(c *controller, before, after *failover.State) {
	if w.tell == nil {
		return
	}
	for _, name := range names {
		a, b := before.Regions[name], after.Regions[name]
		if a.Phase != b.Phase || a.Dial != b.Dial {
			w.say(c.name, "%s: %s %d %% → %s %d %% (%s)", name, a.Phase, a.Dial, b.Phase, b.Dial, b.Reason)
		}
	}
}

// scale is the loop of who leads the region's autoscaler.
func (c *controller) scale(p *proc) {
	w, l := c.w, int(c.region)
	config := w.scaling(c.region)
	cloud := &w.clouds[c.region]
	var state autoscaler.State
	var version, token int64
	var results []autoscaler.Result
	for ; ; p.sleep(10 * time.Second) {
		held := c.held[l]
		if !c.leads(l) {
			token, results = 0, nil
			continue
		}
		if token != held.token {
			got, ok := call(p, strong, 2*time.Second, func() item[autoscaler.State] {
				w.tables.scaling[l].fence = max(w.tables.scaling[l].fence, held.token)
				return w.tables.scaling[l]
			})
			if !ok {
				continue
			}
			state, version, token = got.value, got.version, held.token
			if !got.exists {
				state = autoscaler.Initial(config, c.clock())
			}
		}
		o := autoscaler.Observation{Term: token, Results: results, Known: !cloud.blind, Load: w.tenants.seen(c.region)}
		o.Others = map[fleet.Region]autoscaler.Load{}
		for r := range place(regions) {
			if r != c.region {
				load := w.tenants.seen(r)
				load.Fresh = load.Fresh && w.connected(c.region, r)
				o.Others[names[r]] = load
			}
		}
		hand, ok := call(p, strong, 2*time.Second, func() int { return w.tables.hand[l] })
		if !ok {
			continue
		}
		o.Hand = hand
		o.Instances, o.Listed = call(p, ec2Base+c.region, 5*time.Second, func() []autoscaler.Instance { return cloud.list() })
		next, actions := w.rules.autoscaler(config, state, o, c.clock())
		results = nil
		store := func() bool {
			if next.Desired != state.Desired {
				w.say(c.name, "%s wants %d (%s)", names[l], next.Desired, next.Reason)
			}
			over := version
			ok, answered := call(p, strong, 2*time.Second, func() bool { return w.storeScaling(l, over, held.token, next) })
			if !ok || !answered {
				token = 0
				return false
			}
			state, version = next, version+1
			return true
		}
		if w.rules.storeFirst && !store() {
			continue
		}
		for _, a := range actions {
			if !c.leads(l) {
				break
			}
			w.watch.acts(l, held.token, c)
			w.say(c.name, "%s %s%s %s (%s)", a.Kind, a.Intent, a.Instance, a.Zone, a.Why)
			switch a.Kind {
			case autoscaler.Launch:
				if r, ok := call(p, ec2Base+c.region, 5*time.Second, func() autoscaler.Result { return cloud.run(a) }); ok {
					results = append(results, r)
				}
			case autoscaler.Terminate:
				call(p, ec2Base+c.region, 5*time.Second, func() bool { cloud.terminate(a.Instance, true); return true })
			case autoscaler.Drain:
				call(p, c.region, 2*time.Second, func() bool { cloud.drain(a.Instance); return true })
			case autoscaler.Wash:
				call(p, c.region, 2*time.Second, func() bool { cloud.wash(a.Instance); return true })
			}
		}
		if !w.rules.storeFirst {
			store()
		}
	}
}

func (w *world) storeScaling(region int, over, token int64, next autoscaler.State) bool {
	stored := put(w, &w.tables.scaling[region], over, token, next)
	if stored {
		w.watch.wants(place(region), next.Desired)
	}
	return stored
}

// scaling is a region's configuration.
func (w *world) scaling(region place) autoscaler.Config {
	config := autoscaler.Config{Region: names[region], Zones: []string{"a", "b", "c"}}
	config.Forecast, config.Reserve = w.ahead, w.ahead
	w.rules.scaling(&config)
	return config
}
