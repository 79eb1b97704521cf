package client_test

import (
	"io"
	"net"
	"net/http"
	"slices"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"

	"github.com/mrgc/mrgc/internal/api"
	"github.com/mrgc/mrgc/internal/seal"
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

// notHere is what an Envoy says to a tenant whose data may not be in its region.
func notHere(w http.ResponseWriter, _ *http.Request) {
	api.Errorf(http.StatusForbidden, api.CodeRegionNotAllowed, "not here").Write(w)
}

// settle waits until no region is being asked whether it is back.
func (t *tenant) settle() {
	GinkgoHelper()
	Eventually(t.sealing.Probing).Should(BeFalse())
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

	It("are passed over for a request whose answer breaks off before its first byte, and for no other", func(ctx SpecContext) {
		cuts := 1
		first.on(api.PathSealed, func(w http.ResponseWriter, r *http.Request) {
			if cuts--; cuts < 0 {
				c.serveSealed(w, r)
				return
			}
			w.Header().Set("Content-Type", api.ContentTypeSealedResponse)
			w.WriteHeader(http.StatusOK)
			_ = http.NewResponseController(w).Flush()
			panic(http.ErrAbortHandler)
		})
		t := c.tenant(c.config(first, second))
		expectReply(t.ask(ctx))
		Expect(second.requests(api.PathSealed)).To(HaveLen(1))
		expectReply(t.ask(ctx))
		Expect(first.requests(api.PathSealed)).To(HaveLen(2))
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
		Entry("and has begun to answer", func(w http.ResponseWriter, r *http.Request) { c.cutAfter(1)(w, r) },
			func(resp *http.Response, err error) {
				Expect(err).NotTo(HaveOccurred())
				Expect(resp.StatusCode).To(Equal(http.StatusOK))
				_, err = io.ReadAll(resp.Body)
				Expect(err).To(MatchError(seal.ErrCut))
			}),
		Entry("and is sent elsewhere", func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, second.url+api.PathSealed, http.StatusTemporaryRedirect)
		}, func(resp *http.Response, err error) {
			Expect(err).NotTo(HaveOccurred())
			Expect(refusal(resp).Code).To(Equal("unsealed_answer"))
		}),
	)

	It("lose a request that they break off before its answer to the next, sealed anew", func(ctx SpecContext) {
		first.on(api.PathSealed, hangUp)
		t := c.tenant(c.config(first, second))
		expectReply(t.ask(ctx))
		Expect(t.sealing.Stats().Moved).To(BeEquivalentTo(1))
		sealed := slices.Concat(first.requests(api.PathSealed), second.requests(api.PathSealed))
		Expect(sealed).To(HaveLen(2))
		Expect(sealed[0].header.Get(api.HeaderRequestID)).NotTo(Equal(sealed[1].header.Get(api.HeaderRequestID)))
		Expect(second.requests(api.PathKeys)).To(HaveLen(1), "it is sealed to whom that region offers")
	})

	It("keep a request that they break off when it must not run twice", func(ctx SpecContext) {
		first.on(api.PathSealed, hangUp)
		config := c.config(first, second)
		config.Recipients = 1
		_, err := c.tenant(config).send(ctx, http.MethodPost, "/chat/completions", body(chat))
		Expect(err).To(HaveOccurred())
		Expect(second.seen).To(BeEmpty())
	})

	It("that could not be used are left alone, but for probes further and further apart", func(ctx SpecContext) {
		t := c.tenant(c.config(first, second))
		first.on(api.PathKeys, hangUp)
		expectReply(t.ask(ctx))
		Expect(first.count(api.PathKeys)()).To(Equal(1))
		for i, wait := range []time.Duration{0, time.Second, 2 * time.Second, 4 * time.Second, 8 * time.Second, 16 * time.Second, 30 * time.Second, 30 * time.Second} {
			c.clock.Advance(wait - 1)
			expectReply(t.ask(ctx))
			if wait > 0 {
				Expect(first.count(api.PathKeys)()).To(Equal(i + 1))
			}
			c.clock.Advance(1)
			expectReply(t.ask(ctx))
			Eventually(first.count(api.PathKeys)).Should(Equal(i + 2))
			t.settle()
		}
		Expect(first.requests(api.PathSealed)).To(BeEmpty())

		By("one of them being answered")
		first.on(api.PathKeys, nil)
		c.clock.Advance(30 * time.Second)
		Eventually(func() []seen {
			expectReply(t.ask(ctx))
			return first.requests(api.PathSealed)
		}).ShouldNot(BeEmpty())
	})

	It("where the tenant's data may not be are passed over, and asked again after a while", func(ctx SpecContext) {
		t := c.tenant(c.config(first, second))
		for _, path := range []string{api.PathKeys, api.PathSealed, api.PathModels} {
			first.on(path, notHere)
		}
		for range 3 {
			expectReply(t.ask(ctx))
		}
		Expect(first.requests(api.PathKeys)).To(HaveLen(1))
		Expect(second.requests(api.PathSealed)).To(HaveLen(3))

		c.clock.Advance(5 * time.Minute)
		first.on(api.PathKeys, nil)
		expectReply(t.ask(ctx))
		Expect(first.requests(api.PathSealed)).To(HaveLen(1), "it offers recipients by now, and refuses the request")
		Expect(second.requests(api.PathSealed)).To(HaveLen(4))
	})

	It("none of which the tenant's data may be in say so", func(ctx SpecContext) {
		for _, e := range []*edge{first, second} {
			e.on(api.PathKeys, notHere)
		}
		Expect(refusal(c.tenant(c.config(first, second)).ask(ctx)).Code).To(Equal(api.CodeRegionNotAllowed))
	})

	It("are all tried when none could be used before", func(ctx SpecContext) {
		t := c.tenant(c.config(first, second))
		for _, e := range []*edge{first, second} {
			e.on(api.PathKeys, hangUp)
		}
		_, err := t.send(ctx, http.MethodPost, "/chat/completions", body(chat))
		Expect(err).To(HaveOccurred())
		second.on(api.PathKeys, nil)
		expectReply(t.ask(ctx))
	})

	It("are passed over for the list of models, too", func(ctx SpecContext) {
		resp, err := c.tenant(c.config(closedEdge(), second)).send(ctx, http.MethodGet, "/models", nil)
		Expect(err).NotTo(HaveOccurred())
		Expect(readAll(resp)).To(ContainSubstring(model))
	})

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
