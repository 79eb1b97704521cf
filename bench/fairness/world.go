package main

import (
	"fmt"
	"math"
	"math/rand/v2"
	"time"

	"github.com/mrgc/mrgc/bench/virtual"
	"github.com/mrgc/mrgc/engine/sim/batching"
	"github.com/mrgc/mrgc/internal/routing"
)

const (
	engines    = 2
	slots      = 32 // of each
	promptSize = 512
	outputSize = 256 // at most, as declared; any length up to that is as likely
)

// load is what one tenant does: it sends requests one after the other from each of
// its workers, or at random at a rate.
type load struct {
	tenant  string // it is known by
	weight  int
	workers int
	rate    float64
	from    time.Duration
}

// figures are how a load fared.
type figures struct {
	firsts   []first
	refusals int
	tokens   int // of answers, once the world has warmed up
}

// first is a request's first token.
type first struct{ asked, after time.Duration }

// afterwards are the waits, in seconds, of requests that were sent within a time.
func (f *figures) afterwards(from, to time.Duration) (seconds []float64) {
	for _, t := range f.firsts {
		if t.asked >= from && t.asked < to {
			seconds = append(seconds, t.after.Seconds())
		}
	}
	return seconds
}

// request is one of a load's, through all its attempts.
type request struct {
	load   int
	closed bool // another follows when it ends
	asked  time.Duration
	id     string // of the attempt
	prompt *routing.Prompt
}

// world is a router's picker, all of it real, before simulated engines, in virtual
// time: minutes take seconds, and one seed gives the same figures on any machine.
type world struct {
	*virtual.World[*request]
	loads   []load
	figures []figures
	door    *door
	engines []*batching.Machine
	parents [engines]virtual.Parent
	random  *rand.Rand
	warmUp  time.Duration
	busy    []float64 // share of all slots, over time
	sent    int       // attempts so far
}

// play has loads meet the engines for a while.
func play(loads []load, seed uint64, warmUp, length time.Duration) (*world, error) {
	w := &world{
		loads: loads, figures: make([]figures, len(loads)),
		random: rand.New(rand.NewPCG(seed, 1)), warmUp: warmUp, //nolint:gosec // a simulation is no secret
	}
	profile := batching.A100()
	profile.MaxSequences = slots
	var err error
	if w.engines, err = virtual.Engines(profile, engines); err != nil {
		return nil, err
	}
	w.World = virtual.New(w.engines, w.token)
	if w.door, err = newDoor(w); err != nil {
		return nil, err
	}
	defer w.door.close()
	for i, l := range loads {
		for range l.workers { // not all at one moment
			w.At(l.from+time.Duration(w.random.Float64()*float64(time.Second)), func() error { return w.send(&request{load: i, closed: true, asked: w.Now()}) })
		}
		if l.rate > 0 {
			w.At(l.from, func() error { return w.arrive(i) })
		}
	}
	w.At(0, w.tick)
	return w, w.Until(length)
}

// arrive sends a load's next request, and the one after it.
func (w *world) arrive(i int) error {
	w.At(w.Now()+time.Duration(w.random.ExpFloat64()/w.loads[i].rate*float64(time.Second)), func() error { return w.arrive(i) })
	return w.send(&request{load: i, asked: w.Now()})
}

// send makes one attempt; one that is refused is made again when that says so.
func (w *world) send(r *request) error {
	w.sent++
	r.id = fmt.Sprintf("%032x", w.sent)
	engine, retryAfter, err := w.door.ask(r.id, w.loads[r.load].tenant)
	if err != nil {
		return err
	}
	if retryAfter > 0 {
		w.figures[r.load].refusals++
		w.At(w.Now()+retryAfter, func() error { return w.send(r) })
		return nil
	}
	r.prompt = w.parents[engine].Meter.Begin(promptSize, w.Time())
	return w.Send(engine, batching.Request{
		Prompt: make([]batching.Token, promptSize), Output: make([]batching.Token, 1+w.random.IntN(outputSize)), Salt: r.id, // nothing is cached
	}, r)
}

func (w *world) token(r *request, engine int, e batching.Event) {
	f, meter := &w.figures[r.load], &w.parents[engine].Meter
	if w.Now() >= w.warmUp {
		f.tokens++
	}
	if e.Index == 0 {
		f.firsts = append(f.firsts, first{r.asked, e.At - r.asked})
		meter.First(r.prompt, w.Time())
	}
	if !e.Last {
		return
	}
	meter.End(r.prompt, w.Time())
	id, closed, i := r.id, r.closed, r.load
	w.At(w.Now()+virtual.LogDelay, func() error { return w.door.ended(id) })
	if closed {
		w.At(w.Now(), func() error { return w.send(&request{load: i, closed: true, asked: w.Now()}) })
	}
}

// tick has every parent report its load, over and over.
func (w *world) tick() error {
	all := 0
	for i, m := range w.engines {
		s := m.Stats()
		all += s.Running
		w.parents[i].Tell(s, slots, w.Now())
	}
	if w.Now() >= w.warmUp {
		w.busy = append(w.busy, float64(all)/(engines*slots))
	}
	w.At(w.Now()+virtual.ReportEvery, w.tick)
	return nil
}

// mean of a share, in percent.
func mean(shares []float64) float64 {
	sum := 0.0
	for _, s := range shares {
		sum += s
	}
	return 100 * sum / math.Max(float64(len(shares)), 1)
}
