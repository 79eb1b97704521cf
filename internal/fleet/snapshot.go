package fleet

import (
	"cmp"
	"slices"
	"time"
)

// Snapshot is the fleet at one moment. It is immutable: whoever has one may
// keep it, and nobody may write to what it points at.
type Snapshot struct {
	// At is when the store was read. The age of a heartbeat is measured against
	// it and not against the present, so that a store that cannot be read any
	// more does not make the whole fleet look dead.
	At        time.Time
	Instances []*Instance // sorted by ID

	holders map[string][]*Instance // by key id
}

// NewSnapshot sorts and indexes instances, and takes ownership of them.
func NewSnapshot(at time.Time, instances []*Instance) *Snapshot {
	slices.SortFunc(instances, func(a, b *Instance) int { return cmp.Compare(a.ID, b.ID) })
	holders := make(map[string][]*Instance, len(instances))
	for _, in := range instances {
		for _, kid := range in.KeyIDs {
			holders[kid] = append(holders[kid], in)
		}
	}
	return &Snapshot{At: at, Instances: instances, holders: holders}
}

// Holders are the instances whose enclaves hold a key, in order of ID: one, but for
// a key of a fleet's. The slice is the snapshot's.
func (s *Snapshot) Holders(kid string) []*Instance { return s.holders[kid] }

// Ready lists the instances that take new requests, in order of ID: healthy,
// not draining, and heard of within staleAfter before the snapshot was read.
//
// A fleet does not die in one heartbeat; the path to the store does. When every
// heartbeat is stale, staleness says nothing and is ignored.
func (s *Snapshot) Ready(staleAfter time.Duration) []*Instance {
	var fresh, all []*Instance
	for _, in := range s.Instances {
		if in.Draining || !in.Health.OK() {
			continue
		}
		all = append(all, in)
		if !s.Stale(in, staleAfter) {
			fresh = append(fresh, in)
		}
	}
	if len(fresh) == 0 && s.allStale(staleAfter) {
		return all
	}
	return fresh
}

// Stale says whether an instance had not been heard of for longer than
// staleAfter when the snapshot was read.
func (s *Snapshot) Stale(in *Instance, staleAfter time.Duration) bool {
	return s.At.Sub(in.HeartbeatAt) > staleAfter
}

func (s *Snapshot) allStale(staleAfter time.Duration) bool {
	return !slices.ContainsFunc(s.Instances, func(in *Instance) bool { return !s.Stale(in, staleAfter) })
}
