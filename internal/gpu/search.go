package gpu

import (
	"bytes"
	"encoding/binary"
)

// hits is how often a canary is in b; places may overlap.
func hits(b, canary []byte) (n uint64) {
	for {
		at := bytes.Index(b, canary)
		if at < 0 {
			return n
		}
		n++
		b = b[at+1:]
	}
}

// dirtyBytes is how much of b is not zero, in 8-byte words of which each counts
// whole; what is left at the end counts by the byte.
func dirtyBytes(b []byte) (dirty uint64) {
	for ; len(b) >= 64; b = b[64:] {
		w := (*[64]byte)(b)
		a0, a1, a2, a3 := binary.NativeEndian.Uint64(w[0:]), binary.NativeEndian.Uint64(w[8:]), binary.NativeEndian.Uint64(w[16:]), binary.NativeEndian.Uint64(w[24:])
		a4, a5, a6, a7 := binary.NativeEndian.Uint64(w[32:]), binary.NativeEndian.Uint64(w[40:]), binary.NativeEndian.Uint64(w[48:]), binary.NativeEndian.Uint64(w[56:])
		if a0|a1|a2|a3|a4|a5|a6|a7 == 0 {
			continue
		}
		for _, a := range [8]uint64{a0, a1, a2, a3, a4, a5, a6, a7} {
			if a != 0 {
				dirty += 8
			}
		}
	}
	for _, a := range b {
		if a != 0 {
			dirty++
		}
	}
	return dirty
}
