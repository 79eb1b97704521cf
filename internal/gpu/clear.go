package gpu

import (
	"fmt"
	"slices"
	"time"
)

// Cleared says what [Clear] found in a GPU's free memory, and that it is zero now.
type Cleared struct {
	TotalBytes   uint64        `json:"total_bytes"`   // of the GPU
	ClearedBytes uint64        `json:"cleared_bytes"` // that were searched, overwritten, and read back as zeros
	CanaryHits   uint64        `json:"canary_hits"`   // places where the canary was found before it was overwritten
	DirtyBytes   uint64        `json:"dirty_bytes"`   // 8-byte words that were not zero before, in bytes
	Took         time.Duration `json:"took_ns"`       // of [ClearAll], until the memory was free included
}

// Coverage is the cleared part of the GPU's memory, 0 to 1. The driver keeps some
// hundred MiB for itself, and for the context that clears.
func (c Cleared) Coverage() float64 { return float64(c.ClearedBytes) / float64(max(c.TotalBytes, 1)) }

// minCanaryBytes keeps a canary from being found by chance.
const minCanaryBytes = 16

func checkCanary(canary []byte) error {
	if len(canary) < minCanaryBytes {
		return fmt.Errorf("clear GPU memory: canary of %d bytes, want %d or more", len(canary), minCanaryBytes)
	}
	return nil
}

// searcher looks for a canary, and for anything else, in memory that comes piece
// by piece.
type searcher struct {
	canary []byte
	tail   []byte // the end of the piece before: a canary may cross the border
	found  Cleared
}

func newSearcher(canary []byte) *searcher { return &searcher{canary: canary} }

// begin forgets the piece before: the next one is not its neighbour.
func (s *searcher) begin() { s.tail = s.tail[:0] }

func (s *searcher) add(piece []byte) {
	dirty := dirtyBytes(piece)
	s.found.DirtyBytes += dirty
	keep := len(s.canary) - 1
	if dirty > 0 || len(s.tail) > 0 && dirtyBytes(s.tail) > 0 {
		border := slices.Concat(s.tail, piece[:min(keep, len(piece))])
		s.found.CanaryHits += hits(border, s.canary) + hits(piece, s.canary)
	}
	s.tail = append(s.tail, piece[max(0, len(piece)-keep):]...)
	s.tail = s.tail[max(0, len(s.tail)-keep):]
}
