package gpu

import (
	"context"
	"time"

	"github.com/mrgc/mrgc/internal/loadreport"
)

// Sum is sum of GPUs that are {busy in percent, bytes used, bytes, °C}.
func Sum(readings ...[4]uint64) loadreport.GPU {
	var devices []device
	for _, r := range readings {
		devices = append(devices, device{uint32(r[0]), r[1], r[2], uint32(r[3])})
	}
	return sum(devices)
}

// Search is what a searcher finds in pieces that are neighbours.
func Search(canary []byte, pieces ...[]byte) Cleared {
	s := newSearcher(canary)
	s.begin()
	for _, piece := range pieces {
		s.add(piece)
	}
	return s.found
}

// Machine is a machine of the test's.
type Machine struct {
	Count func() (int, error)
	Free  func(index int) (free, total uint64, err error)
	Clear func(index int, canary []byte) (Cleared, error)
}

// ClearAll is [ClearAll] of that machine.
func (m Machine) ClearAll(ctx context.Context, patience time.Duration) ([]Cleared, error) {
	return clearAll(ctx, machine{m.Count, m.Free, m.Clear, time.Millisecond}, patience)
}

// ClearAllWithin is [ClearAll], with less patience.
func ClearAllWithin(ctx context.Context, patience time.Duration) ([]Cleared, error) {
	return clearAll(ctx, machine{count, free, Clear, freePoll}, patience)
}

// Free is how much of a GPU's memory is free, and how much there is.
var Free = free
