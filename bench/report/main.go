// Report writes docs/benchmarks.md out of bench/results.
package main

import (
	"fmt"
	"os"
	"strings"

	"github.com/mrgc/mrgc/bench/result"
)

func main() {
	results, err := result.ReadAll()
	if err == nil {
		err = os.WriteFile("docs/benchmarks.md", []byte(render(results)), 0o644)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "report:", err)
		os.Exit(1)
	}
}

func render(results []result.Result) string {
	var b strings.Builder
	b.WriteString("# Benchmarks\n\n<!-- Written by `go run ./bench/report` out of bench/results; do not edit. -->\n")
	for _, r := range results {
		b.WriteString(r.Markdown())
	}
	return b.String()
}
