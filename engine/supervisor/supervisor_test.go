package supervisor_test

import (
	"context"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	"github.com/onsi/gomega/gbytes"

	"github.com/mrgc/mrgc/engine/supervisor"
	"github.com/mrgc/mrgc/internal/gpu"
)

// clearing has a shell's script clear the GPUs.
func clearing(script string) func(*supervisor.Config) {
	return func(c *supervisor.Config) { c.Clear = []string{"/bin/sh", "-c", script} }
}

func stoppingWithin(d time.Duration) func(*supervisor.Config) {
	return func(c *supervisor.Config) { c.StopTimeout = d }
}

var _ = Describe("A restart", func() {
	It("ends the engine, and starts it again", func(ctx SpecContext) {
		s := supervise(polite)
		first := s.starts(1)
		done, err := supervisor.Restart(ctx, s.control)
		Expect(err).NotTo(HaveOccurred())
		Expect(alive(first)).To(BeFalse())
		second := s.starts(2)
		Expect(second).NotTo(Equal(first))
		Expect(alive(second)).To(BeTrue())
		Expect(s.file("said")).To(Equal("asked\n"))
		Expect(done.Killed).To(BeFalse())
		Expect(done.Stopped).To(And(BeNumerically(">", 0), BeNumerically("<", supervisor.DefaultStopTimeout)))
		Expect(done.Started).To(BeNumerically(">", 0))
		Expect(done.GPUs).To(BeEmpty(), "nobody has said that they are to be cleared")
		_, err = supervisor.Restart(ctx, s.control)
		Expect(err).NotTo(HaveOccurred())
		s.starts(3)
	}, NodeTimeout(time.Minute))

	It("kills an engine that does not end", func(ctx SpecContext) {
		s := supervise(stubborn, stoppingWithin(300*time.Millisecond))
		first := s.starts(1)
		done, err := supervisor.Restart(ctx, s.control)
		Expect(err).NotTo(HaveOccurred())
		Expect(alive(first)).To(BeFalse())
		Expect(s.file("said")).To(Equal("asked\n"), "it was asked first")
		Expect(done.Killed).To(BeTrue())
		Expect(done.Stopped).To(BeNumerically(">=", 300*time.Millisecond))
		s.starts(2)
	}, NodeTimeout(time.Minute))

	// Children that ignore what they are asked, one of them in a session of its own,
	// and one whose parent has ended.
	const family = `trap 'exit 0' TERM
		child='trap "" TERM; echo $$ >> $DIR/children; while :; do sleep 0.01; done'
		sh -c "$child" &
		setsid sh -c "$child" &
		sh -c "setsid sh -c '$child' &"
		until [ $(wc -l < $DIR/children) -ge 3 ]; do sleep 0.01; done
		echo $$ >> $DIR/started; while :; do sleep 0.01; done`

	It("leaves no process of the engine before it clears, wherever that has gone", func(ctx SpecContext) {
		s := supervise(family, clearing(`for pid in $(cat $DIR/children $DIR/started); do kill -0 $pid 2>/dev/null && echo $pid is there >&2 && exit 1; done; echo '[{"total_bytes":10,"cleared_bytes":9}]'`))
		s.starts(1)
		before := s.pids("children")()
		Expect(before).To(HaveLen(3))
		for _, pid := range before {
			Expect(alive(pid)).To(BeTrue())
		}
		_, err := supervisor.Restart(ctx, s.control)
		Expect(err).NotTo(HaveOccurred())
		for _, pid := range before {
			Expect(alive(pid)).To(BeFalse())
		}
		s.starts(2)
	}, NodeTimeout(time.Minute))

	It("has all GPUs cleared while no engine runs, and says what was found", func(ctx SpecContext) {
		s := supervise(`echo $CUDA_VISIBLE_DEVICES > $DIR/engine; `+polite, clearing(`kill -0 $(cat $DIR/started) 2>/dev/null && exit 1; echo "sees ${CUDA_VISIBLE_DEVICES-all}" > $DIR/clearing
			echo '[{"total_bytes":85899345920,"cleared_bytes":85000000000,"dirty_bytes":4096,"canary_hits":0,"took_ns":20000000000},{"total_bytes":85899345920,"cleared_bytes":85000000001}]'`))
		s.starts(1)
		done, err := supervisor.Restart(ctx, s.control)
		Expect(err).NotTo(HaveOccurred())
		Expect(done.GPUs).To(Equal([]gpu.Cleared{
			{TotalBytes: 80 << 30, ClearedBytes: 85_000_000_000, DirtyBytes: 4096, Took: 20 * time.Second},
			{TotalBytes: 80 << 30, ClearedBytes: 85_000_000_001},
		}))
		Expect(done.Cleared).To(BeNumerically(">", 0))
		Expect(s.file("clearing")).To(Equal("sees all\n"))
		Expect(s.file("engine")).To(Equal("1\n"), "which is told to use one of them")
		s.starts(2)
	}, NodeTimeout(time.Minute))

	DescribeTable("that does not clear the GPUs fails, and leaves an engine that runs", func(ctx SpecContext, script, because string) {
		s := supervise(polite, clearing(script), func(c *supervisor.Config) { c.ClearTimeout = time.Second })
		s.starts(1)
		_, err := supervisor.Restart(ctx, s.control)
		Expect(err).To(MatchError(And(ContainSubstring("GPU memory was not cleared"), ContainSubstring(because))))
		Expect(alive(s.starts(2))).To(BeTrue())
		_, err = supervisor.Restart(ctx, s.control)
		Expect(err).To(HaveOccurred(), "it is still asked to")
		s.starts(3)
	},
		Entry("because something is wrong", NodeTimeout(time.Minute), `echo 'GPU 0: 8 bytes are not zero' >&2; exit 1`, "exit status 1: GPU 0: 8 bytes are not zero"),
		Entry("because it hangs", NodeTimeout(time.Minute), `trap '' TERM; while :; do sleep 0.01; done`, "not done within 1s"),
		Entry("because it names none", NodeTimeout(time.Minute), `echo '[]'`, "names no GPU"),
		Entry("because it says nothing", NodeTimeout(time.Minute), `:`, "not understood"),
		Entry("because it says too much", NodeTimeout(time.Minute), `echo '[{"total_bytes":1}]'; head -c 1000000 /dev/zero`, "not understood"),
		Entry("because the program dies", NodeTimeout(time.Minute), `kill -9 $$`, "signal: killed"),
	)

	It("by a program that clears and is not there fails, and leaves an engine that runs", func(ctx SpecContext) {
		s := supervise(polite, func(c *supervisor.Config) { c.Clear = []string{"/nonexistent"} })
		s.starts(1)
		_, err := supervisor.Restart(ctx, s.control)
		Expect(err).To(MatchError(ContainSubstring("no such file")))
		Expect(alive(s.starts(2))).To(BeTrue())
	}, NodeTimeout(time.Minute))

	It("of an engine that cannot be started again is an error, with which the supervisor ends", func(ctx SpecContext) {
		s := supervise("", func(c *supervisor.Config) {
			program := filepath.Join(filepath.Dir(c.Control), "engine")
			Expect(os.WriteFile(program, []byte("#!/bin/sh\n"+polite+"\n"), 0o700)).To(Succeed())
			c.Command = []string{program}
		})
		s.starts(1)
		Expect(os.Remove(filepath.Join(s.dir, "engine"))).To(Succeed())
		_, err := supervisor.Restart(ctx, s.control)
		Expect(err).To(MatchError(And(ContainSubstring("start the engine"), ContainSubstring("no such file"))))
		Eventually(ctx, s.ended).Should(Receive(HaveOccurred()))
		s.ended <- nil
		Expect(s.output).To(gbytes.Say("ended: start the engine"))
	}, NodeTimeout(time.Minute))

	It("is one at a time, and goes on when who asked for it has gone", func(ctx SpecContext) {
		s := supervise(polite, clearing(`touch $DIR/clearing; until [ -e $DIR/go ]; do sleep 0.01; done; echo '[{"total_bytes":1}]'`))
		s.starts(1)
		asking, leave := context.WithCancel(ctx)
		gone := make(chan error, 1)
		go func() {
			_, err := supervisor.Restart(asking, s.control)
			gone <- err
		}()
		marker := filepath.Join(s.dir, "clearing")
		Eventually(ctx, marker).Should(BeAnExistingFile())
		_, err := supervisor.Restart(ctx, s.control)
		Expect(err).To(MatchError(ContainSubstring("being restarted already")))
		leave()
		Eventually(ctx, gone).Should(Receive(MatchError(context.Canceled)))
		_, err = supervisor.Restart(ctx, s.control)
		Expect(err).To(MatchError(ContainSubstring("being restarted already")))
		Expect(os.WriteFile(filepath.Join(s.dir, "go"), nil, 0o600)).To(Succeed())
		s.starts(2)
		Eventually(ctx, func() error {
			_, err := supervisor.Restart(ctx, s.control)
			return err
		}).Should(Succeed())
		s.starts(3)
	}, NodeTimeout(time.Minute))

	It("removes the engine's socket before each start", func(ctx SpecContext) {
		s := supervise(`test -e $DIR/engine.sock && exit 1; touch $DIR/engine.sock; `+stubborn, stoppingWithin(50*time.Millisecond),
			func(c *supervisor.Config) { c.EngineSocket = filepath.Join(filepath.Dir(c.Control), "engine.sock") })
		s.starts(1)
		_, err := supervisor.Restart(ctx, s.control)
		Expect(err).NotTo(HaveOccurred())
		s.starts(2)
		Expect(filepath.Join(s.dir, "engine.sock")).To(BeAnExistingFile())
	}, NodeTimeout(time.Minute))
})

var _ = Describe("A supervisor", func() {
	It("ends with an engine that ends by itself, of which nothing is left", func(ctx SpecContext) {
		s := supervise(`setsid sh -c 'echo $$ >> $DIR/children; while :; do sleep 0.01; done' & until [ -s $DIR/children ]; do sleep 0.01; done; echo $$ >> $DIR/started; exit 3`)
		Eventually(ctx, s.ended).Should(Receive(HaveOccurred()))
		s.ended <- nil
		Expect(s.output).To(gbytes.Say("ended: the engine has ended by itself: exit status 3"))
		Expect(s.pids("children")()).To(HaveLen(1))
		s.expectNothingLeft()
	}, NodeTimeout(time.Minute))

	It("ends with an engine that is killed, or ends without an error", func(ctx SpecContext) {
		s := supervise(polite)
		Expect(syscall.Kill(s.starts(1), syscall.SIGKILL)).To(Succeed())
		Eventually(ctx, s.ended).Should(Receive(HaveOccurred()))
		s.ended <- nil
		Expect(s.output).To(gbytes.Say("by itself: signal: killed"))
		s = supervise(`exit 0`)
		Eventually(ctx, s.ended).Should(Receive(HaveOccurred()))
		s.ended <- nil
		Expect(s.output).To(gbytes.Say("by itself: exit status 0"))
	}, NodeTimeout(time.Minute))

	It("ends when it is asked to, and the engine before it", func(ctx SpecContext) {
		s := supervise(polite)
		engine := s.starts(1)
		Expect(s.cmd.Process.Signal(syscall.SIGTERM)).To(Succeed())
		Eventually(ctx, s.ended).Should(Receive(BeNil()))
		s.ended <- nil
		Expect(alive(engine)).To(BeFalse())
		Expect(s.file("said")).To(Equal("asked\n"))
	}, NodeTimeout(time.Minute))

	It("starts no engine when it is asked to end during a restart", func(ctx SpecContext) {
		s := supervise(polite, clearing(`touch $DIR/clearing; while :; do sleep 0.01; done`))
		s.starts(1)
		restarted := make(chan error, 1)
		go func() {
			_, err := supervisor.Restart(ctx, s.control)
			restarted <- err
		}()
		marker := filepath.Join(s.dir, "clearing")
		Eventually(ctx, marker).Should(BeAnExistingFile())
		Expect(s.cmd.Process.Signal(syscall.SIGTERM)).To(Succeed())
		Eventually(ctx, restarted).Should(Receive(MatchError(ContainSubstring("supervisor ends"))))
		Eventually(ctx, s.ended).Should(Receive(HaveOccurred()))
		s.ended <- nil
		Expect(s.pids("started")()).To(HaveLen(1))
	}, NodeTimeout(time.Minute))

	It("takes the engine with it when it is killed", func(ctx SpecContext) {
		s := supervise(polite)
		engine := s.starts(1)
		Expect(s.cmd.Process.Kill()).To(Succeed())
		Eventually(ctx, alive).WithArguments(engine).Should(BeFalse())
	}, NodeTimeout(time.Minute))

	It("passes signals on that are the engine's to understand", func(ctx SpecContext) {
		s := supervise(`trap 'echo HUP >> $DIR/said' HUP; trap 'echo USR1 >> $DIR/said' USR1; ` + polite)
		s.starts(1)
		Expect(s.cmd.Process.Signal(syscall.SIGHUP)).To(Succeed())
		Eventually(ctx, s.file).WithArguments("said").Should(Equal("HUP\n"))
		Expect(s.cmd.Process.Signal(syscall.SIGUSR1)).To(Succeed())
		Eventually(ctx, s.file).WithArguments("said").Should(Equal("HUP\nUSR1\n"))
		_, err := supervisor.Restart(ctx, s.control)
		Expect(err).NotTo(HaveOccurred())
		s.starts(2)
		Expect(s.cmd.Process.Signal(syscall.SIGHUP)).To(Succeed())
		Eventually(ctx, s.file).WithArguments("said").Should(Equal("HUP\nUSR1\nasked\nHUP\n"), "the new one's, too")
	}, NodeTimeout(time.Minute))

	It("takes note of what the engine has left behind and has ended since", func(ctx SpecContext) {
		s := supervise(`sh -c '(echo $(exec sh -c "echo \$PPID") >> $DIR/children; until [ -e $DIR/go ]; do sleep 0.01; done) &'; ` + polite)
		s.starts(1)
		Eventually(ctx, s.pids("children")).Should(HaveLen(1))
		orphan := s.pids("children")()[0]
		Expect(alive(orphan)).To(BeTrue())
		Expect(os.WriteFile(filepath.Join(s.dir, "go"), nil, 0o600)).To(Succeed())
		process := filepath.Join("/proc", strconv.Itoa(orphan))
		Eventually(ctx, process).ShouldNot(BeADirectory(), "not even as a zombie")
	}, NodeTimeout(time.Minute))

	It("does nothing else that it is asked for", func(ctx SpecContext) {
		s := supervise(polite)
		s.starts(1)
		client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", s.control)
		}}}
		for _, line := range []string{"GET /restart", "PUT /restart", "POST /", "POST /restart/", "POST /stop", "GET /"} {
			method, path, _ := strings.Cut(line, " ")
			req, err := http.NewRequestWithContext(ctx, method, "http://supervisor"+path, nil)
			Expect(err).NotTo(HaveOccurred())
			resp, err := client.Do(req)
			Expect(err).NotTo(HaveOccurred())
			Expect(resp.Body.Close()).To(Succeed())
			Expect(resp.StatusCode).To(BeElementOf(http.StatusNotFound, http.StatusMethodNotAllowed), line)
		}
		Expect(s.pids("started")()).To(HaveLen(1))
	}, NodeTimeout(time.Minute))

	It("replaces a socket that an earlier one has left, which is its user's alone", func() {
		s := supervise(polite, func(c *supervisor.Config) {
			Expect(os.WriteFile(c.Control, nil, 0o666)).To(Succeed())
		})
		s.starts(1)
		info, err := os.Stat(s.control)
		Expect(err).NotTo(HaveOccurred())
		Expect(info.Mode()).To(Equal(os.ModeSocket | 0o600))
	})

	DescribeTable("does not start", func(ctx SpecContext, change func(*supervisor.Config), because string) {
		s := supervise(polite, change)
		Eventually(ctx, s.ended).Should(Receive(HaveOccurred()))
		s.ended <- nil
		Expect(s.output).To(gbytes.Say(because))
	},
		Entry("without a command", NodeTimeout(time.Minute), func(c *supervisor.Config) { c.Command = nil }, "needs a command"),
		Entry("without a control socket", NodeTimeout(time.Minute), func(c *supervisor.Config) { c.Control = "" }, "and a control socket"),
		Entry("where there is no room for one", NodeTimeout(time.Minute), func(c *supervisor.Config) { c.Control = "/nonexistent/c.sock" }, "control socket"),
		Entry("a program that is not there", NodeTimeout(time.Minute), func(c *supervisor.Config) { c.Command = []string{"/nonexistent"} }, "start the engine"),
	)
})

var _ = Describe("Who asks for a restart", func() {
	answering := func(status int, body string) string {
		GinkgoHelper()
		dir, err := os.MkdirTemp("", "mrgc")
		Expect(err).NotTo(HaveOccurred())
		DeferCleanup(os.RemoveAll, dir)
		control := filepath.Join(dir, "c.sock")
		l, err := net.Listen("unix", control)
		Expect(err).NotTo(HaveOccurred())
		server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(status)
			_, _ = w.Write([]byte(body))
		})}
		go func() { _ = server.Serve(l) }()
		DeferCleanup(server.Close)
		return control
	}
	DescribeTable("takes no other answer for one", func(ctx SpecContext, status int, body, because string) {
		_, err := supervisor.Restart(ctx, answering(status, body))
		Expect(err).To(MatchError(And(ContainSubstring(because), Not(ContainSubstring("secret")))))
	},
		Entry("that is no JSON", NodeTimeout(time.Minute), 200, "secret", "not understood"),
		Entry("that says it failed", NodeTimeout(time.Minute), 500, `{"error":{"message":"it failed","code":"x"}}`, "engine supervisor: it failed"),
		Entry("of somebody else", NodeTimeout(time.Minute), 404, "secret", "status 404"),
		Entry("that does not end", NodeTimeout(time.Minute), 200, strings.Repeat(" ", 1<<20), "too large"),
	)

	It("is told where nobody listens", func(ctx SpecContext) {
		_, err := supervisor.Restart(ctx, "/nonexistent/c.sock")
		Expect(err).To(MatchError(ContainSubstring("engine supervisor: dial unix /nonexistent/c.sock")))
	})
})
