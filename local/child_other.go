//go:build !linux

package local

import "syscall"

// childAttributes puts a child into a process group of its own, so that Ctrl-C
// reaches the supervisor alone.
func childAttributes() *syscall.SysProcAttr { return &syscall.SysProcAttr{Setpgid: true} }
