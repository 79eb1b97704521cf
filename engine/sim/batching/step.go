package batching

import (
	"slices"
	"time"
)

// begin plans the next step and starts it, if there is anything to compute.
func (m *Machine) begin() {
	budget, preempted := m.continueRunning(m.profile.MaxBatchedTokens)
	if !preempted { // what is short of blocks now will not have more of them by admitting others
		m.admit(budget)
	}
	if len(m.step.parts) == 0 {
		return
	}
	m.step.busy = true
	m.step.end = m.now + m.cost()
	m.stats.Steps++
}

// continueRunning plans the running sequences' parts and gives what they leave
// of the budget. A sequence that finds no block for its part takes those of the
// one admitted last, which may be itself.
func (m *Machine) continueRunning(budget int) (left int, preempted bool) {
	for i := 0; i < len(m.running) && budget > 0; i++ {
		s := m.running[i]
		n := min(s.tokens()-s.computed, budget)
		for i < len(m.running) && !m.cache.grow(s, s.computed+n) {
			m.preemptLast()
			preempted = true
		}
		if i == len(m.running) {
			break // it was itself
		}
		m.step.parts = append(m.step.parts, part{s, n})
		budget -= n
	}
	return budget, preempted
}

func (m *Machine) preemptLast() {
	last := len(m.running) - 1
	s := m.running[last]
	m.running = slices.Delete(m.running, last, last+1)
	m.cache.release(s)
	s.computed = 0
	m.waiting = slices.Insert(m.waiting, 0, s)
	m.stats.Preemptions++
}

// admit starts sequences in their order, as long as there are slots, budget and
// blocks.
func (m *Machine) admit(budget int) {
	for len(m.waiting) > 0 && len(m.running) < m.profile.MaxSequences && budget > 0 {
		s := m.waiting[0]
		if s.ready > m.now {
			return
		}
		// The last token is computed in any case: the first answer comes of it.
		found, idle := m.cache.find(s, (s.tokens()-1)/BlockTokens)
		hit := len(found) * BlockTokens
		n := min(s.tokens()-hit, budget)
		if blocksFor(hit+n)-len(found) > m.cache.free-idle {
			return
		}
		m.cache.hold(s, found)
		m.cache.grow(s, hit+n) // there is room
		s.computed = hit
		if !s.admitted {
			s.admitted, s.cached = true, hit
			m.stats.QueriedTokens += uint64(len(s.prompt))
			m.stats.HitTokens += uint64(hit)
		}
		m.waiting = slices.Delete(m.waiting, 0, 1)
		m.running = append(m.running, s)
		m.step.parts = append(m.step.parts, part{s, n})
		budget -= n
	}
}

// cost is how long the planned step takes.
func (m *Machine) cost() time.Duration {
	prefill, decode, context := 0, 0, 0
	for _, p := range m.step.parts {
		// What a preempted sequence had generated is computed as a prompt is.
		if p.tokens == 1 && p.s.generated > 0 && p.s.computed == p.s.tokens()-1 {
			decode++
			context += p.s.tokens()
		} else {
			prefill += p.tokens
		}
	}
	t := m.profile.Step +
		time.Duration(prefill)*m.profile.PrefillToken +
		time.Duration(decode)*m.profile.DecodeSequence +
		time.Duration(context)*m.profile.ContextToken
	return time.Duration(float64(t) * m.slowness)
}

// finish gives a token to each sequence of the step that has all before it
// computed.
func (m *Machine) finish() {
	ended := false
	for _, p := range m.step.parts {
		s := p.s
		if s.gone {
			continue
		}
		s.computed += p.tokens
		if s.computed < s.tokens() {
			continue
		}
		if s.generated == 0 {
			m.stats.PromptTokens += uint64(len(s.prompt))
		}
		m.stats.GeneratedTokens++
		s.generated++
		last := s.generated == len(s.output)
		m.events = append(m.events, Event{ID: s.id, At: m.step.end, Index: s.generated - 1, Cached: s.cached, Last: last})
		if last {
			m.drop(s)
			ended = true
		}
	}
	if ended {
		m.running = slices.DeleteFunc(m.running, func(s *sequence) bool { return s.gone })
	}
	clear(m.step.parts) // they hold on to sequences
	m.step.parts, m.step.busy = m.step.parts[:0], false
}
