// Package lockdown keeps a process's memory out of files and out of the reach
// of its own user's debuggers. Every program of the cluster that handles keys,
// plaintext or ciphertext calls it before anything else.
//
// It is no defence against root, nor against whoever controls the machine.
package lockdown

import (
	"fmt"
	"runtime/debug"

	"golang.org/x/sys/unix"
)

// NoDumps forbids core dumps, and makes a panic print its message without the
// stacks, whose arguments could quote a request.
func NoDumps() error {
	debug.SetTraceback("none")
	if err := unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{}); err != nil {
		return fmt.Errorf("forbid core dumps: %w", err)
	}
	return nil
}
