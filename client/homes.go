package client

import (
	"sync"

	"github.com/mrgc/mrgc/internal/seal"
)

// homes remembers who answered each conversation last. The conversation's next
// request is sealed to them, too, so that the cluster can send it to where its
// prompt is cached; who forgets costs a cache miss.
type homes struct {
	mu            sync.Mutex
	recent, older map[string]seal.KeyID // guarded by mu: by affinity
}

// maxHomes is how many conversations are remembered at least, and half of how
// many at most.
const maxHomes = 4096

func newHomes() *homes { return &homes{recent: map[string]seal.KeyID{}} }

func (h *homes) get(affinity string) (seal.KeyID, bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	kid, ok := h.recent[affinity]
	if !ok {
		kid, ok = h.older[affinity]
	}
	return kid, ok
}

func (h *homes) set(affinity string, kid seal.KeyID) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(h.recent) >= maxHomes {
		h.recent, h.older = map[string]seal.KeyID{}, h.recent
	}
	h.recent[affinity] = kid
}
