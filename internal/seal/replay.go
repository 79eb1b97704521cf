package seal

import (
	"fmt"
	"slices"
	"sync"
	"time"
)

// ReplaySet remembers which requests a recipient key has run, so that none runs
// twice. Entries are kept until they expire and are never evicted before: a full
// set refuses. One set may serve several keys. It is safe for concurrent use.
//
// Its time only moves forward: it takes the latest now that it was given for
// the present, so that a clock that is set back reopens no request that was
// forgotten. A clock that jumps ahead makes it refuse until real time catches up.
type ReplaySet struct {
	capacity int

	mu       sync.Mutex
	now      time.Time // the latest that was seen
	entries  map[replayEntry]struct{}
	byExpiry map[int64][]replayEntry // by the second in which they expire
}

type replayEntry struct {
	keyID     KeyID
	requestID RequestID
}

// NewReplaySet makes a set of at most capacity entries, some 80 bytes each. It
// must hold the requests of [MaxLifetime]: 60,000 for 500 requests per second.
func NewReplaySet(capacity int) *ReplaySet {
	return &ReplaySet{
		capacity: capacity,
		entries:  make(map[replayEntry]struct{}),
		byExpiry: make(map[int64][]replayEntry),
	}
}

// Add records that key is about to run the request, once it has been opened in
// full and before anything is done with it. The request may run only if the
// error is nil; else it is [ErrReplayed], [ErrExpired] or [ErrReplaySetFull].
func (s *ReplaySet) Add(key KeyID, id RequestID, expiry, now time.Time) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.advance(now)
	if !expiry.After(s.now) {
		return ErrExpired
	}
	entry := replayEntry{key, id}
	if _, ok := s.entries[entry]; ok {
		return ErrReplayed
	}
	if len(s.entries) >= s.capacity {
		return fmt.Errorf("%w: %d requests", ErrReplaySetFull, len(s.entries))
	}
	s.entries[entry] = struct{}{}
	second := expirySecond(expiry)
	s.byExpiry[second] = append(s.byExpiry[second], entry)
	return nil
}

// Has says whether Add of the request would fail because key has run it. It
// spares work that is in vain; only Add decides.
func (s *ReplaySet) Has(key KeyID, id RequestID) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	_, ok := s.entries[replayEntry{key, id}]
	return ok
}

// Forget takes back an Add, with the same expiry, of a request that turned out
// to have no effect at all: it may run again.
func (s *ReplaySet) Forget(key KeyID, id RequestID, expiry time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	entry, second := replayEntry{key, id}, expirySecond(expiry)
	if at := slices.Index(s.byExpiry[second], entry); at >= 0 { // else it has expired
		s.byExpiry[second] = slices.Delete(s.byExpiry[second], at, at+1)
		delete(s.entries, entry)
	}
}

// expirySecond is the bucket of an expiry: the second in which it has passed.
func expirySecond(expiry time.Time) int64 { return expiry.Add(time.Second - 1).Unix() }

// Len is how many entries the set holds, of which some may have expired since
// the last Add.
func (s *ReplaySet) Len() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.entries)
}

// advance drops what has expired. There are as many buckets as seconds ahead,
// and they are looked at when a second begins: the cost per Add is small.
func (s *ReplaySet) advance(now time.Time) {
	if !now.After(s.now) {
		return
	}
	begun := now.Unix() != s.now.Unix()
	s.now = now
	if !begun {
		return
	}
	for second, entries := range s.byExpiry {
		if second > now.Unix() {
			continue
		}
		for _, entry := range entries {
			delete(s.entries, entry)
		}
		delete(s.byExpiry, second)
	}
}
