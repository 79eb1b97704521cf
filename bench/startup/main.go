// Startup measures what it costs to have a cluster on one machine: how long
// `mrgc up` takes to its first answer with parts fetched and programs built,
// and what the cluster uses when nobody asks anything.
package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/mrgc/mrgc/bench/result"
)

func main() {
	starts := flag.Int("starts", 3, "how often the start is measured; the median is reported")
	idle := flag.Duration("idle", 30*time.Second, "how long the idle cluster is watched")
	flag.Parse()
	if err := run(*starts, *idle); err != nil {
		fmt.Fprintln(os.Stderr, "startup:", err)
		os.Exit(1)
	}
}

func run(starts int, idle time.Duration) error {
	var seconds []float64
	var idleUse usage
	for i := range starts {
		up, err := start()
		if err != nil {
			return err
		}
		seconds = append(seconds, up.seconds)
		if i == starts-1 {
			idleUse, err = up.watch(idle)
		}
		if err := errors.Join(err, up.stop()); err != nil {
			return err
		}
		fmt.Printf("start %d of %d: %.1f s to the first answer\n", i+1, starts, up.seconds)
	}
	slices.Sort(seconds)
	r := result.Result{
		Name: "startup", Title: "Start and idle cost: three regions, two instances each, a real model",
		Command: "make bench-startup",
		Figures: []result.Figure{
			{Name: "start to the first answer, median of " + strconv.Itoa(starts), Value: seconds[len(seconds)/2], Unit: "s", Goal: "< 30"},
			{Name: "start to the first answer, slowest", Value: seconds[len(seconds)-1], Unit: "s", Goal: "< 30"},
			{Name: "idle processor time", Value: 100 * idleUse.cores, Unit: "% of a core", Goal: "≤ 10"},
			{Name: "memory of all processes (PSS)", Value: idleUse.totalMiB(), Unit: "MiB"},
		},
	}
	for _, program := range idleUse.programs() {
		r.Figures = append(r.Figures, result.Figure{Name: "– " + program, Value: idleUse.memoryMiB[program], Unit: "MiB"})
	}
	for _, f := range r.Figures {
		fmt.Printf("%-45s %8.1f %s\n", f.Name, f.Value, f.Unit)
	}
	return r.Write()
}

// cluster is a running `mrgc up`.
type cluster struct {
	command  *exec.Cmd
	stateDir string
	seconds  float64 // from start to the first answer
}

func start() (*cluster, error) {
	dir, err := os.MkdirTemp("", "mrgc-bench")
	if err != nil {
		return nil, err
	}
	c := &cluster{command: exec.Command("bin/mrgc", "up", "--port", "0", "--state-dir", dir), stateDir: dir}
	c.command.Stderr = os.Stderr
	interrupted := make(chan os.Signal, 1) // Ctrl-C reaches mrgc up, too, and stops it
	signal.Notify(interrupted, os.Interrupt)
	defer signal.Stop(interrupted)
	started := time.Now()
	if err := c.command.Start(); err != nil {
		return nil, err
	}
	for {
		if _, err := os.Stat(filepath.Join(dir, "env")); err == nil {
			c.seconds = time.Since(started).Seconds()
			return c, nil
		}
		select {
		case <-interrupted:
			return nil, errors.Join(errors.New("interrupted"), c.stop())
		case <-time.After(20 * time.Millisecond):
		}
		if time.Since(started) > 3*time.Minute {
			return nil, errors.Join(errors.New("the cluster did not come up"), c.stop())
		}
	}
}

func (c *cluster) stop() error {
	err := c.command.Process.Signal(os.Interrupt)
	return errors.Join(err, c.command.Wait(), os.RemoveAll(c.stateDir))
}

// usage is what an idle cluster uses.
type usage struct {
	cores     float64
	memoryMiB map[string]float64 // proportional set size by program
}

func (u usage) totalMiB() (total float64) {
	for _, m := range u.memoryMiB {
		total += m
	}
	return total
}

func (u usage) programs() []string {
	var names []string
	for name := range u.memoryMiB {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

// watch adds up the processor time of all processes over a while.
func (c *cluster) watch(period time.Duration) (usage, error) {
	processes, err := c.processes()
	if err != nil {
		return usage{}, err
	}
	before, err := processorTime(processes)
	if err != nil {
		return usage{}, err
	}
	began := time.Now()
	time.Sleep(period)
	after, err := processorTime(processes)
	if err != nil {
		return usage{}, err
	}
	u := usage{cores: (after - before).Seconds() / time.Since(began).Seconds(), memoryMiB: map[string]float64{}}
	for pid, name := range processes {
		mib, err := proportionalMiB(pid)
		if err != nil {
			return usage{}, err
		}
		u.memoryMiB[name] += mib
	}
	return u, nil
}

// processes are mrgc up, its children, and the engine's Python below them.
func (c *cluster) processes() (map[int]string, error) {
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
	tasks, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		return nil, err
	}
	for _, path := range tasks {
		fields, pid := statFields(path)
		if len(fields) < 2 {
			continue
		}
		if parent, _ := strconv.Atoi(fields[1]); all[parent] == "engine" {
			all[pid] = "llama.cpp"
		}
	}
	return all, nil
}

// statFields gives the fields of /proc/PID/stat from the third on (proc(5)).
func statFields(path string) (fields []string, pid int) {
	content, err := os.ReadFile(path)
	if err != nil {
		return nil, 0
	}
	text := string(content)
	pid, _ = strconv.Atoi(strings.Fields(text)[0])
	return strings.Fields(text[strings.LastIndexByte(text, ')')+1:]), pid
}

// clockTick is Linux's USER_HZ, which is 100 on every architecture that Go runs on.
const clockTick = time.Second / 100

func processorTime(processes map[int]string) (total time.Duration, err error) {
	for pid, name := range processes {
		fields, _ := statFields(fmt.Sprintf("/proc/%d/stat", pid))
		if len(fields) < 13 {
			return 0, fmt.Errorf("%s (%d) has gone", name, pid)
		}
		for _, field := range fields[11:13] { // utime, stime
			ticks, err := strconv.ParseInt(field, 10, 64)
			if err != nil {
				return 0, err
			}
			total += time.Duration(ticks) * clockTick
		}
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
	return 0, fmt.Errorf("no Pss of process %d", pid)
}
