package quota

import (
	"cmp"
	"container/list"
	"slices"
	"time"

	"github.com/mrgc/mrgc/internal/peers"
)

// HeardFor is for how long what another router lets through is counted after it was
// last heard: what it let through while it was silent for longer is forgotten, by
// all, and each goes by what it hears. It is three times as long as a router of
// another region says nothing.
const HeardFor = 3 * peers.ViewFor

// counts are what a limiter has let through, by tenant, for as long as anybody has to
// be told: in all since the count has begun, as times of the tenant's limits, so that
// whoever hears of it need not know them. What was given back is taken off.
//
// A count ends when it has not changed for [HeardFor], as whoever has not heard of it
// by then will not count it; the tenant's next one is another, of a higher number.
type counts struct {
	byTenant map[string]*list.Element // in order
	order    *list.List               // of *count, the longest unchanged first
	begun    uint64                   // the number of the newest
	changes  uint64                   // that there have been, of all counts
}

type count struct {
	use     peers.Use
	changed uint64 // by which of the changes it is as it is
	at      time.Time
}

func newCounts() counts { return counts{byTenant: map[string]*list.Element{}, order: list.New()} }

func (c *counts) add(tenant string, requests, tokens time.Duration, now time.Time) {
	c.end(now)
	place := c.byTenant[tenant]
	if place == nil {
		c.begun++
		place = c.order.PushBack(&count{use: peers.Use{Tenant: tenant, Count: c.begun}})
		c.byTenant[tenant] = place
	}
	c.order.MoveToBack(place)
	c.changes++
	of := place.Value.(*count)
	of.use.Requests, of.use.Tokens = of.use.Requests+requests, of.use.Tokens+tokens
	of.changed, of.at = c.changes, now
}

// end ends those that have not changed for long.
func (c *counts) end(now time.Time) {
	for first := c.order.Front(); first != nil; first = c.order.Front() {
		of := first.Value.(*count)
		if now.Sub(of.at) < HeardFor {
			return
		}
		c.order.Remove(first)
		delete(c.byTenant, of.use.Tenant)
	}
}

// after gives the first count in order that has changed after so many changes.
func (c *counts) after(changes uint64) (first *list.Element) {
	for at := c.order.Back(); at != nil && at.Value.(*count).changed > changes; at = at.Prev() {
		first = at
	}
	return first
}

// Told is how much of a limiter's counts one peer has been told. The zero value is of
// one that has just come.
type Told struct {
	changes, begun uint64
	anything       bool
}

// Tell gives what has changed since a peer was last told, each tenant's in all, and
// the number up to which counts have begun that the peer has been told of, or need
// not be. It is to be told in this order, or from the start: whatever else gets lost
// or comes twice costs nothing.
func (l *Limiter) Tell(told *Told, now time.Time) (uses []peers.Use, begun uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.own.end(now)
	first := l.own.after(told.changes)
	for ; first != nil && len(uses) < peers.MaxUses; first = first.Next() {
		of := first.Value.(*count)
		uses, told.changes = append(uses, of.use), of.changed
	}
	// Counts that have begun since are still new when they are told next, as they did
	// not fit. To who has just come everything is old.
	if first == nil || !told.anything {
		told.begun = l.own.begun
	}
	told.anything = true
	slices.SortFunc(uses, func(a, b peers.Use) int { return cmp.Compare(a.Tenant, b.Tenant) })
	return uses, told.begun
}

// hearers is what other limiters have let through, as far as they were heard.
type hearers map[peers.Epoch]*hearer

// hearer is one of them.
type hearer struct {
	sequence uint64
	at       time.Time // when it was last heard
	begun    uint64
	uses     map[string]heardUse // by tenant
	sweep    int
}

type heardUse struct {
	peers.Use
	at time.Time // when it last changed
}

// Learn counts what another router has let through since it was last heard. Of one
// that is heard for the first time that is nothing; and of one that was silent for
// [HeardFor], what it has given back, if that is more.
//
// What it was, or more of it, was let through after the message before, so that it
// counts as if it were from then: a bucket that had been full at that time would have
// filled up since. A limiter so never has a tenant wait that would not have to if all
// requests came to one, but for what is on its way. It lets too much through of what
// it has not heard of, which is paid off when it has: by n limiters, within any time,
// at most what the limit allows, n-1 times what may be saved up, and n times what
// comes while two do not hear each other.
func (l *Limiter) Learn(m *peers.Message, now time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	h := l.heard[m.Epoch]
	isNew := h == nil
	if isNew {
		l.heard.forget(now)
		h = &hearer{uses: map[string]heardUse{}, sweep: minSweep}
		l.heard[m.Epoch] = h
	} else if m.Sequence <= h.sequence {
		return
	}
	silent := now.Sub(h.at) >= HeardFor
	for _, use := range m.Uses {
		before, known := h.uses[use.Tenant]
		if before.Count != use.Count {
			before, known = heardUse{}, false
		}
		requests, tokens := use.Requests-before.Requests, use.Tokens-before.Tokens
		switch {
		case isNew, !known && use.Count <= h.begun: // nobody knows what it was before
		case silent:
			l.charge(use.Tenant, min(requests, 0), min(tokens, 0), h.at, now)
		default:
			l.charge(use.Tenant, requests, tokens, h.at, now)
		}
		h.uses[use.Tenant] = heardUse{use, now}
	}
	h.sequence, h.begun, h.at = m.Sequence, m.Begun, now
	h.forget(now)
}

// forget drops what has ended by now where it was counted.
func (h *hearer) forget(now time.Time) {
	if len(h.uses) < h.sweep {
		return
	}
	for tenant, use := range h.uses {
		if now.Sub(use.at) >= 2*HeardFor {
			delete(h.uses, tenant)
		}
	}
	h.sweep = max(2*len(h.uses), minSweep)
}

// forget drops who has been silent for so long that it would be heard anew.
func (all hearers) forget(now time.Time) {
	for epoch, h := range all {
		if now.Sub(h.at) >= 2*HeardFor {
			delete(all, epoch)
		}
	}
}
