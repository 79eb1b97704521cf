package result_test

import (
	"testing"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"

	"github.com/mrgc/mrgc/bench/result"
)

func TestResult(t *testing.T) {
	RegisterFailHandler(Fail)
	RunSpecs(t, "bench/result")
}

var _ = DescribeTable("SpreadOf gives quantiles by nearest rank", func(samples []float64, want result.Spread) {
	Expect(result.SpreadOf(samples)).To(Equal(want))
},
	Entry("of nothing", nil, result.Spread{}),
	Entry("of one", []float64{7}, result.Spread{P10: 7, P50: 7, P90: 7, Samples: 1}),
	Entry("of ten, in any order", []float64{10, 9, 8, 7, 6, 5, 4, 3, 2, 1}, result.Spread{P10: 1, P50: 5, P90: 9, Samples: 10}),
	Entry("of an odd number", []float64{3, 1, 2}, result.Spread{P10: 1, P50: 2, P90: 3, Samples: 3}),
)

var _ = Describe("Markdown", func() {
	It("shows figures, comparisons, programs and notes", func() {
		spread := result.Spread{P10: 1, P50: 2, P90: 3, Samples: 9}
		text := result.Result{
			Title: "Title", Command: "make it", Commit: "abc", Machine: "a machine",
			Figures:     []result.Figure{{Name: "plain", Value: 5, Unit: "s", Goal: "≤ 6"}, {Name: "spread", Value: 2, Unit: "ms", Spread: &spread}},
			Comparisons: []result.Comparison{{Name: "pair", Unit: "ms", Direct: result.Spread{P10: 3, P50: 4, P90: 2345.6}, Through: spread, Added: spread}},
			Breakdowns: []result.Breakdown{
				{Name: "one", Unit: "%", Parts: map[string]float64{"b": 1, "a": 2}},
				{Name: "other", Unit: "MiB", Parts: map[string]float64{"b": 3}},
			},
			Notes: []string{"A note."},
		}.Markdown()
		for _, line := range []string{
			"## Title", "`make it`, commit abc, 0001-01-01, a machine.",
			"| plain | 5 s | ≤ 6 |", "| spread | 2 ms (1–3) |  |",
			"| pair, ms | 9 | 4 (3–2346) | 2 (1–3) | 2 (1–3) | +50 % |",
			"| program | one, % | other, MiB |", "| a | 2 | |", "| b | 1 | 3 |", "A note.",
		} {
			Expect(text).To(ContainSubstring(line + "\n"))
		}
	})
})
