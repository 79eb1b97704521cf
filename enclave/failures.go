package enclave

import (
	"sync"

	"github.com/mrgc/mrgc/internal/seal"
)

// maxFailures is how many failed requests are remembered: those of some seconds, in
// which Envoy tries again.
const maxFailures = 1024

// failures are the last requests on which the engine failed before it answered, and
// which others may run. One that comes back has found no other: it is told why, and
// not that it was run already. The zero value is ready; it is safe for concurrent use.
type failures struct {
	mu   sync.Mutex
	ids  map[seal.RequestID]struct{} // guarded by mu
	ring [maxFailures]seal.RequestID // guarded by mu; in the order of their failures
	next int                         // guarded by mu; where the oldest is
}

func (f *failures) add(id seal.RequestID) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.ids == nil {
		f.ids = make(map[seal.RequestID]struct{}, maxFailures)
	}
	if len(f.ids) == maxFailures {
		delete(f.ids, f.ring[f.next])
	}
	f.ids[id], f.ring[f.next] = struct{}{}, id
	f.next = (f.next + 1) % maxFailures
}

func (f *failures) has(id seal.RequestID) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	_, ok := f.ids[id]
	return ok
}
