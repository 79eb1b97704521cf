package enclave_test

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"strings"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"

	"github.com/mrgc/mrgc/enclave"
	"github.com/mrgc/mrgc/internal/api"
	"github.com/mrgc/mrgc/internal/kms"
	"github.com/mrgc/mrgc/internal/seal"
	"github.com/mrgc/mrgc/standin/softkms"
	"github.com/mrgc/mrgc/standin/softkms/softkmstest"
)

const tenantKey = "mrk-tenant"

// withKMS has the enclave ask a KMS, with credentials already.
func withKMS(w *softkmstest.World) func(*enclave.Config) {
	return func(c *enclave.Config) {
		client, err := kms.New(kms.Config{Region: softkmstest.Region, Dial: w.Dial, NSM: w.Module, Roots: w.Roots})
		Expect(err).NotTo(HaveOccurred())
		DeferCleanup(client.CloseIdleConnections)
		client.SetCredentials(kms.Credentials(w.Enclave.Credentials))
		c.KMS = client
	}
}

// startKMS runs a KMS whose one key is released to the image with that PCR0.
func startKMS(pcr0 func(*softkmstest.World) string) *softkmstest.World {
	GinkgoHelper()
	w := softkmstest.Start(GinkgoTB())
	_, err := w.CreateKey(tenantKey, keyPolicy(w, pcr0(w)))
	Expect(err).NotTo(HaveOccurred())
	return w
}

func thisImage(w *softkmstest.World) string { return w.PCRs[0].String() }
func otherImage(*softkmstest.World) string  { return strings.Repeat("ab", 48) }

func keyPolicy(w *softkmstest.World, pcr0 string) []byte {
	GinkgoHelper()
	out, err := json.Marshal(map[string]any{"Version": "2012-10-17", "Statement": []map[string]any{{
		"Effect": "Allow", "Principal": map[string]any{"AWS": w.Enclave.ARN}, "Action": "kms:Decrypt", "Resource": "*",
		"Condition": map[string]any{"StringEqualsIgnoreCase": map[string]any{"kms:RecipientAttestation:ImageSha384": pcr0}},
	}}})
	Expect(err).NotTo(HaveOccurred())
	return out
}

// byDataKey makes a request one by a fresh data key of the tenant's KMS key.
func byDataKey(w *softkmstest.World) func(*seal.Request) {
	return func(req *seal.Request) {
		plaintext, ciphertext, err := w.DataKey(tenantKey, seal.EncryptionContext(req.RequestID, req.Tenant))
		Expect(err).NotTo(HaveOccurred())
		req.DataKey = &seal.DataKey{Plaintext: plaintext, Ciphertext: ciphertext}
	}
}

func calls(w *softkmstest.World) (all []softkms.Event) {
	for _, e := range w.Events() {
		if e.Action == "kms:Decrypt" {
			all = append(all, e)
		}
	}
	return all
}

var _ = Describe("A request by a data key of the tenant's KMS key", func() {
	It("is answered after one call of KMS, which names tenant and request", func() {
		w := startKMS(thisImage)
		r := start(says(`{}`), withKMS(w))
		sealed := r.seal(chat, byDataKey(w))
		a := open(sealed, r.send(r.post(sealed)))
		Expect(a.err).NotTo(HaveOccurred())
		Expect(a.head.Status).To(Equal(http.StatusOK))
		Expect(calls(w)).To(HaveExactElements(softkms.Event{
			Action: "kms:Decrypt", Region: softkmstest.Region, Principal: w.Enclave.ARN, Key: softkms.ARN(softkmstest.Region, tenantKey),
			Context: map[string]string{"mrgc:tenant": tenant, "mrgc:request-id": sealed.Headers.RequestID.String()}, PCR0: w.PCRs[0].String(),
		}))
	})

	It("is refused by a KMS that does not trust this image, and the engine hears nothing", func() {
		w := startKMS(otherImage)
		r := start(says(`{}`), withKMS(w))
		sealed := r.seal(chat, byDataKey(w))
		r.expectRefused(r.send(r.post(sealed)), http.StatusForbidden, "kms_denied")
		Expect(r.logs.String()).To(ContainSubstring("AccessDeniedException"))

		Expect(w.PutKeyPolicy(tenantKey, keyPolicy(w, thisImage(w)))).To(Succeed())
		a := open(sealed, r.send(r.post(sealed)))
		Expect(a.err).NotTo(HaveOccurred(), "the very same request, once the policy names the image")
	})

	It("runs once, and KMS is not even asked again", func() {
		w := startKMS(thisImage)
		r := start(says(`{}`), withKMS(w))
		sealed := r.seal(chat, byDataKey(w))
		Expect(open(sealed, r.send(r.post(sealed))).err).NotTo(HaveOccurred())
		again := r.send(r.post(sealed))
		Expect(again.StatusCode).To(Equal(http.StatusConflict))
		expectCode(readAll(again), http.StatusConflict, "request_replayed")
		Expect(calls(w)).To(HaveLen(1))
		Expect(r.engine.calls()).To(HaveLen(1))
	})

	It("does not open for another tenant's name, which KMS's context has", func() {
		w := startKMS(thisImage)
		r := start(says(`{}`), withKMS(w))
		sealed := r.seal(chat, byDataKey(w))
		forged := r.post(sealed)
		forged.Header.Set(api.HeaderTenant, "other")
		r.expectRefused(r.send(forged), http.StatusBadRequest, "cannot_open")
		Expect(calls(w)[0].Error).To(Equal("InvalidCiphertextException"))
	})

	It("can go to another instance when KMS cannot be asked here", func() {
		w := startKMS(thisImage)
		withoutCredentials := start(says(`{}`), withKMS(w), func(c *enclave.Config) {
			client, err := kms.New(kms.Config{Region: softkmstest.Region, Dial: w.Dial, NSM: w.Module, Roots: w.Roots})
			Expect(err).NotTo(HaveOccurred())
			DeferCleanup(client.CloseIdleConnections)
			c.KMS = client
		})
		sealed := withoutCredentials.seal(chat, byDataKey(w))
		resp := withoutCredentials.send(withoutCredentials.post(sealed))
		Expect(resp.Header.Get("Retry-After")).To(Equal("1"))
		withoutCredentials.expectRefused(resp, http.StatusServiceUnavailable, "kms_unreachable")

		Expect(withoutCredentials.putCredentials(`{"access_key_id":"` + w.Enclave.Credentials.AccessKeyID + `","secret_access_key":"` + w.Enclave.Credentials.SecretAccessKey + `"}`)).
			To(Equal(http.StatusNoContent))
		Expect(open(sealed, withoutCredentials.send(withoutCredentials.post(sealed))).err).NotTo(HaveOccurred())
		Expect(calls(w)).To(HaveLen(1))
	})

	It("is its sender's mistake where no KMS is asked, and no instance's failure", func() {
		r := start(says(`{}`))
		r.expectRefused(r.send(r.post(r.seal(chat, byDataKey(startKMS(thisImage))))), http.StatusBadRequest, "kms_not_asked")
	})

	It("needs the tenant's credential like any other", func() {
		w := startKMS(thisImage)
		r := start(says(`{}`), withKMS(w))
		a := r.ask(chat, func(req *seal.Request) { req.Payload.Credential = []byte("wrong") }, byDataKey(w))
		r.expectSealedRefusal(a, http.StatusUnauthorized, "invalid_api_key")
	})
})

var _ = Describe("The credentials for KMS", func() {
	It("are told by their id only", func() {
		w := startKMS(thisImage)
		r := start(says(`{}`), withKMS(w))
		Expect(r.putCredentials(`{"access_key_id":"AKIANEW","secret_access_key":"` + marker + `","session_token":"` + marker + `"}`)).To(Equal(http.StatusNoContent))
		resp, err := r.client.Get(r.url + api.PathAWSCredentials)
		Expect(err).NotTo(HaveOccurred())
		DeferCleanup(resp.Body.Close)
		Expect(readAll(resp)).To(MatchJSON(`{"access_key_id":"AKIANEW"}`))
	})

	DescribeTable("are refused when", func(body string) {
		w := startKMS(thisImage)
		r := start(says(`{}`), withKMS(w))
		Expect(r.putCredentials(body)).To(Equal(http.StatusBadRequest))
	},
		Entry("they are not JSON", `x`),
		Entry("the secret is missing", `{"access_key_id":"AKIANEW"}`),
		Entry("a field is not known", `{"access_key_id":"AKIANEW","secret_access_key":"x","role":"y"}`),
		Entry("they are too large", `{"access_key_id":"AKIANEW","secret_access_key":"`+strings.Repeat("x", 17<<10)+`"}`),
	)

	It("have no place in an enclave that asks no KMS", func() {
		r := start(says(`{}`))
		Expect(r.putCredentials(`{"access_key_id":"AKIANEW","secret_access_key":"x"}`)).To(Equal(http.StatusNotFound))
	})
})

func (r *running) putCredentials(body string) (status int) {
	GinkgoHelper()
	req, err := http.NewRequest(http.MethodPut, r.url+api.PathAWSCredentials, strings.NewReader(body))
	Expect(err).NotTo(HaveOccurred())
	return r.send(req).StatusCode
}

// askReleases asks as a parent does that has all of an enclave's up to a sequence number.
func askReleases(r *running, enclaveName string, after uint64) (said api.KeyReleases) {
	GinkgoHelper()
	resp, err := r.client.Get(fmt.Sprintf("%s%s?enclave=%s&after=%d", r.url, api.PathKeyReleases, enclaveName, after))
	Expect(err).NotTo(HaveOccurred())
	DeferCleanup(resp.Body.Close)
	Expect(resp.StatusCode).To(Equal(http.StatusOK))
	Expect(json.Unmarshal([]byte(readAll(resp)), &said)).To(Succeed())
	return said
}

var _ = Describe("Key releases", func() {
	ask := askReleases

	It("are told until the parent has them, with the refused ones, and without content", func() {
		w := startKMS(thisImage)
		r := start(says(`{}`), withKMS(w))
		Expect(ask(r, "", 0).Releases).To(BeEmpty())
		sealed := r.seal(chat, byDataKey(w))
		Expect(open(sealed, r.send(r.post(sealed))).err).NotTo(HaveOccurred())
		Expect(w.PutKeyPolicy(tenantKey, keyPolicy(w, otherImage(w)))).To(Succeed())
		refused := r.send(r.post(r.seal(chat, byDataKey(w))))
		Expect(refused.StatusCode).To(Equal(http.StatusForbidden))

		said := ask(r, "", 0)
		Expect(said.Lost).To(BeZero())
		Expect(said.Releases).To(HaveExactElements(
			api.KeyRelease{Sequence: 1, Time: r.clock.Now(), RequestID: sealed.Headers.RequestID.String(), Tenant: tenant},
			And(HaveField("Sequence", uint64(2)), HaveField("Error", ContainSubstring("AccessDeniedException"))),
		))
		Expect(ask(r, "another", 2).Releases).To(HaveLen(2), "what another enclave has told is not this one's")
		Expect(ask(r, said.Enclave, 1).Releases).To(HaveLen(1))
		Expect(ask(r, said.Enclave, 2).Releases).To(BeEmpty())
		Expect(ask(r, "", 0)).To(And(HaveField("Releases", BeEmpty()), HaveField("Lost", uint64(0))), "a parent that has started anew gets none twice")
		Expect(ask(r, said.Enclave, 99).Releases).To(BeEmpty())
	})

	It("say how long KMS took", func() {
		w := startKMS(thisImage)
		var r *running
		r = start(says(`{}`), func(c *enclave.Config) {
			client, err := kms.New(kms.Config{Region: softkmstest.Region, NSM: w.Module, Roots: w.Roots, Dial: func(ctx context.Context) (net.Conn, error) {
				r.clock.Advance(80 * time.Millisecond)
				return w.Dial(ctx)
			}})
			Expect(err).NotTo(HaveOccurred())
			DeferCleanup(client.CloseIdleConnections)
			client.SetCredentials(kms.Credentials(w.Enclave.Credentials))
			c.KMS = client
		})
		sealed := r.seal(chat, byDataKey(w))
		Expect(open(sealed, r.send(r.post(sealed))).err).NotTo(HaveOccurred())
		Expect(ask(r, "", 0).Releases).To(HaveExactElements(HaveField("Took", 80*time.Millisecond)))
	})

	It("are counted when they are too many to keep", func() {
		told := enclave.KeyReleasesAfter(5000, "", 0)
		Expect(told.Lost).To(BeEquivalentTo(5000 - 4096))
		Expect(told.Releases).To(HaveLen(4096))
		Expect(told.Releases[0].Sequence).To(BeEquivalentTo(5000 - 4096 + 1))
	})
})
