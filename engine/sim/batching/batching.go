// Package batching computes how long a vLLM-like inference engine takes, in
// virtual time: it has no clock, no goroutine, no I/O and no model.
//
//	m, err := batching.New(batching.H100())
//	id, err := m.Add(now, batching.Request{Prompt: tokens, Output: answer})
//	for at, ok := m.Next(); ok; at, ok = m.Next() {
//		for _, e := range m.Advance(at) { … } // tokens, at e.At
//	}
//
// # What is modelled
//
// Continuous batching as vLLM's V1 scheduler does it. The engine works in steps.
// In each, all running sequences that have their prompts behind them get one
// token, and what is left of the step's budget of tokens computes prompts, of
// running sequences first and then of new ones in their order of arrival: so a
// long prompt takes several steps and slows the others' tokens down while it
// does (chunked prefill). How long a step takes is linear in what is in it; see
// [Profile].
//
// A KV cache of blocks of 16 tokens. A sequence takes blocks as it grows. A new
// one runs only if there is a block for all that its first step computes, and
// nobody overtakes it while it waits. A running one that finds no block takes
// those of the sequence that was admitted last, which starts over when there is
// room (preemption by recomputation). Blocks that nobody holds any more keep
// their content until they are needed, the least recently used first, and a
// request whose prompt starts as one did before, with the same salt, skips
// that part: of its prompt and of the answers that were given to it.
//
// # What is not modelled
//
// The cost of a prompt token is the same at each position, though attention
// makes late ones dearer. There is no noise, no speculative decoding, no CUDA
// graph sizes, no tensor or expert parallelism, no LoRA, no offloading of KV
// to a host's memory, no prefill on other machines, and no batch priority.
// Sequences end where the request says. The time for detokenising is not in it.
package batching

import (
	"fmt"
	"slices"
	"time"
)

// Token is a piece of text, as a number.
type Token = uint32

// Request is a prompt and the answer that it will get.
type Request struct {
	// Prompt has at least one token. It is not copied and not changed.
	Prompt []Token
	// Output has at least one token. It is not copied and not changed.
	Output []Token
	// Salt separates caches: a prefix is found only under the salt that it was
	// computed under (vLLM's cache_salt).
	Salt string
}

// ID names a request within its machine.
type ID uint64

// Event is a token of an answer.
type Event struct {
	ID     ID
	At     time.Duration
	Index  int  // of the token in the answer, from 0
	Cached int  // tokens of the prompt that were found in the cache
	Last   bool // the answer ends with it, and the ID is gone
}

// Stats is what a machine holds and has done. Totals only grow.
type Stats struct {
	Running, Waiting      int // requests; those that have yet to arrive (Profile.Arrival) wait
	UsedBlocks, AllBlocks int // blocks of KV cache that sequences hold, and all
	Steps                 uint64
	Preemptions           uint64
	PromptTokens          uint64 // of requests that have their first token
	GeneratedTokens       uint64
	QueriedTokens         uint64 // that were looked for in the cache
	HitTokens             uint64 // that were found there
}

// Machine is an engine. It is not safe for concurrent use. Times are what has
// passed since any fixed moment; the machine's own time never runs backwards.
type Machine struct {
	profile  Profile
	slowness float64
	cache    *kvCache
	running  []*sequence // in order of admission
	waiting  []*sequence // in order of arrival, but for preempted ones, which are first
	byID     map[ID]*sequence
	lastID   ID
	now      time.Duration
	step     step
	events   []Event
	stats    Stats
}

// step is what the engine computes at once.
type step struct {
	busy  bool
	end   time.Duration
	parts []part
}

type part struct {
	s      *sequence
	tokens int
}

type sequence struct {
	id        ID
	prompt    []Token
	output    []Token
	root      uint64   // hash of the salt
	hashes    []uint64 // of full blocks, as far as they were asked for
	ready     time.Duration
	blocks    []int32
	known     int // how many of the blocks the cache knows by their hashes
	computed  int // tokens whose keys and values are in the blocks
	generated int
	cached    int
	admitted  bool // at least once
	gone      bool
}

// tokens is how many tokens there are to compute so far.
func (s *sequence) tokens() int { return len(s.prompt) + s.generated }

func (s *sequence) token(i int) Token {
	if i < len(s.prompt) {
		return s.prompt[i]
	}
	return s.output[i-len(s.prompt)]
}

// New gives an idle machine with an empty cache.
func New(p Profile) (*Machine, error) {
	if err := p.Check(); err != nil {
		return nil, err
	}
	return &Machine{profile: p, slowness: 1, cache: newKVCache(p.KVBlocks), byID: make(map[ID]*sequence)}, nil
}

// Add queues a request that came at now. It is an error if prompt or output is
// empty, or if they do not fit the KV cache together. Events of before now are
// still to be had from Advance.
func (m *Machine) Add(now time.Duration, r Request) (ID, error) {
	if len(r.Prompt) == 0 || len(r.Output) == 0 {
		return 0, fmt.Errorf("request with %d tokens of prompt and %d of output: it needs one of each", len(r.Prompt), len(r.Output))
	}
	if n := len(r.Prompt) + len(r.Output); n > m.profile.CapacityTokens() {
		return 0, fmt.Errorf("request with %d tokens: the engine has room for %d", n, m.profile.CapacityTokens())
	}
	m.lastID++
	s := &sequence{
		id: m.lastID, prompt: r.Prompt, output: r.Output, root: rootHash(r.Salt),
		ready: max(now, m.now) + m.profile.Arrival,
	}
	m.byID[s.id] = s
	m.waiting = append(m.waiting, s)
	return s.id, nil
}

// Cancel ends a request: its blocks are free at once and it has no more events.
// A step under way takes as long as it would have. What is not there is not
// cancelled.
func (m *Machine) Cancel(id ID) {
	s := m.byID[id]
	if s == nil {
		return
	}
	isIt := func(other *sequence) bool { return other == s }
	m.running = slices.DeleteFunc(m.running, isIt)
	m.waiting = slices.DeleteFunc(m.waiting, isIt)
	m.drop(s)
}

// drop lets go of a sequence that is in no list any more.
func (m *Machine) drop(s *sequence) {
	m.cache.release(s)
	s.gone = true
	delete(m.byID, s.id)
}

// Slow makes the steps from the next one on take factor times as long. A factor
// that is not above 0 counts as 1, the profile's own speed.
func (m *Machine) Slow(factor float64) {
	if !(factor > 0) { // so that it holds for NaN
		factor = 1
	}
	m.slowness = factor
}

// ResetCache makes the cache of prefixes empty, and says whether it has. While
// requests hold blocks it does nothing, unless they are to be preempted: then they
// lose what they have computed, the step under way included, and start over
// (vLLM 0.32.0, Scheduler.reset_prefix_cache).
func (m *Machine) ResetCache(preempt bool) bool {
	if preempt {
		for len(m.running) > 0 {
			m.preemptLast()
		}
		clear(m.step.parts) // they hold on to sequences
		m.step.parts = m.step.parts[:0]
	}
	if m.cache.free < m.cache.size() {
		return false
	}
	m.cache.reset()
	return true
}

// Stats says what the machine holds and has done.
func (m *Machine) Stats() Stats {
	s := m.stats
	s.Running, s.Waiting = len(m.running), len(m.waiting)
	s.UsedBlocks, s.AllBlocks = m.cache.size()-m.cache.free, m.cache.size()
	return s
}

// Next says when something happens next, if nothing is added or cancelled; false
// if nothing does.
func (m *Machine) Next() (time.Duration, bool) {
	switch {
	case m.step.busy:
		return m.step.end, true
	case len(m.waiting) > 0:
		return max(m.now, m.waiting[0].ready), true
	default:
		return 0, false // no step is under way, so nothing runs
	}
}

// Advance does what there is to do up to now, and gives the tokens that came of
// it in their order. What it returns is good until the next call.
func (m *Machine) Advance(now time.Duration) []Event {
	m.events = m.events[:0]
	for {
		at, ok := m.Next()
		if !ok || at > now {
			break
		}
		m.now = max(m.now, at)
		if m.step.busy {
			m.finish()
		}
		m.begin()
	}
	m.now = max(m.now, now)
	return m.events
}
