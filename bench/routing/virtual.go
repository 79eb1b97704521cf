package main

import (
	"time"

	"github.com/mrgc/mrgc/bench/virtual"
	"github.com/mrgc/mrgc/engine/sim/batching"
)

// In virtual time the same traffic meets the same engines, and no process,
// network or clock: minutes of traffic take a second, and the same seed gives the
// same figures on any machine. What is missing is what the real thing is measured
// for: Envoy, a busy machine, other people's code.

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
	*virtual.World[int] // answers are those of requests by their index
	requests            []request
	balancer            balancer
	engines             []*batching.Machine
	left                int // requests that have not ended
	run                 virtualRun
}

// simulate sends requests to so many engines, of which the last is half as fast.
func simulate(requests []request, engines int, b balancer) (virtualRun, error) {
	s := simulation{requests: requests, balancer: b, left: len(requests)}
	s.run.firsts = make([]float64, len(requests))
	var err error
	if s.engines, err = virtual.Engines(profile(), engines); err != nil {
		return s.run, err
	}
	s.engines[engines-1].Slow(slowFactor)
	s.World = virtual.New(s.engines, s.token)
	for i := range requests {
		s.At(requests[i].at, func() error { return s.send(i) })
	}
	s.At(0, s.tick)
	for s.left > 0 {
		if err := s.Next(); err != nil {
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

func (s *simulation) token(i, _ int, e batching.Event) {
	if e.Index == 0 {
		s.run.firsts[i] = (e.At - s.requests[i].at).Seconds() * 1e3
		s.balancer.begun(e.At, i)
	}
	if e.Last {
		s.left--
		s.balancer.ended(e.At, i)
		s.At(e.At+virtual.LogDelay, func() error { s.balancer.logged(s.Now(), i); return nil })
	}
}

func (s *simulation) send(i int) error {
	r := &s.requests[i]
	prompt := r.tokens()
	engine := s.balancer.pick(s.Now(), r, prompt)
	return s.Send(engine, batching.Request{Prompt: prompt, Output: make([]batching.Token, r.outputTokens)}, i)
}

// tick has every parent report its load, over and over.
func (s *simulation) tick() error {
	for i, m := range s.engines {
		s.balancer.report(s.Now(), i, m.Stats())
	}
	s.At(s.Now()+virtual.ReportEvery, s.tick)
	return nil
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
