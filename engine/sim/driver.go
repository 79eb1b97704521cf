package sim

import (
	"sync"
	"sync/atomic"
	"time"

	"github.com/mrgc/mrgc/engine/sim/batching"
)

// driver lets a core's virtual time pass with the clock. It has a timer and no
// goroutine of its own: while nothing happens, nothing runs. A timer that is
// late delays tokens and no step, since the core computes from when a step
// should have ended.
type driver struct {
	speed   float64
	began   time.Time
	metrics *metrics

	mu    sync.Mutex // guards all below
	core  core
	timer *time.Timer
	jobs  map[batching.ID]*job
}

// job is a request that is under way.
type job struct {
	id      batching.ID
	arrived time.Duration
	last    time.Duration // when it got its last token so far
	poke    chan struct{} // has something in it when there are more tokens
	cached  int           // tokens of the prompt; written before tokens
	tokens  atomic.Int64  // how many there are
}

func newDriver(c core, speed float64, m *metrics) *driver {
	d := &driver{core: c, speed: speed, began: time.Now(), metrics: m, jobs: make(map[batching.ID]*job)}
	d.timer = time.AfterFunc(time.Hour, d.tick)
	d.timer.Stop()
	return d
}

// now is the virtual time.
func (d *driver) now() time.Duration {
	return time.Duration(float64(time.Since(d.began)) * d.speed)
}

// submit queues a request.
func (d *driver) submit(r batching.Request) (*job, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	now := d.now()
	d.advance(now)
	id, err := d.core.Add(now, r)
	if err != nil {
		return nil, err
	}
	j := &job{id: id, arrived: now, poke: make(chan struct{}, 1)}
	d.jobs[id] = j
	d.advance(now)
	d.arm(now)
	return j, nil
}

// cancel ends a job. One that has ended is left alone.
func (d *driver) cancel(j *job) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.jobs[j.id] == nil {
		return
	}
	now := d.now()
	d.advance(now)
	d.core.Cancel(j.id)
	delete(d.jobs, j.id)
	d.arm(now)
}

func (d *driver) tick() {
	d.mu.Lock()
	defer d.mu.Unlock()
	now := d.now()
	d.advance(now)
	d.arm(now)
}

// with calls f with the core, up to date.
func (d *driver) with(f func(core)) {
	d.mu.Lock()
	defer d.mu.Unlock()
	now := d.now()
	d.advance(now)
	f(d.core)
	d.arm(now)
}

// advance hands the tokens out that there are by now.
func (d *driver) advance(now time.Duration) {
	for _, e := range d.core.Advance(now) {
		j := d.jobs[e.ID]
		if e.Index == 0 {
			d.metrics.firstToken.Observe((e.At - j.arrived).Seconds())
		} else {
			d.metrics.nextToken.Observe((e.At - j.last).Seconds())
		}
		j.last, j.cached = e.At, e.Cached
		j.tokens.Store(int64(e.Index + 1))
		if e.Last {
			d.metrics.whole.Observe((e.At - j.arrived).Seconds())
			delete(d.jobs, e.ID)
		}
		select {
		case j.poke <- struct{}{}:
		default: // it has yet to look
		}
	}
}

// arm sets the timer for what happens next.
func (d *driver) arm(now time.Duration) {
	at, ok := d.core.Next()
	if !ok {
		d.timer.Stop()
		return
	}
	d.timer.Reset(max(0, time.Duration(float64(at-now)/d.speed)))
}
