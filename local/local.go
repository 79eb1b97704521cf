// Package local is `mrgc up`: a whole cluster on one machine.
//
// It runs the programs that a deployment runs, with the same flags, over real
// TLS, against a real Envoy and a real model. What one machine does not have is
// replaced by a stand-in that is named for what it is: the enclave is a process,
// its security module is standin/softnsm, the certificate authority is
// standin/devca, AWS KMS is standin/softkms, AWS Global Accelerator, where one is
// asked for, is standin/softaccelerator, DynamoDB's global tables, where those are,
// standin/globaltables, and three regions are three sets of loopback ports.
//
// [Run] fetches what is missing, lays the cluster out (a pure [plan]), starts
// and watches the children, waits until all of it is healthy, and shows a tenant
// how to use it. When its context ends, everything it made stops and goes.
package local

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/mrgc/mrgc/internal/parts"
	"github.com/mrgc/mrgc/standin/devca"
	"github.com/mrgc/mrgc/standin/softnsm"
)

// Run brings a cluster up and keeps it up until ctx ends.
func Run(ctx context.Context, options Options) (err error) {
	o, err := options.complete()
	if err != nil {
		return err
	}
	ui := newDisplay(o.Out)
	unlock, err := lockState(o.StateDir)
	if err != nil {
		return err
	}
	defer unlock()

	fetched, err := fetchParts(ctx, o, ui)
	if err != nil {
		return err
	}
	runDir, removeRunDir, err := makeRunDir(o.StateDir)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, removeRunDir()) }()

	free := newPorts()
	connect, err := free.tenantPort(o.Port)
	if err != nil {
		return err
	}
	p, err := newPlan(o, runDir, connect, free.draw)
	if err != nil {
		return err
	}
	p.envoy, p.llamaPath, p.modelFile = fetched.Envoy, fetched.LlamaPythonPath, fetched.Model
	if o.Model != "" {
		p.modelFile = o.Model
	}
	return (&cluster{plan: p, ui: ui, started: time.Now()}).run(ctx)
}

// lockState keeps two clusters out of one state directory.
func lockState(dir string) (unlock func(), err error) {
	for _, sub := range []string{"logs", "audit", "washes"} {
		if err := os.MkdirAll(filepath.Join(dir, sub), 0o700); err != nil {
			return nil, fmt.Errorf("state directory: %w", err)
		}
	}
	lock, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("state directory: %w", err)
	}
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return nil, errors.Join(fmt.Errorf("a cluster is up in %s already: stop it, or choose another directory with --state-dir", dir), lock.Close())
	}
	return func() { _ = lock.Close() }, nil
}

// fetchParts gets what this cluster runs and does not have.
func fetchParts(ctx context.Context, o Options, ui *display) (parts.Paths, error) {
	wanted := []parts.Part{parts.Envoy}
	if o.Engine == EngineLlama && o.EngineURL == "" {
		wanted = append(wanted, parts.Llama)
		if o.Model == "" {
			wanted = append(wanted, parts.Model)
		}
	}
	done := ui.timed("parts")
	paths, err := parts.Fetch(ctx, parts.Config{Dir: o.ToolsDir, Parts: wanted, Out: o.Out})
	if err != nil {
		return paths, err
	}
	done("fetched and verified in %s", o.ToolsDir)
	return paths, nil
}

// runLink is where the state directory says which run directory is in use, so
// that the next start can clear away what a killed one left.
const runLink = "run"

// runDirName is what makeRunDir calls directories, and so what it may remove.
var runDirName = regexp.MustCompile(`^mrgc-[0-9]+$`)

// makeRunDir makes a directory for sockets and keys under a short path.
func makeRunDir(stateDir string) (dir string, remove func() error, err error) {
	link := filepath.Join(stateDir, runLink)
	if old, err := os.Readlink(link); err == nil && runDirName.MatchString(filepath.Base(old)) {
		if err := os.RemoveAll(old); err != nil {
			return "", nil, fmt.Errorf("clear away what an earlier start left: %w", err)
		}
	}
	if err := os.Remove(link); err != nil && !errors.Is(err, os.ErrNotExist) {
		return "", nil, fmt.Errorf("state directory: %w", err)
	}
	if dir, err = os.MkdirTemp("", "mrgc-"); err != nil { // mode 0700
		return "", nil, fmt.Errorf("run directory: %w", err)
	}
	remove = func() error { return errors.Join(os.RemoveAll(dir), os.Remove(link)) }
	if err := os.Symlink(dir, link); err != nil {
		return "", nil, errors.Join(fmt.Errorf("state directory: %w", err), os.RemoveAll(dir))
	}
	return dir, remove, nil
}

// cluster is one start.
type cluster struct {
	plan    *plan
	ui      *display
	started time.Time
}

// run makes the files, serves the stand-ins, starts the children, and stays
// until ctx ends or the start fails.
func (c *cluster) run(ctx context.Context) error {
	ca, err := devca.New(time.Now())
	if err != nil {
		return err
	}
	root, err := softnsm.NewRoot(time.Now())
	if err != nil {
		return err
	}
	apiKey, err := c.plan.writeFiles(ctx, ca, root)
	if err != nil {
		return err
	}
	// The stand-ins outlive the children, which use them until they stop.
	serving, stopServing := context.WithCancel(context.WithoutCancel(ctx))
	defer stopServing()
	standIns, serving := errgroup.WithContext(serving)
	if err := c.serveStandIns(serving, standIns, ca, root); err != nil {
		stopServing()
		return errors.Join(err, standIns.Wait())
	}

	err = c.supervise(ctx, ca, apiKey)
	stopServing()
	return errors.Join(err, standIns.Wait())
}

func (c *cluster) serveStandIns(ctx context.Context, group *errgroup.Group, ca *devca.Authority, root *softnsm.Root) error {
	listener, err := net.Listen("unix", c.plan.caSocket)
	if err != nil {
		return fmt.Errorf("development CA: %w", err)
	}
	group.Go(func() error { return ca.Serve(ctx, listener) })
	if err := c.plan.serveAccelerator(ctx, group); err != nil {
		return err
	}
	serveKMS, err := c.plan.listenKMS(ca, root)
	if err != nil {
		return err
	}
	group.Go(func() error { return serveKMS(ctx) })
	if c.plan.fleet.name != "" {
		serveDynamoDB, err := c.plan.listenDynamoDB(ctx, ca)
		if err != nil {
			return err
		}
		group.Go(func() error { return serveDynamoDB(ctx) })
	}
	for _, in := range c.plan.instances() {
		module, err := softnsm.New(softnsm.Config{Root: root, Region: in.aws, InstanceID: in.id, Role: "development"})
		if err != nil {
			return err
		}
		listener, err := net.Listen("unix", in.nsm)
		if err != nil {
			return fmt.Errorf("software NSM: %w", err)
		}
		group.Go(func() error { return module.Serve(ctx, listener) })
		if err := serveTPM(ctx, group, root, in); err != nil {
			return err
		}
	}
	return nil
}

// supervise starts the children and stops them when ctx ends.
func (c *cluster) supervise(ctx context.Context, ca *devca.Authority, apiKey string) (err error) {
	children, err := c.plan.processes(ca.Grant)
	if err != nil {
		return err
	}
	s := newSupervisor(filepath.Join(c.plan.stateDir, "logs"), filepath.Join(c.plan.stateDir, "processes.json"), c.ui.warn)
	if c.plan.options.cores <= fewCores {
		// Two dozen processes on a few cores: each is better off with one than
		// with threads of its own that wait for the others'.
		s.env = []string{"GOMAXPROCS=1"}
	}
	defer func() {
		c.ui.say("stopping…")
		s.stop()
		err = errors.Join(err, c.plan.removeEnv())
	}()
	if err := c.plan.startStores(ctx, s, c.ui); err != nil {
		return endedBy(ctx, err)
	}
	done := c.ui.step("start")
	for _, child := range children {
		awaitListener(ctx, child.after)
		if err := s.start(child); err != nil {
			return err
		}
	}
	done("%d processes; logs are in %s", len(children), filepath.Join(c.plan.stateDir, "logs"))
	if err := c.waitUntilReady(ctx); err != nil {
		return endedBy(ctx, err)
	}
	if c.plan.options.AskOnce {
		if err := c.ask(ctx, apiKey); err != nil {
			return endedBy(ctx, err)
		}
	}
	if err := c.plan.writeEnv(apiKey); err != nil {
		return err
	}
	c.showHow(apiKey)
	<-ctx.Done()
	return nil
}

// endedBy hides errors that Ctrl-C caused.
func endedBy(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return nil
	}
	return err
}
