package enclave_test

import (
	"context"
	"io"
	"net/http"
	"net/http/httptrace"
	"strings"
	"sync/atomic"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"

	"github.com/mrgc/mrgc/enclave"
)

// pool counts what a cleaner does to the way to the engine.
type pool struct {
	http.RoundTripper
	dropped atomic.Int64
	warmed  atomic.Int64
}

func (p *pool) CloseIdleConnections() {
	p.dropped.Add(1)
	p.RoundTripper.(*http.Transport).CloseIdleConnections()
}

func (p *pool) RoundTrip(r *http.Request) (*http.Response, error) {
	if r.Method == http.MethodGet && r.URL.Path == "/health" {
		p.warmed.Add(1)
	}
	return p.RoundTripper.RoundTrip(r)
}

// lateEngine has one connection, which becomes idle some time after an answer, as
// net/http's do on a busy machine; it tells so as these do.
type lateEngine struct {
	late   chan struct{} // closed: it becomes idle now
	put    atomic.Bool   // it was
	idle   atomic.Bool   // it is, with what it has carried
	reuse  atomic.Bool   // the cleaner's own request goes over one that became idle just then
	rounds atomic.Int64
}

func (l *lateEngine) CloseIdleConnections() {
	l.idle.Store(false)
	l.rounds.Add(1)
}

func (l *lateEngine) RoundTrip(r *http.Request) (*http.Response, error) {
	trace := httptrace.ContextClientTrace(r.Context())
	answer := &http.Response{StatusCode: http.StatusOK, Header: http.Header{"Content-Type": {"application/json"}}, Body: http.NoBody, Request: r}
	if r.Method == http.MethodGet {
		trace.GotConn(httptrace.GotConnInfo{Reused: l.reuse.Load()})
		trace.PutIdleConn(nil)
		return answer, nil
	}
	_, _ = io.Copy(io.Discard, r.Body)
	trace.GotConn(httptrace.GotConnInfo{})
	answer.Body, answer.ContentLength = io.NopCloser(strings.NewReader("{}")), 2
	go func() {
		<-l.late
		l.idle.Store(true)
		l.put.Store(true)
		if trace.PutIdleConn != nil {
			trace.PutIdleConn(nil)
		}
	}()
	return answer, nil
}

// expectStill wants a count that comes to its end.
func expectStill(ctx context.Context, count func() int64) {
	GinkgoHelper()
	Eventually(ctx, func(g Gomega) {
		n := count()
		g.Consistently(ctx, count, "200ms").Should(Equal(n))
	}).Should(Succeed())
}

var _ = Describe("After a request", func() {
	It("a connection that becomes idle long after the answer's end is dropped, too", func(ctx SpecContext) {
		engine := &lateEngine{late: make(chan struct{})}
		r := start(says(`{}`), func(c *enclave.Config) { c.Engine, c.CleanWithin = engine, 20*time.Millisecond })
		Expect(r.ask(chat).err).NotTo(HaveOccurred())
		Eventually(ctx, engine.rounds.Load).Should(BeEquivalentTo(3))
		Consistently(ctx, engine.rounds.Load, "200ms").Should(BeEquivalentTo(3), "nothing is left to be done")
		close(engine.late)
		Eventually(ctx, engine.put.Load).Should(BeTrue())
		Eventually(ctx, engine.idle.Load).Should(BeFalse())
	}, NodeTimeout(specTimeout))

	It("a connection that the cleaner's own request has found idle is dropped, too", func(ctx SpecContext) {
		engine := &lateEngine{late: make(chan struct{})}
		close(engine.late)
		engine.reuse.Store(true)
		r := start(says(`{}`), func(c *enclave.Config) { c.Engine, c.CleanWithin = engine, 20*time.Millisecond })
		Expect(r.ask(chat).err).NotTo(HaveOccurred())
		Eventually(ctx, engine.rounds.Load).Should(BeNumerically(">", 6), "as long as it finds one")
		engine.reuse.Store(false)
		expectStill(ctx, engine.rounds.Load)
	}, NodeTimeout(specTimeout))

	It("connections to the engine are dropped, so often and no more, and each time another is made", func(ctx SpecContext) {
		var engine *pool
		r := start(says(`{}`), func(c *enclave.Config) {
			engine = &pool{RoundTripper: c.Engine}
			c.Engine, c.CleanWithin = engine, 20*time.Millisecond
		})
		Consistently(ctx, engine.dropped.Load, "100ms").Should(BeZero(), "there was no request")
		for range 3 {
			before := engine.dropped.Load()
			Expect(r.ask(chat).err).NotTo(HaveOccurred())
			Eventually(ctx, engine.dropped.Load).Should(BeNumerically(">=", before+3))
			expectStill(ctx, engine.dropped.Load)
			Expect(engine.dropped.Load()).To(BeNumerically("<=", before+2*3), "its end, and its connection's")
			Expect(engine.warmed.Load()).To(Equal(engine.dropped.Load()))
		}
	}, NodeTimeout(specTimeout))

	It("nothing is dropped where nobody asked for it", func(ctx SpecContext) {
		var engine *pool
		r := start(says(`{}`), func(c *enclave.Config) {
			engine = &pool{RoundTripper: c.Engine}
			c.Engine = engine
		})
		Expect(r.ask(chat).err).NotTo(HaveOccurred())
		Consistently(ctx, engine.dropped.Load, "100ms").Should(BeZero())
	}, NodeTimeout(specTimeout))
})
