package main

import (
	"testing"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
)

func TestRegions(t *testing.T) {
	RegisterFailHandler(Fail)
	RunSpecs(t, "regions")
}

var _ = Describe("A region that has no room", func() {
	const length = 90 * time.Second
	both := func(k kind) (never, spills sum) {
		GinkgoHelper()
		can, err := capacity(length)
		Expect(err).NotTo(HaveOccurred())
		never, err = simulate(k, false, can, 1, length)
		Expect(err).NotTo(HaveOccurred())
		spills, err = simulate(k, true, can, 1, length)
		Expect(err).NotTo(HaveOccurred())
		GinkgoWriter.Printf("%v\n%v\n", never.row(k.name, false), spills.row(k.name, true))
		return never, spills
	}

	It("has others serve what is too much, and they notice little", func() {
		never, spills := both(kinds[0])
		Expect(never.first(0, 0.99)).To(BeNumerically(">", 5), "it is as bad as it is meant to be")
		Expect(spills.first(0, 0.99)).To(BeNumerically("<", 1))
		Expect(spills.gone(0)).To(And(BeNumerically(">", 20), BeNumerically("<", 40)), "0.3 of 1.3 is 23 %")
		for _, other := range []int{1, 2} {
			Expect(spills.first(other, 0.99)).To(BeNumerically("<", never.first(other, 0.99)+0.1))
			Expect(spills.gone(other)).To(BeZero())
		}
	})

	It("is none of which every region has enough", func() {
		_, spills := both(kinds[1])
		for region := range regions {
			Expect(spills.gone(region)).To(BeZero())
		}
	})

	It("exchanges next to nothing with others that have none either", func() {
		_, spills := both(kinds[2])
		for region := range regions {
			Expect(spills.gone(region)).To(BeNumerically("<", 5))
		}
	})
})
