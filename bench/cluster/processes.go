package cluster

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// Llama is the name of llama.cpp among the programs; all others are ours, or
// Envoy.
const Llama = "llama.cpp"

// ProcessorTime is the processor time, in user and kernel mode, that the
// cluster's processes have used since they started, by program. Linux counts it
// in steps of 10 ms.
func (c *Cluster) ProcessorTime() (map[string]time.Duration, error) {
	return eachProcess(c, processorTime)
}

// MemoryMiB is the proportional set size of the cluster's processes, by program:
// a page that several processes share counts once. Reading it takes root.
func (c *Cluster) MemoryMiB() (map[string]float64, error) {
	return eachProcess(c, proportionalMiB)
}

// Signal sends a signal to the cluster's processes of a program.
func (c *Cluster) Signal(program string, signal syscall.Signal) error {
	processes, err := c.processes()
	if err != nil {
		return err
	}
	for pid, name := range processes {
		if name == program {
			err = errors.Join(err, syscall.Kill(pid, signal))
		}
	}
	return err
}

// eachProcess adds up what read says of each process, by program.
func eachProcess[T time.Duration | float64](c *Cluster, read func(pid int) (T, error)) (map[string]T, error) {
	processes, err := c.processes()
	if err != nil {
		return nil, err
	}
	sums := map[string]T{}
	for pid, program := range processes {
		value, err := read(pid)
		if err != nil {
			return nil, fmt.Errorf("%s (%d): %w", program, pid, err)
		}
		sums[program] += value
	}
	return sums, nil
}

// processes are mrgc up, its children, and the engine's Python below them: the
// program of each process id.
func (c *Cluster) processes() (map[int]string, error) {
	content, err := os.ReadFile(filepath.Join(c.stateDir, "processes.json"))
	if err != nil {
		return nil, err
	}
	var children map[string]int
	if err := json.Unmarshal(content, &children); err != nil {
		return nil, err
	}
	all := map[int]string{c.command.Process.Pid: "mrgc up"}
	for name, pid := range children {
		program, _, _ := strings.Cut(name, "-")
		all[pid] = program
	}
	tasks, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return nil, err
	}
	for _, path := range tasks {
		pid, err := strconv.Atoi(filepath.Base(path))
		if err != nil {
			continue
		}
		fields, err := statFields(pid)
		if err != nil {
			continue // some other process, which has gone
		}
		if parent, _ := strconv.Atoi(fields[1]); all[parent] == "engine" {
			all[pid] = Llama
		}
	}
	return all, nil
}

// Below are the processes that a process has started and that run.
func Below(pid int) (children []int, err error) {
	tasks, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return nil, err
	}
	for _, path := range tasks {
		child, err := strconv.Atoi(filepath.Base(path))
		if err != nil {
			continue
		}
		fields, err := statFields(child)
		if err != nil {
			continue // it has gone
		}
		if parent, _ := strconv.Atoi(fields[1]); parent == pid && fields[0] != "Z" {
			children = append(children, child)
		}
	}
	return children, nil
}

// statFields gives the fields of /proc/PID/stat from the third on (proc(5)).
func statFields(pid int) ([]string, error) {
	content, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return nil, err
	}
	text := string(content)
	fields := strings.Fields(text[strings.LastIndexByte(text, ')')+1:])
	if len(fields) < 13 {
		return nil, fmt.Errorf("/proc/%d/stat has %d fields", pid, len(fields))
	}
	return fields, nil
}

// clockTick is Linux's USER_HZ, which is 100 on every architecture that Go runs on.
const clockTick = time.Second / 100

func processorTime(pid int) (total time.Duration, err error) {
	fields, err := statFields(pid)
	if err != nil {
		return 0, err
	}
	for _, field := range fields[11:13] { // utime, stime
		ticks, err := strconv.ParseInt(field, 10, 64)
		if err != nil {
			return 0, err
		}
		total += time.Duration(ticks) * clockTick
	}
	return total, nil
}

func proportionalMiB(pid int) (float64, error) {
	file, err := os.Open(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
	if errors.Is(err, syscall.EACCES) {
		return 0, errors.New("memory of untraceable processes can be read by root alone: run as root")
	}
	if err != nil {
		return 0, err
	}
	defer file.Close()
	for lines := bufio.NewScanner(file); lines.Scan(); {
		if kib, ok := strings.CutPrefix(lines.Text(), "Pss:"); ok {
			n, err := strconv.ParseFloat(strings.Fields(kib)[0], 64)
			return n / 1024, err
		}
	}
	return 0, errors.New("smaps_rollup has no Pss")
}
