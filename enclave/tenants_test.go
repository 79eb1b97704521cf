package enclave_test

import (
	"bytes"
	"context"
	"io"
	"net/http"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"

	"github.com/mrgc/mrgc/enclave"
	"github.com/mrgc/mrgc/internal/api"
	rules "github.com/mrgc/mrgc/internal/tenant"
	"github.com/mrgc/mrgc/internal/tenant/tenanttest"
)

var _ = Describe("An enclave's tenants", func() {
	var (
		r      *running
		signer *tenanttest.Signer
		acme   rules.Tenant
	)
	BeforeEach(func() {
		signer = tenanttest.NewSigner(GinkgoTB())
		r = start(says(`{}`), func(c *enclave.Config) {
			var err error
			c.Tenants, err = rules.NewKeeper(signer.Public())
			Expect(err).NotTo(HaveOccurred())
		})
		acme = tenanttest.Tenant(tenant, "edge", string(r.key.EnclaveToken()))
	})
	// bring hands the enclave a file, as its parent does.
	bring := func(file []byte) int {
		GinkgoHelper()
		req, err := http.NewRequestWithContext(context.Background(), http.MethodPut, r.url+api.PathTenants, bytes.NewReader(file))
		Expect(err).NotTo(HaveOccurred())
		resp, err := r.client.Do(req)
		Expect(err).NotTo(HaveOccurred())
		_, _ = io.Copy(io.Discard, resp.Body)
		Expect(resp.Body.Close()).To(Succeed())
		return resp.StatusCode
	}
	// outcome is what the tenant's request comes to: "200", or the code of the
	// sealed error.
	outcome := func() string {
		GinkgoHelper()
		before := len(r.engine.calls())
		got := r.ask(chat)
		Expect(got.err).NotTo(HaveOccurred())
		if got.head.Status == http.StatusOK {
			return "200"
		}
		Expect(r.engine.calls()).To(HaveLen(before), "nothing of it may reach the engine")
		return api.ParseError(got.head.Status, []byte(got.body)).Code
	}

	It("are nobody until the parent has brought a list", func() {
		Expect(outcome()).To(Equal("tenants_expired"))
		Expect(bring(signer.Sign(GinkgoTB(), acme))).To(Equal(http.StatusNoContent))
		Expect(outcome()).To(Equal("200"))
	})

	DescribeTable("may do what is signed, and are told under seal what they may not", func(change func(*rules.Tenant), want string) {
		change(&acme)
		Expect(bring(signer.Sign(GinkgoTB(), acme))).To(Equal(http.StatusNoContent))
		Expect(outcome()).To(Equal(want))
	},
		Entry("with this model and region", func(t *rules.Tenant) { t.Models, t.Regions = rules.Names{model}, rules.Names{"use1"} }, "200"),
		Entry("without this model", func(t *rules.Tenant) { t.Models = rules.Names{"other"} }, "model_not_found"),
		Entry("without this region", func(t *rules.Tenant) { t.Regions = rules.Names{"use2"} }, "region_not_allowed"),
		Entry("revoked", func(t *rules.Tenant) { t.Revoked = true }, "invalid_api_key"),
		Entry("under another name", func(t *rules.Tenant) { t.Name = "umbra" }, "invalid_api_key"),
		Entry("with another token", func(t *rules.Tenant) { *t = tenanttest.Tenant(t.Name, "edge", "other") }, "invalid_api_key"),
		Entry("by an edge token", func(t *rules.Tenant) {
			*t = tenanttest.Tenant(t.Name, string(r.key.EnclaveToken()), "other")
		}, "invalid_api_key"),
	)

	It("are those of the newest list, whatever else the parent brings", func() {
		first, second := signer.Sign(GinkgoTB(), acme), signer.Sign(GinkgoTB())
		Expect(bring(first)).To(Equal(http.StatusNoContent))
		Expect(outcome()).To(Equal("200"))
		Expect(bring(second)).To(Equal(http.StatusNoContent), "revoked")
		for _, bad := range [][]byte{first, nil, []byte("{}"), tenanttest.NewSigner(GinkgoTB()).Sign(GinkgoTB(), acme)} {
			Expect(bring(bad)).To(Equal(http.StatusConflict))
		}
		resp, err := r.client.Get(r.url + api.PathTenants)
		Expect(err).NotTo(HaveOccurred())
		held, err := io.ReadAll(resp.Body)
		Expect(err).NotTo(HaveOccurred())
		Expect(resp.Body.Close()).To(Succeed())
		Expect(held).To(MatchJSON(`{"version":2}`))
		Expect(outcome()).To(Equal("invalid_api_key"))
	})

	It("are nobody when the list's grace is over", func() {
		signer.Expires = r.clock.Now().Add(time.Minute)
		list := signer.Sign(GinkgoTB(), acme)
		Expect(bring(list)).To(Equal(http.StatusNoContent))
		r.clock.Advance(time.Minute + rules.Grace - time.Second)
		Expect(outcome()).To(Equal("200"))
		r.clock.Advance(time.Second)
		Expect(outcome()).To(Equal("tenants_expired"))
	})
})
