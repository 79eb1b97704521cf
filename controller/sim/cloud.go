package sim

import (
	"fmt"
	"slices"
	"time"

	"github.com/mrgc/mrgc/controller/autoscaler"
)

// cloud is one region's EC2, and its instances' parents and their rows in the fleet's
// store.
type cloud struct {
	w         *world
	region    place
	instances []*instance
	launched  int
	full      [zonesCount]bool
	// tokens: a launch with a token that was there before gives the instance of then.
	// AWS does so, emulators do not.
	tokens bool
	blind  bool // the fleet's rows cannot be read
	bad    bool // what is launched never comes up
}

// instance is a machine.
type instance struct {
	id, intent, token, zone string
	visible                 time.Duration // listed from then
	registers, boots        time.Duration // when
	never                   bool
	byHand                  bool // not launched by a controller
	gone                    bool
	died                    bool
	diedAt                  time.Duration
	served                  bool
	draining                bool
	empty                   time.Duration // when nothing is in flight any more
	washing                 bool
	washed                  bool
}

func (c *cloud) init(w *world, region place) {
	c.w, c.region = w, region
	c.tokens = w.random.IntN(2) == 0
}

var zoneNames = [zonesCount]string{"a", "b", "c"}

// run is RunInstances.
func (c *cloud) run(a autoscaler.Action) autoscaler.Result {
	w := c.w
	result := autoscaler.Result{Intent: a.Intent, Attempt: a.Attempt}
	if c.tokens {
		for _, in := range c.instances {
			if in.token == a.Token {
				result.Instance = in.id
				return result
			}
		}
	}
	zone := slices.Index(zoneNames[:], a.Zone)
	if c.full[zone] {
		result.NoCapacity = true
		return result
	}
	in := &instance{id: fmt.Sprintf("i-%d-%04d", c.region, c.launched), intent: a.Intent, token: a.Token, zone: a.Zone}
	c.launched++
	in.visible = w.now + w.between(0, 5*time.Second)
	if w.chance(w.faults.slow) { // what EC2 lists is eventually consistent
		in.visible += w.between(0, 30*time.Second)
	}
	in.registers = w.now + w.between(20*time.Second, time.Minute)
	in.boots = in.registers + w.between(time.Minute, 4*time.Minute)
	if w.chance(w.faults.slow) {
		in.boots += w.between(0, 8*time.Minute)
	}
	in.never = c.bad || w.chance(w.faults.never)
	if in.never && w.random.IntN(2) == 0 {
		in.registers = time.Duration(1<<62 - 1)
	}
	c.instances = append(c.instances, in)
	w.say("ec2 "+string(names[c.region]), "launches %s in %s for %s", in.id, in.zone, in.intent)
	if in.byHand = a.Intent == ""; !in.byHand {
		w.watch.launchedFor(c, in)
	}
	result.Instance = in.id
	return result
}

func (c *cloud) find(id string) *instance {
	for _, in := range c.instances {
		if in.id == id && !in.gone {
			return in
		}
	}
	return nil
}

// healthy says whether an instance really works.
func (c *cloud) healthy(in *instance) bool {
	ok := !in.gone && !in.died && !in.never && c.w.up[c.region] && c.w.now >= in.boots
	in.served = in.served || ok && !in.draining
	return ok
}

// ready counts what really takes requests.
func (c *cloud) ready() (n int) {
	for _, in := range c.instances {
		if c.healthy(in) && !in.draining {
			n++
		}
	}
	return n
}

// list is DescribeInstances together with the rows: heartbeats take 15 s to be stale.
func (c *cloud) list() []autoscaler.Instance {
	w := c.w
	var all []autoscaler.Instance
	for _, in := range c.instances {
		if in.gone || w.now < in.visible {
			continue
		}
		healthy := c.healthy(in) || in.died && in.served && w.now-in.diedAt < 15*time.Second
		drained := in.draining && w.now >= in.empty
		all = append(all, autoscaler.Instance{
			ID: in.id, Intent: in.intent, Zone: in.zone,
			Registered: w.now >= in.registers, Healthy: healthy,
			Draining: in.draining, Drained: drained && healthy, Washed: in.washed,
		})
	}
	return all
}

// drain marks an instance's row; one without a row is not marked.
func (c *cloud) drain(id string) {
	in := c.find(id)
	if in == nil || in.draining || c.w.now < in.registers {
		return
	}
	c.watchMinimum(in, "drain")
	in.draining, in.empty = true, c.w.now
	if !c.healthy(in) {
		return
	}
	in.empty += c.w.between(time.Second, time.Minute)
	if c.w.chance(0.1) { // a long stream
		in.empty += c.w.between(0, 10*time.Minute)
	}
}

// wash is the parent's; one that fails is to be repeated.
func (c *cloud) wash(id string) {
	in := c.find(id)
	if in == nil || !in.draining || c.w.now < in.empty || in.washing || in.washed || !c.healthy(in) {
		return
	}
	in.washing = true
	c.w.after(c.w.between(10*time.Second, 40*time.Second), func() {
		in.washing = false
		in.washed = c.healthy(in) && !c.w.chance(0.1)
	})
}

// terminate is TerminateInstances.
func (c *cloud) terminate(id string, own bool) {
	in := c.find(id)
	if in == nil {
		return
	}
	if own {
		c.w.watch.terminated(c, in)
		if !in.draining {
			c.watchMinimum(in, "termination")
		}
	}
	in.gone = true
	c.w.say("ec2 "+string(names[c.region]), "%s is gone", in.id)
}

func (c *cloud) watchMinimum(in *instance, what string) {
	if !c.healthy(in) {
		return
	}
	c.w.watch.takesAway(c, in, what)
}

// die is a machine's end, which EC2 does not notice.
func (c *cloud) die(in *instance) {
	c.healthy(in)
	in.died, in.diedAt = true, c.w.now
	c.w.say("fault", "%s dies", in.id)
}
