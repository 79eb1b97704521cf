package local

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"sync"
	"syscall"
	"time"
)

// process is one child of the cluster.
type process struct {
	name string   // "router-use1": also the name of its log
	args []string // args[0] is the program
	env  []string // beside the few variables that every child gets
	rank int      // children of a higher rank are stopped first
	// after is an address on which someone should listen before it is started;
	// empty if it does not matter.
	after string
}

const (
	stopGrace      = 8 * time.Second
	firstBackoff   = 200 * time.Millisecond
	longestBackoff = 5 * time.Second
	// settled is how long a child must have run for its next death to be
	// counted as a first one.
	settled = 10 * time.Second
)

// supervisor runs children, restarts those that die, and stops them all.
type supervisor struct {
	logs   string // directory
	list   string // file that names the running children and their process ids, as JSON
	report func(format string, args ...any)
	grace  time.Duration // from SIGTERM to SIGKILL
	env    []string      // of every child

	stopped chan struct{} // closed when children are no longer restarted
	running sync.WaitGroup

	mu       sync.Mutex
	children map[string]*child // guarded by mu
}

type child struct {
	rank int
	proc *os.Process   // nil while it is not running
	done chan struct{} // closed when the supervisor is through with it
}

func newSupervisor(logs, list string, report func(string, ...any)) *supervisor {
	return &supervisor{logs: logs, list: list, report: report, grace: stopGrace, stopped: make(chan struct{}), children: map[string]*child{}}
}

// start runs a child until stop is called. It returns an error when the child
// cannot be started for the first time.
func (s *supervisor) start(p process) error {
	c := &child{rank: p.rank, done: make(chan struct{})}
	s.mu.Lock()
	s.children[p.name] = c
	s.mu.Unlock()
	first := make(chan error, 1)
	s.running.Go(func() {
		defer close(c.done)
		s.keepRunning(p, c, first)
	})
	return <-first
}

// keepRunning holds on to one OS thread: Linux sends a child its parent-death
// signal when the thread that started it ends (prctl(2), PR_SET_PDEATHSIG).
func (s *supervisor) keepRunning(p process, c *child, first chan<- error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	backoff := firstBackoff
	for {
		started := time.Now()
		cmd, log, err := s.launch(p, c)
		if first != nil {
			first <- err
			first = nil
			if err != nil {
				return
			}
		}
		if err == nil {
			err = cmd.Wait()
			s.ended(c)
			_ = log.Close()
		}
		if time.Since(started) > settled {
			backoff = firstBackoff
		}
		select {
		case <-s.stopped:
			return
		default:
		}
		s.report("%s stopped (%s), restarting; its log is %s", p.name, describe(err), s.logPath(p.name))
		select {
		case <-s.stopped:
			return
		case <-time.After(backoff):
		}
		backoff = min(2*backoff, longestBackoff)
	}
}

func describe(err error) string {
	if err == nil {
		return "exit status 0"
	}
	return err.Error()
}

func (s *supervisor) logPath(name string) string { return filepath.Join(s.logs, name+".log") }

func (s *supervisor) launch(p process, c *child) (*exec.Cmd, io.Closer, error) {
	log, err := os.OpenFile(s.logPath(p.name), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, nil, fmt.Errorf("start %s: %w", p.name, err)
	}
	cmd := exec.Command(p.args[0], p.args[1:]...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.Env = slices.Concat([]string{
		"PATH=" + os.Getenv("PATH"), "HOME=" + os.Getenv("HOME"), "TMPDIR=" + os.TempDir(),
		"GOTRACEBACK=none", // stacks show arguments (package lockdown)
	}, s.env, p.env)
	cmd.SysProcAttr = childAttributes()
	s.mu.Lock()
	defer s.mu.Unlock()
	select {
	case <-s.stopped: // stop has sent its signals: a child started now would miss them
		return nil, nil, errors.Join(errors.New("stopping"), log.Close())
	default:
	}
	if err := cmd.Start(); err != nil {
		return nil, nil, errors.Join(fmt.Errorf("start %s: %w", p.name, err), log.Close())
	}
	c.proc = cmd.Process
	s.writeList()
	return cmd, log, nil
}

func (s *supervisor) ended(c *child) {
	s.mu.Lock()
	defer s.mu.Unlock()
	c.proc = nil
	s.writeList()
}

// writeList keeps the list of process ids true, for people and for tests. The
// caller holds mu.
func (s *supervisor) writeList() {
	pids := make(map[string]int, len(s.children))
	for name, c := range s.children {
		if c.proc != nil {
			pids[name] = c.proc.Pid
		}
	}
	content, err := json.MarshalIndent(pids, "", "  ")
	if err == nil {
		err = os.WriteFile(s.list+".new", content, 0o600)
	}
	if err == nil {
		err = os.Rename(s.list+".new", s.list)
	}
	if err != nil {
		s.report("list of processes: %v", err)
	}
}

// stop ends all children, those of a higher rank first, and waits for them.
func (s *supervisor) stop() {
	s.mu.Lock()
	select {
	case <-s.stopped:
	default:
		close(s.stopped)
	}
	byRank := map[int][]*child{}
	highest := 0
	for _, c := range s.children {
		byRank[c.rank] = append(byRank[c.rank], c)
		highest = max(highest, c.rank)
	}
	s.mu.Unlock()
	for rank := highest; rank >= 0; rank-- {
		s.stopAll(byRank[rank])
	}
	s.running.Wait()
}

func (s *supervisor) stopAll(children []*child) {
	ctx, cancel := context.WithTimeout(context.Background(), s.grace)
	defer cancel()
	s.signal(children, func(p *os.Process) error { return p.Signal(syscall.SIGTERM) })
	for _, c := range children {
		select {
		case <-c.done:
		case <-ctx.Done():
			s.signal([]*child{c}, killGroup)
			<-c.done
		}
	}
}

// killGroup kills a child and what it started itself, which would else outlive
// it: a child leads a process group of its own.
func killGroup(p *os.Process) error { return syscall.Kill(-p.Pid, syscall.SIGKILL) }

func (s *supervisor) signal(children []*child, send func(*os.Process) error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, c := range children {
		if c.proc != nil {
			_ = send(c.proc) // one that has gone is what was asked for
		}
	}
}
