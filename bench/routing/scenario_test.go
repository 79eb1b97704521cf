package main

import (
	"regexp"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
)

var _ = Describe("The scenarios to measure", func() {
	DescribeTable("are those that match", func(expression string, want ...string) {
		o := options{scene: regexp.MustCompile(expression)}
		scenes, err := o.scenes(scenarios())
		if len(want) == 0 {
			Expect(err).To(MatchError(ContainSubstring("reuse; no reuse; reuse, one engine fails fast")))
			return
		}
		Expect(err).NotTo(HaveOccurred())
		var names []string
		for _, s := range scenes {
			names = append(names, s.name)
		}
		Expect(names).To(Equal(want))
	},
		Entry("all", "", "reuse", "no reuse", "reuse, one engine fails fast"),
		Entry("the one of the failing engine", "fails", "reuse, one engine fails fast"),
		Entry("one with reuse and no failing engine", "^reuse$", "reuse"),
		Entry("none: a mistake, and not a result of nothing", "failing"),
	)
})
