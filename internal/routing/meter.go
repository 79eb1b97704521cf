package routing

import (
	"slices"
	"time"
)

// Meter follows, on an instance, how that reads its prompts, which is most of
// what a new request waits for: how many tokens are still unread, how fast they
// are read, and how long requests last. A [Report] carries it to pickers. Time is
// an argument. It is not safe for concurrent use; its zero value is ready.
//
// An engine reads prompts one after the other, so a request's first token comes
// when what was unread before it, and its own prompt, have been read. The speed
// is fitted to that: the tokens that were ahead of first tokens, over the times
// that these took, of the last requests. What slows the engine down for other
// reasons, such as full slots, counts as slower reading, as it should.
//
// An answer that is not streamed has its first byte when it ends, which says
// nothing of when its prompt was read. Nobody says which are streamed; but one
// that goes on after it has begun is, and one that does not teaches nothing.
type Meter struct {
	unread    int
	ahead     float64 // sums over the last requests, each weighing meterKeep of the next
	took      float64 // seconds
	ended     float64
	durations float64   // seconds
	begun     []*Prompt // those whose answers have, and may have ended with that
}

// meterKeep is the weight of a request against the one after it: the sums follow
// the last twenty.
const meterKeep = 0.95

const maxReadRate = 1e9

// Prompt is one request that a [Meter] follows.
type Prompt struct {
	tokens, ahead int
	begun, first  time.Time
}

// goesOn says whether an answer still comes in a while after it has begun.
func (p *Prompt) goesOn(now time.Time) bool {
	return now.Sub(p.first) > p.first.Sub(p.begun)/16
}

// Begin is when a request arrives with a prompt of which the engine has to read
// so many tokens anew.
func (m *Meter) Begin(tokens int, now time.Time) *Prompt {
	m.learn(now)
	tokens = min(max(tokens, 0), maxReported-m.unread)
	m.unread += tokens
	return &Prompt{tokens: tokens, ahead: m.unread, begun: now}
}

// First is when the first byte of its answer came.
func (m *Meter) First(p *Prompt, now time.Time) {
	m.learn(now)
	if p.first.IsZero() {
		p.first = now
		m.unread -= p.tokens
		m.begun = append(m.begun, p)
	}
}

// End is when it has ended, with an answer or without.
func (m *Meter) End(p *Prompt, now time.Time) {
	m.learn(now)
	if p.first.IsZero() {
		m.unread -= p.tokens
		return
	}
	m.begun = slices.DeleteFunc(m.begun, func(other *Prompt) bool { return other == p })
	m.ended = meterKeep*m.ended + 1
	m.durations = meterKeep*m.durations + now.Sub(p.begun).Seconds()
}

// learn takes the speed from the answers that have gone on after they began.
func (m *Meter) learn(now time.Time) {
	m.begun = slices.DeleteFunc(m.begun, func(p *Prompt) bool {
		if !p.goesOn(now) {
			return false
		}
		m.ahead = meterKeep*m.ahead + float64(p.ahead+stepTokens)
		m.took = meterKeep*m.took + p.first.Sub(p.begun).Seconds()
		return true
	})
}

// Unread is how many tokens of prompts have been sent and not been read.
func (m *Meter) Unread() int { return m.unread }

// ReadTokensPerSecond is how fast prompts are read; 0: not known.
func (m *Meter) ReadTokensPerSecond() float64 {
	if m.took <= 0 {
		return 0
	}
	return min(m.ahead/m.took, maxReadRate)
}

// Duration is how long a request lasts on average; 0: not known.
func (m *Meter) Duration() time.Duration {
	if m.ended == 0 {
		return 0
	}
	return time.Duration(m.durations / m.ended * float64(time.Second))
}
