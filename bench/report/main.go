// Report writes docs/benchmarks.md, and the charts that it shows, out of
// bench/results.
package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/mrgc/mrgc/bench/result"
)

func main() {
	results, err := result.ReadAll()
	if err == nil {
		err = write(results)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "report:", err)
		os.Exit(1)
	}
}

func write(results []result.Result) error {
	for _, r := range results {
		pictures := map[string]string{}
		for _, c := range r.Charts {
			pictures[c.Name] = c.SVG()
		}
		for _, p := range r.Plots {
			pictures[p.Name] = p.SVG()
		}
		for name, svg := range pictures {
			if err := os.WriteFile(filepath.Join("docs", name+".svg"), []byte(svg), 0o644); err != nil {
				return err
			}
		}
	}
	return os.WriteFile("docs/benchmarks.md", []byte(render(results)), 0o644)
}

func render(results []result.Result) string {
	var b strings.Builder
	b.WriteString("# Benchmarks\n\n<!-- Written by `go run ./bench/report` out of bench/results; do not edit. -->\n")
	b.WriteString(goalsTable(results, routingGoals()))
	for _, r := range results {
		b.WriteString(r.Markdown())
	}
	return b.String()
}
