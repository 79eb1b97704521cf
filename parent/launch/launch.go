// Package launch starts enclaves as processes, for a parent that replaces them.
//
//	enclaves, err := launch.New(launch.Config{
//		Command: []string{"mrgc-enclave", "-listen", "unix:/run/x-{place}.vsock:5000", …},
//		Address: "unix:/run/x-{place}.vsock:5000",
//	})
//	first, err := enclaves.Start(0)
//
// The command runs for as long as its enclave does and ends it on SIGTERM: the
// enclave's own program where enclaves are processes, or a virtual machine's that
// stays in the foreground. It gets the environment that is named, and nothing else.
package launch

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"

	"github.com/mrgc/mrgc/internal/vsock"
	"github.com/mrgc/mrgc/parent"
)

// Places are how many enclaves there can be at once: one that serves, and one that
// takes its place.
const Places = 2

// placeholder stands for an enclave's place, 0 or 1, in what is configured.
const placeholder = "{place}"

// Config says how enclaves are started.
type Config struct {
	// Command has "{place}" wherever two enclaves beside each other must differ.
	Command []string
	// Address is where the enclave takes requests, in a form of package vsock, with
	// "{place}" in it.
	Address string
	Env     []string  // all of the environment
	Output  io.Writer // what they say; default: nowhere
}

// Enclaves starts enclaves. It is a [parent.Enclaves], and safe for concurrent use.
type Enclaves struct {
	config Config

	mu    sync.Mutex
	taken [Places]bool // guarded by mu
}

// New checks the configuration.
func New(config Config) (*Enclaves, error) {
	if len(config.Command) == 0 {
		return nil, errors.New("launch enclaves: no command")
	}
	if !strings.Contains(config.Address, placeholder) || !strings.Contains(strings.Join(config.Command, " "), placeholder) {
		return nil, fmt.Errorf("launch enclaves: without %s in command and address two enclaves would be in each other's way", placeholder)
	}
	if _, err := vsock.ParseAddress(at(config.Address, 0)); err != nil {
		return nil, fmt.Errorf("launch enclaves: %w", err)
	}
	config.Output = cmp.Or(config.Output, io.Discard)
	return &Enclaves{config: config}, nil
}

func at(text string, place int) string {
	return strings.ReplaceAll(text, placeholder, strconv.Itoa(place))
}

// Start is [parent.Enclaves].
func (e *Enclaves) Start(place int) (parent.StartedEnclave, error) {
	if place < 0 || place >= Places {
		return nil, fmt.Errorf("launch enclave: place %d: want 0 to %d", place, Places-1)
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.taken[place] {
		return nil, fmt.Errorf("launch enclave: there is one in place %d", place)
	}
	args := make([]string, len(e.config.Command))
	for i, arg := range e.config.Command {
		args[i] = at(arg, place)
	}
	p := &process{cmd: exec.Command(args[0], args[1:]...), address: at(e.config.Address, place), ended: make(chan struct{})} //nolint:gosec // the operator's command is what this is for
	p.cmd.Env = e.config.Env
	p.cmd.Stdout, p.cmd.Stderr = e.config.Output, e.config.Output
	p.cmd.SysProcAttr = attributes()
	started := make(chan error)
	go func() {
		// Linux sends a child its parent-death signal when the thread that started it
		// ends (prctl(2), PR_SET_PDEATHSIG).
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := p.cmd.Start()
		started <- err
		if err != nil {
			return
		}
		p.err = p.cmd.Wait()
		e.mu.Lock()
		e.taken[place] = false
		e.mu.Unlock()
		close(p.ended)
	}()
	if err := <-started; err != nil {
		return nil, fmt.Errorf("launch enclave: %w", err)
	}
	e.taken[place] = true
	return p, nil
}

// process is an enclave that was started.
type process struct {
	cmd     *exec.Cmd
	address string
	ended   chan struct{}
	err     error // how it ended; readable once ended is closed
}

// Dial is [parent.StartedEnclave].
func (p *process) Dial(ctx context.Context) (net.Conn, error) { return vsock.Dial(ctx, p.address) }

// Ended is [parent.StartedEnclave].
func (p *process) Ended() <-chan struct{} { return p.ended }

// Stop is [parent.StartedEnclave]. A command that says that it has failed may have left
// the enclave behind, as nitro-cli does that cannot terminate it, and so may one that had
// to be killed. The enclave of one that has ended before is no longer there to be stopped.
func (p *process) Stop(ctx context.Context) error {
	select {
	case <-p.ended:
		return nil
	default:
	}
	_ = p.cmd.Process.Signal(syscall.SIGTERM) // fails if it has gone
	select {
	case <-p.ended:
		if p.err != nil {
			return fmt.Errorf("the enclave's command, asked to end, says %w: the enclave may still be there", p.err)
		}
		return nil
	case <-ctx.Done():
	}
	if err := syscall.Kill(-p.cmd.Process.Pid, syscall.SIGKILL); err != nil && !errors.Is(err, syscall.ESRCH) {
		return fmt.Errorf("kill the enclave: %w", err)
	}
	<-p.ended
	return errors.New("the enclave's command did not end and was killed: the enclave may still be there")
}
