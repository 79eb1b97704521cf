package parent

import (
	"context"
	"errors"
	"net"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// Enclaves starts enclaves, so that the parent can replace one by a fresh one.
type Enclaves interface {
	// Start starts an enclave in a place, 0 or 1, in which none is. It does not wait
	// until that one answers.
	Start(place int) (StartedEnclave, error)
}

// StartedEnclave is one that the parent has started.
type StartedEnclave interface {
	// Dial connects to its request port.
	Dial(context.Context) (net.Conn, error)
	// Ended is closed when it has gone, for whatever reason.
	Ended() <-chan struct{}
	// Stop has it end, by force when ctx ends first. An error says that it may still be
	// there. Of one that has gone it returns nil, at once.
	Stop(context.Context) error
}

// held is an enclave that this parent relays to.
type held struct {
	client  *http.Client
	started StartedEnclave // nil: somebody else has started it
	place   int

	keyIDs   atomic.Pointer[[]string] // of its recipients, as last seen; nil: not seen yet
	requests sync.WaitGroup           // under way there; none is added once it is retired
	shown    atomic.Int64             // when a router last saw its recipients, in Unix nanoseconds; 0: never
	releases releaseCursor
}

// holds says whether it holds one of the keys.
func (h *held) holds(kids []string) bool {
	own := h.keyIDs.Load()
	return own != nil && slices.ContainsFunc(kids, func(kid string) bool { return slices.Contains(*own, kid) })
}

// enclaves are those of this instance: the present one, and, while a wash replaces
// it, the one before, for what is sealed to that one alone.
type enclaves struct {
	mu       sync.Mutex
	present  *held         // guarded by mu; never nil
	before   *held         // guarded by mu; nil: there is none
	switched chan struct{} // guarded by mu: closed when present is another
}

func newEnclaves(first *held) *enclaves {
	return &enclaves{present: first, switched: make(chan struct{})}
}

// now is the present one, and what tells when it no longer is.
func (e *enclaves) now() (*held, <-chan struct{}) {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.present, e.switched
}

// holds says whether either holds one of the keys.
func (e *enclaves) holds(kids []string) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.present.holds(kids) || e.before != nil && e.before.holds(kids)
}

// enter is for a request that is sealed to these keys: the enclave that it goes to,
// which stays there until leave is called.
func (e *enclaves) enter(kids []string) (to *held, leave func()) {
	e.mu.Lock()
	defer e.mu.Unlock()
	to = e.present
	if e.before != nil && !to.holds(kids) && e.before.holds(kids) {
		to = e.before
	}
	to.requests.Add(1)
	return to, to.requests.Done
}

// become changes present. The caller holds mu.
func (e *enclaves) become(next *held) {
	e.present = next
	close(e.switched)
	e.switched = make(chan struct{})
}

// switchTo makes another the present one. The one before still gets what is sealed
// to it alone.
func (e *enclaves) switchTo(next *held) (before *held) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.before = e.present
	e.become(next)
	return e.before
}

// replace puts another in the place of one that has died; not if that one is no
// longer the present one.
func (e *enclaves) replace(dead, by *held) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.present != dead {
		return false
	}
	e.become(by)
	return true
}

// retire has nothing more sent to the one before, and gives it; nil: there is none.
func (e *enclaves) retire() *held {
	e.mu.Lock()
	defer e.mu.Unlock()
	before := e.before
	e.before = nil
	return before
}

// back makes the one before the present one again, and gives the one that was in
// between; nil: there is none before.
func (e *enclaves) back() (dropped *held) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.before == nil {
		return nil
	}
	dropped = e.present
	e.become(e.before)
	e.before = nil
	return dropped
}

// idle waits until nothing is under way in a retired enclave, or ctx ends.
func (h *held) idle(ctx context.Context) error {
	done := make(chan struct{})
	go func() { h.requests.Wait(); close(done) }() // requests end: Envoy and the enclave both have time-outs
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// launch starts an enclave.
func (p *Parent) launch(place int) (*held, error) {
	started, err := p.config.Enclaves.Start(place)
	if err != nil {
		return nil, err
	}
	return &held{client: enclaveClient(started.Dial), started: started, place: place}, nil
}

// startEnclave starts the first one, when that is this parent's to do.
func (p *Parent) startEnclave() error {
	if p.config.Enclaves == nil {
		return nil
	}
	first, err := p.launch(0)
	if err != nil {
		return err
	}
	p.enclaves.switchTo(first)
	p.enclaves.retire() // what has stood in for it is none
	return nil
}

// endEnclaves ends all that this parent has started, when nothing else runs.
func (p *Parent) endEnclaves(ctx context.Context) {
	present, _ := p.enclaves.now()
	all := []*held{present, p.enclaves.retire()}
	if p.washer != nil {
		all = append(all, p.washer.standby, p.washer.left)
	}
	for _, h := range all {
		if h == nil {
			continue
		}
		if err := p.endEnclave(ctx, h); err != nil {
			p.log.Error("an enclave does not end", "error", err)
		}
	}
}

// endEnclave ends an enclave, once the audit log has what it still had to tell.
func (p *Parent) endEnclave(ctx context.Context, h *held) error {
	if h.started != nil {
		p.recordReleasesOf(context.WithoutCancel(ctx), h)
	}
	return h.end(ctx)
}

// errNoEnclave is before the first one is started.
var errNoEnclave = errors.New("no enclave has been started yet")

// enclaveStop bounds how long an enclave may take to end that is asked to, or a command
// to terminate it.
const enclaveStop = 30 * time.Second

// end ends an enclave that this parent has started.
func (h *held) end(ctx context.Context) error {
	defer h.client.CloseIdleConnections()
	if h.started == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), enclaveStop)
	defer cancel()
	return h.started.Stop(ctx)
}

// Bounds on how soon an enclave that has died is started again.
const (
	firstRestart   = 200 * time.Millisecond
	longestRestart = 5 * time.Second
	settled        = 10 * time.Second // one that has lived so long: the next death is a first one
)

// keepEnclave starts the enclave again whenever it dies, until ctx ends.
func (p *Parent) keepEnclave(ctx context.Context) {
	pause, since := firstRestart, time.Now()
	for {
		present, switched := p.enclaves.now()
		select {
		case <-ctx.Done():
			return
		case <-switched:
			since = time.Now()
			continue
		case <-present.started.Ended():
		}
		if time.Since(since) > settled {
			pause = firstRestart
		}
		p.log.Error("the enclave has died; starting another", "in", pause)
		p.probeNow()
		select {
		case <-ctx.Done():
			return
		case <-time.After(pause):
		}
		pause = min(2*pause, longestRestart)
		next, err := p.launch(present.place)
		if err != nil {
			p.log.Error("no enclave could be started", "error", err)
			continue // present is dead still
		}
		since = time.Now()
		if !p.enclaves.replace(present, next) { // a wash has switched to another meanwhile
			_ = next.end(ctx)
			continue
		}
		present.client.CloseIdleConnections()
		p.probeNow()
	}
}
