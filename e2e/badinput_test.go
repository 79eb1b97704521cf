package e2e_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/base64"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync/atomic"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"

	"github.com/mrgc/mrgc/internal/api"
	"github.com/mrgc/mrgc/internal/credential"
	"github.com/mrgc/mrgc/internal/seal"
)

// badInput is the cluster that the specs of bad input share.
type badInput struct {
	*forger
	c      *cluster
	marker string       // in every prompt, and nowhere else
	ran    atomic.Int64 // requests that reached the engine
	shown  bytes.Buffer // all that came back in clear
	pids   map[string]int
	want   string // the one answer to what does not open
}

// refused sends a letter. What comes back in clear must be an error in OpenAI's
// shape, and nothing of the letter may have run.
func (b *badInput) refused(ctx context.Context, l *letter, status int, code string) reply {
	GinkgoHelper()
	ran := b.ran.Load()
	r := b.send(ctx, l)
	b.expectError(r, status, code)
	Expect(b.ran.Load()).To(Equal(ran), "the engine has heard of it")
	return r
}

func (b *badInput) expectError(r reply, status int, code string) {
	GinkgoHelper()
	b.shown.WriteString(r.all())
	e := api.ParseError(r.status, r.body)
	Expect([]any{r.status, e.Code}).To(Equal([]any{status, code}), "%s", r.body)
	Expect(e.Message).NotTo(BeEmpty())
	Expect(r.header.Get("Content-Type")).To(Equal("application/json"))
	want := api.TypeInvalidRequest
	switch {
	case status == http.StatusUnauthorized:
		want = api.TypeAuthentication
	case status >= http.StatusInternalServerError:
		want = api.TypeServer
	}
	Expect(e.Type).To(Equal(want))
}

// good is a letter that nothing is wrong with, of several chunks.
func (b *badInput) good() *letter {
	GinkgoHelper()
	return b.letter(b.sealGood())
}

func (b *badInput) sealGood() *seal.Sealed {
	GinkgoHelper()
	return b.seal(b.prompt(50<<10), func(r *seal.Request) { r.Size = "16384/1024" })
}

// prompt is a chat of about so many bytes, full of the marker.
func (b *badInput) prompt(size int) []byte {
	GinkgoHelper()
	return b.chat(strings.Repeat(b.marker+" ", size/(len(b.marker)+1)))
}

var _ = Describe("Bad input", Ordered, func() {
	b := &badInput{marker: "marker" + rand.Text()}
	BeforeAll(func(ctx SpecContext) {
		engine := newToldEngine()
		engine.does(func(w http.ResponseWriter, r *http.Request) {
			b.ran.Add(1)
			_, _ = io.Copy(io.Discard, r.Body)
			w.Header().Set("Content-Type", "application/json")
			_, _ = io.WriteString(w, `{"object":"chat.completion"}`)
		})
		b.c = startCluster("--regions", "use1", "--instances", "2", "--engine-url", engine.server.URL, "--model-name", "told", "--ask=false")
		b.forger = b.c.newForger(ctx)
		Expect(b.recipients).To(HaveLen(2))
		b.pids = b.c.pids()

		sealed := b.sealGood()
		status, body := b.send(ctx, b.letter(sealed)).opened(sealed)
		Expect([]any{status, string(body)}).To(Equal([]any{200, `{"object":"chat.completion"}`}), "a forger who breaks nothing is answered")

		longer := b.good()
		longer.body, longer.length = append(longer.body, 0), longer.length+1
		b.want = b.refused(ctx, longer, http.StatusBadRequest, "cannot_open").all()
	})

	describeWhatDoesNotOpen(b)
	describeRefusals(b)
	describeSizes(b)
	describeLooks(b)
	describeStrangers(b)
	describeTime(b)
	describeConnections(b)

	It("to mrgc connect is an error in OpenAI's shape", func(ctx SpecContext) {
		stranger, err := credential.New(rand.Reader, b.key.Tenant())
		Expect(err).NotTo(HaveOccurred())
		nobody, err := credential.New(rand.Reader, "nobody")
		Expect(err).NotTo(HaveOccurred())
		for _, bad := range []struct {
			what, key, body string
			status          int
			code            string
		}{
			{"a wrong key", stranger.Text(), string(b.prompt(100)), 401, "invalid_api_key"},
			{"an unknown tenant", nobody.Text(), string(b.prompt(100)), 401, "invalid_api_key"},
			{"no key", "", string(b.prompt(100)), 401, "invalid_api_key"},
			{"an unknown model", b.key.Text(), `{"model":"gpt-99","messages":[]}`, 404, "model_not_found"},
			{"no JSON", b.key.Text(), b.marker, 400, "invalid_request"},
			{"a field that is not known", b.key.Text(), `{"model":"told","messages":[],"lora":"` + b.marker + `"}`, 400, "unknown_field"},
			{"a body over the limit", b.key.Text(), string(b.prompt(5 << 20)), 413, "request_too_large"},
		} {
			By(bad.what)
			req, err := http.NewRequestWithContext(ctx, http.MethodPost, b.c.base()+"/v1/chat/completions", strings.NewReader(bad.body))
			Expect(err).NotTo(HaveOccurred())
			req.Header.Set("Authorization", "Bearer "+bad.key)
			resp, err := http.DefaultClient.Do(req)
			Expect(err).NotTo(HaveOccurred())
			body, err := io.ReadAll(resp.Body)
			Expect(err).NotTo(HaveOccurred())
			Expect(resp.Body.Close()).To(Succeed())
			b.expectError(reply{resp.StatusCode, resp.Header, body}, bad.status, bad.code)
		}
	})

	It("leaves the cluster as it was: nothing died, nothing stays in flight, and a good request is answered", func(ctx SpecContext) {
		Expect(b.c.pids()).To(Equal(b.pids))
		Eventually(ctx, func() []string {
			return regexp.MustCompile(`mrgc_in_flight\{.*\} \S+`).FindAllString(get(ctx, b.c.env()["MRGC_ADMIN_USE1"]+"/metrics"), -1)
		}, "20s").Should(And(Not(BeEmpty()), HaveEach(HaveSuffix(" 0"))))
		sealed := b.seal(b.prompt(100), nil)
		status, _ := b.send(ctx, b.letter(sealed)).opened(sealed)
		Expect(status).To(Equal(http.StatusOK))
	})

	It("leaks nothing: not into an answer, not into a file", func() {
		secrets := map[string]string{
			"the prompt": b.marker, "the edge token": string(b.key.EdgeToken()), "the enclave token": string(b.key.EnclaveToken()),
			"the cache secret": base64.RawURLEncoding.EncodeToString(b.key.CacheSecret()),
		}
		Expect(b.shown.Len()).To(BeNumerically(">", 10_000))
		for what, secret := range secrets {
			Expect(b.shown.String()).NotTo(ContainSubstring(secret), what)
		}
		files := 0
		Expect(filepath.WalkDir(b.c.stateDir, func(path string, entry fs.DirEntry, err error) error {
			if err != nil || !entry.Type().IsRegular() {
				return err
			}
			files++
			content, err := os.ReadFile(path)
			for what, secret := range secrets {
				Expect(bytes.Contains(content, []byte(secret))).To(BeFalse(), "%s has %s", path, what)
			}
			return err
		})).To(Succeed())
		Expect(files).To(BeNumerically(">=", 15))
	})
})
