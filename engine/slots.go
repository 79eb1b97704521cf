package engine

import (
	"container/list"
	"context"
	"sync"
	"time"
)

// slotTable says what an engine's slots hold, and which of them a request gets, so
// that nobody's prompt is compared with anybody else's. llama.cpp knows no salt,
// but a slot is a cache of one request: what is asked of a slot finds what is in
// that slot, and nothing when it is told to use nothing.
//
// It is a function of what it has been told, without clock or lock.
type slotTable struct {
	slots []slot
	takes uint64
	doubt time.Duration // how long a slot is doubted
	// kept is a salt that a slot is kept for: the one that it gets first, once it has got
	// one. Empty: none.
	kept   string
	keptAt int // that slot; -1: it has got none yet
}

type slot struct {
	busy bool
	// salt is that of all the prompts whose tokens the slot may hold, when it is not
	// busy; empty: not known, or of several.
	salt  string
	taken uint64 // count of takes at its last one
	// doubted is until when a request that was given up may still get to the slot:
	// what comes before is taken to leave others' tokens behind.
	doubted time.Time
}

// grant is what a request may use until it is released.
type grant struct {
	slot  int
	all   bool // of the others nobody else has any
	reuse bool // what the slot holds, too
}

// take gives an idle slot: one with prompts of the same salt, which may be reused,
// or else the one that is least missed. all waits for every slot to be idle, for
// requests whose choices the engine spreads over slots of its own choosing, and for
// none to be kept.
func (t *slotTable) take(salt string, all bool, now time.Time) (g grant, ok bool) {
	best := -1
	for i := range t.slots {
		switch {
		case all && (t.slots[i].busy || t.kept != ""):
			return grant{}, false
		case t.slots[i].busy || t.keptFrom(i, salt):
		case best < 0 || t.better(i, best, salt, now):
			best = i
		}
	}
	if best < 0 {
		return grant{}, false
	}
	t.takes++
	if t.kept != "" && t.kept == salt {
		t.keptAt = best
	}
	g = grant{slot: best, all: all, reuse: !all && t.slots[best].salt == salt}
	for i := range t.slots {
		if i == best || all {
			t.slots[i].busy, t.slots[i].taken = true, t.takes
		}
	}
	return g, true
}

// keep has the slot that a salt gets next be nobody else's, so that nobody else leaves it
// in doubt again. Empty: none is kept any more.
func (t *slotTable) keep(salt string) { t.kept, t.keptAt = salt, -1 }

// keptFrom says whether slot i is not for a salt, because of the one that is kept.
func (t *slotTable) keptFrom(i int, salt string) bool {
	return t.kept != "" && t.keptAt >= 0 && (salt == t.kept) != (i == t.keptAt)
}

// better says whether slot i suits more than slot j: its salt's own, the one that
// was used last; else one that is not doubted, in which what is asked now is found
// again; else an empty one; else the one that was used first.
func (t *slotTable) better(i, j int, salt string, now time.Time) bool {
	a, b := &t.slots[i], &t.slots[j]
	if own := a.salt == salt; own != (b.salt == salt) {
		return own
	} else if own {
		return a.taken > b.taken
	}
	if doubted := now.Before(a.doubted); doubted != now.Before(b.doubted) {
		return !doubted
	}
	if empty := a.salt == ""; empty != (b.salt == "") {
		return empty
	}
	return a.taken < b.taken
}

// ending is what has become of a request, as far as slots are concerned.
type ending int

const (
	endRefused  ending = iota // the engine has refused, and what the slot holds is not said, or it was not asked
	endAnswered               // the engine has answered in full: the slot holds the request's tokens and none that it was not let reuse
	endVanished               // the request was sent, and its answer cut: it may get to the slot yet. llama.cpp's head comes before it has touched the slot
)

// release ends a grant.
func (t *slotTable) release(g grant, salt string, end ending, now time.Time) {
	for i := range t.slots {
		s := &t.slots[i]
		if i != g.slot && !g.all {
			continue
		}
		s.busy = false
		switch {
		case end == endVanished:
			s.salt, s.doubted = "", now.Add(t.doubt)
		case end == endAnswered && !g.all && !now.Before(s.doubted):
			s.salt = salt
		default:
			s.salt = ""
		}
	}
}

// doubt is how long an engine may take until it has heard that a request's caller
// is gone, at the very most.
const doubt = time.Minute

// slotQueue gives the slots of a table to requests in the order in which they come.
type slotQueue struct {
	mu      sync.Mutex
	table   slotTable // guarded by mu
	waiting list.List // of *waiter; guarded by mu
}

type waiter struct {
	salt  string
	all   bool
	ready chan grant // holds one
}

func newSlotQueue(n int) *slotQueue {
	return &slotQueue{table: slotTable{slots: make([]slot, n), doubt: doubt}}
}

// take waits for its turn, or until ctx ends.
func (q *slotQueue) take(ctx context.Context, salt string, all bool) (grant, error) {
	q.mu.Lock()
	w := &waiter{salt: salt, all: all, ready: make(chan grant, 1)}
	at := q.waiting.PushBack(w)
	q.serve(time.Now())
	q.mu.Unlock()
	select {
	case g := <-w.ready:
		return g, nil
	case <-ctx.Done():
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	select {
	case g := <-w.ready: // just now, and nobody has been asked anything
		q.table.release(g, "", endRefused, time.Time{})
	default:
		q.waiting.Remove(at)
	}
	q.serve(time.Now())
	return grant{}, ctx.Err()
}

func (q *slotQueue) release(g grant, salt string, end ending, now time.Time) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.table.release(g, salt, end, now)
	q.serve(now)
}

// keep is [slotTable.keep], where there are slots for others beside it.
func (q *slotQueue) keep(salt string) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if len(q.table.slots) > 1 {
		q.table.keep(salt)
		q.serve(time.Now())
	}
}

// serve gives slots to who waits, the first first. While a slot is kept nobody waits
// behind who wants all, nor the one that it is kept for behind who cannot have it. It is
// called with mu held.
func (q *slotQueue) serve(now time.Time) {
	kept, blocked := q.table.kept, false
	for at := q.waiting.Front(); at != nil && (!blocked || kept != ""); {
		w, this := at.Value.(*waiter), at
		at = at.Next()
		if kept != "" && (w.all || blocked && w.salt != kept) {
			continue
		}
		g, ok := q.table.take(w.salt, w.all, now)
		if !ok {
			blocked = true
			continue
		}
		q.waiting.Remove(this)
		w.ready <- g
	}
}

// queued is how many wait.
func (q *slotQueue) queued() int {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.waiting.Len()
}
