package main

import (
	"maps"
	"math"
	"slices"
)

// sizesOf are the sizes in clear of answers about each topic.
type sizesOf map[string][]int

// told is what a rule's sizes tell.
type told struct {
	meanAUC, maxAUC float64 // over all pairs of topics
	accuracy        float64 // of saying which topic it is, of them all
	differ          float64 // share of the pairs of two answers, each of any topic, whose sizes differ
}

// tell has a classifier learn the sizes of answers about topics, and judges it by
// other answers about them. It is told all sizes in clear and the rule, and takes the
// likelihood of what it sees: how dense sizes in clear are is estimated with Gaussian
// kernels, and what the rule pads to the same size is added up. So no rule is judged
// by how well its own sizes happen to have been learned.
func tell(learned, asked sizesOf, room func(n int) int) (t told) {
	topics := slices.Sorted(maps.Keys(learned))
	likelihoods := map[string]map[int]float64{}
	for _, topic := range topics {
		likelihoods[topic] = seenOf(densityOf(learned[topic]), room)
	}
	likelihood := func(topic string, size int) float64 { return likelihoods[topic][room(size)] + 1e-12 }
	score := func(of, one, other string) (all []float64) {
		for _, size := range asked[of] {
			all = append(all, math.Log(likelihood(one, size)/likelihood(other, size)))
		}
		return all
	}
	pairs := 0
	for i, one := range topics {
		for _, other := range topics[i+1:] {
			of, others := score(one, one, other), score(other, one, other)
			auc := won(of, others) / float64(len(of)*len(others))
			t.meanAUC, t.maxAUC, pairs = t.meanAUC+auc, max(t.maxAUC, auc), pairs+1
		}
	}
	t.meanAUC /= float64(pairs)
	for _, topic := range topics {
		t.accuracy += named(topic, topics, asked[topic], likelihood) / float64(len(topics))
	}
	var all []int
	for _, topic := range topics {
		all = append(all, asked[topic]...)
	}
	t.differ = 1
	for _, share := range shares(all, room) {
		t.differ -= share * share
	}
	return t
}

// named is the share of sizes whose likeliest topic is the one that it is. Among equal
// ones it is drawn.
func named(topic string, topics []string, sizes []int, likelihood func(topic string, size int) float64) (share float64) {
	for _, size := range sizes {
		best, ties := 0.0, 0
		for _, other := range topics {
			switch l := likelihood(other, size); {
			case l > best*(1+1e-9):
				best, ties = l, 1
			case l > best*(1-1e-9):
				ties++
			}
		}
		if likelihood(topic, size) > best*(1-1e-9) {
			share += 1 / float64(ties)
		}
	}
	return share / float64(len(sizes))
}

// shares says how large a share of sizes each room has.
func shares(sizes []int, room func(n int) int) map[int]float64 {
	all := map[int]float64{}
	for _, size := range sizes {
		all[room(size)] += 1 / float64(len(sizes))
	}
	return all
}

// bitsTold is the entropy of what is seen: how much it says of an answer's size in
// clear, from which it follows.
func bitsTold(sizes []int, room func(n int) int) (bits float64) {
	for _, share := range shares(sizes, room) {
		bits -= share * math.Log2(share)
	}
	return bits
}

// densityOf estimates how likely each size is: Gaussian kernels, whose width is
// Silverman's rule of thumb (Density Estimation for Statistics and Data Analysis,
// 1986, equation 3.31).
func densityOf(sizes []int) map[int]float64 {
	sorted := slices.Sorted(slices.Values(sizes))
	sum, squares := 0.0, 0.0
	for _, size := range sorted {
		sum, squares = sum+float64(size), squares+float64(size)*float64(size)
	}
	n := float64(len(sorted))
	spread := math.Sqrt(max(squares/n-sum*sum/(n*n), 0))
	if quartiles := float64(sorted[len(sorted)*3/4]-sorted[len(sorted)/4]) / 1.34; quartiles > 0 {
		spread = min(spread, quartiles)
	}
	width := max(0.9*spread*math.Pow(n, -0.2), 0.5)
	density := map[int]float64{}
	for _, size := range sorted {
		for at := max(1, size-int(5*width)); at <= size+int(5*width); at++ {
			z := float64(at-size) / width
			density[at] += math.Exp(-z * z / 2)
		}
	}
	total := 0.0
	for _, likely := range density {
		total += likely
	}
	for at := range density {
		density[at] /= total
	}
	return density
}

// seenOf is how likely each size is once padded.
func seenOf(density map[int]float64, room func(n int) int) map[int]float64 {
	seen := map[int]float64{}
	for size, likely := range density {
		seen[room(size)] += likely
	}
	return seen
}
