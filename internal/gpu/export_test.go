package gpu

import "github.com/mrgc/mrgc/internal/loadreport"

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
