package e2e_test

import (
	"io"
	"net/http"
	"net/http/httptest"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
)

var _ = Describe("mrgc up with options", func() {
	It("serves an engine that runs already, by URL, on the least that is a cluster", func(ctx SpecContext) {
		var path string
		engine := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			switch r.URL.Path {
			case "/v1/models": // all that OpenAI's API has to say about health
				w.WriteHeader(http.StatusOK)
			case "/v1/chat/completions":
				body, _ := io.ReadAll(r.Body)
				path = r.URL.Path
				w.Header().Set("Content-Type", "application/json")
				_, _ = io.WriteString(w, `{"object":"chat.completion","seen":`+string(body)+`}`)
			default:
				w.WriteHeader(http.StatusNotFound)
			}
		}))
		DeferCleanup(engine.Close)
		c := startCluster("--regions", "use2", "--instances", "1", "--engine-url", engine.URL, "--model-name", "mine", "--ask=false")
		Expect(c.env()).To(HaveKeyWithValue("MRGC_MODEL", "mine"))
		Expect(c.env()).To(HaveKey("MRGC_ADMIN_USE2"))
		Expect(c.env()).NotTo(HaveKey("MRGC_ADMIN_USE1"))
		status, body := c.chat(ctx, http.DefaultClient, c.base(), "over here")
		Expect(status).To(Equal(http.StatusOK), body)
		Expect(body).To(ContainSubstring("over here"))
		Expect(path).To(Equal("/v1/chat/completions"))
	})

	It("runs without a model, on the simulator", func(ctx SpecContext) {
		c := startCluster("--regions", "usw2", "--engine", "sim")
		status, body := c.chat(ctx, http.DefaultClient, c.base(), "hello")
		Expect(status).To(Equal(http.StatusOK), body)
	})
})
