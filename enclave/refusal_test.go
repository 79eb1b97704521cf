package enclave_test

import (
	"bytes"
	"io"
	"net/http"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	"pgregory.net/rapid"

	"github.com/mrgc/mrgc/enclave"
	"github.com/mrgc/mrgc/internal/api"
	"github.com/mrgc/mrgc/internal/seal"
)

// specTimeout ends a test that waits for what does not come.
const specTimeout = 20 * time.Second

var _ = Describe("What can be told without a key", func() {
	It("is that the keys are not held here: the client is told to fetch others", func() {
		r := start(says(`{}`))
		resp := r.send(r.post(r.sealTo([]*seal.Recipient{r.stranger()}, chat)))
		Expect(resp.Header.Get(api.HeaderKeyStatus)).To(Equal(api.KeyStatusStale))
		r.expectRefused(resp, http.StatusServiceUnavailable, "stale_recipients")
	})

	DescribeTable("is a header that is not as it must be",
		func(code string, change func(http.Header)) {
			r := start(says(`{}`))
			req := r.post(r.seal(chat))
			change(req.Header)
			resp := r.send(req)
			Expect(resp.Header.Values(api.HeaderKeyStatus)).To(BeEmpty())
			r.expectRefused(resp, http.StatusBadRequest, code)
		},
		Entry("two models", "invalid_header", func(h http.Header) { h.Add(api.HeaderModel, model) }),
		Entry("two tenants", "invalid_header", func(h http.Header) { h.Add(api.HeaderTenant, "other") }),
		Entry("two affinities", "invalid_header", func(h http.Header) { h.Add(api.HeaderAffinity, "") }),
		Entry("two sizes", "invalid_header", func(h http.Header) { h.Add(api.HeaderSize, "1/1") }),
		Entry("two request ids", "invalid_header", func(h http.Header) { h.Add(api.HeaderRequestID, h.Get(api.HeaderRequestID)) }),
		Entry("two lists of recipients", "invalid_header", func(h http.Header) { h.Add(api.HeaderRecipients, h.Get(api.HeaderRecipients)) }),
		Entry("no request id", "invalid_header", func(h http.Header) { h.Del(api.HeaderRequestID) }),
		Entry("no recipients", "invalid_header", func(h http.Header) { h.Del(api.HeaderRecipients) }),
		Entry("a request id that is none", "invalid_header", func(h http.Header) { h.Set(api.HeaderRequestID, "7") }),
		Entry("recipients that are none", "invalid_header", func(h http.Header) { h.Set(api.HeaderRecipients, "all") }),
		Entry("no model", "cannot_open", func(h http.Header) { h.Del(api.HeaderModel) }),
		Entry("no tenant", "cannot_open", func(h http.Header) { h.Del(api.HeaderTenant) }),
	)

	It("is a query string, an empty one too", func() {
		r := start(says(`{}`))
		for _, query := range []string{"?a=b", "?"} {
			req := r.post(r.seal(chat))
			req.URL.RawQuery, req.URL.ForceQuery = query[1:], true
			r.expectRefused(r.send(req), http.StatusBadRequest, "invalid_request")
		}
	})

	DescribeTable("is a lifetime that is over, or too long",
		func(left time.Duration) {
			r := start(says(`{}`))
			sealed := r.seal(chat, func(req *seal.Request) { req.Expiry = r.clock.Now().Add(left) })
			r.expectRefused(r.send(r.post(sealed)), http.StatusBadRequest, "request_expired")
		},
		Entry("over", -time.Second), Entry("over now", time.Duration(0)), Entry("too long", seal.MaxLifetime+time.Second),
	)

	It("is a lifetime that is over when the body has come", func() {
		r := start(says(`{}`))
		sealed := r.seal(chat)
		body, more := io.Pipe()
		req := r.post(sealed)
		req.Body, req.ContentLength = body, int64(len(sealed.Body))
		go func() {
			defer GinkgoRecover()
			// By the time that the second half is read, the first has been sent,
			// and the headers before it.
			_, err := more.Write(sealed.Body[:len(sealed.Body)/2])
			Expect(err).NotTo(HaveOccurred())
			r.clock.Advance(61 * time.Second)
			_, err = more.Write(sealed.Body[len(sealed.Body)/2:])
			Expect(err).NotTo(HaveOccurred())
			Expect(more.Close()).To(Succeed())
		}()
		r.expectRefused(r.send(req), http.StatusBadRequest, "request_expired")
	})

	DescribeTable("is a body that is too large",
		func(length func(*http.Request)) {
			r := start(says(`{}`), func(c *enclave.Config) { c.RequestBodyBytes = 1500 })
			req := r.post(r.seal(chat))
			length(req)
			r.expectRefused(r.send(req), http.StatusRequestEntityTooLarge, "request_too_large")
		},
		Entry("and says so", func(*http.Request) {}),
		Entry("and does not say how large", func(req *http.Request) { req.ContentLength = -1 }),
	)
})

var _ = Describe("What does not open", func() {
	var (
		r      *running
		sealed *seal.Sealed
	)
	BeforeEach(func() {
		r = start(says(`{}`))
		sealed = r.seal(chat)
	})

	// try sends the request with another body and gives all that comes back.
	try := func(body []byte, change ...func(*http.Request)) string {
		GinkgoHelper()
		req := r.post(sealed)
		req.Body, req.ContentLength = io.NopCloser(bytes.NewReader(body)), int64(len(body))
		for _, f := range change {
			f(req)
		}
		resp, err := r.client.Do(req)
		Expect(err).NotTo(HaveOccurred())
		defer resp.Body.Close()
		return resp.Status + resp.Header.Get("Content-Type") + readAll(resp)
	}
	header := func(name, value string) func(*http.Request) {
		return func(req *http.Request) { req.Header.Set(name, value) }
	}

	It("always gets the same answer, whichever part is wrong", func() {
		want := try(append(bytes.Clone(sealed.Body), 0))
		Expect(want).To(And(ContainSubstring("400"), ContainSubstring("cannot_open")))
		for _, length := range []int{0, 1, 28, 40, 1300, len(sealed.Body) - 100, len(sealed.Body) - 1} {
			Expect(try(sealed.Body[:length])).To(Equal(want), "cut at %d", length)
		}
		Expect(try(r.seal(chat).Body)).To(Equal(want), "another request's body")
		for name, value := range map[string]string{
			api.HeaderModel: "m", api.HeaderTenant: "evil", api.HeaderAffinity: "c8", api.HeaderSize: "",
			api.HeaderRequestID: seal.RequestID{7}.String(),
		} {
			Expect(try(sealed.Body, header(name, value))).To(Equal(want), name)
		}
		kids := seal.FormatKeyIDs(append([]seal.KeyID{{1}}, sealed.Headers.KeyIDs...))
		Expect(try(sealed.Body, header(api.HeaderRecipients, kids))).To(Equal(want), "one more recipient")
		Expect(r.engine.calls()).To(BeEmpty())
	})

	It("is a request with any one bit flipped, and it does not spoil the true one", func() {
		want := try(append(bytes.Clone(sealed.Body), 0))
		rapid.Check(GinkgoT(), func(t *rapid.T) {
			const expiryStart, expiryEnd = 19, 27 // its flips may be refused as expired
			at := rapid.OneOf(rapid.IntRange(0, expiryStart-1), rapid.IntRange(expiryEnd, len(sealed.Body)-1)).Draw(t, "at")
			flipped := bytes.Clone(sealed.Body)
			flipped[at] ^= 1 << rapid.IntRange(0, 7).Draw(t, "bit")
			if got := try(flipped); got != want {
				t.Fatalf("flip at %d: %s", at, got)
			}
		})
		Expect(r.engine.calls()).To(BeEmpty())
		Expect(open(sealed, r.send(r.post(sealed))).err).NotTo(HaveOccurred())
	})
})

var _ = Describe("The same request again", func() {
	It("is refused, and the engine runs it once", func() {
		r := start(says(`{}`))
		sealed := r.seal(chat)
		Expect(open(sealed, r.send(r.post(sealed))).err).NotTo(HaveOccurred())
		again := r.send(r.post(sealed))
		Expect(again.StatusCode).To(Equal(http.StatusConflict))
		Expect(again.Header.Values(api.HeaderKeyStatus)).To(BeEmpty())
		expectCode(readAll(again), http.StatusConflict, "request_replayed")
		Expect(r.engine.calls()).To(HaveLen(1))
	})

	It("runs once when all copies come at the same time", func() {
		r := start(says(`{}`))
		sealed := r.seal(chat)
		var answered atomic.Int64
		var senders sync.WaitGroup
		for range 8 {
			req := r.post(sealed)
			senders.Go(func() {
				defer GinkgoRecover()
				resp, err := r.client.Do(req)
				Expect(err).NotTo(HaveOccurred())
				defer resp.Body.Close()
				if resp.StatusCode == http.StatusOK {
					answered.Add(1)
				} else {
					expectCode(readAll(resp), resp.StatusCode, "request_replayed")
				}
			})
		}
		senders.Wait()
		Expect(answered.Load()).To(BeEquivalentTo(1))
		Eventually(r.engine.calls).Should(HaveLen(1))
	})

	It("is refused by a memory that is full, which forgets nothing to make room", func() {
		r := start(says(`{}`), func(c *enclave.Config) { c.ReplayCapacity = 1 })
		sealed := r.seal(chat)
		Expect(open(sealed, r.send(r.post(sealed))).err).NotTo(HaveOccurred())
		resp := r.send(r.post(r.seal(chat)))
		Expect(resp.StatusCode).To(Equal(http.StatusServiceUnavailable))
		Expect(resp.Header.Get("Retry-After")).To(Equal("1"))
		expectCode(readAll(resp), resp.StatusCode, "instance_busy")
		expectCode(readAll(r.send(r.post(sealed))), http.StatusConflict, "request_replayed")
		r.clock.Advance(61 * time.Second)
		Expect(r.ask(chat).err).NotTo(HaveOccurred())
	})
})

var _ = Describe("More requests than the enclave takes", func() {
	It("are sent elsewhere, until one is done", func(ctx SpecContext) {
		entered, leave := make(chan struct{}, 2), make(chan struct{})
		r := start(waitsIn(entered, leave), func(c *enclave.Config) { c.ConcurrentRequests = 1 })
		first := r.seal(chat)
		resp := make(chan *http.Response, 1)
		request := r.post(first).WithContext(ctx)
		go func() {
			defer GinkgoRecover()
			one, err := r.client.Do(request)
			Expect(err).NotTo(HaveOccurred())
			resp <- one
		}()
		Eventually(ctx, entered).Should(Receive())

		second := r.seal(chat)
		busy := r.send(r.post(second))
		Expect(busy.StatusCode).To(Equal(http.StatusServiceUnavailable))
		Expect(busy.Header.Get("Retry-After")).To(Equal("1"))
		expectCode(readAll(busy), busy.StatusCode, "instance_busy")

		close(leave)
		var done *http.Response
		Eventually(ctx, resp).Should(Receive(&done))
		Expect(open(first, done).err).NotTo(HaveOccurred())
		Expect(done.Body.Close()).To(Succeed())
		// Refused before it was opened, it may be sent again unchanged.
		Eventually(ctx, func(g Gomega) {
			again, err := r.client.Do(r.post(second))
			g.Expect(err).NotTo(HaveOccurred())
			defer again.Body.Close()
			g.Expect(again.StatusCode).To(Equal(http.StatusOK))
		}).Should(Succeed())
	}, NodeTimeout(specTimeout))

	It("are those whose bytes are more than it can hold, until some are gone", func(ctx SpecContext) {
		r := start(says(`{}`), func(c *enclave.Config) { c.RequestBodyBytes = 20_000 })
		large := r.seal(saying(`"` + strings.Repeat("a", 15_000) + `"`))
		hangUp := make([]func() error, 8*20_000/len(large.Body)) // and there is room for a small one
		var senders sync.WaitGroup
		DeferCleanup(senders.Wait)
		for i := range hangUp {
			reader, writer := io.Pipe()
			hangUp[i] = writer.Close
			DeferCleanup(writer.Close)
			req := r.post(large)
			req.Body, req.ContentLength = reader, int64(len(large.Body))
			senders.Go(func() {
				if resp, err := r.client.Do(req); err == nil {
					_ = resp.Body.Close()
				}
			})
			_, err := writer.Write(large.Body[:len(large.Body)-1])
			Expect(err).NotTo(HaveOccurred())
		}
		// One that came earlier would take the place of one of these.
		Eventually(ctx, func() int64 { return enclave.HeldBytes(r.service) + int64(len(large.Body)) }).Should(BeNumerically(">", 8*20_000))
		// A large one does not fit now, a small one does: it is bytes that are counted.
		Eventually(ctx, func(g Gomega) {
			resp, err := r.client.Do(r.post(large))
			g.Expect(err).NotTo(HaveOccurred())
			defer resp.Body.Close()
			g.Expect(resp.StatusCode).To(Equal(http.StatusServiceUnavailable))
			g.Expect(resp.Header.Get("Retry-After")).To(Equal("1"))
			expectCode(readAll(resp), resp.StatusCode, "instance_busy")
		}).Should(Succeed())
		Expect(r.ask(chat).err).NotTo(HaveOccurred())
		Expect(hangUp[0]()).To(Succeed())
		Eventually(ctx, func(g Gomega) {
			resp, err := r.client.Do(r.post(large))
			g.Expect(err).NotTo(HaveOccurred())
			defer resp.Body.Close()
			g.Expect(resp.StatusCode).To(Equal(http.StatusOK))
		}).Should(Succeed())
	}, NodeTimeout(specTimeout))

	It("are not those that the engine has, answered or not", func(ctx SpecContext) {
		entered, leave := make(chan struct{}, 20), make(chan struct{})
		r := start(waitsIn(entered, leave), func(c *enclave.Config) { c.RequestBodyBytes = 20_000 })
		body := saying(`"` + strings.Repeat("a", 15_000) + `"`)
		var asked sync.WaitGroup
		for range 20 {
			sealed := r.seal(body)
			asked.Go(func() {
				defer GinkgoRecover()
				Expect(open(sealed, r.send(r.post(sealed))).err).NotTo(HaveOccurred())
			})
			Eventually(ctx, entered).Should(Receive())
		}
		close(leave)
		asked.Wait()
	}, NodeTimeout(specTimeout))

	It("leave no memory behind while they are answered", func(ctx SpecContext) {
		const requests, bytesEach = 8, 2 << 20
		entered, leave := make(chan struct{}, requests), make(chan struct{})
		r := start(func(w http.ResponseWriter, req *http.Request) {
			_ = http.NewResponseController(w).Flush()
			waitsIn(entered, leave)(w, req)
		})
		// In a field that the engine does not get: the fake one keeps what it gets.
		body := strings.TrimSuffix(chat, "}") + `,"metadata":{"a":"` + strings.Repeat("a", bytesEach) + `"}}`
		var sealed []*seal.Sealed
		for range requests {
			sealed = append(sealed, r.seal(body))
		}
		inUse := func() int64 {
			runtime.GC()
			runtime.GC()
			var m runtime.MemStats
			runtime.ReadMemStats(&m)
			return int64(m.HeapAlloc) //nolint:gosec // less than 2^63
		}
		before := inUse()
		var asked sync.WaitGroup
		for _, s := range sealed {
			asked.Go(func() {
				defer GinkgoRecover()
				Expect(open(s, r.send(r.post(s))).err).NotTo(HaveOccurred())
			})
			Eventually(ctx, entered).Should(Receive())
		}
		Expect(inUse()-before).To(BeNumerically("<", bytesEach), "of all of them together")
		close(leave)
		asked.Wait()
		runtime.KeepAlive(sealed)
	}, NodeTimeout(specTimeout))
})
