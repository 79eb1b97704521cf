package main

import (
	"math"
	"math/rand/v2"
	"testing"

	. "github.com/onsi/gomega"

	"github.com/mrgc/mrgc/internal/seal"
)

// around are sizes with a mean and a spread.
func around(mean, spread float64, seed uint64) (sizes []int) {
	random := rand.New(rand.NewPCG(seed, 1)) //nolint:gosec // a test's
	for range 2000 {
		sizes = append(sizes, int(mean+spread*random.NormFloat64()))
	}
	return sizes
}

func TestTheClassifierOfSizesIsAsGoodAsCanBe(t *testing.T) {
	g := NewWithT(t)
	learned := sizesOf{"a": around(1000, 20, 1), "b": around(1020, 20, 2)}
	asked := sizesOf{"a": around(1000, 20, 3), "b": around(1020, 20, 4)}
	// Of two normal distributions one spread apart: the best that there is.
	best := (1 + math.Erf(0.5)) / 2 // Φ(1/√2)
	clear := tell(learned, asked, func(n int) int { return n })
	g.Expect(clear.meanAUC).To(BeNumerically("~", best, 0.02))
	g.Expect(clear.accuracy).To(BeNumerically("~", 0.69, 0.02)) // Φ(1/2)
	seen := tell(learned, asked, ofUnits(64, 4, 0))
	g.Expect(seen.meanAUC).To(And(BeNumerically(">", 0.55), BeNumerically("<", clear.meanAUC)))
	g.Expect(seen.differ).To(And(BeNumerically(">", 0.1), BeNumerically("<", 0.7)))

	// Likelihoods need not go up with size: equal means, other spreads.
	learned["b"], asked["b"] = around(1000, 60, 2), around(1000, 60, 4)
	g.Expect(tell(learned, asked, func(n int) int { return n }).meanAUC).To(BeNumerically(">", 0.7))

	same := tell(learned, asked, func(int) int { return 2000 })
	g.Expect([]float64{same.meanAUC, same.maxAUC}).To(Equal([]float64{0.5, 0.5}), "nothing is seen, so nothing is told")
	g.Expect(same.accuracy).To(BeNumerically("~", 0.5, 1e-9))
	g.Expect(same.differ).To(BeNumerically("~", 0, 1e-9))
	g.Expect(named("b", []string{"a", "b", "c"}, []int{7}, func(string, int) float64 { return 1 })).To(BeNumerically("~", 1.0/3, 1e-9), "one of equals is drawn")
}

func TestBitsToldAreTheEntropyOfSizes(t *testing.T) {
	g := NewWithT(t)
	g.Expect(bitsTold([]int{1, 2, 3, 4}, func(n int) int { return n })).To(BeNumerically("~", 2, 1e-9))
	g.Expect(bitsTold([]int{1, 2, 3, 4}, func(int) int { return 4 })).To(BeNumerically("~", 0, 1e-9))
	g.Expect(bitsTold([]int{1, 2, 3, 9}, func(n int) int { return max(n, 4) })).To(BeNumerically("~", 0.8113, 1e-4))
}

func TestRulesAreWhatTheirNamesSay(t *testing.T) {
	g := NewWithT(t)
	for _, rule := range rules() {
		for n := 1; n < 70_000; n++ {
			room := rule.room(n)
			if room < n || rule.room(n+1) < room {
				t.Fatalf("%s has room %d for %d bytes", rule.name, room, n)
			}
		}
	}
	// The general rule, with these figures, is the one that the enclave has.
	for n := 1; n < 70_000; n++ {
		g.Expect(ofUnits(64, 4, 960)(n)).To(Equal(ofFrames(seal.PieceFrames)(n)), "%d bytes", n)
	}
	g.Expect(padme(10_000)).To(Equal(10_240)) // of docs/protocol.md
	g.Expect(mostPadded(ofFrames(seal.PieceFrames))).To(BeNumerically("~", 0.125, 0.001))
}
