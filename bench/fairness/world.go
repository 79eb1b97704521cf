package main

import (
	"container/heap"
	"fmt"
	"math"
	"math/rand/v2"
	"time"

	"github.com/mrgc/mrgc/engine/sim/batching"
	"github.com/mrgc/mrgc/internal/fleet"
	"github.com/mrgc/mrgc/internal/routing"
)

const (
	engines     = 2
	slots       = 32 // of each
	promptSize  = 512
	outputSize  = 256                    // at most, as declared; any length up to that is as likely
	reportEvery = 100 * time.Millisecond // as busy parents do
	logDelay    = 60 * time.Millisecond  // Envoy gathers log entries for 100 ms
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
	engine int
	prompt *routing.Prompt
}

// parent is an instance's, as far as it measures.
type parent struct {
	meter  routing.Meter
	report routing.Report
	at     time.Duration
}

// world is a router's picker, all of it real, before simulated engines, in virtual
// time: minutes take seconds, and one seed gives the same figures on any machine.
type world struct {
	loads   []load
	figures []figures
	door    *door
	engines []*batching.Machine
	parents [engines]parent
	running map[batching.ID]*request // by answer, of all engines: see key
	random  *rand.Rand
	now     time.Duration
	events  events
	warmUp  time.Duration
	busy    []float64 // share of all slots, over time

	sent, scheduled int // attempts and events so far
}

// play has loads meet the engines for a while.
func play(loads []load, seed uint64, warmUp, length time.Duration) (*world, error) {
	w := &world{
		loads: loads, figures: make([]figures, len(loads)), running: map[batching.ID]*request{},
		random: rand.New(rand.NewPCG(seed, 1)), warmUp: warmUp, //nolint:gosec // a simulation is no secret
	}
	profile := batching.A100()
	profile.MaxSequences = slots
	for range engines {
		m, err := batching.New(profile)
		if err != nil {
			return nil, err
		}
		w.engines = append(w.engines, m)
	}
	var err error
	if w.door, err = newDoor(w); err != nil {
		return nil, err
	}
	for i, l := range loads {
		for range l.workers { // not all at one moment
			w.at(l.from+time.Duration(w.random.Float64()*float64(time.Second)), func() error { return w.send(&request{load: i, closed: true, asked: w.now}) })
		}
		if l.rate > 0 {
			w.at(l.from, func() error { return w.arrive(i) })
		}
	}
	w.at(0, w.tick)
	for w.now < length {
		if err := w.next(); err != nil {
			return nil, err
		}
	}
	return w, nil
}

// arrive sends a load's next request, and the one after it.
func (w *world) arrive(i int) error {
	w.at(w.now+time.Duration(w.random.ExpFloat64()/w.loads[i].rate*float64(time.Second)), func() error { return w.arrive(i) })
	return w.send(&request{load: i, asked: w.now})
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
		w.at(w.now+retryAfter, func() error { return w.send(r) })
		return nil
	}
	r.engine, r.prompt = engine, w.parents[engine].meter.Begin(promptSize, w.time())
	id, err := w.engines[engine].Add(w.now, batching.Request{
		Prompt: make([]batching.Token, promptSize), Output: make([]batching.Token, 1+w.random.IntN(outputSize)), Salt: r.id, // nothing is cached
	})
	w.running[key(engine, id)] = r
	return err
}

// next does what comes next, on an engine or elsewhere.
func (w *world) next() error {
	at, engine := w.events[0].at, -1 // there is always a tick to come
	for i, m := range w.engines {
		if t, ok := m.Next(); ok && t < at {
			at, engine = t, i
		}
	}
	w.now = at
	if engine < 0 {
		return heap.Pop(&w.events).(event).run()
	}
	for _, e := range w.engines[engine].Advance(at) {
		r := w.running[key(engine, e.ID)]
		w.token(r, e)
	}
	return nil
}

func (w *world) token(r *request, e batching.Event) {
	f, meter := &w.figures[r.load], &w.parents[r.engine].meter
	if w.now >= w.warmUp {
		f.tokens++
	}
	if e.Index == 0 {
		f.firsts = append(f.firsts, first{r.asked, e.At - r.asked})
		meter.First(r.prompt, w.time())
	}
	if !e.Last {
		return
	}
	meter.End(r.prompt, w.time())
	delete(w.running, key(r.engine, e.ID))
	id, closed, i := r.id, r.closed, r.load
	w.at(w.now+logDelay, func() error { return w.door.ended(id) })
	if closed {
		w.at(w.now, func() error { return w.send(&request{load: i, closed: true, asked: w.now}) })
	}
}

// tick has every parent report its load, over and over.
func (w *world) tick() error {
	all := 0
	for i, m := range w.engines {
		s, p := m.Stats(), &w.parents[i]
		all += s.Running
		p.at = w.now
		p.report = routing.Report{
			Age: routing.AgeFresh, Load: fleet.Load{Running: s.Running, Queued: s.Waiting, Slots: slots},
			UnreadTokens: p.meter.Unread(), ReadTokensPerSecond: p.meter.ReadTokensPerSecond(), RequestDuration: p.meter.Duration(),
		}
	}
	if w.now >= w.warmUp {
		w.busy = append(w.busy, float64(all)/(engines*slots))
	}
	w.at(w.now+reportEvery, w.tick)
	return nil
}

func (w *world) time() time.Time { return time.Unix(1_800_000_000, 0).Add(w.now) }

// key tells answers of different engines apart.
func key(engine int, id batching.ID) batching.ID { return id*engines + batching.ID(engine) }

func (w *world) at(t time.Duration, run func() error) {
	w.scheduled++
	heap.Push(&w.events, event{t, w.scheduled, run})
}

// event is what happens elsewhere than in an engine.
type event struct {
	at  time.Duration
	seq int // decides between events of the same moment
	run func() error
}

type events []event

func (e events) Len() int { return len(e) }
func (e events) Less(i, j int) bool {
	return e[i].at < e[j].at || e[i].at == e[j].at && e[i].seq < e[j].seq
}
func (e events) Swap(i, j int) { e[i], e[j] = e[j], e[i] }
func (e *events) Push(v any)   { *e = append(*e, v.(event)) }
func (e *events) Pop() any {
	last := (*e)[len(*e)-1]
	*e = (*e)[:len(*e)-1]
	return last
}

// mean of a share, in percent.
func mean(shares []float64) float64 {
	sum := 0.0
	for _, s := range shares {
		sum += s
	}
	return 100 * sum / math.Max(float64(len(shares)), 1)
}
