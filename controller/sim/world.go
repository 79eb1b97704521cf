package sim

import (
	"fmt"
	"io"
	"math/rand/v2"
	"time"

	"github.com/mrgc/mrgc/controller/autoscaler"
	"github.com/mrgc/mrgc/controller/failover"
	"github.com/mrgc/mrgc/internal/fleet"
)

// place is where a message goes: a region's number, or one of AWS's control planes.
type place int

const (
	regions    = 3
	global     = place(regions)     // the accelerator's
	strong     = place(regions + 1) // the strongly consistent tables, wherever they are reached
	ec2Base    = place(10)          // EC2 of region 0
	zonesCount = 3
)

var names = [regions]fleet.Region{"use1", "use2", "usw2"}

// rules are what a planted bug replaces.
type rules struct {
	failover   func(failover.Config, failover.State, failover.Observation, time.Time) (failover.State, []failover.Action)
	autoscaler func(autoscaler.Config, autoscaler.State, autoscaler.Observation, time.Time) (autoscaler.State, []autoscaler.Action)
	scaling    func(*autoscaler.Config)
	dials      func(*failover.Config)
	// mayAct says whether a controller still holds a lease, by its own clock.
	mayAct func(held lead, clock time.Duration) bool
	// admit says whether a store takes a write under a token, after one under fence.
	admit func(fence, token int64) bool
	// storeFirst: a state is stored before its actions are done.
	storeFirst bool
}

func theRules() rules {
	return rules{
		failover: failover.Step, autoscaler: autoscaler.Step,
		scaling: func(*autoscaler.Config) {}, dials: func(*failover.Config) {},
		mayAct:     func(held lead, clock time.Duration) bool { return held.token > 0 && clock < held.until },
		admit:      func(fence, token int64) bool { return token >= fence },
		storeFirst: true,
	}
}

// world is everything.
type world struct {
	now    time.Duration // since the beginning; what no process knows exactly
	turn   uint64
	events events
	random *rand.Rand
	rules  rules
	faults faults
	ahead  bool // autoscalers foresee, and have a reserve

	up          [regions]bool                       // the region has not died
	cut         [regions + 1][regions + 1]int       // links that are cut, how many times; the last is the accelerator
	slow        [regions]int                        // its disks are, how many times over
	controllers []*controller                       // running
	starts      int64                               // of controllers
	tables      tables                              // strongly consistent
	reports     [regions]map[fleet.Region]reportRow // each region's replica
	accelerator accelerator
	clouds      [regions]cloud
	tenants     tenants
	watch       watch

	tell io.Writer
}

// begin is the time on a clock that goes right, at the beginning.
var begin = time.Unix(1_790_000_000, 0)

func newWorld(seed uint64, r rules, tell io.Writer) *world {
	w := &world{random: rand.New(rand.NewPCG(seed, 0)), rules: r, tell: tell} //nolint:gosec // a simulation is no secret
	w.faults = w.drawFaults()
	w.ahead = w.random.IntN(2) == 0
	for i := range regions {
		w.up[i] = true
		w.reports[i] = map[fleet.Region]reportRow{}
	}
	w.accelerator.init()
	w.watch.init(w)
	w.tenants.init(w)
	for i := range regions {
		w.clouds[i].init(w, place(i))
		w.start(place(i))
		w.start(place(i))
	}
	return w
}

func (w *world) chance(p float64) bool { return p > 0 && w.random.Float64() < p }

func (w *world) between(a, b time.Duration) time.Duration {
	if b <= a {
		return a
	}
	return a + time.Duration(w.random.Int64N(int64(b-a)))
}

// say tells the story, if anybody listens.
func (w *world) say(who, format string, args ...any) {
	if w.tell != nil {
		_, _ = fmt.Fprintf(w.tell, "%9.3fs  %-14s %s\n", w.now.Seconds(), who, fmt.Sprintf(format, args...))
	}
}

// connected says whether two regions reach each other.
func (w *world) connected(a, b place) bool {
	return a == b || w.up[a] && w.up[b] && w.cut[a][b] == 0
}

// lost says whether a message between a region and a place does not arrive.
func (w *world) lost(from, to place) bool {
	if w.chance(w.faults.loss) {
		return true
	}
	switch {
	case !w.up[from]:
		return true
	case to == strong: // a majority of the regions must agree
		reached := 0
		for r := range place(regions) {
			if w.connected(from, r) {
				reached++
			}
		}
		return 2*reached <= regions
	case to == global:
		return w.cut[from][regions] > 0
	case to >= ec2Base:
		return false
	default:
		return !w.connected(from, to)
	}
}

// repeats says whether a message to a place may arrive twice. One that launches may
// not where tokens are not honoured: nothing could be done about it, and what honours
// none is reached over loopback.
func (w *world) repeats(to place) bool { return to < ec2Base || w.clouds[to-ec2Base].tokens }

// latency is a message's way in one direction, and what the other side takes. A region
// whose disks are slow reaches the tables slowly, and is reached so.
func (w *world) latency(from, to place) time.Duration {
	if to == strong && w.slow[from] > 0 || to < regions && w.slow[to] > 0 {
		return w.between(200*time.Millisecond, 4*time.Second)
	}
	base := 5 * time.Millisecond
	switch {
	case to == strong:
		base = 40 * time.Millisecond
	case to == global:
		base = 300 * time.Millisecond
	case to >= ec2Base:
		base = 800 * time.Millisecond
	}
	if w.chance(w.faults.slow) { // a queue, a retransmission
		return w.between(base, 10*base+2*time.Second)
	}
	return w.between(base/2, 2*base)
}

// Outcome is how a seed went.
type Outcome struct {
	Seed      uint64
	Violation string        // the first invariant that did not hold; empty: all did
	Invariant Invariant     // which
	At        time.Duration // when
	Counts    Counts
}

// Options are how it is played.
type Options struct {
	Tell io.Writer // who is told the story; nil: nobody
	// Calm: nothing goes wrong, but that one region dies for ten minutes.
	Calm bool
}

// How long things go wrong, and how long until they must be well.
const (
	faultsFor = time.Hour
	settle    = 75 * time.Minute
)

// Run plays a seed.
func Run(seed uint64, o Options) Outcome { return run(seed, theRules(), o) }

func run(seed uint64, r rules, o Options) Outcome {
	w := newWorld(seed, r, o.Tell)
	if o.Calm {
		w.calm()
		w.after(w.between(20*time.Minute, 21*time.Minute), func() { w.regionDies(w.region(), 10*time.Minute) })
	} else {
		w.after(8*time.Minute, w.nextFault)
	}
	w.every(5*time.Second, w.tenants.spread)
	for len(w.events) > 0 && w.watch.violation == "" && w.now < faultsFor+settle {
		e := w.events.pop()
		w.now = e.at
		e.do()
	}
	if w.watch.violation == "" {
		w.watch.end()
	}
	for len(w.controllers) > 0 {
		w.controllers[0].kill()
	}
	return Outcome{Seed: seed, Violation: w.watch.violation, Invariant: w.watch.broken, At: w.watch.at, Counts: w.watch.counts}
}
