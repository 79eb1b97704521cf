package client_test

import (
	"errors"
	"io"
	"net/http"
	"strings"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"

	"github.com/mrgc/mrgc/internal/api"
	"github.com/mrgc/mrgc/internal/seal"
)

// cutAfter passes so many pieces of the answer on (the first is its head), and
// then ends it as if it were complete.
func (c *cluster) cutAfter(pieces int) route {
	return func(w http.ResponseWriter, r *http.Request) { c.serveSealed(&cuttingWriter{w, pieces}, r) }
}

type cuttingWriter struct {
	http.ResponseWriter
	left int
}

func (w *cuttingWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

func (w *cuttingWriter) Write(p []byte) (int, error) {
	if w.left--; w.left < 0 {
		return len(p), nil
	}
	return w.ResponseWriter.Write(p)
}

// brokenBody is an engine's answer that breaks off.
type brokenBody struct{ io.Reader }

func (b *brokenBody) Read(p []byte) (int, error) {
	n, err := b.Reader.Read(p)
	if errors.Is(err, io.EOF) {
		err = errors.New("the engine has crashed")
	}
	return n, err
}

func (b *brokenBody) Close() error { return nil }

func (c *cluster) engineBreaksOff(contentType, after string) {
	c.engine = func(*http.Request) (*http.Response, error) {
		return answer(contentType, &brokenBody{strings.NewReader(after)}), nil
	}
}

var _ = Describe("An answer", func() {
	var (
		c *cluster
		e *edge
		t *tenant
	)
	BeforeEach(func() {
		c = newCluster()
		e = c.startEdge()
		t = c.tenant(c.config(e))
	})

	DescribeTable("that is not sealed is refused", func(ctx SpecContext, status int, contentType string) {
		e.on(api.PathSealed, func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", contentType)
			w.WriteHeader(status)
			_, _ = io.WriteString(w, `{"choices":[{"message":{"content":"forged"}}]}`)
		})
		resp := t.ask(ctx)
		refused := refusal(resp)
		Expect(refused.Status).To(Equal(http.StatusBadGateway))
		Expect(refused.Code).NotTo(BeEmpty())
		Expect(refused.Message).NotTo(ContainSubstring("forged"))
	},
		Entry("in clear", 200, "application/json"),
		Entry("in clear with another status", 201, "application/json"),
		Entry("in clear, and says that it is sealed", 200, api.ContentTypeSealedResponse),
	)

	DescribeTable("that is an error in clear", func(ctx SpecContext, content, code, message string) {
		e.on(api.PathSealed, func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Retry-After", "2")
			w.WriteHeader(http.StatusTooManyRequests)
			_, _ = io.WriteString(w, content)
		})
		resp := t.ask(ctx)
		Expect(resp.Header.Get("Retry-After")).To(Equal("2"))
		refused := refusal(resp)
		Expect(refused.Code).To(Equal(code))
		Expect(refused.Message).To(ContainSubstring(message))
		Expect(refused.Message).NotTo(ContainSubstring("upstream"))
		Expect(e.requests(api.PathSealed)).To(HaveLen(1))
	},
		Entry("is passed on in OpenAI's shape", `{"error":{"message":"slow down","type":"rate_limit_error","code":"queue_full"}}`, "queue_full", "slow down"),
		Entry("is not shown in any other shape", `upstream connect error`, "unexpected_response", "429"),
	)

	It("to another request is not taken for this one's", func(ctx SpecContext) {
		var first []byte
		e.on(api.PathSealed, func(w http.ResponseWriter, r *http.Request) {
			if first == nil {
				recorded := &recordingWriter{ResponseWriter: w}
				c.serveSealed(recorded, r)
				first = recorded.written
				return
			}
			w.Header().Set("Content-Type", api.ContentTypeSealedResponse)
			_, _ = w.Write(first)
		})
		expectReply(t.ask(ctx))
		Expect(refusal(t.ask(ctx)).Code).To(Equal("answer_cut"))
	})

	DescribeTable("that ends before its head is an error", func(ctx SpecContext, answer func() route) {
		e.on(api.PathSealed, answer())
		refused := refusal(t.ask(ctx))
		Expect(refused.Status).To(Equal(http.StatusBadGateway))
		Expect(refused.Code).To(Equal("answer_cut"))
	},
		Entry("with an orderly end", func() route { return c.cutAfter(0) }),
		Entry("with a cut", func() route {
			return func(w http.ResponseWriter, _ *http.Request) {
				w.Header().Set("Content-Type", api.ContentTypeSealedResponse)
				_ = http.NewResponseController(w).Flush()
				panic(http.ErrAbortHandler)
			}
		}),
	)

	DescribeTable("that ends early never ends well", func(ctx SpecContext, pieces int, read string) {
		e.on(api.PathSealed, c.cutAfter(pieces))
		resp := t.ask(ctx)
		Expect(resp.StatusCode).To(Equal(http.StatusOK))
		content, err := io.ReadAll(resp.Body) // nil for io.EOF
		Expect(err).To(MatchError(seal.ErrCut))
		Expect(string(content)).To(Equal(read))
		_, err = resp.Body.Read(make([]byte, 1))
		Expect(err).To(MatchError(seal.ErrCut))
	},
		Entry("after its head", 1, ""),
		Entry("with all its data, but not its end", 2, reply),
	)

	It("that the connection breaks off is an error", func(ctx SpecContext) {
		events, stream := io.Pipe()
		DeferCleanup(stream.Close)
		c.engine = func(*http.Request) (*http.Response, error) { return answer("text/event-stream", events), nil }
		const event = "data: half\n\n"
		go func() { _, _ = io.WriteString(stream, event) }()
		resp, err := t.send(ctx, http.MethodPost, "/chat/completions", body(streamed)) // comes with the first of the answer
		Expect(err).NotTo(HaveOccurred())
		half := make([]byte, len(event))
		_, err = io.ReadFull(resp.Body, half)
		Expect(err).NotTo(HaveOccurred())
		e.server.CloseClientConnections()
		_, err = resp.Body.Read(half)
		Expect(err).To(MatchError(seal.ErrCut))
	})

	It("that the engine does not complete is an error after what there was", func(ctx SpecContext) {
		c.engineBreaksOff("application/json", "half")
		content, err := io.ReadAll(t.ask(ctx).Body)
		Expect(string(content)).To(Equal("half"))
		var failed *seal.ResponseError
		Expect(errors.As(err, &failed)).To(BeTrue())
		Expect(api.ParseError(0, failed.Body).Code).To(Equal("engine_stopped"))
	})
})

// recordingWriter keeps what it passes on.
type recordingWriter struct {
	http.ResponseWriter
	written []byte
}

func (w *recordingWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

func (w *recordingWriter) Write(p []byte) (int, error) {
	w.written = append(w.written, p...)
	return w.ResponseWriter.Write(p)
}

var _ = Describe("The list of models", func() {
	DescribeTable("that is none is an error", func(ctx SpecContext, status int, content, code string) {
		c := newCluster()
		e := c.startEdge()
		e.on(api.PathModels, func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(status)
			_, _ = io.WriteString(w, content)
		})
		resp, err := c.tenant(c.config(e)).send(ctx, http.MethodGet, "/models", nil)
		Expect(err).NotTo(HaveOccurred())
		Expect(refusal(resp).Code).To(Equal(code))
	},
		Entry("text", 200, "hello", "unexpected_response"),
		Entry("an error", 401, `{"error":{"message":"no","code":"invalid_api_key"}}`, "invalid_api_key"),
	)
})
