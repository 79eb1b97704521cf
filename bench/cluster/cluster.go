// Package cluster runs `mrgc up` for benchmarks, as a person would, and reads
// what its processes use.
//
//	c, err := cluster.Start(ctx, "--regions", "use1", "--engine", "sim")
//	if err != nil { … }
//	defer func() { err = errors.Join(err, c.Stop()) }()
//	env, err := c.Env() // what `source .mrgc/env` would set
//
// It needs bin/mrgc and the parts in .tools (`make parts`), and the root of the
// repository as working directory. State goes to a temporary directory that
// Stop removes. It runs on Linux alone: what processes use comes from /proc.
package cluster

import (
	"bufio"
	"context"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/mrgc/mrgc/client"
)

const (
	startTimeout = 3 * time.Minute
	// startPoll bounds how exactly StartedIn is known.
	startPoll = 20 * time.Millisecond
)

// Cluster is a running `mrgc up`.
type Cluster struct {
	// StartedIn is the time from start until a tenant could use it, the first
	// answer included where --ask was left on.
	StartedIn time.Duration

	command  *exec.Cmd
	stateDir string
	ended    chan struct{} // closed when the command has ended
	err      error         // how it ended; set before ended is closed
}

// Start runs `mrgc up` with args, and waits until a tenant can use it. When ctx
// ends meanwhile, what was started is stopped.
func Start(ctx context.Context, args ...string) (*Cluster, error) {
	return StartFrom(ctx, "bin", args...)
}

// StartFrom is Start with the programs of another folder, all of which `mrgc up`
// finds beside itself.
func StartFrom(ctx context.Context, bin string, args ...string) (*Cluster, error) {
	dir, err := os.MkdirTemp("", "mrgc-bench")
	if err != nil {
		return nil, err
	}
	c := &Cluster{stateDir: dir, ended: make(chan struct{})}
	c.command = exec.Command(filepath.Join(bin, "mrgc"), append([]string{"up", "--port", "0", "--state-dir", dir}, args...)...)
	c.command.Stderr = os.Stderr
	began := time.Now()
	if err := c.command.Start(); err != nil {
		return nil, errors.Join(fmt.Errorf("%w: run `make parts` first", err), os.RemoveAll(dir))
	}
	go func() {
		c.err = c.command.Wait()
		close(c.ended)
	}()
	if err := c.await(ctx); err != nil {
		return nil, errors.Join(err, c.Stop())
	}
	c.StartedIn = time.Since(began)
	return c, nil
}

// await returns once the env file is there, which is when all is healthy.
func (c *Cluster) await(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	tick := time.NewTicker(startPoll)
	defer tick.Stop()
	for {
		if _, err := os.Stat(c.envFile()); err == nil {
			return nil
		}
		select {
		case <-tick.C:
		case <-c.ended:
			return errors.New("mrgc up ended while it started")
		case <-ctx.Done():
			return fmt.Errorf("the cluster is not up: %w", ctx.Err())
		}
	}
}

// Stop ends the cluster and removes its state.
func (c *Cluster) Stop() error {
	err := c.command.Process.Signal(os.Interrupt)
	if errors.Is(err, os.ErrProcessDone) {
		err = nil // how it ended says it
	}
	<-c.ended
	return errors.Join(err, c.err, os.RemoveAll(c.stateDir))
}

func (c *Cluster) envFile() string { return filepath.Join(c.stateDir, "env") }

// Env is what `source` of the cluster's env file would set, by name.
func (c *Cluster) Env() (map[string]string, error) {
	file, err := os.Open(c.envFile())
	if err != nil {
		return nil, err
	}
	defer file.Close()
	values := map[string]string{}
	lines := bufio.NewScanner(file)
	for lines.Scan() {
		name, value, ok := strings.Cut(strings.TrimPrefix(lines.Text(), "export "), "=")
		if !ok {
			return nil, fmt.Errorf("%s: line %q", c.envFile(), lines.Text())
		}
		values[name] = strings.Trim(value, "'")
	}
	return values, lines.Err()
}

// EngineSockets are the Unix sockets of the engines that the cluster started.
func (c *Cluster) EngineSockets() ([]string, error) {
	return filepath.Glob(filepath.Join(c.stateDir, "run", "*.engine"))
}

// EngineSocket is that of the one engine that the cluster started.
func (c *Cluster) EngineSocket() (string, error) {
	sockets, err := c.EngineSockets()
	if err != nil {
		return "", err
	}
	if len(sockets) != 1 {
		return "", fmt.Errorf("the cluster has %d engines, want one", len(sockets))
	}
	return sockets[0], nil
}

// StateDir is where the cluster keeps its files and logs.
func (c *Cluster) StateDir() string { return c.stateDir }

// ClientConfig is what a tenant of the cluster needs to seal requests itself,
// without `mrgc connect`.
func (c *Cluster) ClientConfig() (client.Config, error) {
	env, err := c.Env()
	if err != nil {
		return client.Config{}, err
	}
	config := client.Config{Endpoints: strings.Split(env["MRGC_ENDPOINTS"], ","), RootCAs: x509.NewCertPool()}
	releases, err := os.ReadFile(env["MRGC_RELEASES"])
	if err != nil {
		return config, err
	}
	if config.Policy.Releases, err = client.ParseReleases(releases); err != nil {
		return config, err
	}
	authority, err := readCertificate(env["MRGC_CA"])
	if err != nil {
		return config, err
	}
	config.RootCAs.AddCert(authority)
	config.Policy.DevelopmentRoot, err = readCertificate(env["MRGC_DEVELOPMENT_ROOT"])
	return config, err
}

func readCertificate(path string) (*x509.Certificate, error) {
	content, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	block, _ := pem.Decode(content)
	if block == nil {
		return nil, fmt.Errorf("%s: no certificate in it", path)
	}
	return x509.ParseCertificate(block.Bytes)
}
