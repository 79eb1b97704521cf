package enclave_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"net/http"
	"strings"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"

	"github.com/mrgc/mrgc/internal/api"
	"github.com/mrgc/mrgc/internal/seal"
)

// tell says what the parent does of its instance, and gives the status.
func (r *running) tell(host any) int {
	GinkgoHelper()
	content, err := json.Marshal(host)
	Expect(err).NotTo(HaveOccurred())
	req, err := http.NewRequest(http.MethodPut, r.url+api.PathHost, bytes.NewReader(content))
	Expect(err).NotTo(HaveOccurred())
	return r.send(req).StatusCode
}

var _ = Describe("A receipt", func() {
	It("is in the end of each answer, with what the host said before the request", func() {
		const said = `{"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":4}}`
		r := start(says(said))
		wash := seal.Wash{ID: "use1-0/7", EndedAt: r.clock.Now().Add(-time.Minute)}
		Expect(r.tell(api.Host{ModelVersion: "v3", WashID: wash.ID, WashEndedAt: wash.EndedAt})).To(Equal(http.StatusNoContent))
		keys, _ := r.recipients()
		sealed := r.seal(chat)
		a := open(sealed, r.send(r.post(sealed)))
		Expect(a.err).NotTo(HaveOccurred())
		receipt, err := keys[0].VerifyReceipt(a.end.Receipt)
		Expect(err).NotTo(HaveOccurred())
		Expect(receipt.Enclave.SaltID).NotTo(BeZero())
		Expect(receipt).To(Equal(seal.Receipt{
			Enclave: seal.EnclaveVerified{
				ClaimsSHA256: keys[0].ClaimsDigest(), RequestID: sealed.Headers.RequestID, Operation: seal.OpChatCompletions, Model: model,
				RequestSHA256: sha256.Sum256([]byte(chat)), Status: 200, ResponseSHA256: sha256.Sum256([]byte(said)), EndedAt: r.clock.Now(),
				SaltID: receipt.Enclave.SaltID,
			},
			Host: seal.HostAsserted{ModelVersion: "v3", PromptTokens: 3, OutputTokens: 4, LastWash: wash},
		}))
	})

	It("of a refusal has its status, and hashes what was refused", func() {
		r := start(says(`{}`))
		keys, _ := r.recipients()
		a := r.ask(`{"model":"` + model + `","best_of":2}`)
		Expect(a.err).NotTo(HaveOccurred())
		receipt, err := keys[0].VerifyReceipt(a.end.Receipt)
		Expect(err).NotTo(HaveOccurred())
		Expect(receipt.Enclave.Status).To(Equal(http.StatusBadRequest))
		Expect(receipt.Enclave.ResponseSHA256).To(Equal(sha256.Sum256([]byte(a.body))))
	})

	It("hashes what a stream has told the tenant, not what was kept from it", func() {
		r := start(events(`data: {"choices":[{}]}`, `data: {"choices":[],"usage":{"prompt_tokens":1,"completion_tokens":2}}`, `data: [DONE]`))
		keys, _ := r.recipients()
		a := r.ask(stream)
		Expect(a.err).NotTo(HaveOccurred())
		receipt, err := keys[0].VerifyReceipt(a.end.Receipt)
		Expect(err).NotTo(HaveOccurred())
		Expect(a.body).NotTo(ContainSubstring("usage"))
		Expect(receipt.Enclave.ResponseSHA256).To(Equal(sha256.Sum256([]byte(a.body))))
	})

	DescribeTable("cannot be broken by a host that says", func(host any) {
		r := start(says(`{}`))
		Expect(r.tell(host)).To(Equal(http.StatusBadRequest))
		Expect(r.ask(chat).err).NotTo(HaveOccurred())
	},
		Entry("a version of many lines", api.Host{ModelVersion: "a\nb"}),
		Entry("a long version", api.Host{ModelVersion: strings.Repeat("v", 256)}),
		Entry("a wash without a time", api.Host{WashID: "w"}),
		Entry("a wash before 1970", api.Host{WashID: "w", WashEndedAt: time.Unix(-1, 0)}),
		Entry("what is not known", map[string]string{"wash": "none"}),
	)
})

// events is an engine that streams them.
func events(all ...string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/event-stream")
		for _, event := range all {
			_, _ = w.Write([]byte(event + "\n\n"))
		}
	}
}
