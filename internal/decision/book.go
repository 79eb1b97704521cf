package decision

import (
	"slices"
	"sync"
	"time"

	"github.com/mrgc/mrgc/internal/routing"
)

const (
	// Kept is how many decisions a book has room for.
	//
	// A decision takes some 1 KiB with the three recipients that our clients seal
	// to, and 12 KiB with the 64 that a request may have: 4 and 50 MiB for all. What
	// the instances take that are in no snapshot any more comes on top.
	Kept = 4096
	// KeptRefusals is how many requests there is room for that were refused before
	// anything was decided. They are apart, so that strangers who are turned away
	// push out nothing but each other.
	KeptRefusals = 512

	// maxFound is how many records one id may have: a client that is told to seal
	// anew keeps a request's id, and Envoy's own is made by whoever sends it.
	maxFound = 16
)

// Book has a picker's last decisions. The zero value is ready. It is safe for
// concurrent use; no caller waits for longer than a record takes to copy.
type Book struct {
	mu       sync.Mutex
	decided  ring              // guarded by mu
	refused  ring              // guarded by mu
	byEnvoys map[string]uint64 // guarded by mu: Envoy's id → number of the newest decision
}

// ring has the last records, by number from 0: number n is at n modulo its size.
type ring struct {
	slots []Record
	next  uint64
}

// slot gives the place of the next record, with the one that was there.
func (r *ring) slot(size int) *Record {
	if r.slots == nil {
		r.slots = make([]Record, size)
	}
	return &r.slots[r.next%uint64(len(r.slots))]
}

// first is the number of the oldest record that is still there.
func (r *ring) first() uint64 { return r.next - min(r.next, uint64(len(r.slots))) }

// Add notes a decision and what it was made of, which it copies: candidates are
// those of the record.
func (b *Book) Add(record *Record, candidates []routing.Candidate) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.byEnvoys == nil {
		b.byEnvoys = make(map[string]uint64, Kept)
	}
	slot := b.decided.slot(Kept)
	if old := slot.EnvoyID; old != "" && b.byEnvoys[old]+Kept == b.decided.next {
		delete(b.byEnvoys, old)
	}
	room := append(slot.Candidates[:0], candidates...)
	*slot = *record
	slot.Candidates = room
	if record.EnvoyID != "" {
		b.byEnvoys[record.EnvoyID] = b.decided.next
	}
	b.decided.next++
}

// Refuse notes a request that was refused before anything was decided.
func (b *Book) Refuse(record *Record) {
	b.mu.Lock()
	defer b.mu.Unlock()
	*b.refused.slot(KeptRefusals) = *record
	b.refused.next++
}

// Update changes the outcome of the newest decision that Envoy calls envoyID, if
// it is still there.
func (b *Book) Update(envoyID string, change func(at time.Time, o *Outcome)) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if n, ok := b.byEnvoys[envoyID]; ok {
		slot := &b.decided.slots[n%Kept]
		change(slot.At, &slot.Outcome)
	}
}

// Request gives what the newest decision that Envoy calls envoyID was asked, if it is
// still there. What it refers to is not the caller's to change.
func (b *Book) Request(envoyID string) (routing.Request, bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	n, ok := b.byEnvoys[envoyID]
	if !ok {
		return routing.Request{}, false
	}
	return b.decided.slots[n%Kept].Request, true
}

// Find gives the records of a request by either of its ids, the newest first.
func (b *Book) Find(id string) []Record {
	var found []Record
	for _, ring := range []*ring{&b.decided, &b.refused} {
		from, to := b.bounds(ring)
		for n := to; n > from && len(found) < maxFound; n-- {
			if r, ok := b.at(ring, n-1, id); ok {
				found = append(found, r)
			}
		}
	}
	slices.SortStableFunc(found, func(a, b Record) int { return b.At.Compare(a.At) })
	return found
}

// Last gives up to n of the last decisions, the oldest first.
func (b *Book) Last(n int) []Record {
	from, to := b.bounds(&b.decided)
	if n = max(n, 0); to-from > uint64(n) {
		from = to - uint64(n)
	}
	out := make([]Record, 0, to-from)
	for ; from < to; from++ {
		if r, ok := b.at(&b.decided, from, ""); ok {
			out = append(out, r)
		}
	}
	return out
}

// Oldest is when the oldest decision was made that is still there, and how many
// there are.
func (b *Book) Oldest() (at time.Time, count int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if count = int(b.decided.next - b.decided.first()); count == 0 {
		return time.Time{}, 0
	}
	return b.decided.slots[b.decided.first()%Kept].At, count
}

func (b *Book) bounds(r *ring) (from, to uint64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return r.first(), r.next
}

// at copies a record, if it is still there and has the id; any has "".
func (b *Book) at(ring *ring, n uint64, id string) (Record, bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if n < ring.first() || n >= ring.next {
		return Record{}, false
	}
	r := ring.slots[n%uint64(len(ring.slots))]
	if id != "" && r.Request.ID != id && r.EnvoyID != id {
		return Record{}, false
	}
	r.Candidates = slices.Clone(r.Candidates)
	return r, true
}
