package result

import (
	"fmt"
	"io"
	"maps"
	"math"
	"slices"
	"strings"
	"text/tabwriter"
)

// Print writes the result for whoever waits for it.
func (r Result) Print(w io.Writer) {
	for _, f := range r.Figures {
		_, _ = fmt.Fprintf(w, "%-60s %12s  %s\n", f.Name, f.Text(), f.Goal)
	}
	for _, c := range r.Comparisons {
		_, _ = fmt.Fprintf(w, "%-60s direct %s, through %s, added %s %s\n", c.Name, c.Direct.Text(), c.Through.Text(), c.Added.Text(), c.Unit)
	}
	for _, d := range r.Breakdowns {
		_, _ = fmt.Fprintf(w, "%s, %s:", d.Name, d.Unit)
		for _, program := range slices.Sorted(maps.Keys(d.Parts)) {
			_, _ = fmt.Fprintf(w, "  %s %.3g", program, d.Parts[program])
		}
		_, _ = fmt.Fprintln(w)
	}
	for _, t := range r.Tables {
		columns := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
		_, _ = fmt.Fprintf(columns, "\n%s\n%s\n", t.Title, strings.Join(t.Columns, "\t"))
		for _, row := range t.Rows {
			_, _ = fmt.Fprintln(columns, strings.Join(row, "\t"))
		}
		_ = columns.Flush()
	}
}

// Markdown is the result as a section of docs/benchmarks.md.
func (r Result) Markdown() string {
	var b strings.Builder
	fmt.Fprintf(&b, "\n## %s\n\n`%s`, commit %s, %s, %s.\n", r.Title, r.Command, r.Commit, r.Date.Format("2006-01-02"), r.Machine)
	b.WriteString("\n| figure | value | goal |\n| --- | --- | --- |\n")
	for _, f := range r.Figures {
		fmt.Fprintf(&b, "| %s | %s | %s |\n", f.Name, f.Text(), f.Goal)
	}
	if len(r.Comparisons) > 0 {
		b.WriteString("\n| median (p10–p90) | pairs | direct | through | added in a pair | of direct |\n| --- | --- | --- | --- | --- | --- |\n")
	}
	for _, c := range r.Comparisons {
		fmt.Fprintf(&b, "| %s, %s | %d | %s | %s | %s | %+.0f %% |\n",
			c.Name, c.Unit, c.Added.Samples, c.Direct.Text(), c.Through.Text(), c.Added.Text(), 100*c.Added.P50/c.Direct.P50)
	}
	for _, c := range r.Charts {
		fmt.Fprintf(&b, "\n![%s](%s.svg)\n", c.Title, c.Name)
	}
	for _, p := range r.Plots {
		fmt.Fprintf(&b, "\n![%s](%s.svg)\n", p.Title, p.Name)
	}
	r.breakdownTable(&b)
	for _, t := range r.Tables {
		t.markdown(&b)
	}
	for _, note := range r.Notes {
		fmt.Fprintf(&b, "\n%s\n", note)
	}
	return b.String()
}

func (t Table) markdown(b *strings.Builder) {
	fmt.Fprintf(b, "\n**%s**\n\n| %s |\n|%s\n", t.Title, strings.Join(t.Columns, " | "), strings.Repeat(" --- |", len(t.Columns)))
	for _, row := range t.Rows {
		fmt.Fprintf(b, "| %s |\n", strings.Join(row, " | "))
	}
}

// breakdownTable has a row for each program and a column for each breakdown.
func (r Result) breakdownTable(b *strings.Builder) {
	if len(r.Breakdowns) == 0 {
		return
	}
	programs := map[string]bool{}
	b.WriteString("\n| program |")
	for _, d := range r.Breakdowns {
		fmt.Fprintf(b, " %s, %s |", d.Name, d.Unit)
		for program := range d.Parts {
			programs[program] = true
		}
	}
	b.WriteString("\n|" + strings.Repeat(" --- |", 1+len(r.Breakdowns)) + "\n")
	for _, program := range slices.Sorted(maps.Keys(programs)) {
		fmt.Fprintf(b, "| %s |", program)
		for _, d := range r.Breakdowns {
			if part, ok := d.Parts[program]; ok {
				fmt.Fprintf(b, " %.3g |", part)
			} else {
				b.WriteString(" |")
			}
		}
		b.WriteString("\n")
	}
}

// Text is the value with its unit, and its spread where there is one.
func (f Figure) Text() string {
	if f.Spread == nil {
		return fmt.Sprintf("%.4g %s", f.Value, f.Unit)
	}
	return fmt.Sprintf("%s %s (%s–%s)", number(f.Value), f.Unit, number(f.Spread.P10), number(f.Spread.P90))
}

// Text is "median (p10–p90)".
func (s Spread) Text() string {
	return fmt.Sprintf("%s (%s–%s)", number(s.P50), number(s.P10), number(s.P90))
}

// number has three digits, or as many as a whole number needs.
func number(v float64) string {
	if math.Abs(v) >= 1000 {
		return fmt.Sprintf("%.0f", v)
	}
	return fmt.Sprintf("%.3g", v)
}
