package rig

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// ProcessorTime is what the processes and their threads have used.
func (r *Running) ProcessorTime() time.Duration {
	var ticks int64
	for _, p := range r.Processes {
		ticks += ticksOf(filepath.Join("/proc", strconv.Itoa(p.Process.Pid), "stat"))
	}
	return time.Duration(ticks) * tick
}

// tick is the unit in which Linux counts processor time (USER_HZ).
const tick = 10 * time.Millisecond

// ticksOf reads utime and stime (proc_pid_stat(5), fields 14 and 15).
func ticksOf(path string) int64 {
	content, err := os.ReadFile(path)
	if err != nil {
		return 0
	}
	_, after, _ := strings.Cut(string(content), ") ")
	fields := strings.Fields(after)
	if len(fields) < 13 {
		return 0
	}
	user, _ := strconv.ParseInt(fields[11], 10, 64)
	kernel, _ := strconv.ParseInt(fields[12], 10, 64)
	return user + kernel
}

// MachineTime reads the first line of /proc/stat: ticks spent on anything, and
// ticks in all.
func MachineTime() (busy, total int64, err error) {
	content, err := os.ReadFile("/proc/stat")
	if err != nil {
		return 0, 0, err
	}
	line, _, _ := strings.Cut(string(content), "\n")
	for i, field := range strings.Fields(line)[1:] {
		if i >= 8 {
			break // guests are counted in user time already
		}
		n, err := strconv.ParseInt(field, 10, 64)
		if err != nil {
			return 0, 0, fmt.Errorf("/proc/stat: %w", err)
		}
		total += n
		if i != 3 && i != 4 { // idle, iowait
			busy += n
		}
	}
	return busy, total, nil
}

// ThreadsTime is the processor time of a process's threads, to the nanosecond
// (/proc/PID/schedstat); of threads that have ended it knows nothing, and Go's
// stay.
func ThreadsTime(pid int) (total time.Duration, err error) {
	paths, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/schedstat", pid))
	if err == nil && len(paths) == 0 {
		err = fmt.Errorf("process %d has no schedstat: has it ended, or is the kernel without CONFIG_SCHED_INFO?", pid)
	}
	if err != nil {
		return 0, err
	}
	for _, path := range paths {
		content, err := os.ReadFile(path)
		if err != nil {
			return 0, err
		}
		var ran int64
		if _, err := fmt.Sscan(string(content), &ran); err != nil {
			return 0, fmt.Errorf("%s: %w", path, err)
		}
		total += time.Duration(ran)
	}
	return total, nil
}
