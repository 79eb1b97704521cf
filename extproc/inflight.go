package extproc

import (
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/mrgc/mrgc/internal/peers"
	"github.com/mrgc/mrgc/internal/quota"
)

// InFlight counts the requests that are in flight on each instance and their
// tokens, and what each tenant has in flight of each model. Each request counts
// once however often its end is reported, and for no longer than a time-out, so
// that a lost report cannot make an instance look busy for ever.
//
// It is safe for concurrent use. Time is an argument; it has no clock.
type InFlight struct {
	timeout time.Duration

	mu       sync.Mutex // guards all below
	requests map[string]*flight
	counts   map[string]Work // by instance; none without requests
	claims   map[owner]Claim // sums, of the last one's weight; none without tokens
	models   map[string]int  // tokens of claims, by model; none without tokens
	// The flights in order of their start: the oldest is at head, so that
	// expiring looks at nothing that has not expired.
	head, tail *flight
	// early are requests that have ended without being in flight, the last earlyKept of
	// them: Envoy's log may overtake the pick of one that is given up at once, and what
	// is added after its end would never end. Those that other routers have picked are
	// among them.
	early     map[string]struct{}
	earlyRing [earlyKept]string // in the order in which they ended
	earlyNext int
	// What was in flight at doubted is forgotten at forgetAt; zero while nothing is in
	// doubt.
	doubted, forgetAt time.Time
}

// doubtedFor is for how long what may have ended unheard still counts. What lasts
// longer and has not ended is still seen in its instance's load reports.
const doubtedFor = 15 * time.Second

// earlyKept is more than end within the milliseconds that a pick takes.
const earlyKept = 1024

// Work is what is in flight on an instance.
type Work = peers.Work

// Claim is what a tenant has in flight of a model.
type Claim = peers.Claim

type owner struct{ model, tenant string }

// Flight is what a request counts for while it is in flight.
type Flight struct {
	Tokens int           // of its prompt, that the instance has to read
	Claim  Claim         // what its tenant has of the model by it
	Taken  quota.Request // what it has taken from its tenant's limits
}

// flight is one request in flight.
type flight struct {
	Flight
	request, instance string
	start             time.Time
	older, newer      *flight
}

// NewInFlight makes an empty count whose requests are forgotten after timeout.
func NewInFlight(timeout time.Duration) *InFlight {
	return &InFlight{
		timeout: timeout, requests: make(map[string]*flight), counts: make(map[string]Work),
		claims: make(map[owner]Claim), models: make(map[string]int), early: make(map[string]struct{}),
	}
}

// Add counts a request on an instance from now on. A request that is in flight
// already moves there. One without an id is not counted, as nobody could say
// that it has ended; nor is one whose end was reported before. What has expired is
// forgotten on the way.
func (f *InFlight) Add(requestID, instanceID string, of Flight, now time.Time) {
	if requestID == "" {
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.expire(now)
	if _, ended := f.early[requestID]; ended {
		delete(f.early, requestID)
		return
	}
	if old := f.requests[requestID]; old != nil {
		f.remove(old)
	}
	added := &flight{Flight: of, request: requestID, instance: instanceID, start: now, older: f.tail}
	if f.tail == nil {
		f.head = added
	} else {
		f.tail.newer = added
	}
	f.tail = added
	f.requests[requestID] = added
	f.put(added)
	f.claim(of.Claim, 1)
}

// Move counts a request that is in flight on another instance from now on, as
// of its own start, and gives the one where it was; one that is not in flight is
// no error, and was nowhere.
func (f *InFlight) Move(requestID, instanceID string) (from string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if moved := f.requests[requestID]; moved != nil {
		from = moved.instance
		f.take(moved)
		moved.instance = instanceID
		f.put(moved)
	}
	return from
}

// Done ends a request, and gives the instance where it was, and what it has taken
// from its tenant's limits; one that is not in flight is no error, was nowhere and
// has taken nothing.
func (f *InFlight) Done(requestID string) (at string, taken quota.Request) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if ended := f.requests[requestID]; ended != nil {
		at, taken = ended.instance, ended.Taken
		f.remove(ended)
	} else if requestID != "" {
		delete(f.early, f.earlyRing[f.earlyNext])
		f.early[requestID], f.earlyRing[f.earlyNext] = struct{}{}, requestID
		f.earlyNext = (f.earlyNext + 1) % earlyKept
	}
	return at, taken
}

// Doubt says that ends of requests may have gone unheard: those in flight now count
// for [doubtedFor] more at most. What is in doubt already is not given more time.
func (f *InFlight) Doubt(now time.Time) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.expire(now)
	f.doubted = now
	if f.forgetAt.IsZero() {
		f.forgetAt = now.Add(doubtedFor)
	}
}

// holds says whether a request is in flight.
func (f *InFlight) holds(requestID string) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.requests[requestID] != nil
}

// Expire forgets the requests that were added longer than the time-out before
// now, and those that were in doubt for long enough.
func (f *InFlight) Expire(now time.Time) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.expire(now)
}

// On is what is in flight on an instance.
func (f *InFlight) On(instanceID string) Work {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.counts[instanceID]
}

// SentSince is how many of the requests in flight on an instance have been sent to it
// since a moment, and tokens of their prompts; which costs as much as there are
// requests since.
func (f *InFlight) SentSince(instanceID string, since time.Time) (requests, tokens int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for r := f.tail; r != nil && !r.start.Before(since); r = r.older {
		if r.instance == instanceID {
			requests++
			tokens += r.Tokens
		}
	}
	return requests, tokens
}

// Claimed is how many tokens are in flight of a model: a tenant's, and those of
// all tenants.
func (f *InFlight) Claimed(model, tenant string) (own, all int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.claims[owner{model, tenant}].Tokens, f.models[model]
}

// Claims are what all tenants have in flight. They are the caller's.
func (f *InFlight) Claims() []Claim {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Collect(maps.Values(f.claims))
}

// All is what is in flight on every instance that has any. It is the caller's.
func (f *InFlight) All() map[string]Work {
	f.mu.Lock()
	defer f.mu.Unlock()
	return maps.Clone(f.counts)
}

func (f *InFlight) expire(now time.Time) {
	latest := now.Add(-f.timeout)
	if !f.forgetAt.IsZero() && !now.Before(f.forgetAt) {
		if f.doubted.After(latest) {
			latest = f.doubted.Add(time.Nanosecond)
		}
		f.doubted, f.forgetAt = time.Time{}, time.Time{}
	}
	for f.head != nil && f.head.start.Before(latest) {
		f.remove(f.head)
	}
}

func (f *InFlight) remove(r *flight) {
	delete(f.requests, r.request)
	f.take(r)
	f.claim(r.Claim, -1)
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

// put counts a flight where it is.
func (f *InFlight) put(r *flight) {
	on := f.counts[r.instance]
	f.counts[r.instance] = Work{Requests: on.Requests + 1, Tokens: on.Tokens + r.Tokens}
}

// take no longer counts a flight where it is.
func (f *InFlight) take(r *flight) {
	on := f.counts[r.instance]
	if on.Requests == 1 {
		delete(f.counts, r.instance)
		return
	}
	f.counts[r.instance] = Work{Requests: on.Requests - 1, Tokens: on.Tokens - r.Tokens}
}

// claim adds a claim, or takes it back.
func (f *InFlight) claim(c Claim, times int) {
	of := owner{c.Model, c.Tenant}
	sum := f.claims[of]
	if times > 0 {
		sum.Model, sum.Tenant, sum.Weight = c.Model, c.Tenant, c.Weight
	}
	sum.Tokens += times * c.Tokens
	f.claims[of] = sum
	if sum.Tokens == 0 {
		delete(f.claims, of)
	}
	if f.models[c.Model] += times * c.Tokens; f.models[c.Model] == 0 {
		delete(f.models, c.Model)
	}
}
