package extproc

import (
	"hash/maphash"
	"sync/atomic"

	"github.com/mrgc/mrgc/internal/routing"
)

// homes remembers where the last request of each conversation went: its prompt
// is likely to be cached there. It has a fixed number of places; of two
// conversations that share one, only the later is remembered. The zero value is
// not usable. It is safe for concurrent use.
type homes struct {
	seed   maphash.Seed
	places [1 << 16]atomic.Uint64 // half a hash of the affinity, half one of the instance; 512 KiB
}

func newHomes() *homes { return &homes{seed: maphash.MakeSeed()} }

// of gives the ID of the candidate that is a conversation's home; empty when it
// is none of them, or not known. That an instance is taken for the home which is
// not has odds of one in four billion, and costs a cache miss.
func (h *homes) of(affinity string, candidates []routing.Candidate) string {
	place, conversation := h.place(affinity)
	stay := place.Load()
	if stay&conversationBits != conversation {
		return ""
	}
	for i := range candidates {
		if id := candidates[i].Instance.ID; stay == conversation|h.instance(id) {
			return id
		}
	}
	return ""
}

// set makes an instance a conversation's home, and says whether that is new.
func (h *homes) set(affinity, instanceID string) (moved bool) {
	place, conversation := h.place(affinity)
	stay := conversation | h.instance(instanceID)
	return place.Swap(stay) != stay
}

const conversationBits = 0xffffffff << 32

func (h *homes) place(affinity string) (place *atomic.Uint64, conversation uint64) {
	hash := maphash.String(h.seed, affinity)
	return &h.places[hash%uint64(len(h.places))], hash & conversationBits
}

func (h *homes) instance(id string) uint64 { return maphash.String(h.seed, id) &^ conversationBits }
