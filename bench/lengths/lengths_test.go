package main

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	. "github.com/onsi/gomega"
)

// drawn are answers about two pages, whose sizes are drawn from either's.
func drawn(one, other []int) (samples []sample) {
	random := rand.New(rand.NewPCG(1, 2)) //nolint:gosec // a test's
	for i := range 200 {
		from := [][]int{one, other}[i%2]
		s := sample{page: fmt.Sprint(i % 2), of: i}
		for range 50 {
			s.marks = append(s.marks, from[random.IntN(len(from))])
		}
		samples = append(samples, s)
	}
	return samples
}

func TestTheClassifierTellsWhatDiffersAndNothingElse(t *testing.T) {
	g := NewWithT(t)
	g.Expect(meanAUC(drawn([]int{1, 2, 3}, []int{1, 2, 3, 3, 3}))).To(BeNumerically(">", 0.9))
	g.Expect(meanAUC(drawn([]int{1, 2, 3}, []int{1, 2, 3}))).To(BeNumerically("~", 0.5, 0.1))
	g.Expect(meanAUC(drawn([]int{1}, []int{1}))).To(BeNumerically("~", 0.5, 1e-9), "nothing is seen, so nothing is told")
}

func TestHigherScoresWin(t *testing.T) {
	g := NewWithT(t)
	g.Expect(won([]float64{2, 3}, []float64{0, 1})).To(Equal(4.0))
	g.Expect(won([]float64{0, 1}, []float64{2, 3})).To(Equal(0.0))
	g.Expect(won([]float64{1}, []float64{1})).To(Equal(0.5))
}

func TestPassagesAreWholeAndOfProse(t *testing.T) {
	g := NewWithT(t)
	page := "# Title\n\n    code code\n" + strings.Repeat("A sentence about [things](x.md), of seven.\n", 100) + "| a | table |\n"
	all := passagesOf("page", []byte(page))
	g.Expect(all).NotTo(BeEmpty())
	for _, p := range all {
		g.Expect(p.tokens).To(HaveLen(passageTokens))
		g.Expect(strings.Join(p.tokens, "")).NotTo(Or(ContainSubstring("code"), ContainSubstring("table"), ContainSubstring("x.md"), ContainSubstring("Title")))
	}
}

func TestWhatIsMeasuredIsWhatTheEnclaveWrites(t *testing.T) {
	g := NewWithT(t)
	p := passagesOf("page", []byte(strings.Repeat("word ", 250)))[0]
	for i := range formats {
		for _, wait := range []time.Duration{0, time.Minute} {
			var s tally
			g.Expect(s.stream(t.Context(), []passage{p}, &formats[i], 100_000, wait)).To(Succeed())
			g.Expect(s.waits).To(HaveLen(repeats * passageTokens))
			g.Expect(s.firsts).To(HaveLen(repeats))
			clear := len(event(formats[i].role)) + len(event(formats[i].last)) + len("data: [DONE]\n\n")
			for _, token := range p.tokens {
				clear += len(event(fmt.Sprintf(formats[i].token, `"`+token+`"`)))
			}
			g.Expect(s.clear).To(Equal(repeats * clear))
			g.Expect(s.padding).To(BeNumerically(">=", 0))
			g.Expect(s.wire).To(BeNumerically(">", s.clear+s.padding))
		}
	}
}

func TestChunksAreCountedByTheirLengths(t *testing.T) {
	g := NewWithT(t)
	g.Expect(chunksIn(nil)).To(BeZero())
	wire := make([]byte, 0, 2000)
	for _, length := range []int{976, 528} {
		wire = binary.BigEndian.AppendUint16(append(wire, 0), uint16(length))
		wire = append(wire, make([]byte, length)...)
	}
	g.Expect(chunksIn(wire)).To(Equal(2))
}
