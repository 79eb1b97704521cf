// Package supervisor runs an engine so that a full wash can restart it, and can
// overwrite the GPU's memory while it is down.
//
//	err := supervisor.Run(ctx, supervisor.Config{
//		Command: []string{"vllm", "serve", …}, EngineSocket: "/run/mrgc-engine/engine.sock",
//		Control: "/run/mrgc-engine/control.sock",
//		Clear:   []string{"mrgc", "engine", "clear-gpu"},
//	})
//
// It is all that its process is for: every process that descends from it is the
// engine's, and is gone when the engine is. On its control socket the engine's
// guard asks for a restart ([Restart]), and nothing else can be asked for there.
//
// An engine that ends by itself is not started again: Run ends with it, and whoever
// runs the supervisor (systemd, mrgc up) starts both anew.
//
// What overwrites the GPU's memory is a program of its own, because one that has used
// CUDA holds on to the GPU, and because one that hangs can be killed.
package supervisor

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"sync/atomic"
	"syscall"
	"time"
)

// DefaultStopTimeout is that of a [Config] that says nothing else.
const DefaultStopTimeout = 30 * time.Second

// Config says what to run.
type Config struct {
	Command []string // the engine and its arguments; it gets this process's environment and output
	// EngineSocket is the Unix socket that the engine makes, which is removed before
	// each start: one that was killed leaves its own behind, and vLLM does not start
	// then. Empty: the engine sees to that itself.
	EngineSocket string
	Control      string // path of the Unix socket on which restarts are asked for; a file there is replaced
	GroupSocket  bool   // lets the user's group connect to it, too
	// Clear is a program that clears all GPUs and writes what it found to its standard
	// output, as JSON of []gpu.Cleared. nil: nothing is cleared.
	Clear []string
	// StopTimeout is how long the engine may take to end when it is asked to, before it
	// is killed; 0 means [DefaultStopTimeout].
	StopTimeout time.Duration
	// ClearTimeout is how long Clear may take, before it is killed; 0 means 10 min.
	ClearTimeout time.Duration
	Logger       *slog.Logger // nil means silence
}

// supervisor is owned by the goroutine of Run, but for what says otherwise.
type supervisor struct {
	config   Config
	log      *slog.Logger
	engine   *engine
	busy     atomic.Bool  // a restart is under way
	restarts chan request // from the control socket
	over     chan struct{}
}

// Run starts the engine and supervises it until ctx ends (nil), or the engine does,
// by itself or because it cannot be restarted (an error that says why). No process
// of the engine is left when it returns, unless the error says so. SIGHUP, SIGQUIT,
// SIGUSR1 and SIGUSR2 are passed on.
func Run(ctx context.Context, config Config) error {
	if len(config.Command) == 0 || config.Control == "" {
		return errors.New("engine supervisor: it needs a command and a control socket")
	}
	config.StopTimeout = cmp.Or(config.StopTimeout, DefaultStopTimeout)
	config.ClearTimeout = cmp.Or(config.ClearTimeout, 10*time.Minute)
	config.Logger = cmp.Or(config.Logger, slog.New(slog.DiscardHandler))
	s := &supervisor{config: config, log: config.Logger, restarts: make(chan request), over: make(chan struct{})}
	if err := adoptOrphans(); err != nil {
		return fmt.Errorf("engine supervisor: %w", err)
	}
	stopServing, err := s.serve()
	if err != nil {
		return fmt.Errorf("engine supervisor: %w", err)
	}
	defer stopServing()
	defer close(s.over)
	// Before there is an engine: from then on a signal may come for it, which would else
	// end the supervisor, and what it leaves behind may end.
	signals, orphans := make(chan os.Signal, 8), make(chan os.Signal, 1)
	signal.Notify(signals, passedOn...)
	defer signal.Stop(signals)
	signal.Notify(orphans, syscall.SIGCHLD)
	defer signal.Stop(orphans)
	if err := s.start(); err != nil {
		return err
	}
	return s.supervise(ctx, signals, orphans)
}

// passedOn are signals that are the engine's to understand.
var passedOn = []os.Signal{syscall.SIGHUP, syscall.SIGQUIT, syscall.SIGUSR1, syscall.SIGUSR2}

// supervise waits for what can happen: the end, the engine's end, an order to
// restart it, a signal for it, the end of a process that it has left behind.
func (s *supervisor) supervise(ctx context.Context, signals, orphans <-chan os.Signal) error {
	for {
		select {
		case <-ctx.Done():
			_, err := s.engine.stop(s.config.StopTimeout)
			return err
		case <-s.engine.ended:
			err := s.engine.err
			s.log.Error("the engine has ended by itself", "error", err)
			return errors.Join(fmt.Errorf("the engine has ended by itself: %w", err), s.engine.finish())
		case order := <-s.restarts:
			done, err := s.restart(ctx)
			order.answer <- answer{done, err}
			if s.engine == nil {
				return err
			}
		case sig := <-signals:
			_ = s.engine.cmd.Process.Signal(sig) // one that has gone is seen above
		case <-orphans:
			s.engine.reap()
		}
	}
}

// engine is a running engine.
type engine struct {
	cmd   *exec.Cmd
	ended chan struct{} // closed when its first process has ended
	err   error         // how; set before ended is closed
}

// start starts the engine, in a process group of its own.
func (s *supervisor) start() error {
	if s.config.EngineSocket != "" {
		if err := os.Remove(s.config.EngineSocket); err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("start the engine: %w", err)
		}
	}
	e := &engine{cmd: exec.Command(s.config.Command[0], s.config.Command[1:]...), ended: make(chan struct{})}
	e.cmd.Stdout, e.cmd.Stderr = os.Stdout, os.Stderr
	e.cmd.SysProcAttr = attributes()
	started := make(chan error)
	go func() {
		// Linux sends a child its parent-death signal when the thread that started it
		// ends (prctl(2), PR_SET_PDEATHSIG).
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := e.cmd.Start()
		started <- err
		if err != nil {
			return
		}
		if e.err = e.cmd.Wait(); e.err == nil {
			e.err = errors.New("exit status 0")
		}
		close(e.ended)
	}()
	if err := <-started; err != nil {
		return fmt.Errorf("start the engine: %w", err)
	}
	s.engine = e
	s.log.Info("engine started", "pid", e.cmd.Process.Pid)
	return nil
}

// Bounds on what the kernel takes to end processes that are killed: one that was
// computing on a GPU takes a while.
const (
	killTimeout = 30 * time.Second
	killPoll    = 5 * time.Millisecond
)

// stop asks the engine to end, kills what of it has not after patience, and returns
// when no process of it is left.
func (e *engine) stop(patience time.Duration) (killed bool, err error) {
	_ = e.cmd.Process.Signal(syscall.SIGTERM) // fails if it has ended
	over := time.NewTimer(patience)
	defer over.Stop()
	select {
	case <-e.ended:
	case <-over.C:
		killed = true
	}
	return killed, e.finish()
}

// finish kills what is left of the engine, and waits until nothing is.
func (e *engine) finish() error {
	deadline := time.NewTimer(killTimeout)
	defer deadline.Stop()
	for {
		left, err := e.kill()
		if err == nil && left == 0 {
			return nil
		}
		select {
		case <-deadline.C:
			return errors.Join(fmt.Errorf("stop the engine: %d of its processes do not end though they were killed", left), err)
		case <-time.After(killPoll):
		}
	}
}
