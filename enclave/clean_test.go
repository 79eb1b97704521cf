package enclave_test

import (
	"net/http"
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

var _ = Describe("After a request", func() {
	It("connections to the engine are dropped, twice and no more, and each time another is made", func(ctx SpecContext) {
		var engine *pool
		r := start(says(`{}`), func(c *enclave.Config) {
			engine = &pool{RoundTripper: c.Engine}
			c.Engine, c.CleanWithin = engine, 20*time.Millisecond
		})
		Consistently(ctx, engine.dropped.Load, "100ms").Should(BeZero(), "there was no request")
		for n := range int64(3) {
			Expect(r.ask(chat).err).NotTo(HaveOccurred())
			Eventually(ctx, engine.warmed.Load).Should(Equal(2 * (n + 1)))
			Consistently(ctx, engine.dropped.Load, "100ms").Should(Equal(2 * (n + 1)))
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
