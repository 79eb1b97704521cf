package sim

import (
	"errors"
	"slices"
	"time"

	"github.com/mrgc/mrgc/engine/sim/batching"
)

// core decides when each request gets its tokens, in virtual time; see
// batching.Machine, which is one, for what the methods promise.
type core interface {
	Add(now time.Duration, r batching.Request) (batching.ID, error)
	Cancel(id batching.ID)
	Slow(factor float64)
	ResetCache(preempt bool) bool
	Stats() batching.Stats
	Next() (time.Duration, bool)
	Advance(now time.Duration) []batching.Event
}

// paced is the core without a profile: each request that has a slot gets its
// tokens at the same pace, whatever runs beside it.
type paced struct {
	firstToken, perToken time.Duration
	slots                int
	slowness             float64

	running []*pacedRequest // in order of admission
	waiting []*pacedRequest // in order of arrival
	lastID  batching.ID
	now     time.Duration
	events  []batching.Event
	stats   batching.Stats
}

type pacedRequest struct {
	id             batching.ID
	prompt, output int // tokens
	generated      int
	due            time.Duration // of the next token
}

func newPaced(slots int, firstToken, perToken time.Duration) *paced {
	return &paced{slots: slots, firstToken: firstToken, perToken: perToken, slowness: 1}
}

func (p *paced) Add(now time.Duration, r batching.Request) (batching.ID, error) {
	if len(r.Output) == 0 {
		return 0, errors.New("request without output")
	}
	p.lastID++
	p.now = max(p.now, now)
	p.waiting = append(p.waiting, &pacedRequest{id: p.lastID, prompt: len(r.Prompt), output: len(r.Output)})
	p.admit()
	return p.lastID, nil
}

func (p *paced) Cancel(id batching.ID) {
	isIt := func(r *pacedRequest) bool { return r.id == id }
	p.waiting = slices.DeleteFunc(p.waiting, isIt)
	p.running = slices.DeleteFunc(p.running, isIt)
	p.admit()
}

func (p *paced) Slow(factor float64) { p.slowness = factor }

func (p *paced) ResetCache(bool) bool { return true } // it has none

func (p *paced) Stats() batching.Stats {
	s := p.stats
	s.Running, s.Waiting = len(p.running), len(p.waiting)
	return s
}

func (p *paced) Next() (time.Duration, bool) {
	next := p.next()
	if next == nil {
		return 0, false
	}
	return max(p.now, next.due), true
}

func (p *paced) Advance(now time.Duration) []batching.Event {
	p.events = p.events[:0]
	for r := p.next(); r != nil && r.due <= now; r = p.next() {
		p.now = max(p.now, r.due)
		p.say(r)
	}
	p.now = max(p.now, now)
	return p.events
}

// next is the request that is the first to get a token.
func (p *paced) next() *pacedRequest {
	var first *pacedRequest
	for _, r := range p.running {
		if first == nil || r.due < first.due {
			first = r
		}
	}
	return first
}

func (p *paced) say(r *pacedRequest) {
	if r.generated == 0 {
		p.stats.PromptTokens += uint64(r.prompt)
	}
	r.generated++
	p.stats.GeneratedTokens++
	last := r.generated == r.output
	p.events = append(p.events, batching.Event{ID: r.id, At: r.due, Index: r.generated - 1, Last: last})
	r.due += p.slow(p.perToken)
	if last {
		p.Cancel(r.id)
	}
}

func (p *paced) admit() {
	for len(p.waiting) > 0 && len(p.running) < p.slots {
		r := p.waiting[0]
		p.waiting = slices.Delete(p.waiting, 0, 1)
		r.due = p.now + p.slow(p.firstToken)
		p.running = append(p.running, r)
	}
}

func (p *paced) slow(d time.Duration) time.Duration { return time.Duration(float64(d) * p.slowness) }
