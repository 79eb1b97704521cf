package client_test

import (
	"net"
	"net/http"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"

	"github.com/mrgc/mrgc/internal/api"
)

// closedEdge is a region where nobody listens.
func closedEdge() *edge {
	GinkgoHelper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	Expect(err).NotTo(HaveOccurred())
	Expect(listener.Close()).To(Succeed())
	return &edge{url: "https://" + listener.Addr().String()}
}

// deafEdge is a region that takes connections and closes them.
func deafEdge() *edge {
	GinkgoHelper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	Expect(err).NotTo(HaveOccurred())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			_ = conn.Close()
		}
	}()
	DeferCleanup(func() {
		Expect(listener.Close()).To(Succeed())
		Eventually(ended).Should(BeClosed())
	})
	return &edge{url: "https://" + listener.Addr().String()}
}

var _ = Describe("Endpoints", func() {
	var (
		c             *cluster
		first, second *edge
	)
	BeforeEach(func() {
		c = newCluster()
		first, second = c.startEdge(), c.startEdge()
	})

	It("are used in order", func(ctx SpecContext) {
		expectReply(c.tenant(c.config(first, second)).ask(ctx))
		Expect(first.requests(api.PathSealed)).To(HaveLen(1))
		Expect(second.seen).To(BeEmpty())
	})

	DescribeTable("are passed over when no connection to them stands", func(ctx SpecContext, gone func() *edge) {
		expectReply(c.tenant(c.config(gone(), second)).ask(ctx))
		Expect(second.requests(api.PathKeys)).To(HaveLen(1))
		Expect(second.requests(api.PathSealed)).To(HaveLen(1))
	},
		Entry("because nobody listens", closedEdge),
		Entry("because nobody speaks TLS", deafEdge),
	)

	It("are passed over when they go", func(ctx SpecContext) {
		t := c.tenant(c.config(first, second))
		expectReply(t.ask(ctx))
		first.server.Close()
		t.http.CloseIdleConnections()
		expectReply(t.ask(ctx))
		Expect(second.requests(api.PathSealed)).To(HaveLen(1))
	})

	DescribeTable("keep a request that has reached them", func(ctx SpecContext, answer route, outcome func(*http.Response, error)) {
		first.on(api.PathSealed, answer)
		outcome(c.tenant(c.config(first, second)).send(ctx, http.MethodPost, "/chat/completions", body(chat)))
		Expect(first.requests(api.PathSealed)).NotTo(BeEmpty())
		Expect(second.seen).To(BeEmpty())
	},
		Entry("and is refused", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusServiceUnavailable) },
			func(resp *http.Response, err error) {
				Expect(err).NotTo(HaveOccurred())
				Expect(refusal(resp).Status).To(Equal(http.StatusServiceUnavailable))
			}),
		Entry("and is hung up on", hangUp, func(_ *http.Response, err error) { Expect(err).To(HaveOccurred()) }),
		Entry("and is sent elsewhere", func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, second.url+api.PathSealed, http.StatusTemporaryRedirect)
		}, func(resp *http.Response, err error) {
			Expect(err).NotTo(HaveOccurred())
			Expect(refusal(resp).Code).To(Equal("unsealed_answer"))
		}),
	)

	It("that are all gone are an error that names each", func(ctx SpecContext) {
		one, two := closedEdge(), closedEdge()
		_, err := c.tenant(c.config(one, two)).send(ctx, http.MethodPost, "/chat/completions", body(chat))
		Expect(err).To(MatchError(And(ContainSubstring(one.url), ContainSubstring(two.url))))
	})

	It("must show a certificate of the roots that are trusted", func(ctx SpecContext) {
		config := c.config(first)
		config.RootCAs = nil
		_, err := c.tenant(config).send(ctx, http.MethodPost, "/chat/completions", body(chat))
		Expect(err).To(MatchError(ContainSubstring("certificate")))
		Expect(first.seen).To(BeEmpty())
	})
})
