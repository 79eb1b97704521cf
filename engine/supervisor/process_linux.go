package supervisor

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"
)

// attributes puts the engine into a process group of its own, so that Ctrl-C
// reaches the supervisor alone, and has the kernel stop it should the supervisor be
// killed.
func attributes() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGTERM}
}

// adoptOrphans has processes whose own parent has ended become this one's children,
// also those that have left the engine's process group: none can get away.
func adoptOrphans() error {
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("adopt orphans: %w", err)
	}
	return nil
}

// kill kills every process of the engine, and says how many are left.
func (e *engine) kill() (left int, err error) {
	e.reap()
	pids, err := descendants(os.Getpid())
	if err != nil {
		return 0, err
	}
	for _, pid := range pids {
		if killErr := unix.Kill(pid, unix.SIGKILL); !errors.Is(killErr, unix.ESRCH) {
			err = errors.Join(err, killErr)
		}
	}
	return len(pids), err
}

// reap takes note of orphans that have ended. The engine's first process is not for
// it: os/exec waits for that.
func (e *engine) reap() {
	children, _ := parents() // what cannot be read now is read by kill
	self := os.Getpid()
	for pid, parent := range children {
		if parent == self && pid != e.cmd.Process.Pid {
			_, _ = unix.Wait4(pid, nil, unix.WNOHANG, nil) // gone, or not yet
		}
	}
}

// descendants are the processes that a process has started, and those that these
// have, and so on.
func descendants(of int) ([]int, error) {
	parent, err := parents()
	if err != nil {
		return nil, err
	}
	var all []int
	for pid := range parent {
		for up, known := parent[pid]; known; up, known = parent[up] {
			if up == of {
				all = append(all, pid)
				break
			}
		}
	}
	return all, nil
}

// parents are all processes that can be seen, with the parent of each.
func parents() (map[int]int, error) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, fmt.Errorf("processes: %w", err)
	}
	all := map[int]int{}
	for _, entry := range entries {
		pid, err := strconv.Atoi(entry.Name())
		if err != nil {
			continue
		}
		stat, err := os.ReadFile("/proc/" + entry.Name() + "/stat")
		if err != nil {
			continue // it has gone
		}
		// "pid (name) state ppid …", where the name may hold anything.
		fields := bytes.Fields(stat[bytes.LastIndexByte(stat, ')')+1:])
		if len(fields) < 2 {
			return nil, fmt.Errorf("processes: /proc/%d/stat is not as proc(5) says", pid)
		}
		if all[pid], err = strconv.Atoi(string(fields[1])); err != nil {
			return nil, fmt.Errorf("processes: /proc/%d/stat is not as proc(5) says", pid)
		}
	}
	return all, nil
}
