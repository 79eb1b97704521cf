package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"strings"

	"golang.org/x/perf/benchfmt"

	"github.com/mrgc/mrgc/bench/result"
)

// measureIdleReports runs the benchmark of package router, whose iteration is
// one second: 100 real parents and real routers, and what they use together.
func measureIdleReports(ctx context.Context, o options, r *result.Result) error {
	cmd := exec.CommandContext(ctx, "go", "test", "-run", "^$", "-bench", "^BenchmarkIdleReports$", "-benchtime", "3x",
		"-count", strconv.Itoa(o.rounds), "./router")
	cmd.Stderr = os.Stderr
	output, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	cores, err := readCores(io.TeeReader(output, os.Stderr)) // the runs are the progress
	if err := errors.Join(err, cmd.Wait()); err != nil {
		return fmt.Errorf("go test -bench: %w", err)
	}
	none := result.Quantile(cores["none"], 0.5)
	for _, to := range []struct{ bench, goal string }{{"to_1_router", "≤ 0.5"}, {"to_2_routers", ""}} {
		var added []float64
		for _, c := range cores[to.bench] {
			added = append(added, c-none)
		}
		if len(added) == 0 {
			return fmt.Errorf("go test -bench: no figure of %q", to.bench)
		}
		r.Figures = append(r.Figures, ofRounds("load reports of 100 idle instances "+strings.ReplaceAll(to.bench, "_", " "), added, "cores", to.goal))
	}
	r.Notes = append(r.Notes, fmt.Sprintf("Load reports of idle instances: what 100 parents and the routers use together, on all sides, less the %.2f cores that the parents "+
		"alone and the benchmark's process use.", none))
	return nil
}

// readCores gathers the figures by benchmark.
func readCores(output io.Reader) (map[string][]float64, error) {
	cores := map[string][]float64{}
	lines := benchfmt.NewReader(output, "go test")
	for lines.Scan() {
		record, ok := lines.Result().(*benchfmt.Result)
		if !ok {
			continue
		}
		value, ok := record.Value("cores")
		if !ok {
			return nil, fmt.Errorf("%s has no cores", record.Name)
		}
		_, parts := record.Name.Parts()
		name := strings.TrimPrefix(string(parts[0]), "/")
		cores[name] = append(cores[name], value)
	}
	return cores, lines.Err()
}
