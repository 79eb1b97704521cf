package gpu_test

import (
	"bytes"
	"testing"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	"pgregory.net/rapid"

	"github.com/mrgc/mrgc/internal/gpu"
)

var canary = []byte("a canary that nothing else is like")

// hits is the dumb twin of counting: overlapping places, one after the other.
func hits(b, canary []byte) (n uint64) {
	for at := range b {
		if bytes.HasPrefix(b[at:], canary) {
			n++
		}
	}
	return n
}

var _ = Describe("The search for a canary", func() {
	It("finds it wherever it is, across pieces too, once each", func() {
		rapid.Check(GinkgoT(), func(t *rapid.T) {
			short := rapid.SampledFrom([]string{"ab", "aba", "aaaa"}).Draw(t, "canary")
			all := []byte(rapid.StringMatching(`[ab\x00]{0,300}`).Draw(t, "memory"))
			var pieces [][]byte
			for rest := all; len(rest) > 0; {
				n := rapid.IntRange(1, len(rest)).Draw(t, "piece")
				pieces, rest = append(pieces, rest[:n]), rest[n:]
			}
			Expect(gpu.Search([]byte(short), pieces...).CanaryHits).To(Equal(hits(all, []byte(short))))
		})
	})

	It("says how much is not zero", func() {
		memory := make([]byte, 1<<20)
		Expect(gpu.Search(canary, memory)).To(BeZero())
		memory[77], memory[78], memory[1<<19] = 1, 1, 1
		Expect(gpu.Search(canary, memory).DirtyBytes).To(BeEquivalentTo(16))
		copy(memory[1000:], canary)
		Expect(gpu.Search(canary, memory)).To(And(HaveField("CanaryHits", BeEquivalentTo(1)), HaveField("DirtyBytes", BeNumerically(">", 16+len(canary)-1))))
	})

	It("is not for a canary that could be there by chance", func() {
		_, err := gpu.Clear(0, []byte("short"))
		Expect(err).To(MatchError(ContainSubstring("canary of 5 bytes")))
	})
})

func BenchmarkSearch(b *testing.B) {
	memory := make([]byte, 64<<20)
	b.SetBytes(int64(len(memory)))
	for b.Loop() {
		gpu.Search(canary, memory)
	}
}
