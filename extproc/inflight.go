package extproc

import (
	"maps"
	"sync"
	"time"
)

// InFlight counts the requests that are in flight on each instance. Each
// request counts once however often its end is reported, and for no longer than
// a time-out, so that a lost report cannot make an instance look busy for ever.
//
// It is safe for concurrent use. Time is an argument; it has no clock.
type InFlight struct {
	timeout time.Duration

	mu       sync.Mutex // guards all below
	requests map[string]*flight
	counts   map[string]int // by instance; no zeros
	// The flights in order of their start: the oldest is at head, so that
	// expiring looks at nothing that has not expired.
	head, tail *flight
}

// flight is one request in flight.
type flight struct {
	request, instance string
	start             time.Time
	older, newer      *flight
}

// NewInFlight makes an empty count whose requests are forgotten after timeout.
func NewInFlight(timeout time.Duration) *InFlight {
	return &InFlight{timeout: timeout, requests: make(map[string]*flight), counts: make(map[string]int)}
}

// Add counts a request on an instance from now on. A request that is in flight
// already moves there. One without an id is not counted, as nobody could say
// that it has ended. What has expired is forgotten on the way.
func (f *InFlight) Add(requestID, instanceID string, now time.Time) {
	if requestID == "" {
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.expire(now)
	if old := f.requests[requestID]; old != nil {
		f.remove(old)
	}
	added := &flight{request: requestID, instance: instanceID, start: now, older: f.tail}
	if f.tail == nil {
		f.head = added
	} else {
		f.tail.newer = added
	}
	f.tail = added
	f.requests[requestID] = added
	f.counts[instanceID]++
}

// Move counts a request that is in flight on another instance from now on, as
// of its own start; one that is not in flight is no error.
func (f *InFlight) Move(requestID, instanceID string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if moved := f.requests[requestID]; moved != nil {
		f.take(moved.instance)
		moved.instance = instanceID
		f.counts[instanceID]++
	}
}

// Done ends a request, wherever it was added; one that is not in flight is no
// error.
func (f *InFlight) Done(requestID string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if ended := f.requests[requestID]; ended != nil {
		f.remove(ended)
	}
}

// Expire forgets the requests that were added longer than the time-out before
// now.
func (f *InFlight) Expire(now time.Time) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.expire(now)
}

// Count is the number of requests in flight on an instance.
func (f *InFlight) Count(instanceID string) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.counts[instanceID]
}

// Counts has the number of every instance that has any. It is the caller's.
func (f *InFlight) Counts() map[string]int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return maps.Clone(f.counts)
}

func (f *InFlight) expire(now time.Time) {
	for f.head != nil && now.Sub(f.head.start) > f.timeout {
		f.remove(f.head)
	}
}

func (f *InFlight) remove(r *flight) {
	delete(f.requests, r.request)
	f.take(r.instance)
	if r.older == nil {
		f.head = r.newer
	} else {
		r.older.newer = r.newer
	}
	if r.newer == nil {
		f.tail = r.older
	} else {
		r.newer.older = r.older
	}
}

// take counts one less on an instance.
func (f *InFlight) take(instanceID string) {
	if f.counts[instanceID]--; f.counts[instanceID] == 0 {
		delete(f.counts, instanceID)
	}
}
