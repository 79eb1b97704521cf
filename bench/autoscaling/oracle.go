package main

import (
	"math"

	"github.com/mrgc/mrgc/bench/result"
)

// need is how many instances each tick of the measured day takes, so that none of its
// requests waits.
func (d *day) need() []int {
	var n []int
	for _, rate := range d.today() {
		n = append(n, max(int(math.Ceil(rate/instanceRate)), 2))
	}
	return n
}

// needed is that for a plot, the most of each five minutes.
func (d *day) needed() (points result.Points) {
	for i, n := range d.need() {
		if i%30 == 0 {
			points = append(points, [2]float64{float64(i) * tick.Hours(), 0})
		}
		points[len(points)-1][1] = max(points[len(points)-1][1], float64(n))
	}
	return points
}

// oracle has what is needed, to the tick, for the fewest hours. The k-th instance is
// needed in the ticks that need at least k; in between it is terminated and launched
// again, if that is cheaper than to keep it. As who needs the k-th needs all before it,
// what is best for each is best for all.
func (d *day) oracle() played {
	need := d.need()
	most := 0
	for _, n := range need {
		most = max(most, n)
	}
	again := int((bootTime + drainTime + washTime) / tick) // ticks that are paid for nothing
	ready := make([]int, len(need))
	var p played
	for k := 1; k <= most; k++ {
		last := -1
		for i, n := range need {
			if n < k {
				continue
			}
			switch gap := i - last - 1; {
			case last < 0:
				p.hours += float64(min(again, i)) * tick.Hours() // launched today, or there from yesterday
			case gap > again:
				p.hours += float64(again) * tick.Hours()
			default:
				p.hours += float64(gap) * tick.Hours()
				for j := last + 1; j < i; j++ {
					ready[j]++
				}
			}
			p.hours += tick.Hours()
			ready[i]++
			last = i
		}
	}
	for i, n := range ready {
		if i%30 == 0 {
			p.points = append(p.points, [2]float64{float64(i) * tick.Hours(), float64(n)})
		}
	}
	return p
}
