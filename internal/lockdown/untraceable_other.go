//go:build !linux

package lockdown

// Untraceable takes ptrace and /proc/PID/mem from the process's own user
// (prctl(2), PR_SET_DUMPABLE). On other systems than Linux it does nothing.
func Untraceable() error { return nil }
