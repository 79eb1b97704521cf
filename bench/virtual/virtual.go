// Package virtual is what benchmarks in virtual time stand on: simulated engines, and
// whatever happens elsewhere, one after the other by a clock that nobody waits for.
// Minutes take seconds, and one seed gives the same figures on any machine.
//
//	w := virtual.New(machines, func(r *request, engine int, e batching.Event) { … })
//	w.At(0, func() error { return w.Send(engine, batching.Request{…}, r) })
//	err := w.Until(time.Minute)
package virtual

import (
	"container/heap"
	"math"
	"time"

	"github.com/mrgc/mrgc/engine/sim/batching"
)

// World is engines and a clock. What an engine answers is an R's.
type World[R any] struct {
	engines []*batching.Machine
	token   func(of R, engine int, e batching.Event)
	running map[answer]R
	now     time.Duration
	events  events
	made    int // events so far
}

type answer struct {
	engine int
	id     batching.ID
}

// New makes a world at time 0. It takes the engines, and says of each token of an
// answer whose it is and which engine's.
func New[R any](engines []*batching.Machine, token func(of R, engine int, e batching.Event)) *World[R] {
	return &World[R]{engines: engines, token: token, running: map[answer]R{}}
}

// Engines makes engines of one profile.
func Engines(profile batching.Profile, n int) ([]*batching.Machine, error) {
	var all []*batching.Machine
	for range n {
		m, err := batching.New(profile)
		if err != nil {
			return nil, err
		}
		all = append(all, m)
	}
	return all, nil
}

// Now is how long ago the world began.
func (w *World[R]) Now() time.Duration { return w.now }

// Time is the present of a clock.
func (w *World[R]) Time() time.Time { return Time(w.now) }

// Time is what clocks show so long after a world has begun.
func Time(since time.Duration) time.Time { return time.Unix(1_800_000_000, 0).Add(since) }

// At has something happen at a time that is not past; of the same time, in the order of
// the calls.
func (w *World[R]) At(t time.Duration, run func() error) {
	w.made++
	heap.Push(&w.events, event{t, w.made, run})
}

// Send has a request arrive at an engine now.
func (w *World[R]) Send(engine int, r batching.Request, of R) error {
	id, err := w.engines[engine].Add(w.now, r)
	w.running[answer{engine, id}] = of
	return err
}

// Next does what comes next, on an engine or elsewhere. There must be something.
func (w *World[R]) Next() error {
	at, engine := time.Duration(math.MaxInt64), -1
	if len(w.events) > 0 {
		at = w.events[0].at
	}
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
		one := answer{engine, e.ID}
		w.token(w.running[one], engine, e)
		if e.Last {
			delete(w.running, one)
		}
	}
	return nil
}

// Until has everything happen until a time. Something must, for so long.
func (w *World[R]) Until(end time.Duration) error {
	for w.now < end {
		if err := w.Next(); err != nil {
			return err
		}
	}
	return nil
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
