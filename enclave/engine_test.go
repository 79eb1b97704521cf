package enclave_test

import (
	"encoding/binary"
	"errors"
	"io"
	"net/http"
	"strings"
	"sync/atomic"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"

	"github.com/mrgc/mrgc/enclave"
	"github.com/mrgc/mrgc/internal/api"
	"github.com/mrgc/mrgc/internal/seal"
)

const okLine = "HTTP/1.1 200 OK\r\n"

// expectBrokenOff wants an answer that began and that the enclave gave up on.
func expectBrokenOff(a answer) {
	GinkgoHelper()
	var failed *seal.ResponseError
	Expect(errors.As(a.err, &failed)).To(BeTrue(), "%v, after %q", a.err, a.body)
	expectCode(string(failed.Body), http.StatusBadGateway, "engine_stopped")
}

var _ = Describe("An engine's error", func() {
	It("reaches the tenant as it is, sealed", func() {
		r := start(func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "application/json")
			w.WriteHeader(http.StatusInternalServerError)
			_, _ = io.WriteString(w, `{"error":{"message":"out of memory","code":"oom"}}`)
		})
		for _, body := range []string{chat, stream} {
			r.expectSealedRefusal(r.ask(body), http.StatusInternalServerError, "oom")
		}
	})

	DescribeTable("has a request that others can open be moved, and runs it no second time", func(engine http.HandlerFunc) {
		var asked atomic.Int64
		r := start(func(w http.ResponseWriter, req *http.Request) {
			asked.Add(1)
			engine(w, req)
		})
		other := startBeside(says(`{}`))
		own, _ := r.recipients()
		others, _ := other.recipients()
		sealed := r.sealTo(append(own, others...), chat)
		for range 2 { // the second time Envoy has found nobody else
			resp := r.send(r.post(sealed))
			Expect(resp.StatusCode).To(Equal(http.StatusServiceUnavailable))
			expectCode(readAll(resp), http.StatusServiceUnavailable, "engine_failed")
		}
		Expect(asked.Load()).To(BeEquivalentTo(1))
		req := r.post(sealed)
		moved, err := http.NewRequest(req.Method, other.url+req.URL.Path, req.Body)
		Expect(err).NotTo(HaveOccurred())
		moved.Header = req.Header
		resp := other.send(moved)
		Expect(resp.StatusCode).To(Equal(http.StatusOK))
		Expect(readAll(resp)).NotTo(BeEmpty())
	},
		Entry("an internal error", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusInternalServerError) }),
		Entry("a model that is still loading", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusServiceUnavailable) }),
		Entry("a connection that breaks", writesRaw("", true)),
	)

	It("that the request has earned is not for others", func() {
		r := start(func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "application/json")
			w.WriteHeader(http.StatusBadRequest)
			_, _ = io.WriteString(w, `{"error":{"message":"too long","code":"context_length_exceeded"}}`)
		})
		own, _ := r.recipients()
		sealed := r.sealTo(append(own, r.stranger()), chat)
		resp := r.send(r.post(sealed))
		Expect(resp.StatusCode).To(Equal(http.StatusOK), "its error is sealed")
	})
})

var _ = Describe("Failures", func() {
	It("are as many as fit, the last ones", func() {
		id := func(i int) (id seal.RequestID) {
			binary.BigEndian.PutUint64(id[:], uint64(i)) //nolint:gosec // small
			return id
		}
		for _, n := range []int{1, enclave.MaxFailures, 3*enclave.MaxFailures + 7} {
			has := enclave.AddFailures(n, id)
			for i := range n {
				Expect(has(id(i))).To(Equal(i >= n-enclave.MaxFailures), "%d of %d", i, n)
			}
		}
	})
})

var _ = Describe("An engine that cannot be reached", func() {
	It("is a 503 in clear, so that the request can be moved, and its reason is logged", func() {
		r := start(says(`{}`))
		r.engine.server.Close()
		sealed := r.seal(chat)
		for range 2 { // as it has not run, it may come again
			resp := r.send(r.post(sealed))
			Expect(resp.Header.Get("Retry-After")).To(Equal("1"))
			r.expectRefused(resp, http.StatusServiceUnavailable, "engine_unreachable")
		}
		Expect(r.logs.String()).To(ContainSubstring("connection refused"))
	})

	It("is the same when the guard says that it could not ask", func() {
		r := start(func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set(api.HeaderNotRun, "1")
			w.WriteHeader(http.StatusServiceUnavailable)
		})
		sealed := r.seal(chat)
		for range 2 {
			resp := r.send(r.post(sealed))
			Expect(resp.StatusCode).To(Equal(http.StatusServiceUnavailable))
			expectCode(readAll(resp), http.StatusServiceUnavailable, "engine_unreachable")
		}
	})

	DescribeTable("because it breaks off is a sealed 503, and what it said is not logged",
		func(text string) {
			r := start(writesRaw(text, true))
			r.expectSealedRefusal(r.ask(chat), http.StatusServiceUnavailable, "engine_unreachable")
			Expect(r.logs.String()).To(ContainSubstring("broke"))
		},
		Entry("without a word", ""),
		Entry("with something else than HTTP", marker+"\r\n\r\n"),
		Entry("within a header", okLine+marker+"\r\n\r\n"),
	)
})

var _ = Describe("An answer that is not whole", func() {
	DescribeTable("is never taken for a short one",
		func(request string, engine http.HandlerFunc, want string) {
			r := start(engine)
			a := r.ask(request)
			expectBrokenOff(a)
			Expect(a.body).To(Equal(want))
		},
		Entry("shorter than it says", chat, writesRaw(okLine+"Content-Length: 100\r\n\r\n{\"part\"", false), `{"part"`),
		Entry("shorter than it says, in good order", chat, writesRaw(okLine+"Content-Length: 100\r\n\r\n{\"part\"", true), `{"part"`),
		Entry("cut between chunks", chat, writesRaw(okLine+"Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n", false), `{}`),
		Entry("a stream cut between chunks", stream,
			writesRaw(okLine+"Transfer-Encoding: chunked\r\n\r\n8\r\ndata: {}\r\n", false), `data: {}`),
		Entry("a stream that ends in good order, but before its end", stream, says("data: {}\n\n"), "data: {}\n\n"),
		Entry("a stream in which the tenant's text looks like its end", stream,
			says("data: {\"x\":\"data: [DONE]\"}\n\n"), "data: {\"x\":\"data: [DONE]\"}\n\n"),
		Entry("a stream that is cut within its end", stream, says("data: {}\n\ndata: [DON"), "data: {}\n\ndata: [DON"),
		Entry("a stream without a word", stream, says(""), ""),
	)

	It("is not given at all when nothing tells its end from a cut", func() {
		r := start(writesRaw(okLine+"Connection: close\r\n\r\n{\"part\"", true))
		r.expectSealedRefusal(r.ask(chat), http.StatusBadGateway, "engine_stopped")
	})

	DescribeTable("does not include a stream that ends as streams do",
		func(body string) {
			r := start(says(body))
			a := r.ask(stream)
			Expect(a.err).NotTo(HaveOccurred())
			Expect(a.body).To(Equal(body))
		},
		Entry("with an empty line", "data: {}\n\ndata: [DONE]\n\n"),
		Entry("with one line end", "data: {}\n\ndata: [DONE]\n"),
		Entry("with CRLF", "data: {}\r\n\r\ndata: [DONE]\r\n\r\n"),
		Entry("at once", "data: [DONE]"),
		Entry("after much", strings.Repeat("data: {}\n\n", 10_000)+"data: [DONE]\n\n"),
	)

	It("does not include a stream whose end comes byte by byte", func() {
		r := start(func(w http.ResponseWriter, _ *http.Request) {
			for _, c := range "data: {}\n\ndata: [DONE]\n\n" {
				_, _ = io.WriteString(w, string(c))
				_ = http.NewResponseController(w).Flush()
			}
		})
		Expect(r.ask(stream).err).NotTo(HaveOccurred())
	})

	It("is cut for everyone on the way, too, when its head cannot be sealed", func() {
		r := start(func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", strings.Repeat("x", 300))
			_, _ = io.WriteString(w, "{}")
		})
		resp, err := r.client.Do(r.post(r.seal(chat)))
		if err == nil { // else the cut came before the response
			defer resp.Body.Close()
			_, err = io.ReadAll(resp.Body)
		}
		Expect(err).To(HaveOccurred())
	})
})

// transportFunc is an [http.RoundTripper] of one function.
type transportFunc func(*http.Request) (*http.Response, error)

func (f transportFunc) RoundTrip(req *http.Request) (*http.Response, error) { return f(req) }

var _ = Describe("The body that goes to the engine", func() {
	It("is empty once it is wiped, for whoever still reads it", func() {
		content := []byte("secret")
		open, wipe := enclave.NewSecretBody(content)
		body, err := open()
		Expect(err).NotTo(HaveOccurred())
		read := make([]byte, 3)
		Expect(body.Read(read)).To(Equal(3))
		wipe()
		Expect(content).To(Equal(make([]byte, 6)))
		Expect(read).To(BeEquivalentTo("sec"))
		_, err = body.Read(read)
		Expect(err).To(MatchError(io.EOF))
		wipe()
	})

	It("can be read again, from its start", func() {
		open, _ := enclave.NewSecretBody([]byte("one"))
		for range 2 {
			body, err := open()
			Expect(err).NotTo(HaveOccurred())
			Expect(io.ReadAll(body)).To(BeEquivalentTo("one"))
		}
	})

	It("is wiped when the engine has it, and when it never will", func() {
		for _, fail := range []error{nil, errors.New("no engine")} {
			var body io.ReadCloser
			r := start(says(`{}`), func(c *enclave.Config) {
				engine := c.Engine
				c.Engine = transportFunc(func(req *http.Request) (*http.Response, error) {
					var err error
					if body, err = req.GetBody(); err != nil || fail != nil {
						return nil, errors.Join(fail, err)
					}
					return engine.RoundTrip(req)
				})
			})
			readAll(r.send(r.post(r.seal(chat))))
			Expect(io.ReadAll(body)).To(BeEmpty())
		}
	})
})
