package client_test

import (
	"context"
	"crypto/rand"
	"errors"
	"io"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"

	"github.com/mrgc/mrgc/client"
	"github.com/mrgc/mrgc/internal/api"
	"github.com/mrgc/mrgc/internal/seal"
)

// gate is randomness that is there when it is open, and who has asked for it.
type gate struct {
	asked atomic.Int64
	open  chan struct{}
	once  sync.Once
	err   error // in its place
}

func newGate() *gate {
	g := &gate{open: make(chan struct{})}
	DeferCleanup(g.letThrough) // also when a test has failed: nothing else ends who waits
	return g
}

func (g *gate) letThrough() { g.once.Do(func() { close(g.open) }) }

func (g *gate) Read(p []byte) (int, error) {
	g.asked.Add(1)
	select {
	case <-g.open:
	case <-time.After(10 * time.Second): // the test has failed, and is to end
	}
	if g.err != nil {
		return 0, g.err
	}
	return rand.Read(p)
}

var _ = Describe("A request's body", func() {
	var (
		c *cluster
		e *edge
		t *tenant
		g *gate
	)
	BeforeEach(func() {
		c = newCluster()
		e = c.startEdge()
		t = c.tenant(c.config(e))
		g = newGate()
	})

	// asked asks beside the test.
	asked := func(ctx context.Context, t *tenant) (answered chan *http.Response, failed chan error) {
		answered, failed = make(chan *http.Response, 1), make(chan error, 1)
		go func() {
			defer GinkgoRecover()
			resp, err := t.send(ctx, http.MethodPost, "/chat/completions", body(chat))
			if err != nil {
				failed <- err
				return
			}
			answered <- resp
		}()
		return answered, failed
	}

	It("is sealed after its headers have gone", func(ctx SpecContext) {
		headers := make(chan *http.Request, 1)
		e.onHeaders(func(_ http.ResponseWriter, r *http.Request) bool {
			headers <- r.Clone(ctx)
			return false
		})
		t.sealing.SetRand(g)
		answered, _ := asked(ctx, t)
		var r *http.Request
		Eventually(headers).WithTimeout(5 * time.Second).Should(Receive(&r))
		Expect(r.Header.Get(api.HeaderModel)).To(Equal(model))
		Expect(r.Header.Get(api.HeaderRecipients)).NotTo(BeEmpty())
		Expect(r.ContentLength).To(BeNumerically(">", 2000))
		Consistently(answered).WithTimeout(50 * time.Millisecond).ShouldNot(Receive())
		g.letThrough()
		var resp *http.Response
		Eventually(answered).WithTimeout(5 * time.Second).Should(Receive(&resp))
		expectReply(resp)
		Expect(g.asked.Load()).To(Equal(int64(1)), "it was sealed more than once")
	})

	It("is as long as its headers say", func(ctx SpecContext) {
		c.replace(c.newEnclave(), c.newEnclave(), c.newEnclave())
		lengths := make(chan int64, 1)
		e.onHeaders(func(_ http.ResponseWriter, r *http.Request) bool { // net/http holds a body to it
			lengths <- r.ContentLength
			return false
		})
		for recipients := 1; recipients <= 3; recipients++ {
			config := c.config(e)
			config.Recipients = recipients
			t := c.tenant(config)
			for _, n := range []int{0, 1000, 5000, 16_300, 100_000, 3 << 20} {
				resp, err := t.send(ctx, http.MethodPost, "/completions", body(`{"model":"smol","prompt":"`+strings.Repeat("x", n)+`"}`))
				Expect(err).NotTo(HaveOccurred())
				expectReply(resp)
				Expect(lengths).To(Receive(BeNumerically(">", 1181*recipients+n)))
			}
		}
	})

	It("is not sealed for who refuses its headers", func(ctx SpecContext) {
		e.onHeaders(func(w http.ResponseWriter, _ *http.Request) bool {
			api.Errorf(http.StatusTooManyRequests, "rate_limited", "later").Write(w)
			_ = http.NewResponseController(w).Flush()
			g.letThrough() // whoever seals meanwhile is waited for
			return true
		})
		t.sealing.SetRand(g)
		resp := t.ask(ctx)
		Expect(resp.StatusCode).To(Equal(http.StatusTooManyRequests))
		Expect(refusal(resp).Code).To(Equal("rate_limited"))
		Expect(g.asked.Load()).To(BeNumerically("<=", 1))
		Expect(t.sealing.Stats().Moved).To(BeZero())
	})

	It("that is being sealed when its caller leaves goes nowhere", func(ctx SpecContext) {
		whole := make(chan bool, 1)
		e.onHeaders(func(_ http.ResponseWriter, r *http.Request) bool {
			_, err := io.ReadAll(r.Body)
			whole <- err == nil
			return true
		})
		t.sealing.SetRand(g)
		leaving, leave := context.WithCancel(ctx)
		answered, failed := asked(leaving, t)
		Eventually(g.asked.Load).WithTimeout(5 * time.Second).Should(Equal(int64(1)))
		leave()
		g.letThrough()
		Eventually(whole).WithTimeout(5 * time.Second).Should(Receive(BeFalse()))
		Eventually(failed).WithTimeout(5 * time.Second).Should(Receive(MatchError(context.Canceled)))
		Expect(answered).NotTo(Receive())
	})

	It("that cannot be sealed is an error, and no region's fault", func(ctx SpecContext) {
		other := c.startEdge()
		t := c.tenant(c.config(e, other))
		boom := errors.New("no randomness")
		g.err = boom
		g.letThrough()
		t.sealing.SetRand(g)
		_, err := t.send(ctx, http.MethodPost, "/chat/completions", body(chat))
		Expect(err).To(MatchError(boom))
		Expect(err).To(MatchError(ContainSubstring("client: seal: draw key: ")))
		Expect(t.sealing.Stats().Moved).To(BeZero())
		Expect(other.requests(api.PathSealed)).To(BeEmpty())
		t.sealing.SetRand(rand.Reader)
		expectReply(t.ask(ctx))
		Expect(other.requests(api.PathSealed)).To(BeEmpty(), "the first region was thought to be down")
	})

	It("is sealed for each region that it is sent to, and for none that cannot be reached", func(ctx SpecContext) {
		other := c.startEdge()
		t := c.tenant(c.config(e, other))
		expectReply(t.ask(ctx))
		e.server.Close()
		t.sealing.CloseIdleConnections() // a connection that has broken may take a body before it is known to have
		g.letThrough()
		t.sealing.SetRand(g)
		expectReply(t.ask(ctx))
		Expect(t.sealing.Stats().Moved).To(Equal(uint64(1)))
		Expect(g.asked.Load()).To(Equal(int64(1)))
	})

	It("is the same however often it is read, until nobody may any more", func() {
		recipient, err := seal.ParseRecipient(c.recipients()[0].Claims)
		Expect(err).NotTo(HaveOccurred())
		prepared, err := seal.Prepare(seal.Request{
			Operation: seal.OpChatCompletions, Model: model, Tenant: "acme", RequestID: seal.RequestID{1}, Expiry: c.clock.Now().Add(time.Minute),
			Payload: seal.Payload{Body: []byte(chat)},
		}, []*seal.Recipient{recipient})
		Expect(err).NotTo(HaveOccurred())
		g.letThrough()
		sealing := client.NewSealing(prepared, g)
		first, err := io.ReadAll(sealing.Reader())
		Expect(err).NotTo(HaveOccurred())
		Expect(first).To(HaveLen(prepared.BodyBytes))
		Expect(io.ReadAll(sealing.Reader())).To(Equal(first))
		Expect(g.asked.Load()).To(Equal(int64(1)))
		sealing.End()
		_, err = io.ReadAll(sealing.Reader())
		Expect(err).To(HaveOccurred())

		never := client.NewSealing(prepared, g)
		never.End()
		_, err = io.ReadAll(never.Reader())
		Expect(err).To(HaveOccurred())
		Expect(g.asked.Load()).To(Equal(int64(1)), "it was sealed after its end")
	})
})
