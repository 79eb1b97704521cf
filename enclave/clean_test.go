package enclave_test

import (
	"context"
	"net/http"
	"net/http/httptrace"
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

// lateIdle has connections for idle when the spec says so.
type lateIdle struct {
	*pool
	idle chan<- func(error)
}

func (l lateIdle) RoundTrip(r *http.Request) (*http.Response, error) {
	if trace := httptrace.ContextClientTrace(r.Context()); trace != nil {
		l.idle <- trace.PutIdleConn
		r = r.WithContext(httptrace.WithClientTrace(context.Background(), &httptrace.ClientTrace{GotConn: trace.GotConn}))
	}
	return l.pool.RoundTrip(r)
}

var _ = Describe("After a request", func() {
	It("connections to the engine are dropped, twice or thrice and no more, and each time another is made", func(ctx SpecContext) {
		var engine *pool
		r := start(says(`{}`), func(c *enclave.Config) {
			engine = &pool{RoundTripper: c.Engine}
			c.Engine, c.CleanWithin = engine, 20*time.Millisecond
		})
		Consistently(ctx, engine.dropped.Load, "100ms").Should(BeZero(), "there was no request")
		for range 3 {
			dropped, warmed := engine.dropped.Load(), engine.warmed.Load()
			Expect(r.ask(chat).err).NotTo(HaveOccurred())
			Eventually(ctx, engine.warmed.Load).Should(BeNumerically(">=", warmed+2))
			// A third round is for a connection that was not idle yet in the first.
			Consistently(ctx, engine.dropped.Load, "100ms").Should(BeNumerically("<=", dropped+3))
		}
	}, NodeTimeout(specTimeout))

	It("its connection is dropped however late it is idle", func(ctx SpecContext) {
		var engine *pool
		idle := make(chan func(error), 1)
		r := start(says(`{}`), func(c *enclave.Config) {
			engine = &pool{RoundTripper: c.Engine}
			c.CleanWithin = 20 * time.Millisecond
			c.Engine = lateIdle{pool: engine, idle: idle}
		})
		Expect(r.ask(chat).err).NotTo(HaveOccurred())
		var now func(error)
		Eventually(ctx, idle).Should(Receive(&now))
		Eventually(ctx, engine.warmed.Load).Should(BeEquivalentTo(2))
		Consistently(ctx, engine.dropped.Load, "100ms").Should(BeEquivalentTo(2), "nothing more is known to be there")
		now(nil)
		Eventually(ctx, engine.dropped.Load).Should(BeNumerically(">", 2))
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
