//go:build !linux

package launch

import "syscall"

// attributes puts a child into a process group of its own, so that Ctrl-C
// reaches the supervisor alone.
func attributes() *syscall.SysProcAttr { return &syscall.SysProcAttr{Setpgid: true} }
