package result_test

import (
	"encoding/xml"
	"errors"
	"io"
	"strconv"
	"strings"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"

	"github.com/mrgc/mrgc/bench/result"
)

// drawn are an SVG's elements of a class, in their order.
func drawn(svg, name, class string) (elements []map[string]string) {
	GinkgoHelper()
	for d := xml.NewDecoder(strings.NewReader(svg)); ; {
		token, err := d.Token()
		if errors.Is(err, io.EOF) {
			return elements
		}
		Expect(err).NotTo(HaveOccurred())
		if start, ok := token.(xml.StartElement); ok && start.Name.Local == name {
			attributes := map[string]string{}
			for _, a := range start.Attr {
				attributes[a.Name.Local] = a.Value
			}
			if strings.HasPrefix(attributes["class"], class) {
				elements = append(elements, attributes)
			}
		}
	}
}

func number(text string) float64 {
	GinkgoHelper()
	v, err := strconv.ParseFloat(text, 64)
	Expect(err).NotTo(HaveOccurred())
	return v
}

var _ = Describe("A chart", func() {
	mark := func(name string, low, value, high float64) result.Mark {
		return result.Mark{Name: name, Low: low, Value: value, High: high}
	}
	row := func(name string, ours bool, factor float64) result.Row {
		return result.Row{Name: name, Accent: ours, Marks: []result.Mark{
			mark("p50", 8*factor, 10*factor, 12*factor), mark("p99", 80*factor, 100*factor, 130*factor),
		}}
	}
	chart := result.Chart{Name: "c", Title: "Times & <tokens>", Unit: "ms", Panels: []result.Panel{
		{Title: "reuse", Rows: []result.Row{row("ours", true, 1), row("<peer>", false, 2)}},
		{Title: "no reuse", Rows: []result.Row{row("<peer>", false, 1)}},
	}}

	It("draws every value within its interval, and equal factors equally far", func() {
		svg := chart.SVG()
		intervals := drawn(svg, "line", "ours")[1:] // after the row's own line
		values := drawn(svg, "circle", "ours")
		Expect(values).To(HaveLen(1)) // p50; p99 is the second, a diamond
		Expect(intervals).To(HaveLen(2))
		Expect(number(values[0]["cx"])).To(And(BeNumerically(">", number(intervals[0]["x1"])), BeNumerically("<", number(intervals[0]["x2"]))))
		peers := drawn(svg, "circle", "peer hollow")[1:] // after the legend's
		Expect(peers).To(HaveLen(2))                     // one in each panel
		Expect(peers[0]["cy"]).To(Equal(peers[1]["cy"]), "a contender has one height")
		Expect(peers[0]["cy"]).NotTo(Equal(values[0]["cy"]))
		from1to2 := number(peers[0]["cx"]) - number(values[0]["cx"])
		lines := drawn(svg, "line", "peer")
		low, high := number(lines[1]["x1"]), number(lines[2]["x1"]) // 16 and 160
		Expect(from1to2/(high-low)).To(BeNumerically("~", 0.30103, 0.01), "log 2 to log 10")
	})

	It("names everyone once, and escapes what is text", func() {
		svg := chart.SVG()
		for _, text := range []string{">Times &amp; &lt;tokens&gt;</title>", ">ours</text>", ">&lt;peer&gt;</text>", ">reuse</text>", ">no reuse</text>", ">p50</text>", ">p99</text>"} {
			Expect(strings.Count(svg, text)).To(Equal(1), text)
		}
	})

	It("follows the reader's scheme, and has its own background", func() {
		Expect(chart.SVG()).To(And(ContainSubstring("prefers-color-scheme: dark"), ContainSubstring(`<rect class="page"`)))
	})

	DescribeTable("is a drawing whatever there is to draw", func(c result.Chart) {
		svg := c.SVG()
		Expect(drawn(svg, "rect", "page")).To(HaveLen(1))
		Expect(svg).NotTo(Or(ContainSubstring("NaN"), ContainSubstring("Inf"), ContainSubstring("%!")))
	},
		Entry("nothing", result.Chart{}),
		Entry("an empty panel", result.Chart{Panels: []result.Panel{{Title: "empty"}}}),
		Entry("a row without values", result.Chart{Panels: []result.Panel{{Rows: []result.Row{{Name: "failed"}, row("ours", true, 1)}}}}),
		Entry("one value", result.Chart{Panels: []result.Panel{{Rows: []result.Row{{Name: "x", Marks: []result.Mark{mark("p50", 7, 7, 7)}}}}}}),
		Entry("all of it", chart),
	)

	It("is shown where its result is", func() {
		Expect(result.Result{Charts: []result.Chart{chart}}.Markdown()).To(ContainSubstring("\n![Times & <tokens>](c.svg)\n"))
	})
})
