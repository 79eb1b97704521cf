package result

import (
	"fmt"
	"html"
	"math"
	"strings"
)

// Plot is what bench/report draws into docs/NAME.svg: lines over a common x, from 0.
type Plot struct {
	Name  string `json:"name"`
	Title string `json:"title"`
	X     string `json:"x"` // what it is, and its unit
	Y     string `json:"y"`
	Lines []Line `json:"lines"`
}

// Line is one of a plot's, a step from each point to the next.
type Line struct {
	Name   string `json:"name"`
	Accent bool   `json:"accent,omitempty"` // drawn as ours
	Points Points `json:"points"`
}

// Points are x and y, x rising. As text they are "x,y x,y …", so that a file of results
// stays readable; points that are no step are left out.
type Points [][2]float64

// MarshalText writes them.
func (p Points) MarshalText() ([]byte, error) {
	var text []byte
	for i, point := range p {
		if i > 0 && i < len(p)-1 && point[1] == p[i-1][1] {
			continue
		}
		if len(text) > 0 {
			text = append(text, ' ')
		}
		text = fmt.Appendf(text, "%.4g,%.4g", point[0], point[1])
	}
	return text, nil
}

// UnmarshalText reads them.
func (p *Points) UnmarshalText(text []byte) error {
	*p = nil
	for _, field := range strings.Fields(string(text)) {
		var point [2]float64
		if _, err := fmt.Sscanf(field, "%g,%g", &point[0], &point[1]); err != nil {
			return fmt.Errorf("points of a plot: %q: %w", field, err)
		}
		*p = append(*p, point)
	}
	return nil
}

// The measures of a plot, in pixels.
const (
	plotLeft   = 48
	plotTop    = 76
	plotHeight = 300
	plotBottom = 52
)

// looks tells lines that are not ours apart, in order.
var looks = []string{`stroke-opacity="0.35" stroke-width="6"`, `stroke-dasharray="5 3"`, `stroke-dasharray="1 3" stroke-width="2"`}

// SVG draws the plot, on light and dark pages as a chart is.
func (p Plot) SVG() string {
	width, height := float64(chartWidth-plotLeft-chartGap), plotTop+plotHeight+plotBottom
	var right, top float64
	for _, l := range p.Lines {
		for _, point := range l.Points {
			right, top = max(right, point[0]), max(top, point[1])
		}
	}
	right, top = max(right, 1e-9), max(top, 1e-9)*1.05
	x := func(v float64) float64 { return plotLeft + width*v/right }
	y := func(v float64) float64 { return plotTop + plotHeight*(1-v/top) }
	var b strings.Builder
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" font-family="system-ui, sans-serif" font-size="13" role="img">
  <title>%s</title>
  <style>@media (prefers-color-scheme: dark) {
    .page { fill: #0d1117 } .text { fill: #e6edf3 } .soft { fill: #9198a1 } .rule { stroke: #30363d }
    .ours { stroke: #58a6ff } .peer { stroke: #9198a1 }
  }</style>
  <rect class="page" width="%[1]d" height="%[2]d" fill="#ffffff"/>
  <text class="text" x="16" y="28" font-size="15" font-weight="600" fill="#0f172a">%[3]s</text>
`, chartWidth, height, html.EscapeString(p.Title))
	for v := 0.0; v <= top; v += step(top) {
		line(&b, "rule", plotLeft, y(v), plotLeft+width, y(v), `stroke="#e2e8f0"`)
		fmt.Fprintf(&b, `  <text class="soft" x="%d" y="%.1f" text-anchor="end" font-size="11" fill="#64748b">%s</text>`+"\n", plotLeft-6, y(v)+4, number(v))
	}
	for v := 0.0; v <= right; v += step(right) {
		fmt.Fprintf(&b, `  <text class="soft" x="%.1f" y="%d" text-anchor="middle" font-size="11" fill="#64748b">%s</text>`+"\n", x(v), plotTop+plotHeight+18, number(v))
	}
	fmt.Fprintf(&b, `  <text class="soft" x="%.1f" y="%d" text-anchor="end" font-size="11" fill="#64748b">%s; up: %s</text>`+"\n",
		plotLeft+width, plotTop+plotHeight+36, html.EscapeString(p.X), html.EscapeString(p.Y))
	legend, others := 20.0, 0
	for _, l := range p.Lines {
		class, look := "ours", `stroke="#2563eb" stroke-width="2"`
		if !l.Accent {
			class, look = "peer", `stroke="#64748b" `+looks[others%len(looks)]
			others++
		}
		line(&b, class, legend, 48, legend+24, 48, look)
		fmt.Fprintf(&b, `  <text class="soft" x="%.0f" y="52" fill="#64748b">%s</text>`+"\n", legend+30, html.EscapeString(l.Name))
		legend += 54 + 7.5*float64(len(l.Name))
		if len(l.Points) == 0 {
			continue
		}
		var path strings.Builder
		fmt.Fprintf(&path, "M%.1f %.1f", x(l.Points[0][0]), y(l.Points[0][1]))
		for _, point := range l.Points[1:] {
			fmt.Fprintf(&path, "H%.1fV%.1f", x(point[0]), y(point[1]))
		}
		fmt.Fprintf(&b, `  <path class="%s" d="%s" fill="none" %s/>`+"\n", class, path.String(), look)
	}
	b.WriteString("</svg>\n")
	return b.String()
}

// step is such that a range has some five to ten of them: 1, 2 or 5 times a power of
// ten, or 3 and 6 for hours.
func step(extent float64) float64 {
	if extent > 20 && extent <= 24 {
		return 3
	}
	power := math.Pow(10, math.Floor(math.Log10(extent/5)))
	for _, times := range []float64{1, 2, 5} {
		if extent/(times*power) <= 10 {
			return times * power
		}
	}
	return 10 * power
}
