// Hot measures the hot paths with Go's own benchmarks, several times over, and
// writes their medians down.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path"
	"strconv"
	"syscall"

	"golang.org/x/perf/benchfmt"

	"github.com/mrgc/mrgc/bench/result"
)

// packages have the paths that every request takes.
var packages = []string{"./internal/seal", "./internal/attest", "./internal/routing", "./internal/loadreport", "./extproc", "./parent"}

func main() {
	count := flag.Int("count", 6, "runs of each benchmark; their median counts")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, *count); err != nil {
		fmt.Fprintln(os.Stderr, "hot:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, count int) error {
	cmd := exec.CommandContext(ctx, "go", append([]string{
		"test", "-run", "^$", "-bench", ".", "-benchmem", "-count", strconv.Itoa(count),
	}, packages...)...)
	cmd.Stderr = os.Stderr
	output, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	all, err := read(io.TeeReader(output, os.Stderr)) // the runs are the progress
	if err := errors.Join(err, cmd.Wait()); err != nil {
		return fmt.Errorf("go test -bench: %w", err)
	}
	r := result.Result{
		Name: "hot", Title: "Hot paths", Command: "make bench-hot",
		Notes: []string{fmt.Sprintf("Medians of %d runs (p10–p90); memory is what one operation allocates.", count)},
	}
	for _, b := range all {
		r.Figures = append(r.Figures, b.figure())
	}
	r.Print(os.Stdout)
	return r.Write()
}

// benchmark is every run of one benchmark.
type benchmark struct {
	name               string
	microseconds       []float64
	bytes, allocations float64
}

// read gathers the runs in the order in which the benchmarks ran first. A
// benchmark that failed is an error.
func read(output io.Reader) ([]*benchmark, error) {
	var all []*benchmark
	byName := map[string]*benchmark{}
	lines := benchfmt.NewReader(output, "go test")
	for lines.Scan() {
		record, ok := lines.Result().(*benchfmt.Result)
		if !ok {
			continue
		}
		name := path.Base(record.GetConfig("pkg")) + ": " + nameOf(record)
		b := byName[name]
		if b == nil {
			b = &benchmark{name: name}
			byName[name], all = b, append(all, b)
		}
		seconds, ok := record.Value("sec/op")
		if !ok {
			return nil, fmt.Errorf("%s has no time", name)
		}
		b.microseconds = append(b.microseconds, seconds*1e6)
		b.bytes, _ = record.Value("B/op")
		b.allocations, _ = record.Value("allocs/op")
	}
	if len(all) == 0 {
		return nil, errors.Join(errors.New("no benchmark ran"), lines.Err())
	}
	return all, lines.Err()
}

// nameOf leaves out how many processors the benchmark ran on.
func nameOf(record *benchfmt.Result) string {
	base, parts := record.Name.Parts()
	name := string(base)
	for _, part := range parts {
		if part[0] != '-' {
			name += string(part)
		}
	}
	return name
}

func (b *benchmark) figure() result.Figure {
	spread := result.SpreadOf(b.microseconds)
	return result.Figure{
		Name:  fmt.Sprintf("%s (%.0f B, %.0f allocations)", b.name, b.bytes, b.allocations),
		Value: spread.P50, Unit: "µs", Spread: &spread,
	}
}
