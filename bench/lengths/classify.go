package main

import (
	"maps"
	"math"
	"slices"
)

// sample is what is seen of an answer, and what it is about.
type sample struct {
	page  string
	of    int   // the passage: what was learned of one says nothing of itself
	marks []int // what is seen of each write: a number that stands for it, above 0
}

const folds = 5

// meanAUC is how well pages are told apart: the mean over all pages of the area
// under the curve of one against the others, each sample judged by what was learned
// from the other folds. 0.5 is a coin, 1 is certainty.
func meanAUC(samples []sample) float64 {
	pages := map[string]bool{}
	for _, s := range samples {
		pages[s.page] = true
	}
	sum := 0.0
	for _, page := range slices.Sorted(maps.Keys(pages)) {
		wins, pairs := 0.0, 0.0
		for fold := range folds {
			var of, others []float64 // scores of one fold: those of another were given by other counts
			in, out := newCounts(), newCounts()
			for _, s := range samples {
				switch {
				case s.of%folds == fold:
				case s.page == page:
					in.learn(s.marks)
				default:
					out.learn(s.marks)
				}
			}
			for _, s := range samples {
				if s.of%folds != fold {
					continue
				}
				score := 0.0
				for _, f := range features(s.marks) {
					score += in.logLikelihood(f) - out.logLikelihood(f)
				}
				if s.page == page {
					of = append(of, score)
				} else {
					others = append(others, score)
				}
			}
			wins, pairs = wins+won(of, others), pairs+float64(len(of)*len(others))
		}
		sum += wins / pairs
	}
	return sum / float64(len(pages))
}

// feature is a mark, or two that follow each other (the first is 0 of one alone), or
// how many there are (the first is -1).
type feature struct{ before, mark int }

func features(marks []int) (all []feature) {
	for i, mark := range marks {
		all = append(all, feature{mark: mark})
		if i > 0 {
			all = append(all, feature{marks[i-1], mark})
		}
	}
	return append(all, feature{-1, len(marks)})
}

// counts are how often features were seen.
type counts struct {
	of    map[feature]float64
	total float64
}

func newCounts() *counts { return &counts{of: map[feature]float64{}} }

func (c *counts) learn(marks []int) {
	for _, f := range features(marks) {
		c.of[f]++
		c.total++
	}
}

// kinds is about how many features there are, for what was never seen.
const kinds = 500

func (c *counts) logLikelihood(f feature) float64 {
	const unseen = 0.5 // counts for every feature (Lidstone)
	return math.Log((c.of[f] + unseen) / (c.total + unseen*kinds))
}

// won counts the pairs in which the one has a higher score than the other; equal
// scores count half (Mann and Whitney's U: divided by all pairs it is the area under
// the curve).
func won(of, others []float64) (wins float64) {
	for _, a := range of {
		for _, b := range others {
			switch {
			case math.Abs(a-b) < 1e-9:
				wins += 0.5
			case a > b:
				wins++
			}
		}
	}
	return wins
}
