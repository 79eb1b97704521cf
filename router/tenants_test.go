package router_test

import (
	"encoding/json"
	"net/http"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"

	"github.com/mrgc/mrgc/internal/api"
	"github.com/mrgc/mrgc/internal/tenant"
	"github.com/mrgc/mrgc/internal/tenant/tenanttest"
)

var _ = Describe("A router's tenants", func() {
	var (
		r      *running
		signer *tenanttest.Signer
		acme   tenant.Tenant
	)
	BeforeEach(func() {
		r, signer = newRouter(), tenanttest.NewSigner(GinkgoTB())
		acme = tenanttest.Tenant("acme", string(r.key.EdgeToken()), "enclave")
		var err error
		r.config.Tenants, err = tenant.NewKeeper(signer.Public())
		Expect(err).NotTo(HaveOccurred())
	})
	signed := func(t tenant.Tenant) {
		GinkgoHelper()
		Expect(r.config.Tenants.Offer(signer.Sign(GinkgoTB(), t), time.Now())).To(Succeed())
	}
	claims := func(ctx SpecContext) []string {
		GinkgoHelper()
		resp := r.get(ctx, keys)
		Expect(resp.StatusCode).To(Equal(http.StatusOK))
		var answer api.Recipients
		Expect(json.NewDecoder(resp.Body).Decode(&answer)).To(Succeed())
		var all []string
		for _, recipient := range answer.Recipients {
			all = append(all, string(recipient.Claims))
		}
		return all
	}
	code := func(ctx SpecContext, path string) func() string {
		return func() string { return refusal(r.get(ctx, path)).Code }
	}

	It("are offered recipients where their data may be, and nowhere else", func(ctx SpecContext) {
		acme.Regions = tenant.Names{"use1"}
		signed(acme)
		r.start()
		r.publish(startParent(r.ca, "use1", "use1-0"), startParent(r.ca, "use2", "use2-0"))
		Eventually(func() int { return r.adminPage("/ready").status }).Should(Equal(http.StatusOK))
		Expect(claims(ctx)).To(Equal([]string{"claims of use1-0"}))
		Expect(r.adminPage("/metrics").text).To(And(
			ContainSubstring(`mrgc_tenants_version{region="use1"} 1`),
			ContainSubstring(`mrgc_tenants_expiry_timestamp_seconds{region="use1"} 4.1024448e+09`), // 2100
		))

		By("a new list, which the router takes while it runs")
		acme.Regions = nil
		signed(acme)
		Eventually(ctx, func() []string { return claims(ctx) }).Should(HaveLen(2))
		acme.Regions = tenant.Names{"use2"}
		signed(acme)
		Eventually(ctx, code(ctx, keys)).Should(Equal("region_not_allowed"))
		acme.Revoked = true
		signed(acme)
		Eventually(ctx, code(ctx, keys)).Should(Equal("invalid_api_key"))
	})

	It("are known by their certificate, as Envoy has read it, in the place of a token", func(ctx SpecContext) {
		acme.SANs, acme.EdgeTokens = []tenant.SAN{"dns:acme.example"}, nil
		signed(acme)
		r.start()
		certified := func(san string) func(http.Header) {
			return func(h http.Header) {
				h.Del("Authorization")
				h.Set(api.HeaderTenantSAN, san)
			}
		}
		Expect(r.get(ctx, api.PathModels, certified("dns:acme.example")).StatusCode).To(Equal(http.StatusOK))
		Expect(refusal(r.get(ctx, api.PathModels, certified("dns:other.example"))).Code).To(Equal("invalid_api_key"))
		Expect(refusal(r.get(ctx, api.PathModels)).Code).To(Equal("invalid_api_key"), "it has no token")
	})

	It("see the models that they may use", func(ctx SpecContext) {
		acme.Models = tenant.Names{"other"}
		signed(acme)
		r.start()
		var models api.Models
		Expect(json.NewDecoder(r.get(ctx, api.PathModels).Body).Decode(&models)).To(Succeed())
		Expect(models.Data).To(BeEmpty())
		Expect(code(ctx, keys)()).To(Equal("model_not_found"))
	})

	It("may do less where the configuration says so, and no more", func(ctx SpecContext) {
		signed(acme)
		r.config.Restrictions = []tenant.Restriction{{Name: "acme", Regions: tenant.Names{"use2"}}}
		r.start()
		Expect(code(ctx, keys)()).To(Equal("region_not_allowed"))
		acme.Models, acme.Regions = tenant.Names{"other"}, tenant.Names{"use1", "use2"}
		signed(acme)
		Eventually(ctx, code(ctx, keys)).Should(Equal("model_not_found"), "what is signed holds beside it")
	})

	It("are nobody before there is a list", func(ctx SpecContext) {
		r.start()
		Expect(code(ctx, keys)()).To(Equal("tenants_expired"))
		r.publish()
		Eventually(func() string { return r.adminPage("/ready").text }).Should(ContainSubstring("no list of tenants yet"))
	})
})
