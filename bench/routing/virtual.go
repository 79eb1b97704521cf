package main

import (
	"container/heap"
	"math"
	"time"

	"github.com/mrgc/mrgc/engine/sim/batching"
)

// In virtual time the same traffic meets the same engines, and no process,
// network or clock: minutes of traffic take a second, and the same seed gives the
// same figures on any machine. What is missing is what the real thing is measured
// for: Envoy, a busy machine, other people's code.

// Delays of the real thing.
const (
	virtualLogDelay    = 60 * time.Millisecond  // until a picker learns of a request's end: Envoy gathers log entries for 100 ms
	virtualReportEvery = 100 * time.Millisecond // as busy parents do
)

// balancer is what is simulated before the engines. It is told of the requests
// by their index in the traffic.
type balancer interface {
	// pick chooses an engine for a request.
	pick(now time.Duration, r *request, prompt []batching.Token) (engine int)
	// begun is when an answer's first token comes, ended its last, as a proxy in
	// their way sees it; logged is when a picker beside the proxy learns of the end.
	begun(now time.Duration, request int)
	ended(now time.Duration, request int)
	logged(now time.Duration, request int)
	// report is when an engine's parent reports its load.
	report(now time.Duration, engine int, s batching.Stats)
}

// virtualRun is how one traffic went.
type virtualRun struct {
	firsts []float64 // time to first token by request, ms
	hits   float64   // share of prompt tokens that engines had cached
}

// simulation is one traffic's.
type simulation struct {
	requests []request
	balancer balancer
	engines  []*batching.Machine
	owners   map[answerOf]int
	events   virtualEvents
	left     int // requests that have not ended
	run      virtualRun

	scheduled int // events so far
}

type answerOf struct {
	engine int
	id     batching.ID
}

// simulate sends requests to so many engines, of which the last is half as fast.
func simulate(requests []request, engines int, b balancer) (virtualRun, error) {
	s := simulation{requests: requests, balancer: b, owners: map[answerOf]int{}, left: len(requests)}
	s.run.firsts = make([]float64, len(requests))
	for i := range engines {
		m, err := batching.New(profile())
		if err != nil {
			return s.run, err
		}
		if i == engines-1 {
			m.Slow(slowFactor)
		}
		s.engines = append(s.engines, m)
	}
	for i := range requests {
		s.at(requests[i].at, func(now time.Duration) error { return s.send(now, i) })
	}
	s.at(0, s.tick)
	for s.left > 0 {
		if err := s.next(); err != nil {
			return s.run, err
		}
	}
	var queried, hit uint64
	for _, m := range s.engines {
		queried, hit = queried+m.Stats().QueriedTokens, hit+m.Stats().HitTokens
	}
	s.run.hits = float64(hit) / float64(queried)
	return s.run, nil
}

// next does what comes next, on an engine or elsewhere.
func (s *simulation) next() error {
	at, engine := time.Duration(math.MaxInt64), -1
	if len(s.events) > 0 {
		at = s.events[0].at
	}
	for i, m := range s.engines {
		if t, ok := m.Next(); ok && t < at {
			at, engine = t, i
		}
	}
	if engine < 0 {
		e := heap.Pop(&s.events).(virtualEvent)
		return e.run(e.at)
	}
	for _, e := range s.engines[engine].Advance(at) {
		i := s.owners[answerOf{engine, e.ID}]
		if e.Index == 0 {
			s.run.firsts[i] = (e.At - s.requests[i].at).Seconds() * 1e3
			s.balancer.begun(e.At, i)
		}
		if e.Last {
			s.left--
			s.balancer.ended(e.At, i)
			s.at(e.At+virtualLogDelay, func(now time.Duration) error { s.balancer.logged(now, i); return nil })
		}
	}
	return nil
}

func (s *simulation) send(now time.Duration, i int) error {
	r := &s.requests[i]
	prompt := r.tokens()
	engine := s.balancer.pick(now, r, prompt)
	id, err := s.engines[engine].Add(now, batching.Request{Prompt: prompt, Output: make([]batching.Token, r.outputTokens)})
	s.owners[answerOf{engine, id}] = i
	return err
}

// tick has every parent report its load, over and over.
func (s *simulation) tick(now time.Duration) error {
	for i, m := range s.engines {
		s.balancer.report(now, i, m.Stats())
	}
	s.at(now+virtualReportEvery, s.tick)
	return nil
}

func (s *simulation) at(t time.Duration, run func(now time.Duration) error) {
	s.scheduled++
	heap.Push(&s.events, virtualEvent{t, s.scheduled, run})
}

// tokens are a prompt's, of the same length and with the same prefixes in common
// as package engine/sim makes of it.
func (r *request) tokens() []batching.Token {
	const start, message, end, answer = 1, 2, 3, 4
	tokens := []batching.Token{start}
	for _, m := range r.messages {
		tokens = append(tokens, message)
		for i := 0; i+4 <= len(m.content); i += 4 {
			c := m.content[i:]
			tokens = append(tokens, batching.Token(c[0])|batching.Token(c[1])<<8|batching.Token(c[2])<<16)
		}
		tokens = append(tokens, end)
	}
	return append(tokens, answer)
}

type virtualEvent struct {
	at  time.Duration
	seq int // decides between events of the same moment
	run func(now time.Duration) error
}

type virtualEvents []virtualEvent

func (e virtualEvents) Len() int { return len(e) }
func (e virtualEvents) Less(i, j int) bool {
	return e[i].at < e[j].at || e[i].at == e[j].at && e[i].seq < e[j].seq
}
func (e virtualEvents) Swap(i, j int) { e[i], e[j] = e[j], e[i] }
func (e *virtualEvents) Push(v any)   { *e = append(*e, v.(virtualEvent)) }
func (e *virtualEvents) Pop() any {
	last := (*e)[len(*e)-1]
	*e = (*e)[:len(*e)-1]
	return last
}
