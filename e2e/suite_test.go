// Package e2e tests a whole cluster as `make up` starts it: built programs, a
// real Envoy, a real model, the official OpenAI package.
package e2e_test

import (
	"bufio"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	"github.com/onsi/gomega/gexec"
)

func TestE2E(t *testing.T) {
	RegisterFailHandler(Fail)
	if !RunSpecs(t, "e2e") {
		t.Log("what failed, once more:\n" + failures.String())
	}
}

// failures are told again at the end, for whoever sees a log's tail only.
var failures strings.Builder

var _ = ReportAfterEach(func(report SpecReport) {
	if report.Failed() {
		fmt.Fprintf(&failures, "%s:\n%s\n", report.FullText(), report.FailureMessage())
	}
})

const (
	upTimeout   = 3 * time.Minute
	stopTimeout = 30 * time.Second
)

// cluster is a running `mrgc up`.
type cluster struct {
	stateDir string
	session  *gexec.Session
}

// root is the repository, where bin and .tools lie.
func root() string {
	GinkgoHelper()
	dir, err := filepath.Abs("..")
	Expect(err).NotTo(HaveOccurred())
	return dir
}

// startCluster runs `mrgc up` and waits until a tenant could use it. Whatever
// the spec does, nothing of it is left afterwards.
func startCluster(args ...string) *cluster {
	GinkgoHelper()
	stateDir := GinkgoT().TempDir()
	up := upCommand(stateDir, args...)
	c := &cluster{stateDir: stateDir}
	c.start(exec.Command(up[0], up[1:]...))
	c.await()
	return c
}

// upCommand is `mrgc up` with its state in a directory.
func upCommand(stateDir string, args ...string) []string {
	GinkgoHelper()
	program := filepath.Join(root(), "bin", "mrgc")
	Expect(program).To(BeAnExistingFile(), "run `make build` first, or the tests by `make test`")
	return append([]string{program, "up", "--port", "0", "--state-dir", stateDir, "--tools-dir", filepath.Join(root(), ".tools")}, args...)
}

func (c *cluster) start(up *exec.Cmd) {
	GinkgoHelper()
	session, err := gexec.Start(up, GinkgoWriter, GinkgoWriter)
	Expect(err).NotTo(HaveOccurred())
	c.session = session
	DeferCleanup(func() {
		if session.ExitCode() < 0 {
			session.Interrupt()
			Eventually(session, stopTimeout).Should(gexec.Exit())
		}
	})
}

func (c *cluster) await() {
	GinkgoHelper()
	Eventually(func() bool {
		Expect(c.session.ExitCode()).To(Equal(-1), "mrgc up ended: %s", c.session.Err.Contents())
		_, err := os.Stat(c.envFile())
		return err == nil
	}, upTimeout, "100ms").Should(BeTrue(), "the env file appears once all is healthy")
}

func (c *cluster) envFile() string { return filepath.Join(c.stateDir, "env") }

// env reads what `source` would set.
func (c *cluster) env() map[string]string {
	GinkgoHelper()
	file, err := os.Open(c.envFile())
	Expect(err).NotTo(HaveOccurred())
	defer file.Close()
	values := map[string]string{}
	for lines := bufio.NewScanner(file); lines.Scan(); {
		name, value, ok := strings.Cut(strings.TrimPrefix(lines.Text(), "export "), "=")
		Expect(ok).To(BeTrue(), "line %q", lines.Text())
		values[name] = strings.Trim(value, "'")
	}
	return values
}

// base is the tenant endpoint without its path.
func (c *cluster) base() string {
	GinkgoHelper()
	return strings.TrimSuffix(c.env()["OPENAI_BASE_URL"], "/v1")
}

// pids gives the children's process ids by name.
func (c *cluster) pids() map[string]int {
	GinkgoHelper()
	content, err := os.ReadFile(filepath.Join(c.stateDir, "processes.json"))
	Expect(err).NotTo(HaveOccurred())
	var pids map[string]int
	Expect(json.Unmarshal(content, &pids)).To(Succeed())
	return pids
}

var envoyURL = regexp.MustCompile(`(use1|use2|usw2)\s+Envoy (https://\S+)`)

// envoys gives each region's tenant URL, as it was printed.
func (c *cluster) envoys() map[string]string {
	GinkgoHelper()
	printed := func() string { return string(c.session.Out.Contents()) }
	Eventually(printed).Should(ContainSubstring("Ctrl-C stops everything"))
	urls := map[string]string{}
	for _, match := range envoyURL.FindAllStringSubmatch(printed(), -1) {
		urls[match[1]] = match[2]
	}
	return urls
}

// alive says whether a process runs.
func alive(pid int) bool { return syscall.Kill(pid, 0) == nil }
