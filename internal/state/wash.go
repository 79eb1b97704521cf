package state

import (
	"errors"
	"fmt"
	"slices"
	"strings"
)

// ErrNotWhole is what a wash is refused with that is said to have passed, and whose
// steps do not show it. Nothing may be concluded from such a row.
var ErrNotWhole = errors.New("the row is not whole")

// awaitTurn is the first step of a wash that had to wait for its turn.
const awaitTurn = "await_turn"

// WashSteps are the steps of a wash that leaves the engine running, in order; that of
// strict mode is one.
func WashSteps() []string {
	return []string{"plant_canary", "clear_gpu", "check_model", "restart_enclave", "check_health", "check_canary"}
}

// RestartingWashSteps are those of a wash that restarts the engine.
func RestartingWashSteps() []string {
	return []string{
		awaitTurn, "check_model", "plant_canary", "keep_turn", "step_aside", "clear_gpu", "restart_enclave", "check_health", "check_canary", "step_back",
	}
}

// whole says what a wash lacks that is said to have passed: all steps of its kind, in
// order, each of which has passed, and says what it did and found. (One that waited, and
// then had no engine to restart any more, has both the wait and the steps of the others.)
func (w Wash) whole() error {
	names := make([]string, 0, len(w.Steps))
	for _, step := range w.Steps {
		switch {
		case !step.Passed:
			return fmt.Errorf("%w: step %q of a wash that passed has not", ErrNotWhole, step.Name)
		case strings.Trim(step.Detail, "; ") == "":
			return fmt.Errorf("%w: step %q does not say what it did and found", ErrNotWhole, step.Name)
		}
		names = append(names, step.Name)
	}
	kinds := [][]string{WashSteps()}
	if w.Trigger != "strict" { // which restarts nothing
		kinds = append(kinds, RestartingWashSteps(), append([]string{awaitTurn}, WashSteps()...))
	}
	for _, want := range kinds {
		if slices.Equal(names, want) {
			return nil
		}
	}
	want := kinds[0]
	if len(kinds) > 1 && len(names) > 0 && names[0] == awaitTurn {
		want = kinds[1]
	}
	return fmt.Errorf("%w: a wash that passed has the steps %s, and this one has %s",
		ErrNotWhole, strings.Join(want, ", "), strings.Join(append(names, "no other"), ", "))
}
