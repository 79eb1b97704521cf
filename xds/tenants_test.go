package xds_test

import (
	"fmt"
	"math/rand/v2"
	"net/http"
	"slices"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"

	"github.com/mrgc/mrgc/internal/api"
	"github.com/mrgc/mrgc/internal/fleet"
	"github.com/mrgc/mrgc/internal/tenant"
	"github.com/mrgc/mrgc/internal/tenant/tenanttest"
	"github.com/mrgc/mrgc/xds"
)

// ruled is a tenant whose edge token is its name.
func ruled(name string, models, regions tenant.Names) tenant.Tenant {
	t := tenanttest.Tenant(name, "token-of-"+name, "enclave-"+name)
	t.Models, t.Regions = models, regions
	return t
}

// as are the headers of a tenant made by ruled.
func as(name string) []string {
	return []string{api.HeaderTenant, name, "Authorization", "Bearer token-of-" + name}
}

var _ = Describe("Tenants' rules", func() {
	// What a picker can do: work, be dead, or hang (which is what SIGSTOP does to
	// one). It always names an instance of another region.
	for what, become := range map[string]func(*region){
		"works":   func(*region) {},
		"is dead": func(r *region) { r.router.stop(); r.router.stopHTTP() },
		"hangs":   func(r *region) { r.router.picker.hangs(true) },
	} {
		It("hold in Envoy itself while the picker "+what, func() {
			r := startRegion(func(c *xds.Config) { c.MessageTimeout = 100 * time.Millisecond }, "use1", "use2")
			r.server.SetTenants(tenantsOf(acme, ruled("home", nil, tenant.Names{"use1"}), ruled("tiny", tenant.Names{"tiny"}, nil),
				ruled("far", nil, tenant.Names{"use2", "usw2"}), ruled("nothing", tenant.Names{}, nil)))
			r.serving()
			r.router.picker.picks(r.parents[1].Address.String())
			for _, p := range r.parents {
				p.Handle(func(w http.ResponseWriter, req *http.Request) {
					_, _ = fmt.Fprintf(w, "%s %v%v", p.ID, req.Header.Values(api.HeaderAllowedRegions), req.Header.Values("Authorization"))
				})
			}
			Eventually(func() int { return r.sealed(as("home")...).status }).Should(Equal(http.StatusOK), "the tenants have arrived")
			become(r)

			By("who nobody is")
			Expect(r.sealed("Authorization", "Bearer x")).To(haveError(401, "invalid_api_key"))
			Expect(r.sealed("Authorization", "")).To(haveError(401, "invalid_api_key"))
			Expect(r.sealed("Authorization", "Bearer token-of-home")).To(haveError(401, "invalid_api_key"), "another's token")
			Expect(r.asked(api.PathKeys, "Authorization", "Bearer x")).To(haveError(401, "invalid_api_key"))
			Expect(r.asked(api.PathModels, "Authorization", "Bearer x")).To(haveError(401, "invalid_api_key"))

			By("which models")
			Expect(r.sealed(as("tiny")...)).To(haveError(404, "model_not_found"))
			Expect(r.sealed(append(as("tiny"), api.HeaderModel, "tiny")...)).To(haveError(503, "unavailable"), "allowed, and nowhere to be had")
			Expect(r.sealed(as("nothing")...)).To(haveError(404, "model_not_found"))

			By("which regions")
			Expect(r.sealed(as("far")...)).To(haveError(403, "region_not_allowed"))
			Expect(r.asked(api.PathKeys, as("far")...)).To(haveError(403, "region_not_allowed"))
			for range 20 { // and a header of the client's own changes nothing
				Expect(r.sealed(append(as("home"), api.HeaderAllowedRegions, "use1,use2")...).body).To(Equal("use1-0 [use1][]"))
			}
			Expect(r.sealed().body).To(HaveSuffix(" [use1,use2,usw2][]"))

			By("which regions, when what is allowed is gone")
			r.parents[0].Stop()
			elsewhere := r.parents[1].Served()
			for range 10 {
				Expect(r.sealed(as("home")...)).To(haveError(503, "unavailable"))
			}
			Expect(r.parents[1].Served()).To(Equal(elsewhere))
			Eventually(func() string { return r.sealed().body }).Should(HavePrefix("use2-1 "), "others' requests go on")
		})
	}

	for what, become := range map[string]func(*region){
		"is dead": func(r *region) { r.router.stop(); r.router.stopHTTP() },
		"hangs":   func(r *region) { r.router.picker.hangs(true) },
	} {
		It("have a tenant served where it is rather served while the picker "+what, func() {
			prefer := map[string][]fleet.Region{"cheap": {"use2"}, "home": {"use2"}}
			r := startRegion(func(c *xds.Config) { c.MessageTimeout, c.Prefer = 100*time.Millisecond, prefer }, "use1", "use2")
			r.server.SetTenants(tenantsOf(acme, ruled("cheap", nil, nil), ruled("home", nil, tenant.Names{"use1"})))
			r.serving()
			r.router.picker.picks(r.parents[0].Address.String())
			Eventually(func() string { return r.sealed(as("cheap")...).body }).Should(Equal("use1-0"), "as it is picked")
			become(r)
			for range 20 {
				Expect(r.sealed(as("cheap")...).body).To(Equal("use2-1"))
				Expect(r.sealed().body).To(Equal("use1-0"), "others are not")
				Expect(r.sealed(as("home")...).body).To(Equal("use1-0"), "it may be nowhere else")
			}
			r.parents[1].Stop()
			Eventually(func() string { return r.sealed(as("cheap")...).body }).Should(Equal("use1-0"), "nobody is there any more")
		})
	}

	It("follow a new list in less than a second, without a picker to ask", func() {
		r := startRegion(nil, "use1").serving()
		Expect(r.sealed().status).To(Equal(http.StatusOK))
		revoked := acme
		revoked.Revoked = true
		r.server.SetTenants(tenantsOf(revoked, ruled("other", nil, nil)))
		Eventually(func() answer { return r.sealed() }).Should(haveError(401, "invalid_api_key"))
		Expect(r.sealed(as("other")...).status).To(Equal(http.StatusOK))
		r.server.SetTenants(tenantsOf(acme))
		Eventually(func() int { return r.sealed().status }).Should(Equal(http.StatusOK))
	})

	// Envoy acknowledges new clusters when they have warmed, or after 15 s.
	It("reach a set of regions that no tenant had before, while Envoy runs", func() {
		r := startRegion(nil, "use1", "use2").serving()
		r.server.SetTenants(tenantsOf(acme, ruled("home", nil, tenant.Names{"use1"})))
		Eventually(func() string { return r.sealed(as("home")...).body }).Should(Equal("use1-0"))
		r.server.SetTenants(tenantsOf(acme))
		Eventually(func() answer { return r.sealed(as("home")...) }).Should(haveError(401, "invalid_api_key"))
		Eventually(func() bool { return r.server.Acked("use1") }).Should(BeTrue())
		Expect(r.sealed().status).To(Equal(http.StatusOK))
	})

	// The hash in authenticate.lua is our own: each length has a padding of its
	// own, and Go's implementation has made the digests.
	It("know tokens of every length by their digest", func() {
		const alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
		random := rand.New(rand.NewPCG(uint64(GinkgoRandomSeed()), 0))
		var tenants []tenant.Tenant
		var tokens []string
		for length := 2; length <= 56; length++ {
			for range 4 {
				text := make([]byte, length)
				for i := range text {
					text[i] = alphabet[random.IntN(len(alphabet))]
				}
				if slices.Contains(tokens, string(text)) {
					continue
				}
				name := fmt.Sprint("t", len(tokens))
				tenants, tokens = append(tenants, tenanttest.Tenant(name, string(text), name)), append(tokens, string(text))
			}
		}
		r := startRegion(nil, "use1")
		r.server.SetTenants(tenantsOf(tenants...))
		r.serving()
		Eventually(func() int {
			return r.asked(api.PathModels, api.HeaderTenant, "t0", "Authorization", "Bearer "+tokens[0]).status
		}).Should(Equal(http.StatusOK))
		for i, text := range tokens {
			want := http.StatusOK
			if len(text) > 55 {
				want = http.StatusUnauthorized // a second block is more than any token has
			}
			name := fmt.Sprint("t", i)
			Expect(r.asked(api.PathModels, api.HeaderTenant, name, "Authorization", "Bearer "+text).status).To(Equal(want), "%q", text)
			if len(text) > 4 {
				Expect(r.asked(api.PathModels, api.HeaderTenant, name, "Authorization", "Bearer "+text[1:]).status).To(Equal(http.StatusUnauthorized), "%q", text)
			}
		}
	})
})
