package e2e_test

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"

	"github.com/mrgc/mrgc/internal/api"
	"github.com/mrgc/mrgc/internal/seal"
)

var _ = Describe("A tenant's limits", func() {
	It("are told to its SDK by mrgc connect, and touch nobody else", func(ctx SpecContext) {
		engine := newToldEngine()
		c := startCluster("--regions", "use1", "--instances", "1", "--engine-url", engine.server.URL, "--model-name", "told", "--ask=false")
		small := c.tenants("add", "small", "--tokens-per-minute", "1200")
		unlimited := c.tenants("add", "unlimited")
		c.signTenants()

		ask := func(ctx context.Context, key, members string) (status int, refusal *api.Error, retryAfter string) {
			GinkgoHelper()
			body := `{"model":"told","messages":[{"role":"user","content":"hello"}]` + members + `}`
			req, err := http.NewRequestWithContext(ctx, http.MethodPost, c.base()+"/v1/chat/completions", strings.NewReader(body))
			Expect(err).NotTo(HaveOccurred())
			req.Header.Set("Authorization", "Bearer "+key)
			resp, err := http.DefaultClient.Do(req)
			Expect(err).NotTo(HaveOccurred())
			defer resp.Body.Close()
			answer, err := io.ReadAll(resp.Body)
			Expect(err).NotTo(HaveOccurred())
			return resp.StatusCode, api.ParseError(resp.StatusCode, answer), resp.Header.Get("Retry-After")
		}
		Eventually(ctx, func() int {
			status, _, _ := ask(ctx, unlimited, "")
			return status
		}, "20s").Should(Equal(http.StatusOK), "the list has arrived everywhere")

		// A short question without max_tokens is one of 64 and 1,024 tokens, until its
		// answer has ended, which has used less.
		asked, answers := make(chan struct{}), make(chan struct{})
		engine.does(func(w http.ResponseWriter, r *http.Request) {
			close(asked)
			select {
			case <-answers:
			case <-r.Context().Done():
			}
			_, _ = io.WriteString(w, `{"object":"chat.completion","usage":{"prompt_tokens":9,"completion_tokens":20}}`)
		})
		first := make(chan int, 1)
		go func() {
			defer GinkgoRecover()
			status, _, _ := ask(ctx, small, "")
			first <- status
		}()
		Eventually(ctx, asked).Should(BeClosed())
		status, refusal, retryAfter := ask(ctx, small, "")
		Expect(status).To(Equal(http.StatusTooManyRequests))
		Expect(refusal).To(And(HaveField("Type", api.TypeRateLimit), HaveField("Code", "rate_limit_exceeded"), HaveField("Param", "tokens_per_minute")))
		seconds, err := strconv.Atoi(retryAfter)
		Expect(err).NotTo(HaveOccurred())
		Expect(seconds).To(BeNumerically("~", 48, 5), "until 976 of the tokens are there again")

		By("the first one ending")
		close(answers)
		Eventually(ctx, first).Should(Receive(Equal(http.StatusOK)))
		engine.says(`{"object":"chat.completion"}`)
		Eventually(ctx, func() int {
			status, _, _ := ask(ctx, small, `,"max_tokens":500`)
			return status
		}, "5s").Should(Equal(http.StatusOK), "what was not used is there again")

		status, refusal, retryAfter = ask(ctx, small, `,"max_tokens":2000`)
		Expect(status).To(Equal(http.StatusRequestEntityTooLarge))
		Expect(refusal.Code).To(Equal("request_too_large"))
		Expect(retryAfter).To(BeEmpty())

		for range 5 {
			status, _, _ = ask(ctx, c.env()["OPENAI_API_KEY"], "")
			Expect(status).To(Equal(http.StatusOK))
		}
	})

	It("hold once, in whichever regions it asks", func(ctx SpecContext) {
		const limit = 4 // requests of 64 and 1,024 tokens, and not five of them
		engine := newToldEngine()
		engine.says(`{"object":"chat.completion","usage":{"prompt_tokens":9,"completion_tokens":1000}}`)
		c := startCluster("--regions", "use1,use2,usw2", "--instances", "1", "--engine-url", engine.server.URL, "--model-name", "told", "--ask=false")
		roaming := c.newForger(ctx).as(c.tenants("add", "roaming", "--tokens-per-minute", strconv.Itoa(1088*limit+100)))
		c.signTenants()
		served := 0
		ask := func(region string) string {
			GinkgoHelper()
			sealed := roaming.seal(roaming.chat("may I?"), func(r *seal.Request) { r.Size = "64/1024" })
			from := roaming.at(c.envoys()[region])
			outcome := from.outcomeOf(from.send(ctx, from.letter(sealed)), sealed)
			if strings.HasPrefix(outcome, "127.0.0.1:") {
				served++
				return "served"
			}
			return outcome
		}
		regions := []string{"use1", "use2", "usw2"}
		for i := range limit { // those that an enclave does not know yet are given back
			Eventually(ctx, func() string { return ask(regions[i%len(regions)]) }, "20s").Should(Equal("served"))
		}
		for _, region := range regions {
			Eventually(ctx, func() string { return ask(region) }, "5s", "500ms").Should(Equal("rate_limit_exceeded"))
		}
		AddReportEntry("limits", fmt.Sprintf("%d requests were served in three regions where %d are allowed", served, limit))
		Expect(served).To(BeNumerically("<=", limit+len(regions)), "one in each before it has heard of the others'")
	})
})
