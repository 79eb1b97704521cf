package launch

import "syscall"

// attributes puts a child into a process group of its own, so that Ctrl-C
// reaches the parent alone, and has the kernel stop it should the parent
// be killed.
func attributes() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGTERM}
}
