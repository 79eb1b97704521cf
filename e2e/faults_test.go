package e2e_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"

	"github.com/mrgc/mrgc/internal/api"
	"github.com/mrgc/mrgc/internal/credential"
)

// toldEngine is an OpenAI-compatible engine that does as it is told. All
// instances share it.
type toldEngine struct {
	server *httptest.Server
	answer atomic.Pointer[http.HandlerFunc]
	hangs  atomic.Bool // answers no question about its health
}

func newToldEngine() *toldEngine {
	e := &toldEngine{}
	e.says(`{"object":"chat.completion"}`)
	e.server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodPost {
			(*e.answer.Load())(w, r)
		} else if e.hangs.Load() {
			<-r.Context().Done()
		}
	}))
	DeferCleanup(e.server.Close)
	return e
}

func (e *toldEngine) does(handler http.HandlerFunc) { e.answer.Store(&handler) }

func (e *toldEngine) says(body string) {
	e.does(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		w.Header().Set("Content-Type", "application/json")
		_, _ = io.WriteString(w, body)
	})
}

// requests are sent one after the other until stop is called.
type requests struct {
	cancel context.CancelFunc
	done   sync.WaitGroup

	mu   sync.Mutex
	sent []request // guarded by mu: in the order in which they ended
}

// request is one that has been answered, or never will be.
type request struct {
	ended   time.Time
	took    time.Duration
	failure string // empty: it was answered well
}

// send keeps some tenants asking, as fast as they are answered but for a pause.
func (c *cluster) send(tenants int) *requests { return c.sendBy(tenants, c.base()) }

// sendBy is send by a client of one's own.
func (c *cluster) sendBy(tenants int, base string) *requests {
	ctx, cancel := context.WithCancel(context.Background())
	r := &requests{cancel: cancel}
	for range tenants {
		r.done.Go(func() {
			pause := time.NewTicker(20 * time.Millisecond)
			defer pause.Stop()
			for ctx.Err() == nil {
				began := time.Now()
				status, body, err := c.tryChat(ctx, http.DefaultClient, base, "are you there?", 1)
				if ctx.Err() == nil {
					r.note(began, status, body, err)
				}
				select {
				case <-pause.C:
				case <-ctx.Done():
				}
			}
		})
	}
	return r
}

func (r *requests) note(began time.Time, status int, body string, err error) {
	one := request{ended: time.Now(), took: time.Since(began)}
	if err != nil || status != http.StatusOK {
		one.failure = fmt.Sprintf("status %d, error %v: %s", status, err, body)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.sent = append(r.sent, one)
}

func (r *requests) count() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.sent)
}

// stop ends the sending and gives what was sent.
func (r *requests) stop() []request {
	r.cancel()
	r.done.Wait()
	return r.sent
}

// during sends requests while a fault happens and for some 100 requests after,
// records what it cost, and gives the failures.
func (c *cluster) during(name string, fault func()) (failures []string) {
	GinkgoHelper()
	r := c.send(2)
	DeferCleanup(r.cancel)
	Eventually(r.count, "10s").Should(BeNumerically(">", 20))
	began := time.Now()
	fault()
	after := r.count()
	Eventually(r.count, "60s").Should(BeNumerically(">", after+100))
	sent := r.stop()
	var slowest, recovery time.Duration
	for _, one := range sent {
		if one.failure != "" {
			failures = append(failures, one.failure)
			recovery = one.ended.Sub(began)
		}
		if one.ended.After(began) {
			slowest = max(slowest, one.took)
		}
	}
	reportFault("%s: %d of %d requests failed, the last after %s, slowest answer %s", name, len(failures), len(sent),
		recovery.Round(time.Millisecond), slowest.Round(time.Millisecond))
	return failures
}

// reportFault says what a fault cost, for docs/faults.md.
func reportFault(format string, args ...any) {
	AddReportEntry("fault", fmt.Sprintf(format, args...))
}

func since(began time.Time) time.Duration { return time.Since(began).Round(time.Millisecond) }

// signal sends a signal to children whose names begin with prefix, and says how
// to undo it.
func (c *cluster) signal(prefix string, sig syscall.Signal) {
	GinkgoHelper()
	found := false
	for name, pid := range c.pids() {
		if strings.HasPrefix(name, prefix) {
			Expect(syscall.Kill(pid, sig)).To(Succeed(), name)
			found = true
		}
	}
	Expect(found).To(BeTrue(), prefix)
}

var _ = Describe("A fault", func() {
	var (
		engine *toldEngine
		c      *cluster
	)
	BeforeEach(func() {
		engine = newToldEngine()
		c = startCluster("--regions", "use1", "--instances", "2", "--engine-url", engine.server.URL, "--model-name", "told", "--ask=false")
	})

	It("costs no request when the picker hangs", func(ctx SpecContext) {
		Expect(c.during("router stopped (SIGSTOP)", func() {
			c.signal("router-", syscall.SIGSTOP)
			DeferCleanup(func() { c.signal("router-", syscall.SIGCONT) })
		})).To(BeEmpty())
		By("tenants who have no recipients yet getting them from an instance")
		Expect(c.keys(ctx)).To(ContainSubstring(`"attestation"`))
		c.signal("router-", syscall.SIGCONT)
		By("requests whose pick came too late not counting for ever")
		Eventually(func() []string {
			return regexp.MustCompile(`mrgc_in_flight\{.*\} \S+`).FindAllString(c.routers(ctx, "/metrics"), -1)
		}, "20s").Should(HaveEach(HaveSuffix(" 0")))
	})

	It("costs no request when the picker hangs for a quarter of an hour", func(ctx SpecContext) {
		if os.Getenv("MRGC_TEST_LONG") == "" {
			Skip("takes a quarter of an hour: make test-long")
		}
		Expect(c.during("router stopped for 15 minutes", func() {
			c.signal("router-", syscall.SIGSTOP)
			DeferCleanup(func() { c.signal("router-", syscall.SIGCONT) })
			Consistently(func() string { return c.keys(ctx) }, 15*time.Minute, 15*time.Second).Should(ContainSubstring(`"attestation"`))
			c.signal("router-", syscall.SIGCONT)
		})).To(BeEmpty())
		Eventually(func() string { return c.routers(ctx, "/envoys") }, "30s").Should(ContainSubstring(`"synced": true`))
	})

	It("costs no request when the router is killed, and again when it is back", func() {
		Expect(c.during("router killed", func() {
			before := c.pids()["router-use1"]
			c.signal("router-", syscall.SIGKILL)
			Eventually(func() int { return c.pids()["router-use1"] }, "20s").Should(And(Not(Equal(before)), Not(BeZero())))
		})).To(BeEmpty())
	})

	It("costs no request when one of two routers hangs, of which the other takes its place", func(ctx SpecContext) {
		local := c.pids()["router-use1"]
		Expect(local).NotTo(BeZero())
		DeferCleanup(func() { _ = syscall.Kill(local, syscall.SIGCONT) })
		Expect(c.during("one router of two stopped (SIGSTOP)", func() {
			Expect(syscall.Kill(local, syscall.SIGSTOP)).To(Succeed())
		})).To(BeEmpty())
		Expect(syscall.Kill(local, syscall.SIGCONT)).To(Succeed())
		Eventually(func() string { return get(ctx, c.env()["MRGC_ADMIN_USE1"]+"/peers") }, "10s").Should(ContainSubstring(`"connected"`))
	})

	It("costs no request when one of two routers is killed", func() {
		Expect(c.during("one router of two killed", func() {
			before := c.pids()["router-use1"]
			Expect(syscall.Kill(before, syscall.SIGKILL)).To(Succeed())
			Eventually(func() int { return c.pids()["router-use1"] }, "20s").Should(And(Not(Equal(before)), Not(BeZero())))
		})).To(BeEmpty())
	})

	It("costs no request when the store is gone", func() {
		Expect(c.during("store gone", func() {
			for _, suffix := range []string{"", "-wal", "-shm"} {
				err := os.Remove(filepath.Join(c.stateDir, "state.db"+suffix))
				Expect(err == nil || errors.Is(err, os.ErrNotExist)).To(BeTrue())
			}
		})).To(BeEmpty())
	})

	It("costs no request when an instance is killed", func() {
		Expect(c.during("parent killed", func() { c.signal("parent-use1-0", syscall.SIGKILL) })).To(BeEmpty())
	})

	It("costs no request when an enclave is killed: its keys are gone, and others are found", func() {
		Expect(c.during("enclave killed", func() { c.signal("enclave-use1-0", syscall.SIGKILL) })).To(BeEmpty())
	})

	DescribeTable("moves a request that has no byte of an answer yet", func(ctx SpecContext, dies string) {
		arrived := make(chan struct{}, 8)
		leave := make(chan struct{})
		var asked atomic.Int64
		engine.does(func(w http.ResponseWriter, r *http.Request) {
			_, _ = io.Copy(io.Discard, r.Body)
			if asked.Add(1) == 1 { // the first waits, for what happens to its instance
				arrived <- struct{}{}
				select {
				case <-leave:
				case <-r.Context().Done():
				}
				return
			}
			w.Header().Set("Content-Type", "application/json")
			_, _ = io.WriteString(w, `{"moved":true}`)
		})
		DeferCleanup(func() { close(leave) })
		answers := make(chan string, 1)
		go func() {
			status, body, err := c.tryChat(ctx, http.DefaultClient, c.base(), "wait for it", 1)
			answers <- fmt.Sprint(status, " ", strings.TrimSpace(body), " ", err)
		}()
		Eventually(ctx, arrived).Should(Receive())
		instance := c.serving(ctx)
		began := time.Now()
		c.signal(dies+instance, syscall.SIGKILL)
		Eventually(ctx, answers).Should(Receive(Equal(`200 {"moved":true} <nil>`)))
		reportFault("%s killed before the first byte: answered from elsewhere after %s", strings.TrimSuffix(dies, "-"), since(began))
	},
		Entry("when its parent dies", NodeTimeout(30*time.Second), "parent-"),
		Entry("when its enclave dies", NodeTimeout(30*time.Second), "enclave-"),
	)

	It("ends a stream with an error, never as a short answer", func(ctx SpecContext) {
		streaming := make(chan struct{})
		engine.does(func(w http.ResponseWriter, r *http.Request) {
			_, _ = io.Copy(io.Discard, r.Body)
			w.Header().Set("Content-Type", "text/event-stream")
			_, _ = io.WriteString(w, "data: {\"choices\":[]}\n\n")
			_ = http.NewResponseController(w).Flush()
			<-r.Context().Done()
		})
		type answer struct {
			body string
			err  error
		}
		answers := make(chan answer, 1)
		go func() {
			body, err := c.stream(ctx, "tell me a story", func() { close(streaming) })
			answers <- answer{body, err}
		}()
		Eventually(ctx, streaming).Should(BeClosed(), "the tenant has the first event")
		began := time.Now()
		c.signal("enclave-", syscall.SIGKILL)
		var got answer
		Eventually(ctx, answers).Should(Receive(&got))
		reportFault("enclave killed within a stream: the tenant has an error after %s", since(began))
		Expect(got.err).To(MatchError(io.ErrUnexpectedEOF))
		Expect(got.body).To(And(ContainSubstring(`"choices"`), ContainSubstring("answer_cut"), Not(ContainSubstring("[DONE]"))))
	}, NodeTimeout(30*time.Second))

	It("stops the engine when the tenant has gone", func(ctx SpecContext) {
		generating, stopped := make(chan struct{}), make(chan struct{})
		engine.does(func(_ http.ResponseWriter, r *http.Request) {
			_, _ = io.Copy(io.Discard, r.Body)
			close(generating)
			<-r.Context().Done()
			close(stopped)
		})
		gone, leave := context.WithCancel(ctx)
		go func() { _, _, _ = c.tryChat(gone, http.DefaultClient, c.base(), "never mind", 1) }()
		Eventually(ctx, generating).Should(BeClosed())
		began := time.Now()
		leave()
		Eventually(ctx, stopped).Should(BeClosed())
		reportFault("tenant gone: the engine's request is cancelled after %s", since(began))
	}, NodeTimeout(30*time.Second))

	It("is an error with a reason while the engine is away, and over when it is back", func(ctx SpecContext) {
		engine.does(func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) })
		status, body := c.chat(ctx, http.DefaultClient, c.base(), "hello?")
		Expect(status).To(Or(Equal(http.StatusBadGateway), Equal(http.StatusServiceUnavailable)), body)
		Expect(body).To(ContainSubstring(`"engine_`))
		engine.says(`{}`)
		began := time.Now()
		status, body = c.chat(ctx, http.DefaultClient, c.base(), "hello!")
		Expect(status).To(Equal(http.StatusOK), body)
		reportFault("engine back: answered after %s", since(began))
	}, NodeTimeout(30*time.Second))

	It("is a 503 while the engine hangs, not a wait, and over when it does not", func(ctx SpecContext) {
		began := time.Now()
		engine.hangs.Store(true)
		Expect(c.eventuallyAsked(ctx, http.StatusServiceUnavailable)).To(ContainSubstring("no_instance_ready"))
		reportFault("engine hangs: 503 after %s", since(began))
		began = time.Now()
		engine.hangs.Store(false)
		c.eventuallyAsked(ctx, http.StatusOK)
		reportFault("engine hangs no more: answered after %s", since(began))
	}, NodeTimeout(60*time.Second))
})

var _ = Describe("A fault of an engine", func() {
	It("costs nothing but answers that had begun: others of the request's recipients are asked", func() {
		c := startCluster("--regions", "use1", "--instances", "2", "--engine", "sim", "--ask=false")
		failures := c.during("engine killed", func() {
			before := c.pids()["engine-0"]
			c.signal("engine-0", syscall.SIGKILL)
			Eventually(func() int { return c.pids()["engine-0"] }, "20s").Should(And(Not(Equal(before)), Not(BeZero())))
		})
		// Two tenants ask one after the other, so that an answer each can have begun. While
		// the engine is away the instance is sent some ten requests.
		Expect(len(failures)).To(BeNumerically("<=", 2), "%v", failures)
		Expect(c.during("engine back", func() {})).To(BeEmpty())
	})
})

// eventuallyAsked sends requests until one gets the status.
func (c *cluster) eventuallyAsked(ctx context.Context, status int) (body string) {
	GinkgoHelper()
	Eventually(ctx, func() int {
		var got int
		got, body = c.chat(ctx, http.DefaultClient, c.base(), "hello?")
		return got
	}).Should(Equal(status))
	return body
}

// keys asks Envoy for recipients, as a tenant does who has none.
func (c *cluster) keys(ctx context.Context) string {
	GinkgoHelper()
	key, err := credential.Parse(c.env()["OPENAI_API_KEY"])
	Expect(err).NotTo(HaveOccurred())
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, c.envoys()["use1"]+api.PathKeys+"?model="+c.env()["MRGC_MODEL"], nil)
	Expect(err).NotTo(HaveOccurred())
	req.Header.Set(api.HeaderTenant, key.Tenant())
	req.Header.Set("Authorization", "Bearer "+string(key.EdgeToken()))
	resp, err := (&http.Client{Transport: &http.Transport{TLSClientConfig: c.tls()}}).Do(req)
	Expect(err).NotTo(HaveOccurred())
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	Expect(err).NotTo(HaveOccurred())
	return string(body)
}

// routers is a page of both of a region's routers.
func (c *cluster) routers(ctx context.Context, page string) string {
	GinkgoHelper()
	env := c.env()
	return get(ctx, env["MRGC_ADMIN_USE1"]+page) + get(ctx, env["MRGC_ADMIN_USE1_1"]+page)
}

var inFlight = regexp.MustCompile(`(?m)^mrgc_in_flight\{instance="([^"]+)".* 1$`)

// serving names the one instance that has a request.
func (c *cluster) serving(ctx context.Context) string {
	GinkgoHelper()
	found := inFlight.FindAllStringSubmatch(get(ctx, c.env()["MRGC_ADMIN_USE1"]+"/metrics"), -1)
	Expect(found).To(HaveLen(1))
	return found[0][1]
}

// stream sends a streamed chat completion and reads all that comes. Begun is called
// when the first of it has.
func (c *cluster) stream(ctx context.Context, text string, begun func()) (string, error) {
	payload := fmt.Sprintf(`{"model":%q,"stream":true,"messages":[{"role":"user","content":%q}]}`, c.env()["MRGC_MODEL"], text)
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, c.base()+"/v1/chat/completions", strings.NewReader(payload))
	if err != nil {
		return "", err
	}
	req.Header.Set("Authorization", "Bearer "+c.env()["OPENAI_API_KEY"])
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	first := make([]byte, 1)
	if _, err := io.ReadFull(resp.Body, first); err != nil {
		return "", err
	}
	begun()
	rest, err := io.ReadAll(resp.Body)
	return string(first) + string(rest), err
}
