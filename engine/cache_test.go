package engine_test

import (
	"context"
	"encoding/json"
	"io"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"

	"github.com/mrgc/mrgc/engine"
	"github.com/mrgc/mrgc/internal/api"
	"github.com/mrgc/mrgc/internal/engineload"
)

// fakeLlama is an engine that keeps what it was asked, and answers when it may.
type fakeLlama struct {
	slots int
	hold  chan struct{} // not nil: answers wait for one of it

	mu  sync.Mutex
	got []string // guarded by mu
}

func (l *fakeLlama) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	switch r.URL.Path {
	case "/props":
		_ = json.NewEncoder(w).Encode(map[string]any{"total_slots": l.slots, "chat_template": "{{ x }}"})
		return
	case "/metrics":
		_, _ = io.WriteString(w, "llamacpp:requests_processing 1\nllamacpp:requests_deferred 0\n")
		return
	}
	body, _ := io.ReadAll(r.Body)
	l.mu.Lock()
	l.got = append(l.got, string(body))
	l.mu.Unlock()
	if l.hold != nil {
		select {
		case <-l.hold:
		case <-r.Context().Done():
			return
		}
	}
	if strings.Contains(string(body), `"refuse"`) {
		w.WriteHeader(http.StatusBadRequest)
	}
	_, _ = io.WriteString(w, "{}")
}

func (l *fakeLlama) asked() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return append([]string(nil), l.got...)
}

func withCache(kind string, slots int) engine.GuardConfig {
	return engine.GuardConfig{Cache: kind, Slots: slots}
}

// under asks for a completion under a salt.
func (g *guarded) under(ctx context.Context, salt, body string) (*http.Response, error) {
	return g.do(ctx, enclaveID, 2, "POST", chat, strings.NewReader(body), api.HeaderCacheSalt, salt, "Content-Type", "application/json")
}

func (g *guarded) expectUnder(ctx context.Context, salt, body string, status int) *http.Response {
	GinkgoHelper()
	resp, err := g.under(ctx, salt, body)
	Expect(err).NotTo(HaveOccurred())
	Expect(resp).To(HaveHTTPStatus(status))
	_, err = io.ReadAll(resp.Body)
	Expect(err).NotTo(HaveOccurred())
	return resp
}

var _ = Describe("Guard: the engine's prefix cache", func() {
	const body = `{"model":"m","messages":[]}`

	It("of vLLM gets the salt in its own words", func(ctx SpecContext) {
		var llama fakeLlama
		g := newGuardedBy(llama.ServeHTTP, withCache(api.CacheSalt, 0))
		resp := g.expectUnder(ctx, "mrgc-salt-1-Ab_9-", body, http.StatusOK)
		Expect(resp.Header.Get(api.HeaderCache)).To(Equal("salt"))
		Expect(llama.asked()).To(HaveExactElements(`{"cache_salt":"mrgc-salt-1-Ab_9-","model":"m","messages":[]}`))
	})

	It("that is told nothing is told nothing, and that is said", func(ctx SpecContext) {
		var llama fakeLlama
		g := newGuarded(llama.ServeHTTP, 0)
		resp := g.expectUnder(ctx, "s", body, http.StatusOK)
		Expect(resp.Header.Get(api.HeaderCache)).To(Equal("none"))
		Expect(llama.asked()).To(HaveExactElements(body))
	})

	DescribeTable("is not asked without a salt, or anything but an object", func(ctx SpecContext, kind, salt, body string) {
		llama := fakeLlama{slots: 1}
		g := newGuardedBy(llama.ServeHTTP, withCache(kind, 1))
		g.expectUnder(ctx, salt, body, http.StatusBadRequest)
		Expect(llama.asked()).To(BeEmpty())
		g.expectUnder(ctx, "s", `{"model":"m"}`, http.StatusOK) // nothing is held up
	},
		Entry("no salt, vLLM", api.CacheSalt, "", body), Entry("no salt, llama.cpp", api.CacheSlots, "", body),
		Entry("a salt that ends its string", api.CacheSalt, `x","n":2,"y":"`, body), Entry("a long salt", api.CacheSlots, strings.Repeat("s", 129), body),
		Entry("a list, vLLM", api.CacheSalt, "s", `[{"a":1}]`), Entry("a list, llama.cpp", api.CacheSlots, "s", `[{"a":1}]`),
		Entry("an empty object, vLLM", api.CacheSalt, "s", `{}`), Entry("an empty object, llama.cpp", api.CacheSlots, "s", `{}`),
		Entry("nothing, vLLM", api.CacheSalt, "s", ``), Entry("nothing, llama.cpp", api.CacheSlots, "s", ``),
		Entry("half an object, llama.cpp", api.CacheSlots, "s", `{"a":1`),
	)

	DescribeTable("does not lift the limit of a body", func(ctx SpecContext, kind string) {
		llama := fakeLlama{slots: 1}
		config := withCache(kind, 1)
		config.MaxBodyBytes = int64(len(body))
		g := newGuardedBy(llama.ServeHTTP, config)
		g.expectUnder(ctx, "s", body, http.StatusOK)
		g.expectUnder(ctx, "s", body+" ", http.StatusRequestEntityTooLarge)
		resp, err := g.do(ctx, enclaveID, 2, "POST", chat, io.MultiReader(strings.NewReader(body), strings.NewReader(" ")), api.HeaderCacheSalt, "s")
		Expect(err).NotTo(HaveOccurred())
		Expect(resp).To(HaveHTTPStatus(http.StatusRequestEntityTooLarge))
	}, Entry(nil, api.CacheSalt), Entry(nil, api.CacheSlots), Entry(nil, api.CacheNone))

	It("of llama.cpp is a slot, reused under one salt and by nobody else", func(ctx SpecContext) {
		llama := fakeLlama{slots: 2}
		g := newGuardedBy(llama.ServeHTTP, withCache(api.CacheSlots, 2))
		ask := func(salt, body string, status int) string {
			GinkgoHelper()
			resp := g.expectUnder(ctx, salt, body, status)
			Expect(resp.Header.Get(api.HeaderCache)).To(Equal("slots"))
			all := llama.asked()
			return all[len(all)-1]
		}
		Expect(ask("a", body, 200)).To(Equal(`{"id_slot":0,"cache_prompt":false,"model":"m","messages":[]}`))
		Expect(ask("a", body, 200)).To(HavePrefix(`{"id_slot":0,"cache_prompt":true,`))
		Expect(ask("b", body, 200)).To(HavePrefix(`{"id_slot":1,"cache_prompt":false,`))
		Expect(ask("c", body, 200)).To(HavePrefix(`{"id_slot":0,"cache_prompt":false,`))
		Expect(ask("a", body, 200)).To(HavePrefix(`{"id_slot":1,"cache_prompt":false,`))
		Expect(ask("a", `{"model":"refuse"}`, 400)).To(HavePrefix(`{"id_slot":1,"cache_prompt":true,`))
		Expect(ask("a", body, 200)).To(HavePrefix(`{"id_slot":1,"cache_prompt":false,`), "what the slot holds was not said")
		Expect(ask("a", `{"n":2}`, 200)).To(HavePrefix(`{"id_slot":1,"cache_prompt":false,`), "the second choice is made in a slot of the engine's choice")
		Expect(ask("a", body, 200)).To(HaveSuffix(`"cache_prompt":false,"model":"m","messages":[]}`))
		Expect(ask("a", `{"prompt":["one","two"]}`, 200)).To(ContainSubstring(`"cache_prompt":false,`), "one of several may have failed")
		Expect(ask("a", body, 200)).To(HaveSuffix(`"cache_prompt":false,"model":"m","messages":[]}`))
		Expect(ask("c", body, 200)).To(ContainSubstring(`"cache_prompt":false,`))
	})

	It("of llama.cpp holds what is not known after an answer that was cut, however it had begun", func(ctx SpecContext) {
		var cut atomic.Bool
		var llama fakeLlama
		llama.slots = 1
		g := newGuardedBy(func(w http.ResponseWriter, r *http.Request) {
			llama.ServeHTTP(w, r)
			if cut.Load() && r.Method == http.MethodPost {
				_ = http.NewResponseController(w).Flush()
				panic(http.ErrAbortHandler)
			}
		}, withCache(api.CacheSlots, 1))
		reuses := func() bool {
			resp, err := g.under(ctx, "a", body)
			if err == nil {
				_, err = io.ReadAll(resp.Body)
			}
			Expect(err != nil).To(Equal(cut.Load()))
			all := llama.asked()
			return strings.Contains(all[len(all)-1], `"cache_prompt":true`)
		}
		Expect(reuses()).To(BeFalse())
		Expect(reuses()).To(BeTrue())
		cut.Store(true)
		Expect(reuses()).To(BeTrue())
		cut.Store(false)
		Expect(reuses()).To(BeFalse())
		Expect(reuses()).To(BeFalse(), "for a while")
	})

	It("of llama.cpp makes requests wait for a slot, in the guard, whose metrics say so", func(ctx SpecContext) {
		llama := fakeLlama{slots: 1, hold: make(chan struct{})}
		g := newGuardedBy(llama.ServeHTTP, withCache(api.CacheSlots, 1))
		load := func() (m engineload.Metrics) {
			resp, err := g.do(ctx, parentID, 2, "GET", "/metrics", nil)
			Expect(err).NotTo(HaveOccurred())
			m, err = engineload.Read(resp.Body)
			Expect(err).NotTo(HaveOccurred())
			return m
		}
		var all sync.WaitGroup
		defer all.Wait()
		for _, salt := range []string{"a", "b", "c"} {
			all.Go(func() {
				defer GinkgoRecover()
				g.expectUnder(ctx, salt, body, http.StatusOK)
			})
		}
		Eventually(load).Should(Equal(engineload.Metrics{Running: 1, Queued: 2}))
		gone, leave := context.WithCancel(ctx)
		left := make(chan error, 1)
		go func() {
			_, err := g.under(gone, "d", body)
			left <- err
		}()
		Eventually(load).Should(Equal(engineload.Metrics{Running: 1, Queued: 3}))
		leave()
		Eventually(left).Should(Receive(MatchError(context.Canceled)))
		Eventually(load).Should(Equal(engineload.Metrics{Running: 1, Queued: 2}))
		for n := 1; n <= 3; n++ {
			Eventually(llama.asked).Should(HaveLen(n))
			Consistently(llama.asked, "20ms").Should(HaveLen(n), "one at a time")
			llama.hold <- struct{}{}
		}
	})

	It("of llama.cpp is not asked while the engine has fewer slots than the guard was told", func(ctx SpecContext) {
		llama := fakeLlama{slots: 3}
		g := newGuardedBy(llama.ServeHTTP, withCache(api.CacheSlots, 4))
		resp := g.expectUnder(ctx, "a", body, http.StatusServiceUnavailable)
		Expect(resp.Header.Get(api.HeaderNotRun)).To(Equal("1"))
		Expect(llama.asked()).To(BeEmpty())
		Expect(g.logs.String()).To(ContainSubstring("too few slots: 3"))
	})

	It("of llama.cpp that is not there is the same as any engine that is not", func(ctx SpecContext) {
		g := newGuardedBy(nil, withCache(api.CacheSlots, 4))
		resp := g.expectUnder(ctx, "a", body, http.StatusServiceUnavailable)
		Expect(resp.Header.Get(api.HeaderNotRun)).To(Equal("1"))
	})

	It("has to be of a known kind", func() {
		for _, wrong := range []engine.GuardConfig{{Cache: "on"}, {Cache: api.CacheSlots}} {
			wrong.Upstream, wrong.Role = "unix:/x", roleByURI
			_, err := engine.NewGuard(wrong)
			Expect(err).To(HaveOccurred())
		}
	})
})
