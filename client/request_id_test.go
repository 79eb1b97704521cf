package client_test

import (
	"net/http"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"

	"github.com/mrgc/mrgc/internal/api"
	"github.com/mrgc/mrgc/internal/seal"
)

var _ = Describe("A request's id", func() {
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
	shown := func(resp *http.Response) string { return resp.Header.Get("x-request-id") }
	// sent is the id of the request that the edge has seen last.
	sent := func() string {
		GinkgoHelper()
		all := e.requests(api.PathSealed)
		Expect(all).NotTo(BeEmpty())
		return all[len(all)-1].header.Get(api.HeaderRequestID)
	}

	DescribeTable("is what the cluster knows it by", func(ctx SpecContext, path, content string, status int, refuse route) {
		if refuse != nil {
			e.on(api.PathSealed, refuse)
		}
		resp, err := s.post(ctx, path, content)
		Expect(err).NotTo(HaveOccurred())
		Expect(resp.StatusCode).To(Equal(status))
		Expect(shown(resp)).To(And(Not(BeEmpty()), Equal(sent())))
	},
		Entry("with an answer", "/v1/chat/completions", chat, 200, nil),
		Entry("with an error of the enclave", "/v1/completions", `{"model":"smol","messages":[]}`, 400, nil),
		Entry("with an error on the way", "/v1/chat/completions", chat, 429, route(func(w http.ResponseWriter, _ *http.Request) {
			api.Errorf(http.StatusTooManyRequests, "rate_limit_exceeded", "later").Write(w)
		})),
		Entry("with an answer that is not sealed", "/v1/chat/completions", chat, 502, route(func(http.ResponseWriter, *http.Request) {})),
		Entry("with an answer that is cut", "/v1/chat/completions", chat, 502, route(func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", api.ContentTypeSealedResponse)
		})),
		Entry("when nobody holds its keys, sealed twice", "/v1/chat/completions", chat, 503, route(stale)),
		Entry("when the connection is lost", "/v1/chat/completions", chat, 502, route(func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) })),
	)

	It("is that of the last time when it was sealed again", func(ctx SpecContext) {
		Expect(s.ask(ctx, chat).StatusCode).To(Equal(http.StatusOK))
		first := sent()
		c.replace(c.newEnclave())
		resp := s.ask(ctx, chat)
		Expect(resp.StatusCode).To(Equal(http.StatusOK))
		Expect(shown(resp)).To(Equal(sent()))
		Expect(sent()).NotTo(Equal(first))
		_, err := seal.ParseRequestID(shown(resp))
		Expect(err).NotTo(HaveOccurred())
	})

	It("is not made up for what was never sent", func(ctx SpecContext) {
		resp, err := s.post(ctx, "/v1/completions", "{}")
		Expect(err).NotTo(HaveOccurred())
		Expect(resp.StatusCode).To(Equal(http.StatusBadRequest))
		Expect(resp.Header).NotTo(HaveKey("X-Request-Id"))
	})
})
