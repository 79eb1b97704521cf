package client_test

import (
	"bufio"
	"context"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"

	"github.com/mrgc/mrgc/client"
	"github.com/mrgc/mrgc/internal/api"
)

// sdk talks to a handler the way an SDK of any language does.
type sdk struct {
	base string
	key  string
	http *http.Client
}

func (c *cluster) connect(edges ...*edge) *sdk {
	GinkgoHelper()
	sealing, err := client.New(c.config(edges...))
	Expect(err).NotTo(HaveOccurred())
	DeferCleanup(sealing.CloseIdleConnections)
	server := httptest.NewServer(sealing.Handler())
	DeferCleanup(server.Close)
	return &sdk{base: server.URL, key: c.key.Text(), http: server.Client()}
}

func (s *sdk) post(ctx context.Context, path, content string) (*http.Response, error) {
	GinkgoHelper()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, s.base+path, strings.NewReader(content))
	Expect(err).NotTo(HaveOccurred())
	req.Header.Set("Authorization", "Bearer "+s.key)
	resp, err := s.http.Do(req)
	if err == nil {
		DeferCleanup(resp.Body.Close)
	}
	return resp, err
}

func (s *sdk) ask(ctx context.Context, content string) *http.Response {
	GinkgoHelper()
	resp, err := s.post(ctx, "/v1/chat/completions", content)
	Expect(err).NotTo(HaveOccurred())
	return resp
}

var streamed = strings.Replace(chat, "{", `{"stream":true,`, 1)

var _ = Describe("A handler", func() {
	var (
		c *cluster
		e *edge
		s *sdk
	)
	BeforeEach(func() {
		c = newCluster()
		e = c.startEdge()
		s = c.connect(e)
	})

	It("answers as OpenAI would", func(ctx SpecContext) {
		resp := s.ask(ctx, chat)
		Expect(resp.Header.Get("Content-Type")).To(Equal("application/json"))
		expectReply(resp)
	})

	It("passes each event on at once", func(ctx SpecContext) {
		events, stream := io.Pipe()
		c.engine = func(*http.Request) (*http.Response, error) { return answer("text/event-stream", events), nil }
		go func() { _, _ = io.WriteString(stream, "data: 1\n\n") }() // the SDK gets the head with it
		resp := s.ask(ctx, streamed)
		lines := bufio.NewReader(resp.Body)
		Expect(lines.ReadString('\n')).To(Equal("data: 1\n"))
		Expect(lines.ReadString('\n')).To(Equal("\n"))
		for _, event := range []string{"data: 2\n\n", "data: [DONE]\n\n"} {
			_, err := io.WriteString(stream, event)
			Expect(err).NotTo(HaveOccurred())
			Expect(lines.ReadString('\n')).To(Equal(strings.TrimSuffix(event, "\n")))
			Expect(lines.ReadString('\n')).To(Equal("\n"))
		}
		Expect(stream.Close()).To(Succeed())
		Expect(io.ReadAll(lines)).To(BeEmpty())
	})

	It("ends a stream that broke off with an error event and a cut", func(ctx SpecContext) {
		c.engineBreaksOff("text/event-stream", "data: 1\n\n")
		content, err := io.ReadAll(s.ask(ctx, streamed).Body)
		Expect(err).To(MatchError(io.ErrUnexpectedEOF))
		first, last, ok := strings.Cut(string(content), "\n\n")
		Expect(ok).To(BeTrue())
		Expect(first).To(Equal("data: 1"))
		event, ok := strings.CutPrefix(strings.TrimSpace(last), "data: ")
		Expect(ok).To(BeTrue())
		Expect(api.ParseError(0, []byte(event)).Code).To(Equal("engine_stopped"))
	})

	It("says of a stream that was cut on the way that it was", func(ctx SpecContext) {
		e.on(api.PathSealed, c.cutAfter(2))
		c.engine = func(*http.Request) (*http.Response, error) {
			return answer("text/event-stream", body("data: [DONE]\n\n")), nil
		}
		content, err := io.ReadAll(s.ask(ctx, streamed).Body)
		Expect(err).To(MatchError(io.ErrUnexpectedEOF))
		Expect(string(content)).To(ContainSubstring(`"answer_cut"`))
	})

	It("cuts an answer in one piece that broke off, and adds nothing to it", func(ctx SpecContext) {
		c.engineBreaksOff("application/json", `{"choices":`)
		content, err := io.ReadAll(s.ask(ctx, chat).Body)
		Expect(err).To(MatchError(io.ErrUnexpectedEOF))
		Expect(string(content)).To(Equal(`{"choices":`))
	})

	It("leaves no stream running when the SDK goes", func(ctx SpecContext) {
		gone := make(chan struct{})
		c.engine = func(r *http.Request) (*http.Response, error) {
			<-r.Context().Done()
			close(gone)
			return nil, r.Context().Err()
		}
		leaving, leave := context.WithCancel(ctx)
		left := make(chan error, 1)
		go func() {
			defer GinkgoRecover()
			_, err := s.post(leaving, "/v1/chat/completions", chat)
			left <- err
		}()
		Eventually(e.count(api.PathSealed)).Should(Equal(1))
		leave()
		Eventually(left).Should(Receive(MatchError(context.Canceled)))
		Eventually(gone).Should(BeClosed())
	})

	DescribeTable("gives errors in OpenAI's shape", func(ctx SpecContext, path, content string, status int, code string) {
		resp, err := s.post(ctx, path, content)
		Expect(err).NotTo(HaveOccurred())
		refused := refusal(resp)
		Expect(refused.Status).To(Equal(status))
		Expect(refused.Code).To(Equal(code))
	},
		Entry("without the base path", "/chat/completions", chat, 404, "not_found"),
		Entry("at the root", "/", "", 404, "not_found"),
		Entry("for what is not offered", "/v1/embeddings", chat, 404, "unsupported_operation"),
		Entry("for a bad request", "/v1/completions", "{}", 400, "invalid_request"),
		Entry("from the enclave", "/v1/completions", `{"model":"smol","messages":[]}`, 400, "unknown_field"),
	)

	It("says that no region can be reached", func(ctx SpecContext) {
		refused := refusal(c.connect(closedEdge()).ask(ctx, chat))
		Expect(refused.Status).To(Equal(http.StatusBadGateway))
		Expect(refused.Code).To(Equal("cluster_unreachable"))
	})
})
