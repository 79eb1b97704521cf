package sim

import (
	"fmt"
	"time"

	"github.com/mrgc/mrgc/controller/autoscaler"
)

// Invariant is something that must hold whatever goes wrong.
type Invariant string

// Invariants. Each is about what really happens.
const (
	Minimum  Invariant = "never below the minimum by our own action"
	Dials    Invariant = "never all regions dialled down"
	Leader   Invariant = "at most one leader acts in an epoch"
	Doubled  Invariant = "no double launch"
	Flap     Invariant = "no dial turns twice within ten minutes"
	Drained  Invariant = "every terminated instance was drained and washed"
	Restored Invariant = "when nothing goes wrong any more, all is well"
)

// Invariants are all of them.
var Invariants = [...]Invariant{Minimum, Dials, Leader, Doubled, Flap, Drained, Restored}

// Counts are what was played.
type Counts struct {
	Faults, Crashes, Cuts, RegionsLost int
	SlowDisks                          int
	Leaderships, Failovers             int
	Launches, Terminations             int
	Requests, DeadDoor                 float64 // all, and those that were sent to a region that was dead
	// Failover is from a region's death until its dial was at 0, where it came to that.
	Failover []time.Duration
}

// Add adds up.
func (c *Counts) Add(o Counts) {
	c.Faults, c.Crashes, c.Cuts, c.RegionsLost = c.Faults+o.Faults, c.Crashes+o.Crashes, c.Cuts+o.Cuts, c.RegionsLost+o.RegionsLost
	c.SlowDisks += o.SlowDisks
	c.Leaderships, c.Failovers = c.Leaderships+o.Leaderships, c.Failovers+o.Failovers
	c.Launches, c.Terminations = c.Launches+o.Launches, c.Terminations+o.Terminations
	c.Requests, c.DeadDoor = c.Requests+o.Requests, c.DeadDoor+o.DeadDoor
	c.Failover = append(c.Failover, o.Failover...)
}

// What a region must keep and may have, and how long a dial must keep its direction:
// the figures that were asked for, not the controllers' configuration.
const (
	minimum    = 2
	flapWindow = 10 * time.Minute
	// noticed is how long nobody can have known of an instance's death: a heartbeat's
	// 15 s, a step's 10 s, and a call's 5 s.
	noticed = 30 * time.Second
	// lately is how long an instance may take to come or go when nothing is wrong.
	lately = 15 * time.Minute
)

// watch looks at everything.
type watch struct {
	w         *world
	violation string
	broken    Invariant
	at        time.Duration
	counts    Counts

	holders  map[grant]int64
	granting [regions + 1]int64 // highest token that was given
	moves    [regions][]dialMove
	wanted   [regions][]wanted
	died     [regions]time.Duration
}

type grant struct {
	lease int
	token int64
}

type wanted struct {
	at time.Duration
	n  int
}

type dialMove struct {
	at time.Duration
	up bool
}

func (v *watch) init(w *world) {
	v.w, v.holders = w, map[grant]int64{}
}

func (v *watch) fail(i Invariant, format string, args ...any) {
	if v.violation != "" {
		return
	}
	v.broken, v.at, v.violation = i, v.w.now, fmt.Sprintf(format, args...)
	v.w.say("VIOLATION", "%s: %s", i, v.violation)
}

// granted notes who got a lease.
func (v *watch) granted(lease int, token int64, c *controller) {
	v.counts.Leaderships++
	if token <= v.granting[lease] {
		v.fail(Leader, "lease %d was given under token %d after %d", lease, token, v.granting[lease])
	}
	v.granting[lease] = token
	v.holders[grant{lease, token}] = c.start
}

// acts notes that a controller does something under a token.
func (v *watch) acts(lease int, token int64, c *controller) {
	if v.holders[grant{lease, token}] != c.start {
		v.fail(Leader, "%s acts under token %d of lease %d, which is another's", c.name, token, lease)
	}
	if token < v.granting[lease] {
		v.fail(Leader, "%s acts under token %d of lease %d, and %d has been given", c.name, token, lease, v.granting[lease])
	}
}

// dialled looks at a dial that was moved.
func (v *watch) dialled(region place, before, after int) {
	if before == after {
		return
	}
	full := 0
	for _, dial := range v.w.accelerator.dials {
		if dial == 100 {
			full++
		}
	}
	if full == 0 {
		v.fail(Dials, "no region is at 100 %%: %v", v.w.accelerator.dials)
	}
	if after == 0 {
		v.counts.Failovers++
		if !v.w.up[region] && v.died[region] > 0 {
			v.counts.Failover = append(v.counts.Failover, v.w.now-v.died[region])
		}
	}
	moves := append(v.moves[region], dialMove{v.w.now, after > before})
	v.moves[region] = moves
	turns := 0
	for i := len(moves) - 1; i > 0 && v.w.now-moves[i-1].at < flapWindow; i-- {
		if moves[i].up != moves[i-1].up {
			turns++
		}
	}
	if turns > 1 {
		v.fail(Flap, "the dial of %s turned %d times within ten minutes", names[region], turns)
	}
}

// wants notes the number that a region's stored state asks for.
func (v *watch) wants(region place, n int) {
	v.wanted[region] = append(v.wanted[region], wanted{v.w.now, n})
}

// launchedFor looks at a new instance: nothing else was launched for its intent, and
// there are no more than were wanted lately, not counting those that leave, are dead, or
// were launched by an operator.
func (v *watch) launchedFor(c *cloud, in *instance) {
	v.counts.Launches++
	alive, most := 0, minimum // with which a region begins
	for _, other := range c.instances {
		if other.gone {
			continue
		}
		if other != in && other.intent == in.intent {
			v.fail(Doubled, "%s and %s were both launched for %s", other.id, in.id, in.intent)
		}
		booting := !other.served && v.w.now < other.boots
		if !other.draining && !other.byHand && !other.never && (booting || c.healthy(other)) {
			alive++
		}
	}
	all := v.wanted[c.region]
	for i := len(all) - 1; i >= 0; i-- {
		most = max(most, all[i].n)
		if v.w.now-all[i].at > 2*time.Minute { // what was wanted then
			break
		}
	}
	if alive > most {
		v.fail(Doubled, "%s has %d, and wants %d", names[c.region], alive, most)
	}
}

// takesAway looks at a healthy instance that stops taking requests by our action. Those
// whose death nobody can have noticed count as being there.
func (v *watch) takesAway(c *cloud, in *instance, what string) {
	left := 0
	for _, other := range c.instances {
		healthy := c.healthy(other) || other.served && other.died && v.w.now-other.diedAt < noticed
		if other != in && !other.gone && healthy && !other.draining {
			left++
		}
	}
	if left < minimum {
		v.fail(Minimum, "%s of %s leaves %d ready in %s", what, in.id, left, names[c.region])
	}
}

// terminated looks at an instance that we end: it had nothing in flight and was washed,
// or never took a request, or was dead.
func (v *watch) terminated(c *cloud, in *instance) {
	v.counts.Terminations++
	switch healthy := c.healthy(in); {
	case !healthy: // dead, or never ready: nothing is in flight and nothing can wash it
	case in.draining && (!in.served || v.w.now-in.boots < noticed):
		// It was marked while it was not well, and has taken no request since.
	case !in.draining || v.w.now < in.empty:
		v.fail(Drained, "%s was terminated with requests in flight", in.id)
	case !in.washed:
		v.fail(Drained, "%s was terminated unwashed", in.id)
	}
}

// end looks at what is left when all should be well.
func (v *watch) end() {
	w := v.w
	state := w.tables.failover.value
	for r := range place(regions) {
		name := names[r]
		if region := state.Regions[name]; region.Phase != "NORMAL" || w.accelerator.dials[r] != 100 {
			v.fail(Restored, "%s is %s at %d %% (accelerator: %d): %s", name, region.Phase, region.Dial, w.accelerator.dials[r], region.Reason)
		}
		v.endOf(r)
	}
}

// endOf looks at a region's instances: the state has as many as it wants, each is ready
// unless it has only just begun to come or go, and nobody forgot any.
func (v *watch) endOf(r place) {
	scaling, cloud := &v.w.tables.scaling[r].value, &v.w.clouds[r]
	known, stay := map[string]bool{}, 0
	for _, m := range scaling.Members {
		known[m.Instance] = true
		if m.Phase != autoscaler.Draining && m.Phase != autoscaler.Washing && m.Phase != autoscaler.Leaving {
			stay++
		}
		in := cloud.find(m.Instance)
		ready := in != nil && cloud.healthy(in) && !in.draining
		if (m.Phase != autoscaler.Serving || !ready) && begin.Add(v.w.now).Sub(m.Since) > lately {
			v.fail(Restored, "%s (%s) of %s is %s since %v, ready: %v", m.Intent, m.Instance, names[r], m.Phase, m.Since.Sub(begin), ready)
		}
	}
	if stay != scaling.Desired {
		v.fail(Restored, "%s wants %d and has %d", names[r], scaling.Desired, stay)
	}
	for _, in := range cloud.instances {
		if !in.gone && !known[in.id] {
			v.fail(Restored, "%s of %s is lost: nobody knows of it", in.id, names[r])
		}
	}
}
