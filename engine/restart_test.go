package engine_test

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"

	"github.com/mrgc/mrgc/engine"
	"github.com/mrgc/mrgc/engine/supervisor"
	"github.com/mrgc/mrgc/internal/api"
)

// What the test binary is, by its first argument, beside the test: a supervisor needs a
// process of its own, and what it runs is one.
const (
	asSupervisor = "as=supervisor" // of a configuration, its second argument
	asEngine     = "as=engine"     // the simulator, at the socket of its second argument
)

func TestMain(m *testing.M) {
	if len(os.Args) == 3 && strings.HasPrefix(os.Args[1], "as=") {
		ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
		defer stop()
		if err := playAs(ctx, os.Args[1], os.Args[2]); err != nil {
			fmt.Fprintln(os.Stderr, os.Args[1], err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

func playAs(ctx context.Context, as, what string) error {
	if as == asEngine {
		return engine.Run(ctx, engine.Config{Kind: engine.Sim, Profile: engineProfile, Socket: what, Model: "m"}, func() {})
	}
	var config supervisor.Config
	if err := json.Unmarshal([]byte(what), &config); err != nil {
		return err
	}
	return supervisor.Run(ctx, config)
}

// supervised is a simulator with a supervisor, and a place for a guard of them.
type supervised struct {
	socket, control string
}

func supervise(ctx context.Context, change func(*supervisor.Config)) supervised {
	GinkgoHelper()
	dir := shortDir()
	s := supervised{socket: filepath.Join(dir, "e.sock"), control: filepath.Join(dir, "c.sock")}
	config := supervisor.Config{Command: []string{os.Args[0], asEngine, s.socket}, Control: s.control, StopTimeout: 5 * time.Second}
	if change != nil {
		change(&config)
	}
	text, err := json.Marshal(config)
	Expect(err).NotTo(HaveOccurred())
	cmd := exec.Command(os.Args[0], asSupervisor, string(text))
	cmd.Stdout, cmd.Stderr, cmd.WaitDelay = GinkgoWriter, GinkgoWriter, 5*time.Second
	Expect(cmd.Start()).To(Succeed())
	DeferCleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		_ = cmd.Wait()
	})
	Eventually(ctx, func() error {
		conn, err := net.Dial("unix", s.socket)
		if err == nil {
			_ = conn.Close()
		}
		return err
	}).WithTimeout(20 * time.Second).Should(Succeed())
	return s
}

// guard is one whose every caller is the parent.
func (s supervised) guard(change ...func(*engine.GuardConfig)) *engine.Guard {
	GinkgoHelper()
	config := engine.GuardConfig{
		Upstream: "unix:" + s.socket, Cache: api.CacheSalt, Control: "unix:" + s.control, ReadyTimeout: 20 * time.Second,
		Role: func(*http.Request) engine.Role { return engine.RoleParent },
	}
	for _, c := range change {
		c(&config)
	}
	g, err := engine.NewGuard(config)
	Expect(err).NotTo(HaveOccurred())
	g.PlantWithoutPause()
	return g
}

// answeringRestart is a supervisor that does nothing but say something.
func answeringRestart(body string) (control string) {
	GinkgoHelper()
	control = filepath.Join(shortDir(), "c.sock")
	l, err := net.Listen("unix", control)
	Expect(err).NotTo(HaveOccurred())
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, body) })}
	go func() { _ = server.Serve(l) }()
	DeferCleanup(server.Close)
	return control
}

const saysRestarted = `{"stopped_ns":1000000,"started_ns":1000000}`

var _ = Describe("A restart of the engine", func() {
	It("makes it forget, and is not taken for one that overwrites a GPU's memory", func(ctx SpecContext) {
		g := supervise(ctx, nil).guard()
		_, why := step(ctx, g, api.PathWashPlant)
		Expect(why).To(BeEmpty())
		_, why = step(ctx, g, api.PathWashCheck)
		Expect(why).To(ContainSubstring("still there"))
		detail, why := step(ctx, g, api.PathWashRestart)
		Expect(why).To(BeEmpty())
		Expect(detail).To(MatchRegexp(`^engine stopped in \d+\.\d s, no GPU memory was overwritten, answered again after \d+\.\d s$`))
		_, why = step(ctx, g, api.PathWashCheck)
		Expect(why).To(BeEmpty())

		By("and again, with the same guard")
		expectWashed(ctx, g, `^reset_prefix_cache: `)
		_, why = step(ctx, g, api.PathWashRestart)
		Expect(why).To(BeEmpty())
	}, NodeTimeout(time.Minute))

	It("says what was overwritten meanwhile, of each GPU", func(ctx SpecContext) {
		g := supervise(ctx, func(c *supervisor.Config) {
			c.Clear = []string{"/bin/echo", `[{"total_bytes":85899345920,"cleared_bytes":84825604096,"took_ns":20000000000},{"total_bytes":85899345920,"cleared_bytes":85899345920,"dirty_bytes":4096,"took_ns":21460000000}]`}
		}).guard()
		detail, why := step(ctx, g, api.PathWashRestart)
		Expect(why).To(BeEmpty())
		Expect(detail).To(MatchRegexp(`^engine stopped in \S+ s, 79\.0 of 80\.0 GiB of GPU 0 overwritten and read back as zeros in 20\.0 s \(0 bytes were not zero\), ` +
			`80\.0 of 80\.0 GiB of GPU 1 overwritten and read back as zeros in 21\.5 s \(4096 bytes were not zero\), answered again after \S+ s$`))
	}, NodeTimeout(time.Minute))

	It("that fails is an error, and the engine answers again", func(ctx SpecContext) {
		s := supervise(ctx, func(c *supervisor.Config) { c.Clear = []string{"/bin/sh", "-c", "echo GPU 0 is busy >&2; exit 1"} })
		g := s.guard()
		_, why := step(ctx, g, api.PathWashPlant)
		Expect(why).To(BeEmpty())
		_, why = step(ctx, g, api.PathWashRestart)
		Expect(why).To(And(ContainSubstring("GPU memory was not cleared"), ContainSubstring("GPU 0 is busy")))
		Eventually(ctx, func() string { _, why := step(ctx, g, api.PathWashPlant); return why }).WithTimeout(20 * time.Second).Should(BeEmpty())
	}, NodeTimeout(time.Minute))

	DescribeTable("is caught when it is broken", func(ctx SpecContext, change func(*engine.GuardConfig, supervised), because string) {
		s := supervise(ctx, nil)
		g := s.guard(func(c *engine.GuardConfig) { change(c, s) })
		_, why := step(ctx, g, api.PathWashRestart)
		Expect(why).To(ContainSubstring(because))
	},
		Entry("a guard that knows no supervisor", NodeTimeout(time.Minute), func(c *engine.GuardConfig, _ supervised) { c.Control = "" }, "its guard has no --engine-control"),
		Entry("a supervisor that is not there", NodeTimeout(time.Minute), func(c *engine.GuardConfig, s supervised) { c.Control = "unix:" + s.control + "x" }, "engine supervisor: dial"),
		Entry("one that is none", NodeTimeout(time.Minute), func(c *engine.GuardConfig, s supervised) { c.Control = "unix:" + s.socket }, "status 404"),
		Entry("an engine that does not answer afterwards", NodeTimeout(time.Minute), func(c *engine.GuardConfig, s supervised) {
			c.Upstream, c.ReadyTimeout = "unix:"+s.socket+"x", 300*time.Millisecond
		}, "does not answer within 300ms"),
	)

	DescribeTable("that is only said to have been is caught by the canary", func(ctx SpecContext, name string) {
		config := engine.Config{Socket: filepath.Join(shortDir(), "e.sock"), Model: "m"}
		kind := engines[name](&config)
		startEngine(config)
		g := supervised{socket: config.Socket, control: answeringRestart(saysRestarted)}.guard(func(c *engine.GuardConfig) { c.Cache, c.Slots = kind, 2 })
		_, why := step(ctx, g, api.PathWashPlant)
		Expect(why).To(BeEmpty())
		_, why = step(ctx, g, api.PathWashRestart)
		Expect(why).To(BeEmpty())
		_, why = step(ctx, g, api.PathWashCheck)
		Expect(why).To(ContainSubstring("still there"))
	},
		Entry("with salts", NodeTimeout(time.Minute), "the simulator"),
		Entry("with slots", NodeTimeout(2*time.Minute), Label("model"), "llama.cpp"),
	)

	It("of an engine with slots has them counted again, and reused under their salts alone", func(ctx SpecContext) {
		var fewer atomic.Bool
		llama := fakeLlama{slots: 2}
		g := newGuardedBy(func(w http.ResponseWriter, r *http.Request) {
			switch {
			case r.URL.Path == "/props" && fewer.Load():
				_, _ = io.WriteString(w, `{"total_slots":1}`)
			case r.URL.Path == "/v1/models":
				_, _ = io.WriteString(w, `{"data":[{"id":"m"}]}`)
			default:
				llama.ServeHTTP(w, r)
			}
		}, engine.GuardConfig{Cache: api.CacheSlots, Slots: 2, Control: "unix:" + answeringRestart(saysRestarted)})
		restart := func() {
			GinkgoHelper()
			resp, err := g.do(ctx, parentID, 1, "POST", api.PathWashRestart, nil)
			Expect(err).NotTo(HaveOccurred())
			Expect(resp).To(HaveHTTPStatus(http.StatusOK))
		}
		last := func() string { all := llama.asked(); return all[len(all)-1] }
		const body = `{"model":"m","messages":[]}`
		g.expectUnder(ctx, "a", body, http.StatusOK)
		restart()
		g.expectUnder(ctx, "b", body, http.StatusOK)
		Expect(last()).To(ContainSubstring(`"cache_prompt":false`))
		g.expectUnder(ctx, "a", body, http.StatusOK)
		Expect(last()).To(ContainSubstring(`"cache_prompt":true`), "which finds nothing in a fresh slot")
		fewer.Store(true)
		g.expectUnder(ctx, "a", body, http.StatusOK)
		restart()
		g.expectUnder(ctx, "a", body, http.StatusServiceUnavailable)
	}, NodeTimeout(time.Minute))

	It("leaves requests with an answer: what is under way is cut, and what comes meanwhile may be tried elsewhere", func(ctx SpecContext) {
		s := supervise(ctx, func(c *supervisor.Config) {
			c.Clear = []string{"/bin/sh", "-c", `touch "$0.clearing"; until [ -e "$0.go" ]; do sleep 0.01; done; echo '[{"total_bytes":1}]'`, c.Control}
		})
		g := newGuardedBy(nil, engine.GuardConfig{Upstream: "unix:" + s.socket, Cache: api.CacheSalt, Control: "unix:" + s.control})
		const long = `{"model":"m","max_tokens":2000,"stream":true,"messages":[{"role":"user","content":"hello"}]}`
		running, err := g.under(ctx, "a", long)
		Expect(err).NotTo(HaveOccurred())
		Expect(running).To(HaveHTTPStatus(http.StatusOK))
		restarted := make(chan int, 1)
		go func() {
			defer GinkgoRecover()
			resp, err := g.do(ctx, parentID, 1, "POST", api.PathWashRestart, nil)
			Expect(err).NotTo(HaveOccurred())
			restarted <- resp.StatusCode
		}()
		Eventually(ctx, s.control+".clearing").WithTimeout(20 * time.Second).Should(BeAnExistingFile())
		_, err = io.ReadAll(running.Body)
		Expect(err).To(HaveOccurred(), "half an answer does not look whole")
		resp := g.expectUnder(ctx, "a", `{"model":"m","max_tokens":1,"messages":[]}`, http.StatusServiceUnavailable)
		Expect(resp.Header.Get(api.HeaderNotRun)).To(Equal("1"))
		Expect(resp.Header.Get("Retry-After")).To(Equal("1"))
		Expect(os.WriteFile(s.control+".go", nil, 0o600)).To(Succeed())
		Eventually(ctx, restarted).WithTimeout(20 * time.Second).Should(Receive(Equal(http.StatusOK)))
		g.expectUnder(ctx, "a", `{"model":"m","max_tokens":1,"messages":[]}`, http.StatusOK)
	}, NodeTimeout(time.Minute))

	It("needs a control socket, if it is configured", func() {
		for _, control := range []string{"/run/c.sock", "unix:", "http://127.0.0.1:1"} {
			_, err := engine.NewGuard(engine.GuardConfig{Upstream: "unix:/x", Control: control, Role: roleByURI})
			Expect(err).To(MatchError(ContainSubstring("control socket")))
		}
	})
})
