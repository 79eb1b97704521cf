// Package nitrocli stays while a Nitro enclave runs, which nitro-cli does not: it
// starts the enclave by nitro-cli, watches it, and terminates it in the end.
//
//	err := nitrocli.Run(ctx, nitrocli.Config{EIF: "enclave.eif", CID: 16, CPUs: 2, MemoryMiB: 1024})
//
// A parent that starts its enclaves itself has it do so by `mrgc enclave run`
// (package launch). Commands and what they print are those of the Nitro Enclaves
// user guide, "Nitro CLI commands" (nitro-cli 1.2 and later).
package nitrocli

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os/exec"
	"slices"
	"strings"
	"time"
)

const (
	defaultPoll = 2 * time.Second
	// callTimeout is how long nitro-cli may take. To start an enclave it waits until
	// that has booted, for which it has a limit of its own by the image's size.
	callTimeout = 5 * time.Minute
	// silence is for how many polls in a row nitro-cli may fail before the enclave
	// counts as gone: it is asked of a process that may be busy.
	silence = 5
	minCID  = 4 // the smaller ones are the hypervisor's and the instance's (nitro-cli's own check)
)

// Config says which enclave is run.
type Config struct {
	Program   string        // default nitro-cli, of the path
	EIF       string        // file of the image
	CID       uint32        // its vsock address, from 4 on, which no other enclave of the instance has
	CPUs      int           // from the allocator's pool, in whole cores: an even number where cores have two threads
	MemoryMiB int           // from the allocator's pool, at least four times the image's size
	Poll      time.Duration // how often it is looked whether it still runs; default 2 s
	Log       *slog.Logger  // default: [slog.Default]
}

func (c *Config) check() error {
	switch {
	case c.EIF == "":
		return errors.New("nitro enclave: no image")
	case c.CID < minCID:
		return fmt.Errorf("nitro enclave: CID %d: want %d or more", c.CID, minCID)
	case c.CPUs < 1:
		return fmt.Errorf("nitro enclave: %d CPUs: want at least 1", c.CPUs)
	case c.MemoryMiB < 64:
		return fmt.Errorf("nitro enclave: %d MiB of memory: want at least 64", c.MemoryMiB)
	}
	c.Program = cmp.Or(c.Program, "nitro-cli")
	c.Poll = cmp.Or(c.Poll, defaultPoll)
	c.Log = cmp.Or(c.Log, slog.Default())
	return nil
}

// name tells an enclave from others of the instance: it outlives who started it.
func (c *Config) name() string { return fmt.Sprintf("mrgc-%d", c.CID) }

// enclave is one as run-enclave and describe-enclaves print it.
type enclave struct {
	Name  string `json:"EnclaveName"`
	ID    string `json:"EnclaveID"`
	CID   uint32 `json:"EnclaveCID"`
	State string `json:"State"`
}

// Run starts an enclave and returns nil when ctx has ended and the enclave is
// terminated, or an error when it does not start, ends by itself, or cannot be
// terminated. One of the same CID that an earlier Run has left behind, since that was
// killed, is terminated first.
func Run(ctx context.Context, c Config) error {
	if err := c.check(); err != nil {
		return err
	}
	if err := c.clear(); err != nil {
		return err
	}
	if ctx.Err() != nil {
		return nil
	}
	var started enclave
	if err := c.call(&started, "run-enclave", "--enclave-name", c.name(), "--eif-path", c.EIF, "--enclave-cid", fmt.Sprint(c.CID),
		"--cpu-count", fmt.Sprint(c.CPUs), "--memory", fmt.Sprint(c.MemoryMiB)); err != nil {
		return err
	}
	if started.ID == "" || started.CID != c.CID {
		return fmt.Errorf("nitro enclave: %s started %q with CID %d, not %d", c.Program, started.ID, started.CID, c.CID)
	}
	c.Log.Info("enclave runs", "enclave", started.ID, "cid", c.CID)
	if err := c.watch(ctx, started.ID); err != nil {
		return err
	}
	if err := c.terminate(started.ID); err != nil {
		return err
	}
	c.Log.Info("enclave terminated", "enclave", started.ID, "cid", c.CID)
	return nil
}

// clear terminates what an earlier Run has left.
func (c *Config) clear() error {
	all, err := c.describe()
	if err != nil {
		return err
	}
	for _, e := range all {
		if e.Name != c.name() {
			continue
		}
		c.Log.Warn("terminating an enclave that was left behind", "enclave", e.ID, "cid", e.CID)
		if err := c.terminate(e.ID); err != nil {
			return err
		}
	}
	return nil
}

// watch returns nil when ctx ends, and an error when the enclave does.
func (c *Config) watch(ctx context.Context, id string) error {
	tick := time.NewTicker(c.Poll)
	defer tick.Stop()
	for failed := 0; ; {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		all, err := c.describe()
		switch {
		case err != nil:
			if failed++; failed == silence {
				return err
			}
			c.Log.Warn("it cannot be seen whether the enclave runs", "enclave", id, "error", err)
		case !slices.ContainsFunc(all, func(e enclave) bool { return e.ID == id && e.State == "RUNNING" }):
			return fmt.Errorf("nitro enclave %s has ended", id)
		default:
			failed = 0
		}
	}
}

func (c *Config) describe() (all []enclave, err error) {
	return all, c.call(&all, "describe-enclaves")
}

func (c *Config) terminate(id string) error {
	var ended struct {
		ID         string `json:"EnclaveID"`
		Terminated bool   `json:"Terminated"`
	}
	if err := c.call(&ended, "terminate-enclave", "--enclave-id", id); err != nil {
		return err
	}
	if !ended.Terminated {
		return fmt.Errorf("nitro enclave %s is not terminated", id)
	}
	return nil
}

// call runs a command of nitro-cli and reads the JSON that it prints to standard
// output; what it says otherwise goes to standard error, which is the error's text.
// It is not cut short when somebody wants the enclave to end: half a start would
// leave one that nobody knows of.
func (c *Config) call(into any, command string, args ...string) error {
	ctx, cancel := context.WithTimeout(context.Background(), callTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, c.Program, append([]string{command}, args...)...) //nolint:gosec // the operator's program is what this is for
	var out, said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &said
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("%s %s: %w: %s", c.Program, command, err, strings.Join(strings.Fields(said.String()), " "))
	}
	if err := json.Unmarshal(out.Bytes(), into); err != nil {
		return fmt.Errorf("%s %s printed no JSON: %w", c.Program, command, err)
	}
	return nil
}
