// Package lockdown keeps a process's memory out of files and out of the reach
// of its own user's debuggers. Every program of the cluster that handles keys,
// plaintext or ciphertext calls it before anything else.
//
// It is no defence against root, nor against whoever controls the machine.
package lockdown

import (
	"fmt"
	"runtime"

	"golang.org/x/sys/unix"
)

// NoDumps forbids core dumps.
//
// It cannot keep a panic from printing stacks to standard error, which show
// arguments that are passed by value: runtime/debug.SetTraceback only ever adds
// to what the environment asks for. Whoever starts the program sets
// GOTRACEBACK=none.
func NoDumps() error {
	runtime.UnlockOSThread() // a program that calls OverwriteFreed, too, has done so before
	if err := unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{}); err != nil {
		return fmt.Errorf("forbid core dumps: %w", err)
	}
	return nil
}
