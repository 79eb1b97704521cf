package lockdown

import (
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// overwriteFreed is the setting of Go's runtime by which its garbage collector
// overwrites what it frees (package runtime, "GODEBUG").
const overwriteFreed = "clobberfree=1"

// OverwriteFreed has the garbage collector overwrite each object that it frees.
// The runtime takes that from the environment as it starts, so when it is not
// there the program is replaced by itself with it: call it first. It does nothing
// for stacks, nor for what is still reachable.
func OverwriteFreed() error {
	settings := os.Getenv("GODEBUG")
	for setting := range strings.SplitSeq(settings, ",") {
		if setting == overwriteFreed {
			return nil
		}
	}
	if err := os.Setenv("GODEBUG", strings.TrimPrefix(settings+","+overwriteFreed, ",")); err != nil {
		return fmt.Errorf("overwrite freed memory: %w", err)
	}
	self, err := os.Executable()
	if err != nil {
		return fmt.Errorf("overwrite freed memory: %w", err)
	}
	return fmt.Errorf("overwrite freed memory: start %s again: %w", self, unix.Exec(self, os.Args, os.Environ())) //nolint:gosec // itself
}
