package supervisor

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/mrgc/mrgc/internal/gpu"
)

// Restarted is what a restart has done.
type Restarted struct {
	Stopped time.Duration `json:"stopped_ns"` // until no process of the engine was left
	Killed  bool          `json:"killed"`     // because it had not ended when it was asked to
	Cleared time.Duration `json:"cleared_ns"` // how long all GPUs took
	Started time.Duration `json:"started_ns"` // until there was an engine's process again; it may not answer yet
	// GPUs are what was overwritten while no engine ran; none: nothing was.
	GPUs []gpu.Cleared `json:"gpus"`
}

// restart stops the engine, has the GPUs cleared, and starts it again. An engine that
// could be stopped is started again whatever fails. s.engine is nil when there is
// none afterwards.
func (s *supervisor) restart(ctx context.Context) (done Restarted, err error) {
	began := time.Now()
	old := s.engine
	s.engine = nil
	if done.Killed, err = old.stop(s.config.StopTimeout); err != nil {
		return done, err
	}
	done.Stopped = time.Since(began)
	s.log.Info("engine stopped to be restarted", "took", done.Stopped, "killed", done.Killed)
	if s.config.Clear != nil {
		began = time.Now()
		done.GPUs, err = s.clear(ctx)
		done.Cleared = time.Since(began)
	}
	if ctx.Err() != nil {
		return done, errors.New("the engine's supervisor ends")
	}
	began = time.Now()
	err = errors.Join(err, s.start())
	done.Started = time.Since(began)
	if err != nil {
		s.log.Error("restart failed", "error", err, "runs", s.engine != nil)
	}
	return done, err
}

// maxClearOutput is more than what was found in any number of GPUs takes.
const maxClearOutput = 64 << 10

// clear runs the program that clears the GPUs.
func (s *supervisor) clear(ctx context.Context) ([]gpu.Cleared, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, s.config.ClearTimeout, fmt.Errorf("not done within %s", s.config.ClearTimeout))
	defer cancel()
	cmd := exec.CommandContext(ctx, s.config.Clear[0], s.config.Clear[1:]...)
	// All GPUs of the machine, whichever of them the engine is told to use.
	cmd.Env = slices.DeleteFunc(os.Environ(), func(entry string) bool { return strings.HasPrefix(entry, "CUDA_VISIBLE_DEVICES=") })
	cmd.SysProcAttr = attributes()
	runtime.LockOSThread() // as in start
	defer runtime.UnlockOSThread()
	cmd.WaitDelay = time.Second
	var output, complaint limited
	cmd.Stdout, cmd.Stderr = &output, &complaint
	if err := cmd.Run(); err != nil {
		if cause := context.Cause(ctx); cause != nil {
			err = cause
		}
		return nil, fmt.Errorf("GPU memory was not cleared: %w: %s", err, strings.TrimSpace(complaint.String()))
	}
	var all []gpu.Cleared
	if err := json.Unmarshal(output.Bytes(), &all); err != nil {
		return nil, fmt.Errorf("GPU memory was not cleared: what the program says is not understood: %w", err)
	}
	if len(all) == 0 {
		return nil, errors.New("GPU memory was not cleared: the program names no GPU")
	}
	return all, nil
}

// limited is the beginning of what a program says.
type limited struct{ bytes.Buffer }

func (l *limited) Write(p []byte) (int, error) {
	_, _ = l.Buffer.Write(p[:min(len(p), maxClearOutput-l.Len())])
	return len(p), nil
}
