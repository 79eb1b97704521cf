package client_test

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"encoding/json"
	"io"
	"net/http"
	"strings"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"

	"github.com/mrgc/mrgc/client"
	"github.com/mrgc/mrgc/internal/api"
	"github.com/mrgc/mrgc/internal/attest"
	"github.com/mrgc/mrgc/internal/nsm"
	"github.com/mrgc/mrgc/internal/seal"
)

// forgingEnclave answers with whatever receipt, signed by the key that its claims
// name: only measured code could do so.
type forgingEnclave struct {
	cluster  *cluster
	key      *seal.RecipientKey
	receipts ed25519.PrivateKey
	change   func(*seal.Receipt)
	sign     ed25519.PrivateKey // nil: no receipt
}

func (c *cluster) newForgingEnclave(withKey bool) *forgingEnclave {
	GinkgoHelper()
	public, private, err := ed25519.GenerateKey(rand.Reader)
	Expect(err).NotTo(HaveOccurred())
	claims := seal.Claims{
		Model: model, Region: "use1", Mode: seal.ModeProcess, NotBefore: c.clock.Now().Add(-time.Minute), NotAfter: c.clock.Now().Add(time.Hour),
	}
	if withKey {
		claims.ReceiptKey = public
	}
	key, err := seal.NewRecipientKey(claims)
	Expect(err).NotTo(HaveOccurred())
	return &forgingEnclave{cluster: c, key: key, receipts: private, sign: private, change: func(*seal.Receipt) {}}
}

func (f *forgingEnclave) serveKeys(w http.ResponseWriter, r *http.Request) {
	digest := f.key.ClaimsDigest()
	document, err := f.cluster.nsm.Attest(r.Context(), nsm.Request{UserData: digest[:]})
	if err != nil {
		return
	}
	writeRecipients(w, []api.Recipient{{Claims: f.key.RawClaims(), Attestation: document}})
}

func (f *forgingEnclave) serveSealed(w http.ResponseWriter, r *http.Request) {
	defer GinkgoRecover()
	ids, err := seal.ParseKeyIDs(r.Header.Get(api.HeaderRecipients))
	Expect(err).NotTo(HaveOccurred())
	id, err := seal.ParseRequestID(r.Header.Get(api.HeaderRequestID))
	Expect(err).NotTo(HaveOccurred())
	prologue, err := seal.ReadPrologue(r.Body)
	Expect(err).NotTo(HaveOccurred())
	h := r.Header
	opened, err := f.key.Open(f.cluster.clock.Now(), prologue, seal.Headers{
		Model: h.Get(api.HeaderModel), Tenant: h.Get(api.HeaderTenant), Affinity: h.Get(api.HeaderAffinity), Size: h.Get(api.HeaderSize),
		RequestID: id, KeyIDs: ids,
	}, r.Body, seal.Limits{})
	Expect(err).NotTo(HaveOccurred())
	w.Header().Set("Content-Type", api.ContentTypeSealedResponse)
	answer, err := opened.Respond(rand.Reader, w)
	Expect(err).NotTo(HaveOccurred())
	Expect(answer.WriteHead(seal.Head{Status: 200, ContentType: "application/json"})).To(Succeed())
	_, err = answer.Write([]byte(reply))
	Expect(err).NotTo(HaveOccurred())
	end := seal.End{PromptTokens: 3, OutputTokens: 5}
	if f.sign != nil {
		receipt := seal.Receipt{
			Enclave: seal.EnclaveVerified{
				ClaimsSHA256: f.key.ClaimsDigest(), RequestID: id, Operation: opened.Operation, Model: model,
				RequestSHA256: sha256.Sum256(opened.Payload.Body), Status: 200, ResponseSHA256: sha256.Sum256([]byte(reply)),
				EndedAt: f.cluster.clock.Now(),
			},
			Host: seal.HostAsserted{PromptTokens: 3, OutputTokens: 5},
		}
		f.change(&receipt)
		end.Receipt, err = receipt.Sign(f.sign)
		Expect(err).NotTo(HaveOccurred())
	}
	Expect(answer.Close(end)).To(Succeed())
}

var _ = Describe("A receipt", func() {
	var (
		c *cluster
		e *edge
	)
	BeforeEach(func() {
		c = newCluster()
		e = c.startEdge()
	})

	// ask gives what the SDK reads, and what the tenant gets to keep.
	ask := func(ctx context.Context, change func(*client.Config)) (resp *http.Response, content string, kept map[string]client.Receipt, err error) {
		GinkgoHelper()
		config := c.config(e)
		kept = map[string]client.Receipt{}
		config.Receipts = func(id string, r client.Receipt) { kept[id] = r }
		if change != nil {
			change(&config)
		}
		resp = c.tenant(config).ask(ctx)
		all, err := io.ReadAll(resp.Body)
		return resp, string(all), kept, err
	}

	It("comes with each answer, and says what was asked and answered", func(ctx SpecContext) {
		resp, content, kept, err := ask(ctx, func(c *client.Config) { c.Policy.RequireReceipt = true })
		Expect(err).NotTo(HaveOccurred())
		Expect(content).To(Equal(reply))
		Expect(kept).To(HaveLen(1))
		receipt := kept[resp.Header.Get(api.HeaderRequestID)]
		file, err := json.Marshal(receipt)
		Expect(err).NotTo(HaveOccurred())
		read, err := client.ParseReceipt(file)
		Expect(err).NotTo(HaveOccurred())

		c.clock.Advance(48 * time.Hour) // it is verified whenever someone wants to
		stated, err := read.Verify(c.config(e).Policy)
		Expect(err).NotTo(HaveOccurred())
		Expect(stated.Release.Name).To(Equal("this test"))
		Expect(stated.Enclave.Model).To(Equal(model))
		Expect(stated.Enclave.RequestID.String()).To(Equal(resp.Header.Get(api.HeaderRequestID)))
		Expect(stated.Enclave.Status).To(Equal(200))
		Expect(stated.Enclave.RequestSHA256).To(Equal(sha256.Sum256([]byte(chat))))
		Expect(stated.Enclave.ResponseSHA256).To(Equal(sha256.Sum256([]byte(reply))))
		Expect(stated.Host.LastWash).To(BeZero())
	})

	It("comes with an error that the enclave seals, too", func(ctx SpecContext) {
		config := c.config(e)
		config.Policy.RequireReceipt = true
		resp, err := c.tenant(config).send(ctx, http.MethodPost, "/chat/completions", body(`{"model":"`+model+`","unknown":1}`))
		Expect(err).NotTo(HaveOccurred())
		Expect(refusal(resp).Code).To(Equal("unknown_field"))
	})

	It("that holds is taken from an enclave that makes its own", func(ctx SpecContext) {
		forger := c.newForgingEnclave(true)
		e.on(api.PathKeys, forger.serveKeys)
		e.on(api.PathSealed, forger.serveSealed)
		_, content, kept, err := ask(ctx, nil)
		Expect(err).NotTo(HaveOccurred())
		Expect(content).To(Equal(reply))
		Expect(kept).To(HaveLen(1), "else the table below shows nothing")
	})

	DescribeTable("that is not this answer's fails it:", func(ctx SpecContext, change func(*seal.Receipt)) {
		forger := c.newForgingEnclave(true)
		forger.change = change
		e.on(api.PathKeys, forger.serveKeys)
		e.on(api.PathSealed, forger.serveSealed)
		_, _, kept, err := ask(ctx, nil)
		Expect(err).To(MatchError(seal.ErrReceipt))
		Expect(kept).To(BeEmpty())
	},
		Entry("of other claims", func(r *seal.Receipt) { r.Enclave.ClaimsSHA256[31] ^= 1 }),
		Entry("of another request id", func(r *seal.Receipt) { r.Enclave.RequestID[0] ^= 1 }),
		Entry("of another operation", func(r *seal.Receipt) { r.Enclave.Operation = seal.OpCompletions }),
		Entry("of another model", func(r *seal.Receipt) { r.Enclave.Model = "other" }),
		Entry("of another request", func(r *seal.Receipt) { r.Enclave.RequestSHA256[5] ^= 1 }),
		Entry("of another status", func(r *seal.Receipt) { r.Enclave.Status = 201 }),
		Entry("of another answer", func(r *seal.Receipt) { r.Enclave.ResponseSHA256[5] ^= 1 }),
		Entry("from before the claims", func(r *seal.Receipt) { r.Enclave.EndedAt = r.Enclave.EndedAt.Add(-time.Hour) }),
		Entry("of another prompt's tokens", func(r *seal.Receipt) { r.Host.PromptTokens++ }),
		Entry("of other tokens", func(r *seal.Receipt) { r.Host.OutputTokens-- }),
	)

	It("that another key signed fails the answer", func(ctx SpecContext) {
		forger := c.newForgingEnclave(true)
		forger.sign = c.newForgingEnclave(true).receipts
		e.on(api.PathKeys, forger.serveKeys)
		e.on(api.PathSealed, forger.serveSealed)
		_, _, _, err := ask(ctx, nil)
		Expect(err).To(MatchError(seal.ErrReceipt))
	})

	It("that is missing fails the answer if the policy requires it", func(ctx SpecContext) {
		forger := c.newForgingEnclave(true)
		forger.sign = nil
		e.on(api.PathKeys, forger.serveKeys)
		e.on(api.PathSealed, forger.serveSealed)
		_, content, _, err := ask(ctx, nil)
		Expect(err).NotTo(HaveOccurred())
		Expect(content).To(Equal(reply))
		_, _, _, err = ask(ctx, func(c *client.Config) { c.Policy.RequireReceipt = true })
		Expect(err).To(MatchError(client.ErrNoReceipt))
	})

	It("is not expected of an enclave without a key for them, which the policy can refuse", func(ctx SpecContext) {
		forger := c.newForgingEnclave(false)
		forger.sign = nil
		e.on(api.PathKeys, forger.serveKeys)
		e.on(api.PathSealed, forger.serveSealed)
		_, content, _, err := ask(ctx, nil)
		Expect(err).NotTo(HaveOccurred())
		Expect(content).To(Equal(reply))
		config := c.config(e)
		config.Policy.RequireReceipt = true
		refused := refusal(c.tenant(config).ask(ctx))
		Expect(refused.Message).To(ContainSubstring("signs no receipts"))
	})

	DescribeTable("of a file is refused", func(ctx SpecContext, reason string, change func(*client.Receipt, *client.Policy)) {
		_, _, kept, err := ask(ctx, nil)
		Expect(err).NotTo(HaveOccurred())
		Expect(kept).NotTo(BeEmpty())
		for _, receipt := range kept {
			policy := c.config(e).Policy
			_, err := receipt.Verify(policy)
			Expect(err).NotTo(HaveOccurred(), "as it is")
			change(&receipt, &policy)
			_, err = receipt.Verify(policy)
			Expect(err).To(MatchError(ContainSubstring(reason)))
		}
	},
		Entry("by another policy's releases", "match no trusted release", func(_ *client.Receipt, p *client.Policy) {
			other := p.Releases[0]
			other.PCRs = attest.PCRs{0: attest.ExtendedPCR([]byte("another")), 1: other.PCRs[1], 2: other.PCRs[2]}
			p.Releases = []attest.Release{other}
		}),
		Entry("in a mode that is not accepted", `mode "process" is not accepted, but nitro`, func(_ *client.Receipt, p *client.Policy) { p.Modes = []string{seal.ModeNitro} }),
		Entry("of a region that is not accepted", `region "use1" is not accepted`, func(_ *client.Receipt, p *client.Policy) { p.Regions = []string{"usw2"} }),
		Entry("without releases to trust", "no trusted releases", func(_ *client.Receipt, p *client.Policy) { p.Releases = nil }),
		Entry("verified after the claims", "claims were not valid", func(r *client.Receipt, _ *client.Policy) { r.VerifiedAt = r.VerifiedAt.Add(25 * time.Hour) }),
		Entry("verified long after the document", "old", func(r *client.Receipt, _ *client.Policy) { r.VerifiedAt = r.VerifiedAt.Add(time.Hour) }),
		Entry("with other claims", "user_data", func(r *client.Receipt, _ *client.Policy) { r.Claims = recipientsOf(c.newEnclave())[0].Claims }),
		Entry("with a changed receipt", "receipt", func(r *client.Receipt, _ *client.Policy) { r.Receipt[40] ^= 1 }),
		Entry("with a changed document", "attestation", func(r *client.Receipt, _ *client.Policy) { r.Attestation[len(r.Attestation)-1] ^= 1 }),
	)

	DescribeTable("of a file is not read with", func(file, reason string) {
		_, err := client.ParseReceipt([]byte(file))
		Expect(err).To(MatchError(ContainSubstring(reason)))
	},
		Entry("an unknown field", `{"receipt":"","x":1}`, "unknown field"),
		Entry("data after it", `{"receipt":""} {}`, "data after it"),
		Entry("too much", strings.Repeat(" ", 300<<10), "more than"),
		Entry("no JSON", `receipt`, "receipt"),
	)
})
