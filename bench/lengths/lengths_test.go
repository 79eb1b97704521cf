package main

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"

	. "github.com/onsi/gomega"
)

// drawn are answers about two pages, whose sizes are drawn from either's.
func drawn(one, other []int) (samples []sample) {
	random := rand.New(rand.NewPCG(1, 2)) //nolint:gosec // a test's
	for i := range 200 {
		from := [][]int{one, other}[i%2]
		s := sample{page: fmt.Sprint(i % 2)}
		for range 50 {
			s.sizes = append(s.sizes, from[random.IntN(len(from))])
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

func TestChunksAreTheEventsTogether(t *testing.T) {
	g := NewWithT(t)
	p := passagesOf("page", []byte(strings.Repeat("word ", 250)))[0]
	one := p.chunks(1)
	g.Expect(one).To(HaveLen(passageTokens))
	for _, batch := range batches {
		g.Expect(bytes.Join(p.chunks(batch), nil)).To(Equal(bytes.Join(one, nil)))
	}
}
