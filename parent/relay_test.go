package parent_test

import (
	"context"
	"crypto/tls"
	"io"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"

	"github.com/mrgc/mrgc/internal/api"
	"github.com/mrgc/mrgc/internal/identity"
	"github.com/mrgc/mrgc/internal/loadreport"
	"github.com/mrgc/mrgc/parent"
	"github.com/mrgc/mrgc/standin/devca"
)

// waitsIn gives an enclave that tells of each request on entered, and answers
// when it may leave or its client has gone.
func waitsIn(entered chan<- struct{}, leave <-chan struct{}) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		entered <- struct{}{}
		select {
		case <-leave:
			_, _ = io.WriteString(w, "sealed answer")
		case <-r.Context().Done():
		}
	}
}

var _ = Describe("A request that is relayed", func() {
	It("reaches the enclave with the headers that it is bound to, and no other", func(ctx SpecContext) {
		in := start()
		type seen struct {
			body, query string
			header      http.Header
		}
		got := make(chan seen, 1)
		in.enclave.answers(func(_ http.ResponseWriter, r *http.Request) {
			body, _ := io.ReadAll(r.Body)
			got <- seen{string(body), r.URL.RawQuery, r.Header}
		})
		req := in.sealed(ctx, "sealed request")
		bound := http.Header{
			"Content-Type": {api.ContentTypeSealedRequest}, api.HeaderModel: {"m"}, api.HeaderTenant: {"acme", "twice"},
			api.HeaderAffinity: {"c7"}, api.HeaderSize: {"1/2"}, api.HeaderRequestID: {"id"}, api.HeaderRecipients: {"kid"}, api.HeaderFrames: {"64"},
		}
		req.Header = bound.Clone()
		for _, name := range []string{"Authorization", "Cookie", "X-Forwarded-For", "X-Request-Id", api.HeaderDestination, "Accept"} {
			req.Header.Set(name, "not the enclave's business")
		}
		req.URL.RawQuery = "a=b" // the enclave refuses it, and must see it for that
		in.send(req)
		var there seen
		Eventually(ctx, got).Should(Receive(&there))
		Expect(there.body).To(Equal("sealed request"))
		Expect(there.query).To(Equal("a=b"))
		for _, transport := range []string{"Content-Length", "User-Agent"} {
			there.header.Del(transport)
		}
		Expect(there.header).To(Equal(bound))
	}, NodeTimeout(specTimeout))

	It("is answered with the enclave's status, body, and the headers that the client needs", func(ctx SpecContext) {
		in := start()
		in.enclave.answers(func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "application/json")
			w.Header().Set("Retry-After", "7")
			w.Header().Set(api.HeaderKeyStatus, api.KeyStatusStale)
			w.Header().Set("Set-Cookie", "a=b")
			w.WriteHeader(http.StatusConflict)
			_, _ = io.WriteString(w, "answer")
		})
		resp := in.send(in.sealed(ctx, "request"))
		Expect(resp.StatusCode).To(Equal(http.StatusConflict))
		Expect(readAll(resp)).To(Equal("answer"))
		delete(resp.Header, "Date")
		delete(resp.Header, "Content-Length")
		delete(resp.Header, loadreport.Header) // the parent's own
		Expect(resp.Header).To(Equal(http.Header{
			"Content-Type": {"application/json"}, "Retry-After": {"7"}, api.HeaderKeyStatus: {api.KeyStatusStale},
		}))
	}, NodeTimeout(specTimeout))

	It("may have an answer without a body", func(ctx SpecContext) {
		in := start()
		in.enclave.answers(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNoContent) })
		Expect(in.send(in.sealed(ctx, "request")).StatusCode).To(Equal(http.StatusNoContent))
	}, NodeTimeout(specTimeout))

	It("is answered chunk by chunk, each before the enclave writes the next", func(ctx SpecContext) {
		in := start()
		seen := make(chan struct{})
		in.enclave.answers(func(w http.ResponseWriter, r *http.Request) {
			for range 5 {
				_, _ = io.WriteString(w, "chunk")
				_ = http.NewResponseController(w).Flush()
				select {
				case <-seen:
				case <-r.Context().Done():
					return
				}
			}
		})
		resp := in.send(in.sealed(ctx, "request"))
		for range 5 {
			_, err := io.ReadFull(resp.Body, make([]byte, len("chunk")))
			Expect(err).NotTo(HaveOccurred())
			seen <- struct{}{}
		}
		Expect(readAll(resp)).To(BeEmpty())
	}, NodeTimeout(specTimeout))

	It("shows nothing before the first byte: until then it can be moved elsewhere", func(ctx SpecContext) {
		in := start()
		began, die := make(chan struct{}), make(chan struct{})
		in.enclave.answers(func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(http.StatusOK)
			_ = http.NewResponseController(w).Flush()
			close(began)
			<-die
			panic(http.ErrAbortHandler)
		})
		answered := in.sending(in.sealed(ctx, "request"))
		Eventually(ctx, began).Should(BeClosed())
		Consistently(answered, "100ms").ShouldNot(Receive())
		close(die)
		var resp *http.Response
		Eventually(ctx, answered).Should(Receive(&resp))
		DeferCleanup(resp.Body.Close)
		expectError(resp, http.StatusServiceUnavailable, "enclave_unreachable")
	}, NodeTimeout(specTimeout))

	It("that is cut midway looks cut", func(ctx SpecContext) {
		in := start()
		in.enclave.answers(func(w http.ResponseWriter, _ *http.Request) {
			_, _ = io.WriteString(w, "half of")
			_ = http.NewResponseController(w).Flush()
			panic(http.ErrAbortHandler)
		})
		resp := in.send(in.sealed(ctx, "request"))
		body, err := io.ReadAll(resp.Body)
		Expect(string(body)).To(Equal("half of"))
		Expect(err).To(HaveOccurred())
	}, NodeTimeout(specTimeout))

	It("ends at the enclave when the client has gone, before an answer and within one", func(ctx SpecContext) {
		in := start()
		for _, first := range []string{"", "chunk"} {
			entered, gone := make(chan struct{}), make(chan struct{})
			in.enclave.answers(func(w http.ResponseWriter, r *http.Request) {
				_, _ = io.Copy(io.Discard, r.Body)
				_, _ = io.WriteString(w, first)
				_ = http.NewResponseController(w).Flush()
				close(entered)
				<-r.Context().Done()
				close(gone)
			})
			asking, hangUp := context.WithCancel(ctx)
			defer hangUp()
			answered := in.sending(in.sealed(asking, "request"))
			Eventually(ctx, entered).Should(BeClosed())
			if first != "" {
				var resp *http.Response
				Eventually(ctx, answered).Should(Receive(&resp))
				DeferCleanup(resp.Body.Close)
			}
			hangUp()
			Eventually(ctx, gone).Should(BeClosed())
		}
	}, NodeTimeout(specTimeout))
})

var _ = Describe("A request that cannot be relayed", func() {
	It("is a 503 that says when to try again while the enclave is down, and holds no place", func(ctx SpecContext) {
		in := start(func(c *parent.Config) { c.ConcurrentRequests = 1 })
		in.enclave.stop()
		for range 3 {
			resp := in.send(in.sealed(ctx, "request"))
			Expect(resp.Header.Get("Retry-After")).To(Equal("1"))
			expectError(resp, http.StatusServiceUnavailable, "enclave_unreachable")
		}
		in.enclave.start()
		Expect(readAll(in.send(in.sealed(ctx, "request")))).To(Equal("sealed answer"))
	}, NodeTimeout(specTimeout))

	DescribeTable("is a 413 when it is too large",
		func(ctx SpecContext, length int64) {
			in := start(func(c *parent.Config) { c.RequestBodyBytes = 100_000 })
			req := in.sealed(ctx, strings.Repeat("x", 100_001))
			req.ContentLength = length
			expectError(in.send(req), http.StatusRequestEntityTooLarge, "request_too_large")

			req = in.sealed(ctx, strings.Repeat("x", 100_000))
			Expect(in.send(req).StatusCode).To(Equal(http.StatusOK))
		},
		Entry("and says so", NodeTimeout(specTimeout), int64(100_001)),
		Entry("and does not say how large", NodeTimeout(specTimeout), int64(-1)),
	)

	It("is sent elsewhere when the instance has as many as it takes", func(ctx SpecContext) {
		in := start(func(c *parent.Config) { c.ConcurrentRequests = 1 })
		entered, leave := make(chan struct{}, 2), make(chan struct{})
		in.enclave.answers(waitsIn(entered, leave))
		first := in.sending(in.sealed(ctx, "request"))
		Eventually(ctx, entered).Should(Receive())
		busy := in.send(in.sealed(ctx, "request"))
		Expect(busy.Header.Get("Retry-After")).To(Equal("1"))
		expectError(busy, http.StatusServiceUnavailable, "instance_busy")

		close(leave)
		var done *http.Response
		Eventually(ctx, first).Should(Receive(&done))
		Expect(readAll(done)).To(Equal("sealed answer"))
		Expect(done.Body.Close()).To(Succeed())
		Eventually(ctx, func() int { return in.send(in.sealed(ctx, "request")).StatusCode }).Should(Equal(http.StatusOK))
	}, NodeTimeout(specTimeout))

	It("goes by the limits that hold when it comes", func(ctx SpecContext) {
		in := start(func(c *parent.Config) { c.ConcurrentRequests, c.RequestBodyBytes = 1, 100_000 })
		entered, leave := make(chan struct{}, 2), make(chan struct{})
		in.enclave.answers(waitsIn(entered, leave))
		first := in.sending(in.sealed(ctx, "request"))
		Eventually(ctx, entered).Should(Receive())
		expectError(in.send(in.sealed(ctx, "request")), http.StatusServiceUnavailable, "instance_busy")

		in.parent.SetSettings(parent.Settings{ConcurrentRequests: 2, RequestBodyBytes: 10})
		expectError(in.send(in.sealed(ctx, "more than ten")), http.StatusRequestEntityTooLarge, "request_too_large")
		second := in.sending(in.sealed(ctx, "request"))
		Eventually(ctx, entered).Should(Receive())
		in.parent.SetSettings(parent.Settings{ConcurrentRequests: 1})
		close(leave)
		for _, sent := range []<-chan *http.Response{first, second} {
			var done *http.Response
			Eventually(ctx, sent).Should(Receive(&done))
			Expect(readAll(done)).To(Equal("sealed answer"), "one that is under way goes on")
			Expect(done.Body.Close()).To(Succeed())
		}
	}, NodeTimeout(specTimeout))
})

// A place is what other tenants wait for, so nobody may hold one for nothing.
var _ = Describe("A request's place", func() {
	free := func(ctx context.Context, in *instance) {
		GinkgoHelper()
		in.enclave.answers(func(w http.ResponseWriter, r *http.Request) {
			_, _ = io.Copy(io.Discard, r.Body)
			_, _ = io.WriteString(w, "sealed answer")
		})
		Eventually(ctx, func() int {
			resp, err := in.envoy.Do(in.sealed(ctx, "request"))
			Expect(err).NotTo(HaveOccurred())
			defer resp.Body.Close()
			return resp.StatusCode
		}).WithTimeout(eventually).Should(Equal(http.StatusOK))
	}

	DescribeTable("is not held by a body that does not come, and that is no failure of the instance's",
		func(ctx SpecContext, body func(*io.PipeWriter)) {
			in := start(func(c *parent.Config) { c.ConcurrentRequests, c.BodyWait = 1, 200*time.Millisecond })
			reader, writer := io.Pipe()
			DeferCleanup(writer.Close)
			req := in.sealed(ctx, "")
			req.Body, req.ContentLength = reader, 1<<20
			go body(writer)
			expectError(in.send(req), http.StatusRequestTimeout, "request_timeout")
			free(ctx, in)
			resp, err := in.client(envoyID).Get(in.url("/healthz"))
			Expect(err).NotTo(HaveOccurred())
			Expect(resp.Body.Close()).To(Succeed())
			Expect(resp).To(HaveHTTPStatus(http.StatusOK))
		},
		Entry("at all", NodeTimeout(specTimeout), func(*io.PipeWriter) {}),
		Entry("but byte by byte", NodeTimeout(specTimeout), func(w *io.PipeWriter) {
			for {
				if _, err := w.Write([]byte{1}); err != nil {
					return
				}
				time.Sleep(20 * time.Millisecond)
			}
		}),
	)

	It("is there for a body that comes slowly, but comes", func(ctx SpecContext) {
		in := start(func(c *parent.Config) { c.BodyWait = 200 * time.Millisecond })
		reader, writer := io.Pipe()
		req := in.sealed(ctx, "")
		req.Body, req.ContentLength = reader, 16*(8<<10)
		go func() {
			for range 16 {
				_, _ = writer.Write(make([]byte, 8<<10))
				time.Sleep(50 * time.Millisecond)
			}
			_ = writer.Close()
		}()
		Expect(readAll(in.send(req))).To(Equal("sealed answer"))
	}, NodeTimeout(specTimeout))

	It("is not held by an answer that nobody reads, which ends at the enclave, too", func(ctx SpecContext) {
		in := start(func(c *parent.Config) { c.ConcurrentRequests, c.AnswerWait = 1, 200*time.Millisecond })
		gone := make(chan struct{})
		in.enclave.answers(func(w http.ResponseWriter, r *http.Request) {
			defer close(gone)
			_, _ = io.Copy(io.Discard, r.Body)
			for {
				if _, err := w.Write(make([]byte, 64<<10)); err != nil {
					return
				}
			}
		})
		unread := in.send(in.sealed(ctx, "request"))
		Eventually(ctx, gone).Should(BeClosed())
		free(ctx, in)
		_, err := io.Copy(io.Discard, unread.Body)
		Expect(err).To(HaveOccurred(), "a cut answer looks cut")
	}, NodeTimeout(specTimeout))

	It("is there for an answer between whose chunks there is a pause", func(ctx SpecContext) {
		in := start(func(c *parent.Config) { c.AnswerWait = 100 * time.Millisecond })
		in.enclave.answers(func(w http.ResponseWriter, r *http.Request) {
			_, _ = io.Copy(io.Discard, r.Body)
			for range 3 {
				_, _ = io.WriteString(w, "chunk ")
				_ = http.NewResponseController(w).Flush()
				time.Sleep(300 * time.Millisecond)
			}
		})
		Expect(readAll(in.send(in.sealed(ctx, "request")))).To(Equal("chunk chunk chunk "))
	}, NodeTimeout(specTimeout))
})

var _ = Describe("Who is not Envoy", func() {
	It("sends no requests: a router is told so", func(ctx SpecContext) {
		in := start()
		resp, err := in.client(routerID).Do(in.sealed(ctx, "request"))
		Expect(err).NotTo(HaveOccurred())
		DeferCleanup(resp.Body.Close)
		expectError(resp, http.StatusForbidden, "not_allowed")
	}, NodeTimeout(specTimeout))

	It("sends no requests: whoever comes without TLS is told so", func() {
		in := surroundings()
		service, err := parent.New(in.config())
		Expect(err).NotTo(HaveOccurred())
		recorder := httptest.NewRecorder()
		service.Handler().ServeHTTP(recorder, httptest.NewRequest(http.MethodPost, api.PathSealed, nil))
		Expect(recorder.Code).To(Equal(http.StatusForbidden))
	})

	DescribeTable("cannot connect at all when it has no business here",
		func(ctx SpecContext, id identity.ID) {
			in := start()
			in.expectNotAdmitted(ctx, in.source(id), "bad certificate")
		},
		Entry("the guard", NodeTimeout(specTimeout), guardID),
		Entry("the enclave", NodeTimeout(specTimeout), enclaveID),
	)

	It("cannot connect as Envoy of another cluster", func(ctx SpecContext) {
		in := start()
		other, err := devca.New(time.Now())
		Expect(err).NotTo(HaveOccurred())
		elsewhere := instance{dir: filepath.Join(in.dir, "elsewhere"), authority: other}
		in.expectNotAdmitted(ctx, elsewhere.source(envoyID), "certificate")
	}, NodeTimeout(specTimeout))
})

// expectNotAdmitted wants the parent to end the TLS connection. In TLS 1.3 the
// client learns that when it first reads.
func (in *instance) expectNotAdmitted(ctx context.Context, source *identity.Source, alert string) {
	GinkgoHelper()
	config := source.ClientTLS(func(identity.ID) bool { return true })
	config.VerifyConnection = nil // whether the client trusts the parent is not the question
	conn, err := (&tls.Dialer{Config: config}).DialContext(ctx, "tcp", in.listener.Addr().String())
	Expect(err).NotTo(HaveOccurred())
	defer conn.Close()
	_, err = conn.Read(make([]byte, 1))
	Expect(err).To(MatchError(And(ContainSubstring("remote error"), ContainSubstring(alert))))
}

var _ = Describe("The instance's other paths", func() {
	It("pass the enclave's recipients on", func() {
		in := start()
		in.enclave.holds("one", "two")
		resp := in.get("/recipients")
		Expect(resp.Header.Get("Content-Type")).To(Equal("application/json"))
		Expect(readAll(resp)).To(MatchJSON(`{"recipients":[
			{"claims":"b25l","attestation":"ZG9jdW1lbnQ="},{"claims":"dHdv","attestation":"ZG9jdW1lbnQ="}]}`))
		in.enclave.holds()
		expectError(in.get("/recipients"), http.StatusServiceUnavailable, "enclave_unreachable")
		in.enclave.stop()
		expectError(in.get("/recipients"), http.StatusServiceUnavailable, "enclave_unreachable")
	})

	It("say whether the enclave is there; the engine is the routers' to know", func() {
		in := start()
		in.guard.sick.Store(true)
		Expect(in.get("/healthz").StatusCode).To(Equal(http.StatusOK))
		in.enclave.stop()
		Expect(in.get("/healthz").StatusCode).To(Equal(http.StatusServiceUnavailable))
	})

	It("are no others", func() {
		in := start()
		for _, path := range []string{"/", "/metrics", "/v1/chat/completions", "/recipients/x"} {
			expectError(in.get(path), http.StatusNotFound, "not_found")
		}
	})
})
