package main

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"testing"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
)

// runEnv turns the test binary into mrgc itself, for commands that lock their
// process down.
const runEnv = "MRGC_TEST_RUN"

func TestMain(m *testing.M) {
	if os.Getenv(runEnv) != "" {
		main()
		return
	}
	os.Exit(m.Run())
}

func TestMRGC(t *testing.T) {
	RegisterFailHandler(Fail)
	RunSpecs(t, "mrgc")
}

// result is what a command left.
type result struct {
	err            error
	stdout, stderr string
}

// mrgc runs a command here.
func mrgc(args ...string) result {
	var stdout, stderr bytes.Buffer
	err := run(context.Background(), args, &stdout, &stderr)
	return result{err, stdout.String(), stderr.String()}
}

// process runs a command in a process of its own.
func process(ctx context.Context, args ...string) *exec.Cmd {
	GinkgoHelper()
	self, err := os.Executable()
	Expect(err).NotTo(HaveOccurred())
	cmd := exec.CommandContext(ctx, self, args...)
	cmd.Env = append(os.Environ(), runEnv+"=1")
	return cmd
}
