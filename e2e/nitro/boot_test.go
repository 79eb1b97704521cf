package nitro_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/json"
	"io"
	"net/http"
	"os"
	"time"

	"github.com/fxamacker/cbor/v2"
	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	"github.com/onsi/gomega/gexec"

	"github.com/mrgc/mrgc/internal/api"
	"github.com/mrgc/mrgc/internal/attest"
	"github.com/mrgc/mrgc/internal/identity"
	"github.com/mrgc/mrgc/internal/seal"
	"github.com/mrgc/mrgc/internal/size"
	"github.com/mrgc/mrgc/standin/devca"
)

// prompt has a marker, which is nowhere on the console.
const prompt = "PLAINTEXT-MARKER-51c7"

// as is a client of the parent with a role's identity.
func (h *host) as(role identity.Role) *http.Client {
	GinkgoHelper()
	dir := h.path(string(role))
	Expect(h.authority.WriteFiles(dir, identity.ID{Region: "use1", Role: role}, time.Now())).To(Succeed())
	source, err := identity.Open(context.Background(), "dir:"+dir, "")
	Expect(err).NotTo(HaveOccurred())
	transport := &http.Transport{ForceAttemptHTTP2: true, DisableCompression: true, TLSClientConfig: source.ClientTLS(func(id identity.ID) bool { return id.Role == identity.RoleParent })}
	DeferCleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport}
}

// recipient waits until the enclave offers a key.
func (h *host) recipient(client *http.Client) (one api.Recipient) {
	GinkgoHelper()
	Eventually(func(g Gomega) {
		resp, err := client.Get("https://" + h.address + "/recipients")
		g.Expect(err).NotTo(HaveOccurred())
		defer resp.Body.Close()
		g.Expect(resp.StatusCode).To(Equal(http.StatusOK))
		var offered api.Recipients
		g.Expect(json.NewDecoder(resp.Body).Decode(&offered)).To(Succeed())
		one = offered.Recipients[0]
	}, bootTimeout, "50ms").Should(Succeed())
	return one
}

// unsigned reads a document without verifying it. It is for these tests: QEMU's
// module signs nothing, and nothing in the project takes what is not signed.
func unsigned(document []byte) (pcrs attest.PCRs, userData []byte) {
	GinkgoHelper()
	var envelope struct {
		_                      struct{} `cbor:",toarray"`
		Protected              []byte
		Unprotected            cbor.RawMessage
		Payload, NotASignature []byte
	}
	Expect(cbor.Unmarshal(bytes.TrimPrefix(document, []byte{0xd2}), &envelope)).To(Succeed())
	var payload struct {
		PCRs     map[int][]byte `cbor:"pcrs"`
		UserData []byte         `cbor:"user_data"`
	}
	Expect(cbor.Unmarshal(envelope.Payload, &payload)).To(Succeed())
	pcrs = attest.PCRs{}
	for i, value := range payload.PCRs {
		pcrs[i] = value
	}
	return pcrs, payload.UserData
}

// ask seals a chat request, sends it, and opens the answer.
func (h *host) ask(client *http.Client, recipient *seal.Recipient) (head seal.Head, body string, end seal.End) {
	GinkgoHelper()
	chat := []byte(`{"model":"` + model + `","max_tokens":8,"messages":[{"role":"user","content":"` + prompt + `"}]}`)
	var fields map[string]json.RawMessage
	Expect(json.Unmarshal(chat, &fields)).To(Succeed())
	request := seal.Request{
		Operation: seal.OpChatCompletions, Model: model, Tenant: tenantName, Size: size.Of(fields).String(), Affinity: "c7",
		Expiry:  time.Now().Add(time.Minute),
		Payload: seal.Payload{Credential: h.apiKey.EnclaveToken(), CacheSecret: []byte("secret"), Body: chat},
	}
	_, err := rand.Read(request.RequestID[:])
	Expect(err).NotTo(HaveOccurred())
	sealed, err := seal.Seal(rand.Reader, request, []*seal.Recipient{recipient})
	Expect(err).NotTo(HaveOccurred())
	post, err := http.NewRequest(http.MethodPost, "https://"+h.address+api.PathSealed, bytes.NewReader(sealed.Body))
	Expect(err).NotTo(HaveOccurred())
	for name, value := range map[string]string{
		"Content-Type": api.ContentTypeSealedRequest, api.HeaderModel: sealed.Headers.Model, api.HeaderTenant: sealed.Headers.Tenant,
		api.HeaderAffinity: sealed.Headers.Affinity, api.HeaderSize: sealed.Headers.Size,
		api.HeaderRequestID: sealed.Headers.RequestID.String(), api.HeaderRecipients: seal.FormatKeyIDs(sealed.Headers.KeyIDs),
	} {
		post.Header.Set(name, value)
	}
	resp, err := client.Do(post)
	Expect(err).NotTo(HaveOccurred())
	defer resp.Body.Close()
	wire, err := io.ReadAll(resp.Body)
	Expect(err).NotTo(HaveOccurred())
	Expect(resp.StatusCode).To(Equal(http.StatusOK), string(wire))
	answer := sealed.OpenResponse(bytes.NewReader(wire))
	head, err = answer.Head()
	Expect(err).NotTo(HaveOccurred())
	content, err := io.ReadAll(answer)
	Expect(err).NotTo(HaveOccurred())
	end, err = answer.End()
	Expect(err).NotTo(HaveOccurred())
	return head, string(content), end
}

var _ = Describe("The enclave's image", func() {
	It("boots, attests what was computed of it, and serves a sealed request", func() {
		h := newHost()
		h.startParts(h.authority, h.path("ca.sock"))
		began := time.Now()
		machine, console := h.boot()
		client := h.as(identity.RoleEnvoy)
		offered := h.recipient(client)
		AddReportEntry("from start to the first recipient", time.Since(began).String())

		By("attesting: the registers are the computed ones, and the document is for this key")
		pcrs, userData := unsigned(offered.Attestation)
		for i := range 3 {
			Expect(pcrs[i]).To(Equal(h.measured[0].PCRs[i]), "PCR%d", i)
		}
		hash := sha256.Sum256(offered.Claims)
		Expect(userData).To(Equal(hash[:]))

		By("being refused by what verifies documents, for want of a signature alone")
		_, err := attest.Verify(offered.Attestation, attest.Policy{Roots: []*x509.Certificate{attest.AWSRoot()}, Releases: h.measured},
			attest.Expected{UserData: hash[:]}, time.Now())
		Expect(err).To(MatchError(ContainSubstring("an unsigned document of an emulator")))

		By("serving")
		recipient, err := seal.ParseRecipient(offered.Claims)
		Expect(err).NotTo(HaveOccurred())
		Eventually(saidOn(console), bootTimeout, "50ms").Should(ContainSubstring("list of tenants")) // that the parent has brought
		for range 3 {
			began = time.Now()
			head, body, end := h.ask(client, recipient)
			AddReportEntry("a sealed request", time.Since(began).String())
			Expect(head.Status).To(Equal(http.StatusOK), body)
			Expect(body).To(ContainSubstring(`"choices"`))
			Expect(end.OutputTokens).To(BeNumerically(">", 0))
		}
		Expect(saidOn(console)()).To(And(ContainSubstring("serving"), Not(ContainSubstring(prompt))))
		Expect(machine.ExitCode()).To(Equal(-1), "it still runs")
	})

	It("ends when its parent brings another authority's certificate than the image's", func() {
		h := newHost()
		other, err := devca.New(time.Now())
		Expect(err).NotTo(HaveOccurred())
		h.serve(h.path("other.sock"), other.Serve)
		h.startParts(other, h.path("other.sock"))
		machine, console := h.boot()
		Eventually(machine, bootTimeout).Should(gexec.Exit())
		Expect(saidOn(console)()).To(And(ContainSubstring("certificate of another authority"), Not(ContainSubstring("serving"))))
	})
})

// saidOn reads a console.
func saidOn(console string) func() (string, error) {
	return func() (string, error) {
		said, err := os.ReadFile(console)
		return string(said), err
	}
}
