package main

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/mrgc/mrgc/bench/result"
	"github.com/mrgc/mrgc/controller/autoscaler"
	"github.com/mrgc/mrgc/internal/fleet"
)

// What a launch takes, and how long a request may wait for an instance.
const (
	bootTime  = 4 * time.Minute // on average; a minute more or less
	drainTime = 30 * time.Second
	washTime  = 30 * time.Second
	patience  = 2 * time.Second
)

// played is how a day went.
type played struct {
	missed float64 // share of the requests
	hours  float64 // instance-hours
	points result.Points
}

// machine is an instance.
type machine struct {
	autoscaler.Instance
	launched, ready, drained, washed time.Time
}

// region is EC2 and the fleet, which do what they are told.
type region struct {
	random   *rand.Rand
	now      time.Time
	machines []*machine
	launched int
	results  []autoscaler.Result
}

func (r *region) do(a autoscaler.Action) {
	switch a.Kind {
	case autoscaler.Launch:
		m := &machine{launched: r.now, ready: r.now.Add(bootTime + time.Duration((2*r.random.Float64()-1)*float64(time.Minute)))}
		m.ID, m.Intent, m.Zone, m.Registered = fmt.Sprintf("i-%d", r.launched), a.Intent, a.Zone, true
		r.launched++
		r.machines = append(r.machines, m)
		r.results = append(r.results, autoscaler.Result{Intent: a.Intent, Attempt: a.Attempt, Instance: m.ID})
		return
	case autoscaler.Terminate:
		r.machines = slices.DeleteFunc(r.machines, func(m *machine) bool { return m.ID == a.Instance })
		return
	}
	for _, m := range r.machines {
		switch {
		case m.ID != a.Instance:
		case a.Kind == autoscaler.Drain:
			m.Draining, m.drained = true, r.now.Add(drainTime)
		case a.Kind == autoscaler.Wash && m.washed.IsZero():
			m.washed = r.now.Add(washTime)
		}
	}
}

// list is what is known of the machines; ready is how many take requests.
func (r *region) list() (all []autoscaler.Instance, ready int) {
	for _, m := range r.machines {
		m.Healthy = !r.now.Before(m.ready)
		m.Drained = m.Draining && !r.now.Before(m.drained)
		m.Washed = !m.washed.IsZero() && !r.now.Before(m.washed)
		if m.Healthy && !m.Draining {
			ready++
		}
		all = append(all, m.Instance)
	}
	return all, ready
}

// play plays the days to a contender and measures the last.
func (d *day) play(c contender) (played, error) {
	config := autoscaler.Config{Region: "use1", Zones: []string{"a", "b", "c"}, Max: 60}
	c.change(&config)
	if err := config.Check(); err != nil {
		return played{}, err
	}
	begin := time.Unix(1_790_035_200, 0)                               // midnight
	r := &region{random: rand.New(rand.NewPCG(d.seed, 1)), now: begin} //nolint:gosec // a simulation is no secret
	state := autoscaler.Initial(config, begin)
	from := 0
	if c.fresh {
		from = daysBefore*ticksOfDay - 6*60 // an hour to get under way
	}
	var p played
	var queue, all, late, lateNow, served float64
	for i := from; i < len(d.tokens); i++ {
		r.now = begin.Add(time.Duration(i) * tick)
		instances, ready := r.list()
		load := autoscaler.Load{Fresh: i > from, Models: map[string]autoscaler.Usage{}}
		if i > from { // what was is known, not what is
			load.Requests = d.requests[i-1]
			load.Models["m"] = autoscaler.Usage{Tokens: d.tokens[i-1] * 1000, Served: served * 1000, Late: lateNow}
		}
		o := autoscaler.Observation{Term: 1, Load: load, Instances: instances, Listed: true, Known: true, Results: r.results}
		o.Others = map[fleet.Region]autoscaler.Load{"use2": load, "usw2": load}
		r.results = nil
		var actions []autoscaler.Action
		state, actions = autoscaler.Step(config, state, o, r.now)
		for _, a := range actions {
			r.do(a)
		}
		lateNow, served = serve(&queue, d.tokens[i], float64(ready)*instanceRate)
		if i >= daysBefore*ticksOfDay {
			all += d.requests[i]
			late += d.requests[i] * lateNow
			p.hours += float64(len(r.machines)) * tick.Hours()
			if hour := i - daysBefore*ticksOfDay; hour%30 == 0 {
				p.points = append(p.points, [2]float64{float64(hour) * tick.Hours(), float64(ready)})
			}
		}
	}
	p.missed = late / all
	return p, nil
}

// serve gives the share of a tick's requests that wait for longer than patience, and
// what is served per second: what arrives evenly is put into a queue.
func serve(queue *float64, rate, capacity float64) (late, served float64) {
	const parts = 10
	dt := tick.Seconds() / parts
	for range parts {
		if *queue > patience.Seconds()*capacity {
			late += 1.0 / parts
		}
		done := min(*queue+rate*dt, capacity*dt)
		*queue += rate*dt - done
		served += done / tick.Seconds()
		*queue = min(*queue, 30*max(capacity, 1)) // who would wait for half a minute is gone
	}
	return late, served
}
