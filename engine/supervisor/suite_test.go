package supervisor_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	"github.com/onsi/gomega/gbytes"

	"github.com/mrgc/mrgc/engine/supervisor"
)

// configEnv turns the test binary into a supervisor, whose configuration it is: what
// descends from a supervisor's process is the engine's, so it needs one of its own.
const configEnv = "SUPERVISOR_TEST_CONFIG"

func TestMain(m *testing.M) {
	if text := os.Getenv(configEnv); text != "" {
		superviseAs(text)
	}
	os.Exit(m.Run())
}

func superviseAs(text string) {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	var config supervisor.Config
	err := json.Unmarshal([]byte(text), &config)
	if err == nil {
		err = supervisor.Run(ctx, config)
	}
	if err != nil {
		fmt.Println("ended:", err)
		os.Exit(1)
	}
	os.Exit(0)
}

func TestSupervisor(t *testing.T) {
	RegisterFailHandler(Fail)
	RunSpecs(t, "engine/supervisor")
}

// supervised is a supervisor of small real processes, in a folder where they leave
// what they have to say.
type supervised struct {
	cmd     *exec.Cmd
	dir     string
	control string
	output  *gbytes.Buffer
	ended   chan error // holds one
}

// supervise runs a supervisor until the spec is over. The engine is a shell's script;
// it and the script that clears find the folder in $DIR.
func supervise(script string, configure ...func(*supervisor.Config)) *supervised {
	GinkgoHelper()
	dir, err := os.MkdirTemp("", "mrgc")
	Expect(err).NotTo(HaveOccurred())
	DeferCleanup(os.RemoveAll, dir)
	s := &supervised{dir: dir, control: filepath.Join(dir, "control.sock"), output: gbytes.NewBuffer(), ended: make(chan error, 1)}
	config := supervisor.Config{Command: []string{"/bin/sh", "-c", script}, Control: s.control}
	for _, change := range configure {
		change(&config)
	}
	text, err := json.Marshal(config)
	Expect(err).NotTo(HaveOccurred())
	s.cmd = exec.Command(os.Args[0])
	s.cmd.Env = append(os.Environ(), configEnv+"="+string(text), "DIR="+dir, "CUDA_VISIBLE_DEVICES=1")
	s.cmd.Stdout, s.cmd.Stderr = s.output, s.output
	s.cmd.WaitDelay = 10 * time.Second
	Expect(s.cmd.Start()).To(Succeed())
	go func() { s.ended <- s.cmd.Wait() }()
	DeferCleanup(func() {
		_ = s.cmd.Process.Signal(syscall.SIGTERM)
		Eventually(s.ended, "20s").Should(Receive())
		s.expectNothingLeft()
	})
	return s
}

// polite is an engine that ends when it is asked to. It polls, because a shell looks
// at its traps only between commands.
const polite = `trap 'echo asked >> $DIR/said; exit 0' TERM; echo $$ >> $DIR/started; while :; do sleep 0.01; done`

// stubborn is one that does not.
const stubborn = `trap 'echo asked >> $DIR/said' TERM; echo $$ >> $DIR/started; while :; do sleep 0.01; done`

func (s *supervised) file(name string) string {
	content, _ := os.ReadFile(filepath.Join(s.dir, name)) // none is as good as an empty one
	return string(content)
}

// pids are what processes have written down.
func (s *supervised) pids(name string) func() []int {
	return func() (all []int) {
		for line := range strings.Lines(s.file(name)) {
			pid, err := strconv.Atoi(strings.TrimSpace(line))
			if err == nil {
				all = append(all, pid)
			}
		}
		return all
	}
}

// starts waits until the engine has been started so often, and gives the last one's
// process id.
func (s *supervised) starts(n int) int {
	GinkgoHelper()
	Eventually(s.pids("started"), "10s").Should(HaveLen(n))
	return s.pids("started")()[n-1]
}

// expectNothingLeft looks at all processes that have written themselves down.
func (s *supervised) expectNothingLeft() {
	GinkgoHelper()
	for _, name := range []string{"started", "children"} {
		for _, pid := range s.pids(name)() {
			Expect(alive(pid)).To(BeFalse(), "process %d of %s", pid, name)
		}
	}
}

// alive says whether a process is there that has not ended.
func alive(pid int) bool {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	return err == nil && !bytes.Contains(stat, []byte(") Z "))
}
