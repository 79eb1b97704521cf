package sim

import (
	"iter"
	"time"
)

// event is something that will happen.
type event struct {
	at   time.Duration
	turn uint64 // of two at the same time, the one that was scheduled first
	do   func()
}

// events is a heap, the next one first.
type events []event

func (e events) before(i, j int) bool {
	return e[i].at < e[j].at || e[i].at == e[j].at && e[i].turn < e[j].turn
}

func (e *events) push(v event) {
	*e = append(*e, v)
	h := *e
	for i := len(h) - 1; i > 0; {
		parent := (i - 1) / 2
		if !h.before(i, parent) {
			break
		}
		h[i], h[parent] = h[parent], h[i]
		i = parent
	}
}

func (e *events) pop() event {
	h := *e
	first := h[0]
	last := len(h) - 1
	h[0] = h[last]
	h[last] = event{}
	h = h[:last]
	*e = h
	for i := 0; ; {
		child := 2*i + 1
		if child >= last {
			break
		}
		if child+1 < last && h.before(child+1, child) {
			child++
		}
		if !h.before(child, i) {
			break
		}
		h[i], h[child] = h[child], h[i]
		i = child
	}
	return first
}

// after schedules.
func (w *world) after(d time.Duration, do func()) {
	w.turn++
	w.events.push(event{w.now + max(d, 0), w.turn, do})
}

// every schedules again and again, beginning now.
func (w *world) every(d time.Duration, do func()) {
	do()
	w.after(d, func() { w.every(d, do) })
}

// proc is one thread of a controller's process: a coroutine that runs until it waits.
type proc struct {
	w       *world
	home    *controller
	next    func() (struct{}, bool)
	stop    func()
	yield   func(struct{}) bool
	waiting uint64 // which wait it is in; a wake-up for another one is late
}

// killed unwinds a coroutine that is stopped while it waits.
type killed struct{}

// spawn starts a thread; it ends when its controller is killed.
func (c *controller) spawn(body func(*proc)) {
	p := &proc{w: c.w, home: c}
	p.next, p.stop = iter.Pull(iter.Seq[struct{}](func(yield func(struct{}) bool) {
		defer func() {
			if r := recover(); r != nil {
				if _, ok := r.(killed); !ok {
					panic(r)
				}
			}
		}()
		p.yield = yield
		body(p)
	}))
	c.threads = append(c.threads, p)
	c.w.after(0, func() { p.wake(0) })
}

// pause waits for wake.
func (p *proc) pause() {
	if !p.yield(struct{}{}) {
		panic(killed{})
	}
}

// wake goes on with a thread that is in that wait, as soon as its process runs.
func (p *proc) wake(wait uint64) {
	switch {
	case p.home.dead || p.waiting != wait:
	case p.w.now < p.home.stalled:
		p.w.after(p.home.stalled-p.w.now, func() { p.wake(wait) })
	default:
		p.waiting++
		p.next()
	}
}

func (p *proc) sleep(d time.Duration) {
	wait := p.waiting
	p.w.after(d, func() { p.wake(wait) })
	p.pause()
}

// call sends a request to a place, where it is applied, and waits for the answer: not
// ok, if there is none within the timeout, whether or not it was applied.
func call[T any](p *proc, to place, timeout time.Duration, apply func() T) (result T, ok bool) {
	w, wait := p.w, p.waiting
	deliver := func() {
		r := apply()
		if w.lost(p.home.region, to) {
			return
		}
		w.after(w.latency(p.home.region, to), func() {
			if p.waiting == wait && !ok {
				result, ok = r, true
				p.wake(wait)
			}
		})
	}
	if !w.lost(p.home.region, to) {
		w.after(w.latency(p.home.region, to), deliver)
		if w.repeats(to) && w.chance(w.faults.repeat) {
			w.after(w.latency(p.home.region, to)+w.between(0, 3*time.Second), func() { apply() })
		}
	}
	w.after(timeout, func() { p.wake(wait) })
	p.pause()
	return result, ok
}
