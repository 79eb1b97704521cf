package main

import (
	"strings"
	"testing"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"

	"github.com/mrgc/mrgc/bench/result"
)

func TestReport(t *testing.T) {
	RegisterFailHandler(Fail)
	RunSpecs(t, "bench/report")
}

var _ = Describe("The table of goals", func() {
	figure := func(name string, value float64, goal string) result.Figure {
		return result.Figure{Name: name, Value: value, Goal: goal}
	}

	It("has every figure of a goal, from whichever result, and says which goal has none", func() {
		table := goalsTable([]result.Result{
			{Name: "routing", Commit: "c1", Figures: []result.Figure{figure("p99 of us: reuse (x)", 0.5, "≤ 0.70"), figure("rate", 26, "")}},
			{Name: "routing-more", Commit: "c2", Figures: []result.Figure{figure("p99 of us: reuse (y)", 0.8, "≤ 0.70")}},
			{Name: "routing-virtual", Figures: []result.Figure{figure("p99 of us: reuse (z)", 0.1, "≤ 0.70")}},
			{Name: "other", Figures: []result.Figure{figure("p99 of us: reuse (z)", 0.1, "≤ 0.70")}},
		}, []goal{
			{"first", "routing", []string{"p99 of us", ": reuse ("}, "make a"},
			{"second", "routing", []string{"p99 of us", ": no reuse ("}, "make b"},
		})
		var rows []string
		for line := range strings.SplitSeq(table, "\n") {
			if strings.HasPrefix(line, "| first") || strings.HasPrefix(line, "| second") {
				rows = append(rows, line)
			}
		}
		Expect(rows).To(Equal([]string{
			"| first | ≤ 0.70 | 0.5 | yes | routing, c1 | `make a` |",
			"| first | ≤ 0.70 | 0.8 | **no** | routing-more, c2 | `make a` |",
			"| second | | **no result** | | | `make b` |",
		}))
	})

	DescribeTable("tells what is reached", func(value float64, goal, want string) {
		Expect(reached(figure("f", value, goal))).To(Equal(want))
	},
		Entry("at most", 2.0, "≤ 2", "yes"), Entry("too much", 2.01, "≤ 2", "**no**"),
		Entry("at least", 90.0, "≥ 90", "yes"), Entry("too little", 89.0, "≥ 90", "**no**"),
		Entry("none", 0.0, "0", "yes"), Entry("one", 1.0, "0", "**no**"),
		Entry("exactly", 1.0, "= 1", "yes"), Entry("no goal", 1.0, "", ""), Entry("not to be read", 1.0, "soon", "?"),
	)
})
