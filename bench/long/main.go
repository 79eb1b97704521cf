// Long runs the tests that take too long for every day, and writes down what came of
// each. It can be stopped at any time and goes on with what has not passed: a step that
// has, with the code as it is, is not run again.
//
//	go run ./bench/long                 # what is due
//	go run ./bench/long -only threats   # of that, what matches
//	go run ./bench/long -again          # all of it
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"regexp"
	"strings"
	"syscall"
	"time"

	"github.com/mrgc/mrgc/bench/result"
)

// step is one command, and what was seen of it.
type step struct {
	name     string
	says     string // what it shows
	command  []string
	packages []string // whose code it is about; none: it keeps its own account
	needs    string   // a file; empty: none
	fetch    string   // what brings it

	code    string // a hash of it
	outcome outcome
	of      string // the code that the outcome is of
	took    time.Duration
	at      time.Time
}

// outcome is what came of a step, as the result has it.
type outcome string

const (
	notRun outcome = "not run yet"
	passed outcome = "passed"
	failed outcome = "FAILED"
)

// due says whether a step has anything to show that it has not shown.
func (s *step) due() bool { return s.outcome != passed || s.of != s.code || len(s.packages) == 0 }

// missing says whether what the step needs is not there.
func (s *step) missing() bool {
	if s.needs == "" {
		return false
	}
	_, err := os.Stat(s.needs)
	return err != nil
}

// test is a step of `go test`.
func test(timeout time.Duration, args ...string) []string {
	return append([]string{"go", "test", "-count=1", "-timeout", timeout.String()}, args...)
}

// steps are all of them; the shorter ones first.
func steps() []*step {
	whole := []string{"./e2e", "./cmd/...", "./standin/..."} // a cluster of built programs
	return []*step{
		{
			name: "routers", says: "100,000 requests through the real Envoy", packages: []string{"./router"},
			command: test(30*time.Minute, "./router", "-ginkgo.focus", "through the real Envoy"),
		},
		{
			name: "image", says: "the enclave compiled anew, standard library and all, measures the same", packages: []string{"./enclave/image", "./cmd/mrgc-enclave", "./cmd/mrgc-enclave-init"},
			command: test(30*time.Minute, "./enclave/image"),
		},
		{
			name: "controllers", says: "controllers killed 148 times: no instance lost, none launched twice", packages: []string{"./controller"},
			command: test(20*time.Minute, "./controller", "-ginkgo.focus", "killed at any time|killed in the middle"),
		},
		{
			name: "silence", says: "routers hang for a quarter of an hour", packages: whole,
			command: test(30*time.Minute, "./e2e", "-ginkgo.focus", "quarter of an hour"),
		},
		{
			name: "vllm", says: "the real vLLM behind the guard: tenants apart, washes, metrics, errors", packages: []string{"./engine"},
			command: append([]string{"env", "MRGC_TEST_VLLM=1", "OMP_NUM_THREADS=1"}, test(time.Hour, "./engine", "-ginkgo.label-filter", "vllm")...),
			needs:   ".tools/vllm-0.32.0/.done", fetch: "make vllm",
		},
		{
			name: "threats", says: "the threat model at length: a million replays in process, 10,000 through real parts", packages: whole,
			command: test(45*time.Minute, "./e2e", "-ginkgo.label-filter", "threats"),
		},
		{
			name: "washes", says: "10,000 requests while instances are washed 200 times: no residue of any, none fails", packages: whole,
			command: test(time.Hour, "./e2e", "-ginkgo.label-filter", "washes"),
		},
		{
			name: "failover", says: "a region killed under load, and smaller harm", packages: []string{"./bench/failover", "./cmd/...", "./standin/..."},
			command: []string{"go", "run", "./bench/failover"},
		},
		{name: "fuzzing", says: "ten minutes for every parser", command: []string{"go", "run", "./bench/fuzz"}},
	}
}

func main() {
	only := flag.String("only", "", "steps whose names match this regular expression")
	again := flag.Bool("again", false, "what has passed, too")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	wanted, err := regexp.Compile(*only)
	if err == nil {
		err = run(ctx, wanted, *again)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "long:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, wanted *regexp.Regexp, again bool) error {
	all := steps()
	for _, s := range all {
		if len(s.packages) == 0 {
			continue
		}
		var err error
		if s.code, err = result.CodeOf(ctx, s.packages...); err != nil {
			return err
		}
	}
	results, err := result.ReadAll()
	if err != nil {
		return err
	}
	recall(all, results)
	var failures []error
	for _, s := range all {
		switch {
		case !wanted.MatchString(s.name):
			continue
		case !again && !s.due():
			fmt.Printf("%s: passed %s, and its code is the same\n", s.name, s.at.Format(time.RFC3339))
			continue
		}
		if s.missing() {
			fmt.Printf("%s: not run: %s is not there, and %s fetches it\n", s.name, s.needs, s.fetch)
			continue
		}
		if err := s.run(ctx); err != nil {
			failures = append(failures, err)
		}
		if ctx.Err() != nil {
			return fmt.Errorf("%w; what has passed counts, and the rest goes on with the next run", ctx.Err())
		}
		if err := account(all).Write(); err != nil {
			return err
		}
	}
	return errors.Join(failures...)
}

// run runs the command. One that was broken off has come to nothing.
func (s *step) run(ctx context.Context) error {
	fmt.Printf("%s: %s\n", s.name, strings.Join(s.command, " "))
	cmd := exec.CommandContext(ctx, s.command[0], s.command[1:]...)
	cmd.Env = append(os.Environ(), "MRGC_TEST_LONG=1")
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.WaitDelay = time.Minute
	began := time.Now()
	err := cmd.Run()
	if ctx.Err() != nil {
		return ctx.Err()
	}
	s.outcome, s.of, s.took, s.at = passed, s.code, time.Since(began), began.UTC().Truncate(time.Second)
	if err != nil {
		s.outcome = failed
		return fmt.Errorf("%s: %w", s.name, err)
	}
	return nil
}

// resultName is of the file in which is remembered what was run.
const resultName = "long"

var columns = []string{"step", "what it shows", "outcome", "code", "took", "began"}

func (s *step) row() []string {
	if s.outcome == notRun || s.outcome == "" {
		return []string{s.name, s.says, string(notRun), "", "", ""}
	}
	return []string{s.name, s.says, string(s.outcome), s.of, s.took.Round(time.Second).String(), s.at.Format(time.RFC3339)}
}

// recall takes over what was seen of steps when they were last run, whatever their code
// was then.
func recall(all []*step, results []result.Result) {
	for _, r := range results {
		if r.Name != resultName || len(r.Tables) == 0 {
			continue
		}
		for _, row := range r.Tables[0].Rows {
			for _, s := range all {
				if len(row) == len(columns) && row[0] == s.name {
					s.outcome, s.of = outcome(row[2]), row[3]
					s.took, _ = time.ParseDuration(row[4]) // of what was not run there is none
					s.at, _ = time.Parse(time.RFC3339, row[5])
				}
			}
		}
	}
}

// account is what was seen of all steps so far.
func account(all []*step) result.Result {
	table := result.Table{Title: "Each step, when it was last run", Columns: columns}
	passes, failures := 0, 0
	for _, s := range all {
		switch {
		case s.outcome == failed:
			failures++
		case !s.due() || s.outcome == passed && len(s.packages) == 0:
			passes++
		}
		table.Rows = append(table.Rows, s.row())
	}
	return result.Result{
		Name: resultName, Title: "What takes too long for every day", Command: "make test-long",
		Figures: []result.Figure{
			{Name: "steps that have passed with their code as it is", Value: float64(passes), Unit: fmt.Sprintf("of %d", len(all))},
			{Name: "steps that failed", Value: float64(failures), Unit: "steps", Goal: "= 0"},
		},
		Tables: []result.Table{table},
		Notes: []string{"`make test-long` goes on where it was stopped: a step that has passed is run again when its code, or that below it, is another (the first figure is as of the last run). " +
			"The code is a hash; fuzzing and failover have accounts of their own, too."},
	}
}
