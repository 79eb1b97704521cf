// Package result is how a benchmark writes down what it measured: one JSON file
// in bench/results per benchmark, with the command that made it, the commit and
// the machine. docs/benchmarks.md is made of these files (bench/report).
package result

import (
	"bufio"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"time"
)

// Result is what one benchmark measured.
type Result struct {
	Name    string    `json:"name"`    // of the file, too
	Title   string    `json:"title"`   // for people
	Command string    `json:"command"` // that measures it again
	Commit  string    `json:"commit"`
	Machine string    `json:"machine"`
	Date    time.Time `json:"date"`

	Figures     []Figure     `json:"figures"`
	Comparisons []Comparison `json:"comparisons,omitempty"`
	Breakdowns  []Breakdown  `json:"breakdowns,omitempty"`
	Tables      []Table      `json:"tables,omitempty"`
	Charts      []Chart      `json:"charts,omitempty"`
	Plots       []Plot       `json:"plots,omitempty"`
	// Notes are what one must know to read the figures, a sentence or two each.
	Notes []string `json:"notes,omitempty"`
}

// Figure is one number.
type Figure struct {
	Name  string  `json:"name"`
	Value float64 `json:"value"`
	Unit  string  `json:"unit"`
	Goal  string  `json:"goal,omitempty"` // "≤ 30"
	// Spread is that of the samples whose median is the value.
	Spread *Spread `json:"spread,omitempty"`
}

// Comparison is what one way costs beside another, measured in pairs. Added is
// of the differences within pairs, so that it need not be the difference of the
// other two.
type Comparison struct {
	Name    string `json:"name"`
	Unit    string `json:"unit"`
	Direct  Spread `json:"direct"`
	Through Spread `json:"through"`
	Added   Spread `json:"added"`
}

// Breakdown is how much of one thing each program takes.
type Breakdown struct {
	Name  string             `json:"name"`
	Unit  string             `json:"unit"`
	Parts map[string]float64 `json:"parts"` // by program
}

// Table is for what neither of the others can say. Cells are for people.
type Table struct {
	Title   string     `json:"title"`
	Columns []string   `json:"columns"`
	Rows    [][]string `json:"rows"`
}

// Sum is what all programs take together.
func (b Breakdown) Sum() (sum float64) {
	for _, part := range b.Parts {
		sum += part
	}
	return sum
}

// Dir is where results lie, from the root of the repository.
const Dir = "bench/results"

// Write fills in commit, machine and date, and writes the file.
func (r Result) Write() error {
	commit, err := exec.Command("git", "describe", "--always", "--dirty", "--abbrev=12").Output()
	if err != nil {
		return fmt.Errorf("result %s: which commit is this: %w", r.Name, err)
	}
	r.Commit = strings.TrimSpace(string(commit))
	r.Machine = machine()
	r.Date = time.Now().UTC().Truncate(time.Second)
	content, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return fmt.Errorf("result %s: %w", r.Name, err)
	}
	if err := os.MkdirAll(Dir, 0o755); err != nil {
		return fmt.Errorf("result %s: %w", r.Name, err)
	}
	return os.WriteFile(filepath.Join(Dir, r.Name+".json"), append(content, '\n'), 0o644)
}

// machine describes the processor: "2 cores, …, linux/amd64".
func machine() string {
	model := "unknown processor"
	if file, err := os.Open("/proc/cpuinfo"); err == nil {
		defer file.Close()
		for lines := bufio.NewScanner(file); lines.Scan(); {
			if name, value, ok := strings.Cut(lines.Text(), ":"); ok && strings.TrimSpace(name) == "model name" {
				model = strings.TrimSpace(value)
				break
			}
		}
	}
	return fmt.Sprintf("%d cores, %s, %s/%s, %s", runtime.NumCPU(), model, runtime.GOOS, runtime.GOARCH, runtime.Version())
}

// ReadAll reads every result, in order of name.
func ReadAll() ([]Result, error) {
	paths, err := filepath.Glob(filepath.Join(Dir, "*.json"))
	if err != nil {
		return nil, err
	}
	var all []Result
	for _, path := range paths {
		content, err := os.ReadFile(path)
		if err != nil {
			return nil, err
		}
		var r Result
		if err := json.Unmarshal(content, &r); err != nil {
			return nil, fmt.Errorf("%s: %w", path, err)
		}
		all = append(all, r)
	}
	return all, nil
}
