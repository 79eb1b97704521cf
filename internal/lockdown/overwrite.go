package lockdown

import (
	"fmt"
	"os"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"
)

// overwriteFreed is the setting of Go's runtime by which its garbage collector
// overwrites what it frees (package runtime, "GODEBUG").
const overwriteFreed = "clobberfree=1"

// init keeps main in the process's first thread until [OverwriteFreed] or [NoDumps] has
// been called. Of a program that is replaced by itself the thread that asks for it is
// left, and the signal for a parent's death is the first one's alone (execve(2),
// prctl(2), PR_SET_PDEATHSIG): an enclave that was started anew from another thread
// outlives its parent.
func init() { runtime.LockOSThread() }

// OverwriteFreed has the garbage collector overwrite each object that it frees.
// The runtime takes that from the environment as it starts, so when it is not
// there the program is replaced by itself with it: call it first. It does nothing
// for stacks, nor for what is still reachable.
func OverwriteFreed() error {
	settings := os.Getenv("GODEBUG")
	for setting := range strings.SplitSeq(settings, ",") {
		if setting == overwriteFreed {
			runtime.UnlockOSThread()
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
