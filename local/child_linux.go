package local

import "syscall"

// childAttributes puts a child into a process group of its own, so that Ctrl-C
// reaches the supervisor alone, and has the kernel stop it should the supervisor
// be killed.
func childAttributes() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGTERM}
}
