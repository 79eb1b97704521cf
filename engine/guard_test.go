package engine_test

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	"github.com/onsi/gomega/gleak"

	"github.com/mrgc/mrgc/engine"
	"github.com/mrgc/mrgc/internal/api"
)

const chat = "/v1/chat/completions"

// logs is what a guard has logged.
type logs struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (l *logs) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

func (l *logs) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

// guarded is a guard before a fake engine.
type guarded struct {
	ca      *authority
	address string
	logs    *logs
}

// shortDir is a folder whose path leaves room for a socket's name.
func shortDir() string {
	dir, err := os.MkdirTemp("", "mrgc")
	Expect(err).NotTo(HaveOccurred())
	DeferCleanup(os.RemoveAll, dir)
	return dir
}

// newGuarded guards a fake engine on a Unix socket; nil stands for none.
func newGuarded(upstream http.HandlerFunc, maxBody int64) *guarded {
	return newGuardedBy(upstream, engine.GuardConfig{MaxBodyBytes: maxBody})
}

// newGuardedBy has a guard of a configuration, which it completes.
func newGuardedBy(upstream http.HandlerFunc, config engine.GuardConfig) *guarded {
	DeferCleanup(func(before []gleak.Goroutine) {
		Eventually(gleak.Goroutines).WithTimeout(5 * time.Second).ShouldNot(gleak.HaveLeaked(before))
	}, gleak.Goroutines())
	socket := filepath.Join(shortDir(), "e.sock")
	if upstream != nil {
		server := httptest.NewUnstartedServer(upstream)
		server.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)
		l, err := net.Listen("unix", socket)
		Expect(err).NotTo(HaveOccurred())
		Expect(server.Listener.Close()).To(Succeed())
		server.Listener = l
		server.Start()
		DeferCleanup(server.Close)
	}
	g := &guarded{ca: newAuthority(), logs: &logs{}}
	config.Upstream = cmp.Or(config.Upstream, "unix:"+socket)
	config.TLS, config.Role, config.ShutdownGrace = g.ca.server(), roleByURI, 100*time.Millisecond
	config.Logger = slog.New(slog.NewTextHandler(g.logs, &slog.HandlerOptions{Level: slog.LevelDebug}))
	guard, err := engine.NewGuard(config)
	Expect(err).NotTo(HaveOccurred())
	l, err := net.Listen("tcp", "127.0.0.1:0")
	Expect(err).NotTo(HaveOccurred())
	g.address = l.Addr().String()
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- guard.Serve(ctx, l) }()
	DeferCleanup(func() {
		cancel()
		Eventually(ended).WithTimeout(5 * time.Second).Should(Receive(BeNil()))
	})
	return g
}

// do sends a request as id over HTTP/1.1 or HTTP/2.
func (g *guarded) do(ctx context.Context, id string, major int, method, path string, body io.Reader, header ...string) (*http.Response, error) {
	transport := &http.Transport{TLSClientConfig: g.ca.client(id), ForceAttemptHTTP2: major == 2, DisableCompression: true}
	DeferCleanup(transport.CloseIdleConnections)
	req, err := http.NewRequestWithContext(ctx, method, "https://"+g.address+path, body)
	Expect(err).NotTo(HaveOccurred())
	for i := 0; i < len(header); i += 2 {
		req.Header.Add(header[i], header[i+1])
	}
	resp, err := transport.RoundTrip(req)
	if err == nil {
		DeferCleanup(resp.Body.Close)
		Expect(resp.ProtoMajor).To(Equal(major))
	}
	return resp, err
}

// raw sends a request line as it is and gives the status.
func (g *guarded) raw(id, line string) int {
	conn, err := tls.Dial("tcp", g.address, g.ca.client(id))
	Expect(err).NotTo(HaveOccurred())
	defer func() { _ = conn.Close() }()
	_, err = fmt.Fprintf(conn, "%s HTTP/1.1\r\nHost: guard\r\nConnection: close\r\nContent-Length: 0\r\n\r\n", line)
	Expect(err).NotTo(HaveOccurred())
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	Expect(err).NotTo(HaveOccurred())
	defer func() { _ = resp.Body.Close() }()
	return resp.StatusCode
}

func both(name string) []TableEntry {
	return []TableEntry{Entry(name+" over HTTP/1.1", 1), Entry(name+" over HTTP/2", 2)}
}

var _ = Describe("Guard: who may ask for what", func() {
	It("follows the list, byte for byte", func() {
		var mu sync.Mutex
		var reached []string
		g := newGuarded(func(_ http.ResponseWriter, r *http.Request) {
			mu.Lock()
			defer mu.Unlock()
			reached = append(reached, r.Method+" "+r.RequestURI)
		}, 0)
		allowed := map[string][]string{
			enclaveID: {"POST " + chat, "POST /v1/completions", "GET /v1/models", "GET /health"},
			parentID:  {"GET /health", "GET /metrics"},
			otherID:   {},
		}
		lines := []string{
			"POST " + chat, "POST /v1/completions", "GET /v1/models", "GET /health", "GET /metrics", // the list
			"GET /", "GET " + chat, "HEAD /health", "POST /health", "PUT /v1/completions", "OPTIONS " + chat, "DELETE /v1/models",
			"GET /slots", "POST /slots/0?action=erase", "POST /tokenize", "POST /v1/embeddings", "GET /props", "POST /reset_prefix_cache", "POST /collective_rpc",
			"GET /health?x=1", "GET /health?", "GET /health/", "GET //health", "GET /HEALTH", "GET /health%20", "GET /%68ealth", "GET /health;x", "GET http://engine/health",
			"GET /v1%2Fmodels", "GET /v1/../metrics", "GET /health/../slots", "GET /v1/./models", "POST /v1/chat%2fcompletions", "POST /v1/chat/completions%00",
		}
		for id, list := range allowed {
			reached = nil
			for _, line := range lines {
				want := http.StatusForbidden
				for _, ok := range list {
					if line == ok {
						want = http.StatusOK
					}
				}
				Expect(g.raw(id, line)).To(Equal(want), "%s as %s", line, id)
			}
			Expect(reached).To(ConsistOf(list), "what came through for %s", id)
		}
	})

	DescribeTable("refuses in OpenAI's shape", func(ctx SpecContext, major int) {
		g := newGuarded(func(http.ResponseWriter, *http.Request) {}, 0)
		resp, err := g.do(ctx, parentID, major, "POST", chat, strings.NewReader("{}"))
		Expect(err).NotTo(HaveOccurred())
		Expect(resp).To(HaveHTTPStatus(http.StatusForbidden))
		Expect(resp).To(HaveHTTPHeaderWithValue("Content-Type", "application/json"))
		Expect(io.ReadAll(resp.Body)).To(MatchJSON(`{"error":{"message":"the engine's guard does not let this caller ask for that","type":"permission_error","param":null,"code":"not_allowed"}}`))
	}, both(""))

	It("ends the handshake with a caller that has no certificate, or another authority's", func(ctx SpecContext) {
		g := newGuarded(func(http.ResponseWriter, *http.Request) {}, 0)
		_, err := g.do(ctx, "", 1, "GET", "/health", nil)
		Expect(err).To(MatchError(ContainSubstring("certificate required")))
		stranger := newAuthority().issue(enclaveID)
		config := g.ca.client("")
		// As a callback, because a client keeps back what it sees to be of no use.
		config.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &stranger, nil }
		transport := &http.Transport{TLSClientConfig: config}
		req, err := http.NewRequestWithContext(ctx, "GET", "https://"+g.address+"/health", nil)
		Expect(err).NotTo(HaveOccurred())
		_, err = transport.RoundTrip(req)
		Expect(err).To(MatchError(ContainSubstring("unknown certificate authority")))
	})

	It("does not serve without mutual TLS", func(ctx SpecContext) {
		guard, err := engine.NewGuard(engine.GuardConfig{Upstream: "unix:/x", Role: roleByURI, TLS: &tls.Config{MinVersion: tls.VersionTLS13}})
		Expect(err).NotTo(HaveOccurred())
		l, err := net.Listen("tcp", "127.0.0.1:0")
		Expect(err).NotTo(HaveOccurred())
		Expect(guard.Serve(ctx, l)).To(MatchError(ContainSubstring("does not require a client certificate")))
	})

	DescribeTable("checks its upstream", func(upstream, reason string) {
		_, err := engine.NewGuard(engine.GuardConfig{Upstream: upstream, Role: roleByURI})
		if reason == "" {
			Expect(err).NotTo(HaveOccurred())
			return
		}
		Expect(err).To(MatchError(ContainSubstring(reason)))
	},
		Entry("socket", "unix:/run/e.sock", ""), Entry("URL", "http://127.0.0.1:8000", ""), Entry("base URL", "https://h:1/v1/", ""),
		Entry("nothing", "", "neither"), Entry("no path", "unix:", "no path"), Entry("a scheme", "ftp://h", "neither"),
		Entry("a password", "http://u:p@h", "neither"), Entry("a query", "http://h?x", "neither"), Entry("a path", "http://h/admin", "has the path /admin"),
	)
})

var _ = Describe("Guard: what goes through", func() {
	DescribeTable("no header but the listed ones, no trailer, in either direction", func(ctx SpecContext, major int) {
		seen := make(chan http.Header, 1)
		g := newGuarded(func(w http.ResponseWriter, r *http.Request) {
			body, _ := io.ReadAll(r.Body)
			seen <- r.Header
			w.Header().Set("Trailer", "X-Trailer")
			for _, name := range []string{"Server", "Set-Cookie", "X-Accel-Buffering", "Access-Control-Allow-Origin", "Keep-Alive", "X-Other"} {
				w.Header().Set(name, "x")
			}
			w.Header().Set("Content-Type", "text/plain")
			w.Header().Set("Retry-After", "3")
			w.WriteHeader(http.StatusTeapot)
			_, _ = w.Write(body)
			w.Header().Set("X-Trailer", "x")
			w.Header().Set(http.TrailerPrefix+"X-Late", "x")
		}, 0)
		resp, err := g.do(ctx, enclaveID, major, "POST", chat, strings.NewReader("hello"),
			"Content-Type", "application/json", "Accept", "text/event-stream", "Authorization", "Bearer x", "Cookie", "x", "X-Forwarded-For", "x", "Te", "trailers", "Mrgc-Tenant", "x", api.HeaderCacheSalt, "x", "Accept-Encoding", "gzip")
		Expect(err).NotTo(HaveOccurred())
		Expect(resp).To(HaveHTTPStatus(http.StatusTeapot))
		Expect(io.ReadAll(resp.Body)).To(BeEquivalentTo("hello"))
		Expect(<-seen).To(Equal(http.Header{"Content-Type": {"application/json"}, "Accept": {"text/event-stream"}, "Content-Length": {"5"}, "Connection": {"close"}}))
		resp.Header.Del("Date")
		Expect(resp.Header).To(Equal(http.Header{"Content-Type": {"text/plain"}, "Retry-After": {"3"}, api.HeaderCache: {"none"}}))
		Expect(resp.Trailer).To(BeEmpty())
	}, both(""))

	DescribeTable("each piece of a stream at once", func(ctx SpecContext, major int) {
		next := make(chan string)
		g := newGuarded(func(w http.ResponseWriter, _ *http.Request) {
			_ = http.NewResponseController(w).Flush()
			for piece := range next {
				_, _ = io.WriteString(w, piece)
				_ = http.NewResponseController(w).Flush()
			}
		}, 0)
		resp, err := g.do(ctx, enclaveID, major, "POST", chat, strings.NewReader("{}")) // headers come before any piece
		Expect(err).NotTo(HaveOccurred())
		for _, piece := range []string{"data: 1\n\n", "data: 2\n\n"} {
			next <- piece
			got := make([]byte, len(piece))
			_, err := io.ReadFull(resp.Body, got) // the engine sends no more before this has come
			Expect(err).NotTo(HaveOccurred())
			Expect(string(got)).To(Equal(piece))
		}
		close(next)
		Expect(io.ReadAll(resp.Body)).To(BeEmpty())
	}, both(""))

	DescribeTable("an answer that the engine cut is cut", func(ctx SpecContext, major int, length string) {
		g := newGuarded(func(w http.ResponseWriter, _ *http.Request) {
			if length != "" {
				w.Header().Set("Content-Length", length)
			}
			_, _ = io.WriteString(w, "half")
			_ = http.NewResponseController(w).Flush()
			panic(http.ErrAbortHandler)
		}, 0)
		resp, err := g.do(ctx, enclaveID, major, "POST", chat, strings.NewReader("{}"))
		if err == nil {
			_, err = io.ReadAll(resp.Body)
		}
		Expect(err).To(HaveOccurred())
		Eventually(g.logs.String).Should(ContainSubstring("outcome=cut"))
	},
		Entry("in chunks, HTTP/1.1", 1, ""), Entry("in chunks, HTTP/2", 2, ""),
		Entry("of known length, HTTP/1.1", 1, "8"), Entry("of known length, HTTP/2", 2, "8"),
	)

	DescribeTable("a caller that goes away stops the engine", func(ctx SpecContext, major int, answering bool) {
		working, stopped := make(chan struct{}), make(chan struct{})
		g := newGuarded(func(w http.ResponseWriter, r *http.Request) {
			_, _ = io.Copy(io.Discard, r.Body)
			if answering {
				_, _ = io.WriteString(w, "data: 1\n\n")
				_ = http.NewResponseController(w).Flush()
			}
			close(working)
			<-r.Context().Done()
			close(stopped)
		}, 0)
		ctx2, leave := context.WithCancel(ctx)
		go func() {
			defer GinkgoRecover()
			if resp, err := g.do(ctx2, enclaveID, major, "POST", chat, strings.NewReader("{}")); err == nil {
				_, _ = io.ReadAll(resp.Body)
			}
		}()
		Eventually(working).WithTimeout(5 * time.Second).Should(BeClosed())
		Consistently(stopped).WithTimeout(50 * time.Millisecond).ShouldNot(BeClosed())
		leave()
		Eventually(stopped).WithTimeout(5 * time.Second).Should(BeClosed())
	},
		Entry("while it waits, HTTP/1.1", 1, false), Entry("while it waits, HTTP/2", 2, false),
		Entry("in a stream, HTTP/1.1", 1, true), Entry("in a stream, HTTP/2", 2, true),
	)

	DescribeTable("no body beyond the limit", func(ctx SpecContext, major int, body func() io.Reader, status int) {
		g := newGuarded(func(w http.ResponseWriter, r *http.Request) {
			if _, err := io.ReadAll(r.Body); err != nil {
				panic(http.ErrAbortHandler)
			}
		}, 100)
		resp, err := g.do(ctx, enclaveID, major, "POST", chat, body())
		Expect(err).NotTo(HaveOccurred())
		Expect(resp).To(HaveHTTPStatus(status))
	},
		Entry("at the limit", 1, sized(100), http.StatusOK), Entry("at the limit, HTTP/2", 2, sized(100), http.StatusOK),
		Entry("announced", 1, sized(101), http.StatusRequestEntityTooLarge), Entry("announced, HTTP/2", 2, sized(101), http.StatusRequestEntityTooLarge),
		Entry("in chunks", 1, chunked(101), http.StatusRequestEntityTooLarge), Entry("in chunks, HTTP/2", 2, chunked(101), http.StatusRequestEntityTooLarge),
	)

	It("lets no engine say that it was not asked", func(ctx SpecContext) {
		resp, err := newGuarded(func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set(api.HeaderNotRun, "1")
			w.WriteHeader(http.StatusServiceUnavailable)
		}, 0).do(ctx, enclaveID, 1, "POST", chat, strings.NewReader("{}"))
		Expect(err).NotTo(HaveOccurred())
		Expect(resp).To(HaveHTTPStatus(http.StatusServiceUnavailable))
		Expect(resp.Header).NotTo(HaveKey(api.HeaderNotRun))
	})

	It("tells a missing engine from a broken one", func(ctx SpecContext) {
		resp, err := newGuarded(nil, 0).do(ctx, parentID, 1, "GET", "/health", nil)
		Expect(err).NotTo(HaveOccurred())
		Expect(resp).To(HaveHTTPStatus(http.StatusServiceUnavailable))
		Expect(resp).To(HaveHTTPHeaderWithValue("Retry-After", "1"))
		Expect(resp).To(HaveHTTPHeaderWithValue(api.HeaderNotRun, "1"))

		for _, answer := range []string{"SECRET not HTTP\r\n\r\n", "HTTP/1.1 200 OK\r\n\r\nSECRET of no length", ""} {
			g := newGuarded(func(w http.ResponseWriter, r *http.Request) {
				_, _ = io.Copy(io.Discard, r.Body)
				conn, _, err := http.NewResponseController(w).Hijack()
				if err == nil {
					_, _ = io.WriteString(conn, answer)
					_ = conn.Close()
				}
			}, 0)
			resp, err := g.do(ctx, enclaveID, 1, "POST", chat, strings.NewReader("{}"))
			Expect(err).NotTo(HaveOccurred())
			Expect(resp).To(HaveHTTPStatus(http.StatusBadGateway))
			Expect(resp.Header).NotTo(HaveKey(api.HeaderNotRun), "it may have run")
			Expect(io.ReadAll(resp.Body)).NotTo(ContainSubstring("SECRET"))
			Expect(g.logs.String()).NotTo(ContainSubstring("SECRET"))
		}
	})

	DescribeTable("takes an engine without a health page for healthy when it lists its models", func(ctx SpecContext, models, status int) {
		g := newGuarded(func(w http.ResponseWriter, r *http.Request) {
			w.WriteHeader(map[string]int{"/health": http.StatusNotFound, "/v1/models": models}[r.URL.Path])
		}, 0)
		resp, err := g.do(ctx, parentID, 1, "GET", "/health", nil)
		Expect(err).NotTo(HaveOccurred())
		Expect(resp).To(HaveHTTPStatus(status))
	},
		Entry("it does", http.StatusOK, http.StatusOK),
		Entry("it does not", http.StatusNotFound, http.StatusNotFound),
	)

	It("logs requests, but nothing out of them", func(ctx SpecContext) {
		g := newGuarded(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "MARKER-4711") }, 0)
		resp, err := g.do(ctx, enclaveID, 1, "POST", chat, strings.NewReader("MARKER-4711"), "Accept", "MARKER-4711")
		Expect(err).NotTo(HaveOccurred())
		Expect(io.ReadAll(resp.Body)).To(BeEquivalentTo("MARKER-4711"))
		resp, err = g.do(ctx, enclaveID, 1, "POST", "/MARKER-4711", strings.NewReader("MARKER-4711"))
		Expect(err).NotTo(HaveOccurred())
		Expect(resp).To(HaveHTTPStatus(http.StatusForbidden))
		Eventually(g.logs.String).Should(And(ContainSubstring("outcome=complete"), ContainSubstring("request refused")))
		Expect(g.logs.String()).NotTo(ContainSubstring("MARKER"))
	})
})

func sized(n int) func() io.Reader {
	return func() io.Reader { return strings.NewReader(strings.Repeat("x", n)) }
}

// chunked hides the length.
func chunked(n int) func() io.Reader {
	return func() io.Reader { return io.MultiReader(strings.NewReader(strings.Repeat("x", n))) }
}
