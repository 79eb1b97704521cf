//go:build linux

package softnsm_test

import (
	"context"
	"crypto/x509"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	"github.com/onsi/gomega/gbytes"

	"github.com/mrgc/mrgc/internal/attest"
	"github.com/mrgc/mrgc/internal/nsm"
	"github.com/mrgc/mrgc/internal/testclock"
	"github.com/mrgc/mrgc/standin/softnsm"
)

// cluster is a module that serves, with a clock of its own, and the policy that
// trusts the test binary under its root.
type cluster struct {
	path   string
	policy attest.Policy
	log    *gbytes.Buffer
	stop   context.CancelFunc
	served chan error // Serve's result, once

	clock *testclock.Clock
}

func startCluster() *cluster {
	GinkgoHelper()
	c := &cluster{
		path:   filepath.Join(GinkgoT().TempDir(), "nsm.sock"),
		log:    gbytes.NewBuffer(),
		served: make(chan error, 1),
		clock:  testclock.At(time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)),
	}
	root, err := softnsm.NewRoot(c.clock.Now())
	Expect(err).NotTo(HaveOccurred())
	measured, err := softnsm.Measure(executable())
	Expect(err).NotTo(HaveOccurred())
	c.policy = attest.Policy{
		Roots:    []*x509.Certificate{root.Certificate()},
		Releases: []attest.Release{{Version: 1, Name: "test binary", PCRs: measured}},
	}
	module, err := softnsm.New(softnsm.Config{
		Root:       root,
		Region:     "us-east-1",
		InstanceID: "use1-0",
		Role:       "development",
		Now:        c.clock.Now,
		Logger:     slog.New(slog.NewTextHandler(c.log, nil)),
	})
	Expect(err).NotTo(HaveOccurred())
	l, err := net.Listen("unix", c.path)
	Expect(err).NotTo(HaveOccurred())
	ctx, cancel := context.WithCancel(context.Background())
	c.stop = cancel
	go func() {
		c.served <- module.Serve(ctx, l)
		close(c.served)
	}()
	DeferCleanup(func() {
		cancel()
		Eventually(c.served).Should(BeClosed())
	})
	return c
}

func (c *cluster) module() nsm.Module {
	GinkgoHelper()
	module, err := nsm.Dial("unix:" + c.path)
	Expect(err).NotTo(HaveOccurred())
	return module
}

func (c *cluster) verify(raw []byte) error {
	_, err := attest.Verify(raw, c.policy, attest.Expected{UserData: []byte("claims"), Region: "us-east-1"}, c.clock.Now())
	return err
}

// exchange sends a message that a client would not, and returns the refusal.
func (c *cluster) exchange(message []byte) error {
	GinkgoHelper()
	conn, err := net.Dial("unix", c.path)
	Expect(err).NotTo(HaveOccurred())
	defer conn.Close()
	Expect(nsm.WriteFrame(conn, message)).To(Succeed())
	answer, err := nsm.ReadFrame(conn, nsm.MaxResponse)
	Expect(err).NotTo(HaveOccurred())
	_, err = nsm.DecodeResponse(answer)
	return err
}

func executable() string {
	GinkgoHelper()
	path, err := os.Executable()
	Expect(err).NotTo(HaveOccurred())
	return path
}

// copyExecutable copies the test binary, with something appended to it: it runs
// the same, and is another file.
func copyExecutable(appended []byte) string {
	GinkgoHelper()
	binary, err := os.ReadFile(executable())
	Expect(err).NotTo(HaveOccurred())
	path := filepath.Join(GinkgoT().TempDir(), "asker")
	Expect(os.WriteFile(path, append(binary, appended...), 0o700)).To(Succeed())
	return path
}

// asker is a process that will ask for one document.
type asker struct {
	cmd    *exec.Cmd
	start  io.WriteCloser
	output *gbytes.Buffer
}

func startAsker(c *cluster, path string) *asker {
	GinkgoHelper()
	a := &asker{cmd: exec.Command(path), output: gbytes.NewBuffer()}
	a.cmd.Env = append(os.Environ(), askEnv+"=unix:"+c.path)
	a.cmd.Stdout = a.output
	a.cmd.Stderr = GinkgoWriter
	var err error
	a.start, err = a.cmd.StdinPipe()
	Expect(err).NotTo(HaveOccurred())
	Expect(a.cmd.Start()).To(Succeed())
	DeferCleanup(func() { _ = a.cmd.Process.Kill() }) // no effect on one that was waited for
	return a
}

// document lets the process ask, and returns what it got.
func (a *asker) document() []byte {
	GinkgoHelper()
	_, err := io.WriteString(a.start, "\n")
	Expect(err).NotTo(HaveOccurred())
	Expect(a.cmd.Wait()).To(Succeed())
	return a.output.Contents()
}
