// Fuzz fuzzes every fuzz target of the repository for so many minutes of processor
// time each, and writes down how long each has been fuzzed. It can be stopped at any
// time and goes on where it was: minutes count for a target as long as its code is the
// same, its own package's and that of every package of this repository below it, and
// Go keeps the inputs that it has found. All targets take turns, so that whatever time
// there is is spread evenly.
//
//	go run ./bench/fuzz -minutes 10
//
// An input that fails a target is in testdata/fuzz of its package, where `go test`
// tries it from then on; the program ends with it.
package main

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/mrgc/mrgc/bench/result"
)

type options struct {
	minutes  float64
	slice    time.Duration
	parallel int
	only     *regexp.Regexp
}

func main() {
	var o options
	var only string
	flag.Float64Var(&o.minutes, "minutes", 10, "how long each target is fuzzed in all, in minutes of processor time")
	flag.DurationVar(&o.slice, "slice", time.Minute, "how long a target's turn is")
	flag.IntVar(&o.parallel, "parallel", 1, "inputs that are tried at once")
	flag.StringVar(&only, "only", "", "targets whose names match this regular expression")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	var err error
	if o.only, err = regexp.Compile(only); err == nil {
		err = run(ctx, o)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "fuzz:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, o options) error {
	targets, err := findTargets(ctx)
	if err != nil {
		return err
	}
	if err := recall(targets); err != nil {
		return err
	}
	for {
		next := slices.MinFunc(targets, func(a, b *target) int { return cmp.Compare(a.due(o), b.due(o)) })
		left := time.Duration((o.minutes - next.due(o)) * float64(time.Minute))
		if left <= 0 {
			return nil
		}
		fmt.Printf("%s: %.1f of %g min\n", next.name(), next.minutes, o.minutes)
		failed := next.fuzz(ctx, min(o.slice, max(left, shortest)), o.parallel)
		if err := remember(targets); err != nil {
			return err
		}
		if failed != nil {
			return fmt.Errorf("%s: %w", next.name(), failed)
		}
	}
}

// shortest is a turn in which a target that has many inputs already comes to try a new one.
const shortest = 20 * time.Second

// target is a fuzz target, and what was done with it as its code is now.
type target struct {
	pkg, function string
	dir           string  // with its sources
	cache         string  // where Go keeps the inputs of all targets
	code          string  // a hash of all that it runs
	minutes       float64 // of processor time
	executions    int64
	found         int64 // inputs that reached code that none before had
	failed        bool
	at            time.Time
}

func (t *target) name() string { return path.Base(t.pkg) + "." + t.function }

// due orders targets: by the minutes that they have had; last what is not wanted.
func (t *target) due(o options) float64 {
	if !o.only.MatchString(t.name()) {
		return o.minutes
	}
	return t.minutes
}

// progress is what `go test -fuzz` says every three seconds.
var progress = regexp.MustCompile(`^fuzz: elapsed: [^,]+, execs: (\d+) \(.*new interesting: (\d+)`)

// fuzz runs a target for a while. An error is a failing input, or a target that
// cannot run.
func (t *target) fuzz(ctx context.Context, d time.Duration, parallel int) error {
	program, remove, err := t.build(ctx)
	if err != nil {
		return err
	}
	defer remove()
	cmd := exec.CommandContext(ctx, program, "-test.run", "^$", "-test.fuzz", "^"+t.function+"$", "-test.fuzztime", d.String(),
		"-test.fuzzminimizetime", "5x", "-test.parallel", strconv.Itoa(parallel), "-test.fuzzcachedir", filepath.Join(t.cache, t.pkg))
	cmd.Dir = t.dir // where a failing input is written, too
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.WaitDelay = 10 * time.Second
	var said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &said, &said
	err = cmd.Run()
	if ctx.Err() != nil {
		return ctx.Err() // a turn that was cut short does not count
	}
	if lateAtTheEnd(said.Bytes()) {
		err = nil
	}
	var executions, found int64
	for lines := bufio.NewScanner(&said); lines.Scan(); {
		if err != nil {
			fmt.Fprintln(os.Stderr, lines.Text())
		}
		if m := progress.FindStringSubmatch(lines.Text()); m != nil {
			executions, _ = strconv.ParseInt(m[1], 10, 64)
			found, _ = strconv.ParseInt(m[2], 10, 64)
		}
	}
	t.executions, t.found, t.failed, t.at = t.executions+executions, t.found+found, err != nil, time.Now()
	if err == nil && executions == 0 {
		return errors.New("nothing was executed")
	}
	t.minutes += (cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime()).Minutes() // its worker's, too
	return err
}

// lateAtTheEnd says whether Go calls a turn failed only because its time ran out while
// an input was tried (golang/go#75804, mended in Go 1.27): nothing is said of any input then.
func lateAtTheEnd(said []byte) bool {
	return deadline.Match(said) && !bytes.Contains(said, []byte("Failing input written"))
}

var deadline = regexp.MustCompile(`(?m)^--- FAIL: \w+ \([0-9.]+s\)\n    context deadline exceeded\nFAIL$`)

// build compiles the target with the instruments that fuzzing goes by.
func (t *target) build(ctx context.Context) (program string, remove func(), err error) {
	dir, err := os.MkdirTemp("", "mrgc-fuzz")
	if err != nil {
		return "", nil, err
	}
	remove = func() { _ = os.RemoveAll(dir) } // a leftover in the temporary folder harms nothing
	program = filepath.Join(dir, "fuzz.test")
	if _, err := result.Output(ctx, "go", "test", "-c", "-fuzz", "^"+t.function+"$", "-o", program, t.pkg); err != nil {
		remove()
		return "", nil, err
	}
	return program, remove, nil
}

// findTargets lists all of them.
func findTargets(ctx context.Context) (targets []*target, err error) {
	packages, err := result.Output(ctx, "go", "list", "./...")
	if err != nil {
		return nil, err
	}
	cache, err := result.Output(ctx, "go", "env", "GOCACHE")
	if err != nil {
		return nil, err
	}
	cache = filepath.Join(strings.TrimSpace(cache), "fuzz")
	for _, pkg := range strings.Fields(packages) {
		dir, err := result.Output(ctx, "go", "list", "-f", "{{.Dir}}", pkg)
		if err != nil {
			return nil, err
		}
		dir = strings.TrimSpace(dir)
		functions, err := fuzzFunctions(dir)
		if err != nil || len(functions) == 0 {
			if err != nil {
				return nil, err
			}
			continue
		}
		code, err := result.CodeOf(ctx, pkg)
		if err != nil {
			return nil, err
		}
		for _, function := range functions {
			targets = append(targets, &target{pkg: pkg, function: function, dir: dir, cache: cache, code: code})
		}
	}
	if len(targets) == 0 {
		return nil, errors.New("no fuzz target")
	}
	return targets, nil
}

var declaration = regexp.MustCompile(`(?m)^func (Fuzz\w+)\(\w+ \*testing\.F\)`)

func fuzzFunctions(dir string) (functions []string, err error) {
	files, err := filepath.Glob(filepath.Join(dir, "*_test.go"))
	if err != nil {
		return nil, err
	}
	for _, file := range files {
		content, err := os.ReadFile(file)
		if err != nil {
			return nil, err
		}
		for _, m := range declaration.FindAllSubmatch(content, -1) {
			functions = append(functions, string(m[1]))
		}
	}
	return functions, nil
}

// resultName is of the file in which is remembered what was done.
const resultName = "fuzz"

// recall takes over what was done with targets whose code is the same.
func recall(targets []*target) error {
	all, err := result.ReadAll()
	if err != nil {
		return err
	}
	for _, r := range all {
		if r.Name != resultName || len(r.Tables) == 0 {
			continue
		}
		for _, row := range r.Tables[0].Rows {
			for _, t := range targets {
				if len(row) == len(columns) && row[0] == t.pkg+" "+t.function && row[1] == t.code {
					t.take(row)
				}
			}
		}
	}
	return nil
}

var columns = []string{"target", "code", "minutes", "executions", "inputs found", "outcome", "last"}

func (t *target) row() []string {
	outcome := "no failure"
	if t.failed {
		outcome = "FAILED"
	}
	return []string{
		t.pkg + " " + t.function, t.code, strconv.FormatFloat(t.minutes, 'f', 2, 64), strconv.FormatInt(t.executions, 10),
		strconv.FormatInt(t.found, 10), outcome, t.at.UTC().Format(time.RFC3339),
	}
}

// take reads what row has written; of what it has not, nothing.
func (t *target) take(row []string) {
	t.minutes, _ = strconv.ParseFloat(row[2], 64)
	t.executions, _ = strconv.ParseInt(row[3], 10, 64)
	t.found, _ = strconv.ParseInt(row[4], 10, 64)
	t.failed = row[5] == "FAILED"
	t.at, _ = time.Parse(time.RFC3339, row[6])
}

// remember writes down what was done so far.
func remember(targets []*target) error {
	table := result.Table{Title: "What each fuzz target has had, as its code is", Columns: columns}
	var executions, fewest float64
	fewest = targets[0].minutes
	failed := 0
	for _, t := range targets {
		fewest = min(fewest, t.minutes)
		executions += float64(t.executions)
		if t.failed {
			failed++
		}
		if t.minutes > 0 || t.failed {
			table.Rows = append(table.Rows, t.row())
		}
	}
	return result.Result{
		Name: resultName, Title: "Fuzzing: what every parser has survived", Command: "make fuzz-long",
		Figures: []result.Figure{
			{Name: "targets", Value: float64(len(targets)), Unit: "targets"},
			{Name: "targets that failed", Value: float64(failed), Unit: "targets", Goal: "= 0"},
			{Name: "the least that a target has had", Value: fewest, Unit: "min", Goal: "≥ 10"},
			{Name: "executions in all", Value: executions / 1e6, Unit: "million"},
		},
		Tables: []result.Table{table},
		Notes: []string{"Minutes are of processor time. They count as long as a target's code, and that below it, is the same: " +
			"`make fuzz-long` goes on where it was stopped."},
	}.Write()
}
