package result_test

import (
	"encoding/json"
	"strings"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"

	"github.com/mrgc/mrgc/bench/result"
)

var _ = Describe("A plot", func() {
	plot := result.Plot{Name: "p", Title: "Instances & <load>", X: "hour", Y: "instances", Lines: []result.Line{
		{Name: "ours", Accent: true, Points: result.Points{{0, 0}, {12, 10}, {24, 20}}},
		{Name: "<oracle>", Points: result.Points{{0, 5}, {24, 5}}},
		{Name: "empty"},
	}}

	It("draws each line as steps, and names it", func() {
		svg := plot.SVG()
		ours := drawn(svg, "path", "ours")
		Expect(ours).To(HaveLen(1))
		Expect(strings.Count(ours[0]["d"], "H")).To(Equal(2))
		Expect(drawn(svg, "path", "peer")).To(HaveLen(1))
		for _, text := range []string{">Instances &amp; &lt;load&gt;</title>", ">ours</text>", ">&lt;oracle&gt;</text>", ">empty</text>"} {
			Expect(strings.Count(svg, text)).To(Equal(1), text)
		}
	})

	DescribeTable("is a drawing whatever there is to draw", func(p result.Plot) {
		svg := p.SVG()
		Expect(drawn(svg, "rect", "page")).To(HaveLen(1))
		Expect(svg).NotTo(Or(ContainSubstring("NaN"), ContainSubstring("Inf"), ContainSubstring("%!")))
	},
		Entry("nothing", result.Plot{}),
		Entry("one point", result.Plot{Lines: []result.Line{{Name: "x", Points: result.Points{{0, 0}}}}}),
		Entry("all of it", plot),
	)

	It("is the same when it was written and read, but for what is no step", func() {
		line := result.Line{Name: "x", Points: result.Points{{0, 1}, {0.5, 1}, {1, 2.25}, {2, 2.25}, {3, 2.25}}}
		text, err := json.Marshal(line)
		Expect(err).NotTo(HaveOccurred())
		Expect(string(text)).To(ContainSubstring(`"0,1 1,2.25 3,2.25"`))
		var again result.Line
		Expect(json.Unmarshal(text, &again)).To(Succeed())
		Expect(again.Points).To(Equal(result.Points{{0, 1}, {1, 2.25}, {3, 2.25}}))
		Expect(json.Unmarshal([]byte(`{"points":"0;1"}`), &again)).To(MatchError(ContainSubstring(`"0;1"`)))
	})

	It("is shown where its result is", func() {
		Expect(result.Result{Plots: []result.Plot{plot}}.Markdown()).To(ContainSubstring("\n![Instances & <load>](p.svg)\n"))
	})
})
