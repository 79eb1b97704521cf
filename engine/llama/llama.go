// Package llama runs a model with llama.cpp.
//
// llama.cpp's HTTP server comes as a Python module (xllamacpp, which package
// parts fetches). [Run] starts a Python process with a short script that is
// built into the binary, waits until the model is loaded and the server
// answers on its Unix socket, and ends it with its context:
//
//	err := llama.Run(ctx, llama.Config{
//		Socket: "/run/mrgc/engine.sock", Model: "smollm2-135m", Slots: 4,
//		ModelPath: paths.Model, PythonPath: paths.LlamaPythonPath,
//	}, func() { log.Info("engine ready") })
//
// The process outlives nobody: it ends when Run does, when its parent process
// is killed (after the model is loaded, if that happens meanwhile), and at
// once on SIGTERM. It gets none of the environment but what Python and GPU
// drivers need, dumps no core, and keeps no prompt once it is answered, except
// in the memory of the slot that worked on it.
//
// llama.cpp's log quotes requests that it cannot parse, at every log level. It
// is read until the model is loaded, to explain a start that fails, and goes to
// /dev/null before the first request can come in. There is no switch for that.
package llama

import (
	"context"
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"
)

//go:embed server.py
var script string

// Config says what to run.
type Config struct {
	Socket string // Unix socket to serve on, at most 94 bytes; a file there is replaced
	// GroupSocket lets the user's group connect to it, too.
	GroupSocket bool

	Model      string // name that the model is served under
	ModelPath  string // the model, a GGUF file
	PythonPath string // folder that has the xllamacpp module
	Python     string // interpreter, 3.10 or newer; empty means python3 on PATH
	Slots      int    // requests that run at once, at least 1
	// ContextTokens is what one request can have of prompt and answer; 0 means 2048.
	ContextTokens int
	// Threads compute; 0 means one for each core but one, 1 at least and 8 at
	// most. They wait for each other many times for each token: where other
	// programs keep the cores busy, a thread too many makes it ten times slower.
	Threads int
	// StartTimeout bounds the loading of the model; 0 means 2 minutes.
	StartTimeout time.Duration
	// Logger is told of start and end; nil means silence.
	Logger *slog.Logger
}

// startSuffix is added to the socket's path until the model is loaded. It ends
// in .sock, by which llama.cpp tells a socket from a host name.
const startSuffix = ".new.sock"

// maxSocketPath leaves room for startSuffix in macOS' 104 bytes with their
// final zero (Linux has 108).
const maxSocketPath = 103 - len(startSuffix)

func (cfg *Config) check() error {
	if cfg.Model == "" || cfg.Slots < 1 || cfg.Socket == "" {
		return errors.New("llama.cpp: it needs a socket, a model's name and at least one slot")
	}
	if len(cfg.Socket) > maxSocketPath {
		return fmt.Errorf("llama.cpp: the socket's path has %d bytes, %d is the most: use a folder with a shorter path", len(cfg.Socket), maxSocketPath)
	}
	if info, err := os.Stat(cfg.ModelPath); err != nil || !info.Mode().IsRegular() {
		return fmt.Errorf("llama.cpp: there is no model file %s", cfg.ModelPath)
	}
	if _, err := os.Stat(filepath.Join(cfg.PythonPath, "xllamacpp")); err != nil {
		return fmt.Errorf("llama.cpp: the module xllamacpp is not in %s", cfg.PythonPath)
	}
	if cfg.Python == "" {
		cfg.Python = "python3"
	}
	if cfg.ContextTokens == 0 {
		cfg.ContextTokens = 2048
	}
	if cfg.Threads == 0 {
		cfg.Threads = min(max(runtime.NumCPU()-1, 1), 8)
	}
	if cfg.StartTimeout == 0 {
		cfg.StartTimeout = 2 * time.Minute
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	return nil
}

// Run starts llama.cpp, calls ready once it answers, and returns when ctx ends
// (nil) or when it has ended by itself (an error that says how). The process
// is gone and the socket removed when Run returns.
func Run(ctx context.Context, cfg Config, ready func()) error {
	if err := cfg.check(); err != nil {
		return err
	}
	began := time.Now()
	removeSockets(cfg.Socket) // llama.cpp does not bind to a file that is there
	defer removeSockets(cfg.Socket)
	p, err := start(cfg)
	if err != nil {
		return err
	}
	defer p.stop()

	if err := p.awaitHealth(ctx, cfg); err != nil {
		if ctx.Err() != nil {
			return nil
		}
		return err
	}
	cfg.Logger.Info("llama.cpp is ready", "model", cfg.Model, "pid", p.cmd.Process.Pid, "took", time.Since(began))
	ready()
	select {
	case <-ctx.Done():
		return nil
	case <-p.ended:
		return fmt.Errorf("llama.cpp ended: %w", p.err)
	}
}

func removeSockets(path string) {
	_ = os.Remove(path) // what cannot be removed fails the start, with a message of its own
	_ = os.Remove(path + startSuffix)
}

// process is a running server. err is set before ended is closed.
type process struct {
	cmd    *exec.Cmd
	hold   *os.File // open as long as the process is to live
	output *tail
	ended  chan struct{}
	err    error
}

// start runs the script. It gets nothing that is secret.
func start(cfg Config) (*process, error) {
	args, err := json.Marshal(map[string]any{
		"socket": cfg.Socket, "socket_at_first": cfg.Socket + startSuffix, "group_socket": cfg.GroupSocket, "model": cfg.Model, "model_path": cfg.ModelPath, "python_path": cfg.PythonPath,
		"slots": cfg.Slots, "context_tokens": cfg.ContextTokens, "threads": cfg.Threads,
	})
	if err != nil {
		return nil, fmt.Errorf("llama.cpp: %w", err)
	}
	stdin, hold, err := os.Pipe()
	if err != nil {
		return nil, fmt.Errorf("llama.cpp: %w", err)
	}
	defer func() { _ = stdin.Close() }()
	// -I: no PYTHON variables, no packages of the user or of this folder. -B:
	// no files beside the module, which stays as it was verified.
	p := &process{cmd: exec.Command(cfg.Python, "-I", "-B", "-c", script, string(args)), hold: hold, output: &tail{}, ended: make(chan struct{})}
	p.cmd.Env = environment(os.Environ())
	p.cmd.Stdin, p.cmd.Stdout, p.cmd.Stderr = stdin, p.output, p.output
	p.cmd.WaitDelay = time.Second
	if err := p.cmd.Start(); err != nil {
		_ = hold.Close()
		return nil, fmt.Errorf("llama.cpp: start %s: %w: is Python 3.10 or newer installed?", cfg.Python, err)
	}
	go func() {
		if p.err = p.cmd.Wait(); p.err == nil {
			p.err = errors.New("without an error")
		}
		close(p.ended)
	}()
	return p, nil
}

// environment keeps what Python and GPU drivers need.
func environment(all []string) []string {
	var kept []string
	for _, entry := range all {
		name, _, _ := strings.Cut(entry, "=")
		switch name {
		case "PATH", "HOME", "TMPDIR", "LANG", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH":
			kept = append(kept, entry)
		default:
			if strings.HasPrefix(name, "CUDA_") || strings.HasPrefix(name, "NVIDIA_") || strings.HasPrefix(name, "PYENV_") {
				kept = append(kept, entry)
			}
		}
	}
	return kept
}

// stop ends the process, if need be by force, and waits for it.
func (p *process) stop() {
	_ = p.cmd.Process.Signal(syscall.SIGTERM) // fails if it has ended
	select {
	case <-p.ended:
	case <-time.After(2 * time.Second):
		_ = p.cmd.Process.Kill()
		<-p.ended
	}
	_ = p.hold.Close()
}

// healthPoll is how often a server that starts is asked.
const healthPoll = 20 * time.Millisecond

// awaitHealth waits for the first 200 of /health.
func (p *process) awaitHealth(ctx context.Context, cfg Config) error {
	ctx, cancel := context.WithTimeout(ctx, cfg.StartTimeout)
	defer cancel()
	transport := &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", cfg.Socket)
		},
	}
	tick := time.NewTicker(healthPoll)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return fmt.Errorf("llama.cpp did not answer within %v: %s", cfg.StartTimeout, p.output)
		case <-p.ended:
			return fmt.Errorf("llama.cpp ended while it started: %w: %s", p.err, p.output)
		case <-tick.C:
		}
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://engine/health", nil)
		if err != nil {
			return fmt.Errorf("llama.cpp: %w", err)
		}
		resp, err := transport.RoundTrip(req)
		if err != nil {
			continue
		}
		_ = resp.Body.Close()
		if resp.StatusCode == http.StatusOK {
			return nil
		}
	}
}
