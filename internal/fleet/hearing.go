package fleet

import (
	"sync"
	"time"
)

// Hearing dates heartbeats by the clock of whoever reads them. Instances stamp them by
// their own, which may be wrong, but a heartbeat that was not there at one read and is
// at the next came in between, whatever it says.
//
// The zero value has read nothing: of the first read there are only the stamps, though
// nothing is taken to be from after it. A Hearing is safe for concurrent use.
type Hearing struct {
	mu    sync.Mutex
	at    time.Time        // guarded by mu: of the newest read
	heard map[string]heard // guarded by mu: at that read, by instance
}

// longestRead is by how much a read can be overtaken.
const longestRead = time.Minute

// heard is a heartbeat.
type heard struct {
	stamp time.Time // by its instance's clock
	at    time.Time // by the reader's
}

// Date puts the reader's time into HeartbeatAt of instances that were read from a store
// from at on. Rows that lagging names come some time after they were written, as those
// do that are replicated from other regions: how long, only their stamps tell, so these
// are believed as long as they are not of the future.
func (h *Hearing) Date(at time.Time, instances []*Instance, lagging func(*Instance) bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.at.Sub(at) > longestRead { // the reader's clock was set back
		h.at, h.heard = time.Time{}, nil
	}
	overtaken := at.Before(h.at) // by a read that began later and is here already
	now := make(map[string]heard, len(instances))
	for _, in := range instances {
		stamp := in.HeartbeatAt
		before, known := h.heard[in.ID]
		switch {
		case known && before.stamp.Equal(stamp):
			in.HeartbeatAt = before.at
		case !overtaken && !lagging(in) && stamp.Before(h.at):
			in.HeartbeatAt = h.at
		}
		if in.HeartbeatAt.After(at) {
			in.HeartbeatAt = at
		}
		now[in.ID] = heard{stamp, in.HeartbeatAt}
	}
	if !overtaken {
		h.at, h.heard = at, now
	}
}
