package e2e_test

import (
	"context"
	"encoding/json"
	"io"
	"net/http"
	"strings"
	"sync/atomic"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"

	"github.com/mrgc/mrgc/internal/seal"
)

// cachedOf asks for one token and gives how many of the prompt's tokens the engine
// had kept, and how long it took.
func (f *forger) cachedOf(ctx context.Context, more map[string]any, change func(*seal.Request)) (cached int, took time.Duration) {
	GinkgoHelper()
	request := map[string]any{
		"model": f.model, "max_tokens": 1,
		"messages": []map[string]string{{"role": "user", "content": strings.Repeat("A prompt that is nobody else's business. ", 20)}},
	}
	for name, value := range more {
		request[name] = value
	}
	body, err := json.Marshal(request)
	Expect(err).NotTo(HaveOccurred())
	sealed := f.seal(body, change)
	began := time.Now()
	answer := f.send(ctx, f.letter(sealed))
	took = time.Since(began)
	Expect(answer.status).To(Equal(http.StatusOK), "%s", answer.body)
	status, content := answer.opened(sealed)
	Expect(status).To(Equal(http.StatusOK), "%s", content)
	var completion struct {
		Usage struct {
			Details struct {
				Cached *int `json:"cached_tokens"`
			} `json:"prompt_tokens_details"`
		}
	}
	Expect(json.Unmarshal(content, &completion)).To(Succeed())
	Expect(completion.Usage.Details.Cached).NotTo(BeNil(), "the engine counts: %s", content)
	return *completion.Usage.Details.Cached, took
}

var _ = Describe("The mode of isolation", func() {
	It("is stated to tenants and to the operator, and what is in another than a tenant demands gets nothing of its", func(ctx SpecContext) {
		engine := newToldEngine()
		var asked atomic.Int64
		engine.does(func(w http.ResponseWriter, _ *http.Request) {
			asked.Add(1)
			w.Header().Set("Content-Type", "application/json")
			_, _ = io.WriteString(w, `{"object":"chat.completion","choices":[]}`)
		})
		c := startCluster("--regions", "use1", "--instances", "1", "--engine-url", engine.server.URL, "--model-name", "told", "--ask=false")
		Expect(c.mrgc("status", "--admin", c.env()["MRGC_ADMIN_USE1"])).To(MatchRegexp(`use1-0 +process +1 +ready`))

		demanding := c.connect(ctx, "--require-mode", "nitro")
		status, body := c.chat(ctx, http.DefaultClient, demanding, "for an enclave alone")
		Expect(status).To(Equal(http.StatusBadGateway))
		Expect(body).To(And(ContainSubstring("no_trusted_recipient"), ContainSubstring(`mode \"process\" is not accepted, but nitro`)))
		Expect(asked.Load()).To(BeZero())

		content := c.connect(ctx, "--require-mode", "process")
		status, body = c.chat(ctx, http.DefaultClient, content, "for a process, too")
		Expect(status).To(Equal(http.StatusOK), body)
		Expect(asked.Load()).To(BeEquivalentTo(1))
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, content+"/v1/models", nil)
		Expect(err).NotTo(HaveOccurred())
		req.Header.Set("Authorization", "Bearer "+c.env()["OPENAI_API_KEY"])
		resp, err := http.DefaultClient.Do(req)
		Expect(err).NotTo(HaveOccurred())
		defer resp.Body.Close()
		models, err := io.ReadAll(resp.Body)
		Expect(err).NotTo(HaveOccurred())
		Expect(string(models)).To(ContainSubstring(`"metadata":{"modes":["process"]}`))
	}, NodeTimeout(time.Minute))
})

var _ = Describe("The engine's prefix cache", func() {
	DescribeTable("serves a tenant what it has asked itself, and nothing of what others have", func(ctx SpecContext, arguments ...string) {
		c := startCluster(append([]string{"--regions", "use1", "--instances", "1", "--ask=false"}, arguments...)...)
		one := c.newForger(ctx)
		two := one.as(c.tenants("add", "two"))
		c.signTenants()
		Eventually(ctx, func() int { // a prompt of its own: nothing that is looked for below
			sealed := two.seal(two.chat("hello"), nil)
			r := two.send(ctx, two.letter(sealed))
			if r.status != http.StatusOK {
				return r.status
			}
			status, _ := r.opened(sealed)
			return status
		}, "20s", "50ms").Should(Equal(http.StatusOK))

		const most = 100
		_, cold := one.cachedOf(ctx, nil, nil)
		hit, warm := one.cachedOf(ctx, nil, nil)
		Expect(hit).To(BeNumerically(">", most), "its own")
		miss, other := two.cachedOf(ctx, nil, nil)
		Expect(miss).To(BeNumerically("<", 32), "another's: nothing but what the template puts before every prompt and its own hello left there")
		AddReportEntry("cache", map[string]time.Duration{"cold": cold, "own": warm, "another tenant's": other})
		hit, _ = two.cachedOf(ctx, nil, nil)
		Expect(hit).To(BeNumerically(">", most), "by now it is its own, too")

		for _, forged := range []map[string]any{{"cache_salt": "mrgc-salt-1-AAAA"}, {"cache_salt": "dev"}} {
			missed, _ := two.cachedOf(ctx, forged, nil)
			Expect(missed).To(BeZero(), "a salt of the client's own choice")
		}
		missed, _ := one.cachedOf(ctx, nil, func(r *seal.Request) { r.Payload.CacheSecret = two.key.CacheSecret() })
		Expect(missed).To(BeZero(), "another tenant's cache secret")
	},
		Entry("of the simulator", NodeTimeout(2*time.Minute), "--engine", "sim", "--sim-profile", "a100"),
		Entry("of llama.cpp", NodeTimeout(3*time.Minute)),
	)
})
