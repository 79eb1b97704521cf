package extproc

import (
	"hash/maphash"
	"math/bits"
	"sync/atomic"
)

// homes remembers where the last request of each conversation went: its prompt
// is likely to be cached there. It has a fixed number of places; of two
// conversations that share one, only the later is remembered. The zero value is
// not usable. It is safe for concurrent use.
type homes struct {
	seed   maphash.Seed
	places [1 << 16]atomic.Uint64 // hash of affinity and instance; 512 KiB
}

func newHomes() *homes { return &homes{seed: maphash.MakeSeed()} }

// visit says whether the last request of a conversation went to the same
// instance, and remembers that this one does.
func (h *homes) visit(affinity, instanceID string) (returns bool) {
	conversation := maphash.String(h.seed, affinity)
	visit := conversation ^ bits.RotateLeft64(maphash.String(h.seed, instanceID), 32)
	return h.places[conversation%uint64(len(h.places))].Swap(visit) == visit
}
