package main

import (
	"math"
	"testing"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
)

func TestAutoscaling(t *testing.T) {
	RegisterFailHandler(Fail)
	RunSpecs(t, "bench/autoscaling")
}

var _ = Describe("A day", func() {
	It("is the same for the same seed, and as high as it says", func() {
		a, err := newDay(kinds[0], 1)
		Expect(err).NotTo(HaveOccurred())
		b, err := newDay(kinds[0], 1)
		Expect(err).NotTo(HaveOccurred())
		Expect(a).To(Equal(b))
		Expect(a.tokens).To(HaveLen(3 * ticksOfDay))
		most, sum := 0.0, 0.0
		for _, rate := range a.today() {
			most, sum = max(most, rate), sum+rate
		}
		Expect(most).To(BeNumerically("~", 1.6*peakRate, 0.5*peakRate))
		Expect(sum / float64(ticksOfDay)).To(BeNumerically("~", 0.7*peakRate, 0.15*peakRate))
	})
})

var _ = Describe("A queue", func() {
	It("is late only behind more than is served in two seconds", func() {
		queue := 0.0
		late, served := serve(&queue, 100, 100)
		Expect([]float64{late, served, queue}).To(HaveExactElements(BeZero(), BeNumerically("~", 100), BeNumerically("~", 0)))
		late, served = serve(&queue, 110, 100)
		Expect(late).To(BeZero())
		Expect(served).To(BeNumerically("~", 100))
		Expect(queue).To(BeNumerically("~", 100))
		for range 5 {
			late, _ = serve(&queue, 130, 100)
		}
		Expect(late).To(BeNumerically("~", 1))
		late, served = serve(&queue, 0, 0)
		Expect(late).To(BeNumerically("~", 1))
		Expect(served).To(BeZero())
	})
})

// dayOf is one whose last day needs so many instances, hour by hour.
func dayOf(need func(hour float64) float64) *day {
	d := &day{}
	for i := range (daysBefore + 1) * ticksOfDay {
		rate := instanceRate * need(float64(i%ticksOfDay)*tick.Hours())
		d.requests, d.tokens = append(d.requests, rate), append(d.tokens, rate)
	}
	return d
}

var _ = Describe("The oracle", func() {
	paid := (bootTime + drainTime + washTime).Hours()
	DescribeTable("pays for what is needed, and for what a launch takes", func(need func(float64) float64, hours float64) {
		Expect(dayOf(need).oracle().hours).To(BeNumerically("~", hours, 0.01))
	},
		Entry("of an even day nothing else", func(float64) float64 { return 5 }, 5*24.0),
		Entry("a third from eight to ten", func(h float64) float64 {
			if h >= 8 && h < 10 {
				return 3
			}
			return 2
		}, 2*24+2+paid),
		Entry("a third twice, with an hour between: launched twice", func(h float64) float64 {
			if h >= 8 && h < 10 || h >= 11 && h < 12 {
				return 3
			}
			return 2
		}, 2*24+3+2*paid),
		Entry("a third for each other minute of an hour: kept", func(h float64) float64 {
			if h >= 8 && h < 9 && math.Mod(math.Round(h*360)/6, 2) < 1 {
				return 3
			}
			return 2
		}, 2*24+1-1.0/60+paid),
	)
	It("is not beaten by who misses nothing", func() {
		d, err := newDay(kinds[0], 3)
		Expect(err).NotTo(HaveOccurred())
		p, err := d.play(contenders[len(contenders)-1])
		Expect(err).NotTo(HaveOccurred())
		Expect(p.missed).To(BeNumerically("<", 0.001))
		Expect(p.hours).To(BeNumerically(">", d.oracle().hours))
	})
})

var _ = It("Forecast and learned capacity cost less than the plain rules and miss less", func() {
	d, err := newDay(kinds[0], 4)
	Expect(err).NotTo(HaveOccurred())
	plain, err := d.play(contenders[0])
	Expect(err).NotTo(HaveOccurred())
	forecast, err := d.play(contenders[3])
	Expect(err).NotTo(HaveOccurred())
	Expect(forecast.hours).To(BeNumerically("<", plain.hours))
	Expect(forecast.missed).To(BeNumerically("<", 0.015))
})
