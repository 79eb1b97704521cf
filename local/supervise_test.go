package local

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	"github.com/onsi/gomega/gbytes"
	"github.com/onsi/gomega/gleak"
)

// supervised is a supervisor of small real processes, in a directory where they
// leave what they have to say.
type supervised struct {
	*supervisor
	dir     string
	reports *gbytes.Buffer
}

func newSupervised() *supervised {
	GinkgoHelper()
	DeferCleanup(func(before []gleak.Goroutine) {
		Eventually(gleak.Goroutines).WithTimeout(5 * time.Second).ShouldNot(gleak.HaveLeaked(before))
	}, gleak.Goroutines())
	s := &supervised{dir: GinkgoT().TempDir(), reports: gbytes.NewBuffer()}
	s.supervisor = newSupervisor(s.dir, filepath.Join(s.dir, "processes.json"), func(format string, args ...any) {
		_, _ = fmt.Fprintf(s.reports, format+"\n", args...)
	})
	DeferCleanup(s.stop)
	return s
}

// shell is a child that runs a script in the supervised directory.
func (s *supervised) shell(name string, rank int, script string) process {
	return process{name: name, rank: rank, args: []string{"/bin/sh", "-c", script}, env: []string{"DIR=" + s.dir}}
}

// polite says goodbye in the file "ended" when it is asked to stop. It polls,
// because a shell looks at its traps only between commands.
func (s *supervised) polite(name string, rank int) process {
	return s.shell(name, rank, `trap 'echo `+name+` >> $DIR/ended; exit 0' TERM; touch $DIR/`+name+`.up; while :; do sleep 0.01; done`)
}

// stubborn does not stop when it is asked to.
func (s *supervised) stubborn(name string) process {
	return s.shell(name, 0, `trap '' TERM; touch $DIR/`+name+`.up; while :; do sleep 0.01; done`)
}

func (s *supervised) file(name string) func() string {
	return func() string {
		content, err := os.ReadFile(filepath.Join(s.dir, name))
		if err != nil {
			return ""
		}
		return string(content)
	}
}

func (s *supervised) up(names ...string) {
	GinkgoHelper()
	for _, name := range names {
		path := func() string { return filepath.Join(s.dir, name+".up") }
		Eventually(path).WithTimeout(5 * time.Second).Should(BeAnExistingFile())
	}
}

// pids is what processes.json says.
func (s *supervised) pids() map[string]int {
	var pids map[string]int
	_ = json.Unmarshal([]byte(s.file("processes.json")()), &pids)
	return pids
}

func alive(pid int) func() bool {
	return func() bool { return syscall.Kill(pid, 0) == nil }
}

var _ = Describe("A supervisor", func() {
	var s *supervised
	BeforeEach(func() { s = newSupervised() })

	It("lists the children that run, in a file", func() {
		Expect(s.start(s.polite("a", 0))).To(Succeed())
		Expect(s.start(s.polite("b", 0))).To(Succeed())
		Expect(s.pids()).To(And(HaveLen(2), HaveKey("a"), HaveKey("b")))
		Expect(alive(s.pids()["a"])()).To(BeTrue())
		s.up("a", "b")
		s.stop()
		Expect(s.file("processes.json")()).To(MatchJSON(`{}`))
	})

	It("keeps a log of each child, for its owner alone", func() {
		Expect(s.start(s.shell("a", 0, `echo said; echo complained >&2; exec sleep 60`))).To(Succeed())
		Eventually(s.file("a.log")).Should(Equal("said\ncomplained\n"))
		info, err := os.Stat(filepath.Join(s.dir, "a.log"))
		Expect(err).NotTo(HaveOccurred())
		Expect(info.Mode().Perm()).To(Equal(os.FileMode(0o600)))
	})

	It("gives children its own few variables, and theirs", func() {
		GinkgoT().Setenv("OPENAI_API_KEY", "the supervisor's own")
		child := s.shell("a", 0, `env; exec sleep 60`)
		child.env = append(child.env, "MRGC_IDENTITY_TOKEN=x")
		Expect(s.start(child)).To(Succeed())
		Eventually(s.file("a.log")).Should(And(ContainSubstring("MRGC_IDENTITY_TOKEN=x\n"), ContainSubstring("GOTRACEBACK=none\n"), ContainSubstring("PATH=")))
		Expect(s.file("a.log")()).NotTo(ContainSubstring("OPENAI_API_KEY"))
	})

	It("restarts a child that dies, and says where its log is", func() {
		Expect(s.start(s.shell("a", 0, `echo x >> $DIR/starts; test $(wc -l < $DIR/starts) = 1 && exit 3; exec sleep 60`))).To(Succeed())
		Eventually(s.reports).Should(gbytes.Say(`a stopped \(exit status 3\), restarting; its log is .*/a\.log`))
		Eventually(s.file("starts")).WithTimeout(5 * time.Second).Should(Equal("x\nx\n"))
		Eventually(s.pids).Should(HaveKey("a"))
	})

	It("restarts a child that is killed, under another process id", func() {
		Expect(s.start(s.polite("a", 0))).To(Succeed())
		first := s.pids()["a"]
		Expect(syscall.Kill(first, syscall.SIGKILL)).To(Succeed())
		Eventually(s.reports).Should(gbytes.Say(`a stopped \(signal: killed\)`))
		Eventually(func() int { return s.pids()["a"] }).WithTimeout(5 * time.Second).ShouldNot(Or(BeZero(), Equal(first)))
	})

	It("waits longer each time before it restarts", func() {
		Expect(s.start(s.shell("a", 0, `date +%s%N >> $DIR/starts`))).To(Succeed())
		Eventually(func() int { return strings.Count(s.file("starts")(), "\n") }).WithTimeout(10 * time.Second).Should(BeNumerically(">=", 4))
		s.stop()
		var times []time.Time
		for line := range strings.Lines(s.file("starts")()) {
			ns, err := strconv.ParseInt(strings.TrimSpace(line), 10, 64)
			Expect(err).NotTo(HaveOccurred())
			times = append(times, time.Unix(0, ns))
		}
		for i, least := range []time.Duration{firstBackoff, 2 * firstBackoff, 4 * firstBackoff} {
			Expect(times[i+1].Sub(times[i])).To(BeNumerically(">=", least-20*time.Millisecond))
		}
	})

	It("refuses a child whose program does not exist", func() {
		err := s.start(process{name: "a", args: []string{"/nonexistent/mrgc"}})
		Expect(err).To(MatchError(And(ContainSubstring("start a"), ContainSubstring("/nonexistent/mrgc"))))
		Expect(s.reports.Contents()).To(BeEmpty())
	})

	It("stops children from the highest rank down", func() {
		for name, rank := range map[string]int{"engine": 0, "parent": 3, "envoy": 5, "router": 4} {
			Expect(s.start(s.polite(name, rank))).To(Succeed())
		}
		s.up("engine", "parent", "envoy", "router")
		s.stop()
		Expect(s.file("ended")()).To(Equal("envoy\nrouter\nparent\nengine\n"))
		Expect(s.reports.Contents()).To(BeEmpty()) // none was restarted
	})

	It("kills what does not stop, with what that has started, and leaves nothing behind", func() {
		s.grace = 50 * time.Millisecond
		Expect(s.start(s.shell("a", 0, `trap '' TERM; sleep 60 & echo $! > $DIR/grandchild; touch $DIR/a.up; wait; while :; do sleep 0.01; done`))).To(Succeed())
		Expect(s.start(s.stubborn("b"))).To(Succeed())
		Expect(s.start(s.polite("c", 0))).To(Succeed())
		s.up("a", "b", "c")
		pids := s.pids()
		grandchild, err := strconv.Atoi(strings.TrimSpace(s.file("grandchild")()))
		Expect(err).NotTo(HaveOccurred())
		s.stop()
		for name, pid := range pids {
			Expect(alive(pid)()).To(BeFalse(), name)
		}
		Eventually(func() bool { return running(grandchild) }).Should(BeFalse())
		Expect(s.file("ended")()).To(Equal("c\n"))
	})

	It("stops twice, and starts nothing afterwards", func() {
		Expect(s.start(s.polite("a", 0))).To(Succeed())
		s.up("a")
		s.stop()
		s.stop()
		Expect(s.start(s.polite("b", 0))).To(MatchError(ContainSubstring("stopping")))
	})

	It("does not wait for a child that is about to be restarted", func() {
		Expect(s.start(s.shell("a", 0, "exit 1"))).To(Succeed())
		Eventually(s.reports).Should(gbytes.Say("restarting"))
		started := time.Now()
		s.stop()
		Expect(time.Since(started)).To(BeNumerically("<", stopGrace))
	})
})

// running says whether a process runs: one that has died and whose parent does
// not look has not gone.
func running(pid int) bool {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return false
	}
	_, after, _ := strings.Cut(string(stat), ") ")
	return !strings.HasPrefix(after, "Z")
}
