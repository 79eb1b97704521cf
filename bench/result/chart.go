package result

import (
	"fmt"
	"html"
	"math"
	"slices"
	"strings"
)

// Chart is what bench/report draws into docs/NAME.svg: in each panel a line for
// each row, on one logarithmic scale, so that factors can be compared by eye.
type Chart struct {
	Name   string  `json:"name"`
	Title  string  `json:"title"`
	Unit   string  `json:"unit"` // of every value
	Panels []Panel `json:"panels"`
}

// Panel is one situation, side by side with the others.
type Panel struct {
	Title string `json:"title"`
	Rows  []Row  `json:"rows"`
}

// Row is what was measured of one contender. A contender has the same name in
// every panel, and the order of the rows is that in which names appear.
type Row struct {
	Name   string `json:"name"`
	Accent bool   `json:"accent,omitempty"` // drawn as one of ours
	Marks  []Mark `json:"marks"`            // in the same order in every row
}

// Mark is a value with its interval.
type Mark struct {
	Name  string  `json:"name"`
	Value float64 `json:"value"`
	Low   float64 `json:"low"`
	High  float64 `json:"high"`
}

// The measures of a chart, in pixels.
const (
	chartWidth  = 960
	chartNames  = 250 // left of the panels
	chartGap    = 28  // between panels, and right of the last
	chartTop    = 92  // above the first row
	chartRow    = 26
	chartBottom = 48 // below the last row
	markRadius  = 4.5
)

// SVG draws the chart. It is legible on light and on dark pages, as it brings
// its own background and follows the reader's scheme; a renderer without style
// sheets draws it light.
func (c Chart) SVG() string {
	rows, low, high := c.extent()
	height := chartTop + chartRow*len(rows) + chartBottom
	var b strings.Builder
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" font-family="system-ui, sans-serif" font-size="13" role="img">
  <title>%s</title>
  <style>@media (prefers-color-scheme: dark) {
    .page { fill: #0d1117 } .text { fill: #e6edf3 } .soft { fill: #9198a1 } .rule { stroke: #30363d }
    .ours { fill: #58a6ff; stroke: #58a6ff } .peer { fill: #9198a1; stroke: #9198a1 } .hollow { fill: #0d1117 }
  }</style>
  <rect class="page" width="%[1]d" height="%[2]d" fill="#ffffff"/>
  <text class="text" x="16" y="28" font-size="15" font-weight="600" fill="#0f172a">%[3]s</text>
`, chartWidth, height, html.EscapeString(c.Title))
	c.legend(&b)
	for i, row := range rows {
		weight := ""
		if row.Accent {
			weight = ` font-weight="600"`
		}
		fmt.Fprintf(&b, `  <text class="text" x="%d" y="%d" text-anchor="end"%s fill="#0f172a">%s</text>`+"\n",
			chartNames-12, chartTop+chartRow*i+chartRow/2+4, weight, html.EscapeString(row.Name))
	}
	width := (chartWidth-chartNames)/max(len(c.Panels), 1) - chartGap
	for i, p := range c.Panels {
		scale := scale{low: low, high: high, left: float64(chartNames + i*(width+chartGap)), width: float64(width)}
		scale.axis(&b, p.Title, c.Unit, height)
		for j, row := range rows {
			for _, own := range p.Rows {
				if own.Name == row.Name {
					own.draw(&b, scale, float64(chartTop+chartRow*j)+chartRow/2)
				}
			}
		}
	}
	b.WriteString("</svg>\n")
	return b.String()
}

// extent gives the rows of all panels, each once, and the range of all values.
func (c Chart) extent() (rows []Row, low, high float64) {
	low, high = math.Inf(1), 0
	seen := map[string]bool{}
	for _, p := range c.Panels {
		for _, row := range p.Rows {
			if !seen[row.Name] {
				seen[row.Name] = true
				rows = append(rows, row)
			}
			for _, m := range row.Marks {
				low, high = min(low, m.Low), max(high, m.High)
			}
		}
	}
	if !(low > 0 && low <= high && !math.IsInf(high, 0)) { // nothing that a logarithmic scale can show
		return rows, 1, 10
	}
	return rows, low / 1.15, high * 1.15
}

func (c Chart) legend(b *strings.Builder) {
	first := slices.IndexFunc(c.Panels, func(p Panel) bool { return len(p.Rows) > 0 })
	if first < 0 {
		return
	}
	x := 20.0
	for i, m := range c.Panels[first].Rows[0].Marks { // the same in every row
		shape(b, i, x, 48, "peer", "#64748b")
		fmt.Fprintf(b, `  <text class="soft" x="%.0f" y="52" fill="#64748b">%s</text>`+"\n", x+10, html.EscapeString(m.Name))
		x += 30 + 8*float64(len(m.Name))
	}
	fmt.Fprintf(b, `  <text class="soft" x="%.0f" y="52" fill="#64748b">lines: 95 %% intervals</text>`+"\n", x)
}

// scale is a panel's, logarithmic.
type scale struct{ low, high, left, width float64 }

func (s scale) x(v float64) float64 {
	return s.left + s.width*math.Log(v/s.low)/math.Log(s.high/s.low)
}

// axis draws a panel's title and a line at 1, 2 and 5 times each power of ten.
func (s scale) axis(b *strings.Builder, title, unit string, height int) {
	fmt.Fprintf(b, `  <text class="text" x="%.0f" y="%d" font-weight="600" fill="#0f172a">%s</text>`+"\n", s.left, chartTop-14, html.EscapeString(title))
	for power := math.Pow(10, math.Floor(math.Log10(s.low))); power <= s.high; power *= 10 {
		for _, step := range []float64{1, 2, 5} {
			v := power * step
			if v < s.low || v > s.high {
				continue
			}
			x := s.x(v)
			line(b, "rule", x, chartTop-4, x, float64(height-chartBottom+4), `stroke="#e2e8f0"`)
			fmt.Fprintf(b, `  <text class="soft" x="%.1f" y="%d" text-anchor="middle" font-size="11" fill="#64748b">%s</text>`+"\n", x, height-chartBottom+20, number(v))
		}
	}
	fmt.Fprintf(b, `  <text class="soft" x="%.1f" y="%d" text-anchor="end" font-size="11" fill="#64748b">%s, logarithmic</text>`+"\n",
		s.left+s.width, height-chartBottom+36, html.EscapeString(unit))
}

// draw draws a row: the span of its values, their intervals, and the values.
func (r Row) draw(b *strings.Builder, s scale, y float64) {
	if len(r.Marks) == 0 {
		return
	}
	class, colour := "peer", "#64748b"
	if r.Accent {
		class, colour = "ours", "#2563eb"
	}
	first, last := r.Marks[0], r.Marks[len(r.Marks)-1]
	line(b, class, s.x(first.Value), y, s.x(last.Value), y, `stroke="`+colour+`" stroke-opacity="0.35"`)
	for i, m := range r.Marks {
		line(b, class, s.x(m.Low), y, s.x(m.High), y, `stroke="`+colour+`" stroke-width="3" stroke-linecap="round" stroke-opacity="0.55"`)
		shape(b, i, s.x(m.Value), y, class, colour)
	}
}

func line(b *strings.Builder, class string, x1, y1, x2, y2 float64, look string) {
	fmt.Fprintf(b, `  <line class="%s" x1="%.1f" y1="%.1f" x2="%.1f" y2="%.1f" %s/>`+"\n", class, x1, y1, x2, y2, look)
}

// shape is how the marks of a row differ: a ring, a diamond, a disc.
func shape(b *strings.Builder, mark int, x, y float64, class, colour string) {
	switch mark {
	case 0:
		fmt.Fprintf(b, `  <circle class="%s hollow" cx="%.1f" cy="%.1f" r="%.1f" fill="#ffffff" stroke="%s" stroke-width="1.8"/>`+"\n", class, x, y, markRadius, colour)
	case 1:
		fmt.Fprintf(b, `  <path class="%s" d="M%.1f %.1fl5 5 -5 5 -5 -5z" fill="%s"/>`+"\n", class, x, y-5, colour)
	default:
		fmt.Fprintf(b, `  <circle class="%s" cx="%.1f" cy="%.1f" r="%.1f" fill="%s"/>`+"\n", class, x, y, markRadius+0.5, colour)
	}
}
