//go:build !linux

package supervisor

import "syscall"

// attributes puts the engine into a process group of its own, so that Ctrl-C
// reaches the supervisor alone.
func attributes() *syscall.SysProcAttr { return &syscall.SysProcAttr{Setpgid: true} }

// adoptOrphans does nothing: what leaves the engine's process group gets away.
func adoptOrphans() error { return nil }

// kill kills the engine's process group, and says whether something of it is left.
func (e *engine) kill() (left int, err error) {
	if syscall.Kill(-e.cmd.Process.Pid, syscall.SIGKILL) == nil {
		return 1, nil
	}
	return 0, nil
}

func (e *engine) reap() {}
