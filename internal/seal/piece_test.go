package seal_test

import (
	"bytes"
	"crypto/rand"
	"encoding/json"
	"io"
	"os"
	"path/filepath"
	"slices"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	"pgregory.net/rapid"

	"github.com/mrgc/mrgc/internal/seal"
)

const frameHead = 3

// roomIn is how much data frames hold.
func roomIn(frames []int) (all int) {
	for _, holds := range frames {
		all += holds
	}
	return all
}

// withHeads are the sizes of frames that hold so much.
func withHeads(frames []int) []int {
	sizes := []int{}
	for _, holds := range frames {
		sizes = append(sizes, holds+frameHead)
	}
	return sizes
}

var _ = Describe("The frames of an answer in one piece", func() {
	// aLength is one of any order of magnitude.
	aLength := func(t *rapid.T, label string) int {
		return rapid.OneOf(rapid.IntRange(0, 1<<11), rapid.IntRange(0, 1<<15), rapid.IntRange(0, 1<<22)).Draw(t, label)
	}
	room := func(n int) int { return roomIn(seal.PieceFrames(0, n)) }

	It("are those that another implementation has", func() {
		raw, err := os.ReadFile(filepath.Join("testdata", "frames.json"))
		Expect(err).NotTo(HaveOccurred())
		var vectors []struct {
			Answer     int   `json:"answer"`
			Frames     []int `json:"frames"`
			FineFrames []int `json:"fine_frames"`
		}
		Expect(json.Unmarshal(raw, &vectors)).To(Succeed())
		Expect(vectors).NotTo(BeEmpty())
		for _, v := range vectors {
			Expect(withHeads(seal.Frames(0, v.Answer))).To(Equal(v.Frames), "%d bytes, for a reader of four sizes", v.Answer)
			Expect(withHeads(seal.PieceFrames(0, v.Answer))).To(Equal(v.FineFrames), "%d bytes", v.Answer)
		}
	})

	It("are the same for all short ones", func() {
		for n := range 958 {
			Expect(seal.PieceFrames(0, n)).To(Equal([]int{957}), "%d bytes", n)
		}
	})

	It("hold it, and of a longer one an eighth more at most", func() {
		for n := 958; n < 4_000_000; n += 1 + n/9973 {
			heads := frameHead * ((n + seal.MaxFrameData - 1) / seal.MaxFrameData)
			Expect(room(n)).To(And(BeNumerically(">=", n), BeNumerically("<=", n+(n+heads)/8)), "%d bytes", n)
		}
	})

	It("hold no less when it is longer, and no more when they are full", func() {
		rapid.Check(GinkgoT(), func(t *rapid.T) {
			n, other := aLength(t, "bytes"), aLength(t, "other bytes")
			if n, other := min(n, other), max(n, other); room(n) > room(other) {
				t.Fatalf("%d bytes have room %d, and %d bytes %d", n, room(n), other, room(other))
			}
			if full := room(n); room(full) != full {
				t.Fatalf("%d bytes have room %d, and as many %d", n, full, room(full))
			}
		})
	})

	It("are few, of sizes with four significant bits", func() {
		seen := map[int]bool{}
		for n := range 1 << 18 {
			size := 0
			for _, frame := range withHeads(seal.PieceFrames(0, n)) {
				Expect(frame).To(And(BeNumerically(">=", 512), BeNumerically("<=", 16384)))
				Expect(frame % seal.FrameStep).To(BeZero())
				size += frame
			}
			if !seen[size] {
				seen[size] = true
				for ; size >= 16; size /= 2 {
					Expect(size%2).To(BeZero(), "the fifth bit of %b", size)
				}
			}
		}
		Expect(len(seen)).To(BeNumerically("<", 70), "of a quarter of a million lengths")
	})

	It("do not depend on whether the largest have been filled as it came", func() {
		rapid.Check(GinkgoT(), func(t *rapid.T) {
			n := aLength(t, "bytes")
			full := n / seal.MaxFrameData
			var frames []int
			for range full {
				frames = append(frames, seal.MaxFrameData)
			}
			frames = append(frames, seal.PieceFrames(full, n-full*seal.MaxFrameData)...)
			if whole := seal.PieceFrames(0, n); !slices.Equal(frames, whole) {
				t.Fatalf("%d bytes: %v as it comes, and %v at once", n, frames, whole)
			}
		})
	})

	It("are written, and read again without what was added", func() {
		rapid.Check(GinkgoT(), func(t *rapid.T) {
			sealed, w, wire := exchange()
			text := make([]byte, aLength(t, "bytes"))
			_, _ = rand.Read(text)
			if err := w.WriteHead(okHead()); err != nil {
				t.Fatal(err)
			}
			if err := w.WriteFrames(text, seal.PieceFrames(0, len(text))); err != nil {
				t.Fatal(err)
			}
			if err := w.Close(okEnd()); err != nil {
				t.Fatal(err)
			}
			if read, err := io.ReadAll(sealed.OpenResponse(wire)); err != nil || !bytes.Equal(read, text) {
				t.Fatalf("%d bytes became %d: %v", len(text), len(read), err)
			}
		})
	})
})

var _ = Describe("A reader of frames", func() {
	DescribeTable("takes", func(size int, taken bool) {
		sealed, w, wire := exchange()
		Expect(w.WriteHead(okHead())).To(Succeed())
		frame := make([]byte, size)
		copy(frame, "\x02\x00\x04text")
		Expect(w.WriteChunk(frame, false)).To(Succeed())
		Expect(w.Close(okEnd())).To(Succeed())
		text, err := io.ReadAll(sealed.OpenResponse(wire))
		if !taken {
			Expect(err).To(MatchError(seal.ErrMalformed))
			return
		}
		Expect(err).NotTo(HaveOccurred())
		Expect(string(text)).To(Equal("text"))
	},
		Entry("the smallest", 512, true),
		Entry("a multiple of 64", 576, true),
		Entry("one that no rule has yet", 16384-64, true),
		Entry("the largest", 16384, true),
		Entry("none that is smaller", 448, false),
		Entry("none in between", 577, false),
		Entry("none in between by a power of two", 544, false),
	)
})
