package extproc

import (
	"maps"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/mrgc/mrgc/internal/peers"
	"github.com/mrgc/mrgc/internal/quota"
)

// shared is what a picker has to do with those of the region's other routers.
type shared struct {
	epoch   peers.Epoch
	views   peers.Views
	changed signal
	used    signal
	homes   news[peers.Home]
	events  news[peers.Event]

	mu       sync.Mutex // so that a later sequence has later counts
	sequence uint64     // guarded by mu
}

// Told is how much of the news one peer has been told. The zero value is of one
// that has just come.
type Told struct {
	homes, events uint64
	uses          quota.Told
}

// Changed gives a channel that is closed when there is something new to tell.
// Whoever takes it before [Picker.Tell] misses nothing.
func (p *Picker) Changed() <-chan struct{} { return p.shared.changed.next() }

// Used gives a channel that is closed when a tenant with limits has used some of
// them, or has been given some back.
func (p *Picker) Used() <-chan struct{} { return p.shared.used.next() }

// TellAbroad makes the next message for a peer of another region, which has nothing
// yet but what tenants have used of their limits.
func (p *Picker) TellAbroad(told *Told) *peers.Message {
	p.shared.mu.Lock()
	defer p.shared.mu.Unlock()
	p.shared.sequence++
	m := &peers.Message{Epoch: p.shared.epoch, Sequence: p.shared.sequence}
	m.Uses, m.Begun = p.limiter.Tell(&told.uses, p.now())
	return m
}

// LearnAbroad takes what a message of another region's router says of tenants' limits.
func (p *Picker) LearnAbroad(m *peers.Message) { p.limiter.Learn(m, p.now()) }

// Tell makes the next message for a peer.
func (p *Picker) Tell(told *Told) *peers.Message {
	p.inFlight.Expire(p.now())
	s := &p.shared
	s.mu.Lock()
	defer s.mu.Unlock()
	s.sequence++
	m := &peers.Message{Epoch: s.epoch, Sequence: s.sequence}
	m.Homes, told.homes = s.homes.since(told.homes, peers.MaxHomes)
	m.Events, told.events = s.events.since(told.events, peers.MaxEvents)
	m.Claims = peers.TopClaims(p.inFlight.Claims())
	ix, now := p.index(), p.now()
	m.Uses, m.Begun = p.limiter.Tell(&told.uses, now)
	for _, id := range slices.Sorted(maps.Keys(p.inFlight.All())) {
		in := ix.get(id)
		if in == nil || len(m.InFlight) == peers.MaxInstances {
			continue
		}
		if work := p.work(in, p.reportOf(ix, in), now); work.Requests > 0 {
			m.InFlight = append(m.InFlight, peers.Count{
				Instance: id, Requests: work.Requests, Tokens: work.Tokens,
				SentRequests: min(work.SentRequests, work.Requests), SentTokens: min(work.SentTokens, work.Tokens),
			})
		}
	}
	return m
}

// Learn takes a message that was received from an address. It says no if the
// message is the picker's own: the address is then its own router's.
// What it says of instances that are not in the fleet is dropped.
func (p *Picker) Learn(address string, m *peers.Message) (fromAnother bool) {
	s := &p.shared
	if m.Epoch == s.epoch {
		return false
	}
	ix, now := p.index(), p.now()
	m.InFlight = slices.DeleteFunc(m.InFlight, func(c peers.Count) bool { return !ix.has(c.Instance) })
	p.limiter.Learn(m, now)
	if !s.views.Put(address, m, now) {
		return true
	}
	for _, c := range m.Claims {
		if ix != nil && ix.serves(c.Model) {
			p.recent.Ask(c.Model, c.Tenant, c.Weight, now) // there, of late
		}
	}
	for _, h := range m.Homes {
		if ix.has(h.Instance) {
			p.homes.set(h.Conversation, h.Instance) // and not told on
		}
	}
	for _, e := range m.Events {
		if e.Instance != "" && !ix.has(e.Instance) {
			e.Instance = ""
		}
		if p.inFlight.holds(e.Request) {
			p.apply(e)
		}
	}
	return true
}

// Lose no longer counts what was learned from an address, until something is again.
func (p *Picker) Lose(address string) { p.shared.views.Lose(address) }

// Forget drops what was learned from an address that is no longer followed.
func (p *Picker) Forget(address string) { p.shared.views.Forget(address) }

// Peers lists the other routers that were heard.
func (p *Picker) Peers() []peers.Peer { return p.shared.views.All(p.now()) }

// tellHome has the peers hear of a conversation that has moved in.
func (s *shared) tellHome(conversation, instanceID string) {
	s.homes.add(peers.Home{Conversation: conversation, Instance: instanceID})
}

// tellStray has the peers hear of a request that is one of theirs, or nobody's.
func (s *shared) tellStray(e peers.Event) {
	if e.Request == "" || len(e.Request) > peers.MaxNameBytes {
		return
	}
	s.events.add(e)
	s.changed.raise()
}

// noteUse has the peers hear, those of other regions at once, that a request has
// counted against its tenant's limits, if there are any.
func (s *shared) noteUse(taken quota.Request) {
	if taken.Limits.RequestsPerSecond > 0 || taken.Limits.TokensPerMinute > 0 {
		s.used.raise()
	}
}

// signal wakes whoever waits for a change.
type signal struct{ waiting atomic.Pointer[chan struct{}] }

// next is closed at the next change.
func (s *signal) next() <-chan struct{} {
	for {
		if c := s.waiting.Load(); c != nil {
			return *c
		}
		c := make(chan struct{})
		if s.waiting.CompareAndSwap(nil, &c) {
			return c
		}
	}
}

func (s *signal) raise() {
	if s.waiting.Load() == nil {
		return
	}
	if c := s.waiting.Swap(nil); c != nil {
		close(*c)
	}
}

// newsKept is how much news waits for a peer. One that is behind by more, some
// two seconds of a busy router's, misses the oldest.
const newsKept = 1024

// news is the last things that happened. Its zero value has none.
type news[T any] struct {
	mu   sync.Mutex
	kept [newsKept]T // guarded by mu: what happened n-th, at n modulo its length
	n    uint64      // guarded by mu: how many things have happened
}

func (l *news[T]) add(what T) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.kept[l.n%newsKept] = what
	l.n++
}

// since gives the oldest things after the first told ones, at most limit, and
// how many have been told with them.
func (l *news[T]) since(told uint64, limit int) ([]T, uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.n > newsKept {
		told = max(told, l.n-newsKept)
	}
	var some []T
	for ; told < l.n && len(some) < limit; told++ {
		some = append(some, l.kept[told%newsKept])
	}
	return some, told
}
