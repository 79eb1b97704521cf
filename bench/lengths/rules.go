package main

import (
	"math/bits"

	"github.com/mrgc/mrgc/internal/seal"
)

// rule is a way to pad answers in one piece: how many bytes there is room for when
// there are n. Whoever watches sees which room it is, and nothing else.
type rule struct {
	name string
	room func(n int) int
}

// frameHead and largest are of the protocol's frames (docs/protocol.md).
const (
	frameHead = 3
	largest   = 16384
)

// ofUnits is a rule of whole units of so many bytes, how many of them being rounded
// up to so many significant bits, and no fewer than floor has. An answer fills the
// largest frames, and one for the rest: each has its head.
func ofUnits(unit, significant, floor int) func(n int) int {
	return func(n int) int {
		framed := n + frameHead*((n+largest-frameHead-1)/(largest-frameHead))
		total := roundUp((max(framed, floor)+unit-1)/unit, significant) * unit
		return total - frameHead*((total+largest-1)/largest)
	}
}

// roundUp gives the least number from n on that has so many significant bits.
func roundUp(n, significant int) int {
	step := 1 << max(0, bits.Len(uint(n))-significant)
	return (n + step - 1) / step * step
}

// padme is the rule of Nikitin et al., "Reducing Metadata Leakage from Encrypted Files
// and Communication with PURBs", PoPETs 2019(4), algorithm 1.
func padme(n int) int {
	if n < 2 {
		return n
	}
	exponent := bits.Len(uint(n)) - 1
	return roundUp(n, bits.Len(uint(exponent))+1)
}

// ofFrames is a rule that says which frames are taken.
func ofFrames(frames func(full, n int) []int) func(n int) int {
	return func(n int) (room int) {
		for _, holds := range frames(0, n) {
			room += holds
		}
		return room
	}
}

const (
	noPadding = "none"
	asItIs    = "as it is: 960, four bits"
)

func rules() []rule {
	return []rule{
		{noPadding, func(n int) int { return n }},
		{"Padmé", padme},
		{"powers of two", func(n int) int { return 1 << bits.Len(uint(max(n, 1)-1)) }},
		{"frames of four sizes, for older clients", ofFrames(seal.Frames)},
		{"768, four bits, units of 256", ofUnits(256, 4, 768)},
		{"768, three bits, units of 256", ofUnits(256, 3, 768)},
		{"896, three bits", ofUnits(128, 3, 896)},
		{"896, four bits", ofUnits(64, 4, 896)},
		{asItIs, ofFrames(seal.PieceFrames)},
		{"960, five bits", ofUnits(64, 5, 960)},
		{"1024, four bits", ofUnits(64, 4, 1024)},
		{"1024, five bits", ofUnits(64, 5, 1024)},
	}
}
