package lockdown

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// Untraceable takes ptrace and /proc/PID/mem from the process's own user
// (prctl(2), PR_SET_DUMPABLE). On other systems than Linux it does nothing.
func Untraceable() error {
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return fmt.Errorf("forbid tracing: %w", err)
	}
	return nil
}
