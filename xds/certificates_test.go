package xds_test

import (
	"crypto/tls"
	"fmt"
	"net/http"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"

	"github.com/mrgc/mrgc/internal/api"
	"github.com/mrgc/mrgc/internal/tenant"
	"github.com/mrgc/mrgc/internal/tenant/tenanttest"
	"github.com/mrgc/mrgc/xds"
)

// issuer is a CA of tenants' certificates.
type issuer struct{ *tenanttest.Issuer }

func newIssuer(name string) issuer { return issuer{tenanttest.NewIssuer(GinkgoTB(), name)} }

func (i issuer) of(sans ...tenant.SAN) *tls.Certificate {
	GinkgoHelper()
	return i.Certificate(GinkgoTB(), time.Now().Add(time.Hour), sans...)
}

// showing is the region to a client with a certificate.
func (r *region) showing(certificate *tls.Certificate) *region {
	other := *r
	other.tenant = newTenant(r.ca)
	other.tenant.Transport.(*http.Transport).TLSClientConfig.Certificates = []tls.Certificate{*certificate}
	return &other
}

// named sends a sealed request that names a tenant and has no token.
func (r *region) named(name string, headers ...string) answer {
	return r.request(http.MethodPost, r.url+api.PathSealed, []byte("ciphertext"), append([]string{
		"Content-Type", api.ContentTypeSealedRequest, api.HeaderModel, model, api.HeaderTenant, name,
		api.HeaderRequestID, "0123456789abcdef0123456789abcdef",
	}, headers...)...)
}

var _ = Describe("Tenants' certificates", func() {
	const agent, web = "uri:spiffe://umbra.example/agent", "dns:agent.umbra.example"
	certified := func(name string, sans ...tenant.SAN) tenant.Tenant {
		t := ruled(name, nil, nil)
		t.SANs = sans
		return t
	}
	var (
		clients issuer
		r       *region
	)
	start := func(change func(*xds.Config)) {
		GinkgoHelper()
		clients = newIssuer("clients")
		r = startRegion(change, "use1")
		Expect(r.server.SetTenantClientCA(clients.PEM())).To(Succeed())
		r.server.SetTenants(tenantsOf(acme, certified("umbra", agent, web), certified("other", "dns:other.example")))
		r.parents[0].Handle(func(w http.ResponseWriter, req *http.Request) {
			_, _ = fmt.Fprintf(w, "%s %v%v", req.Header.Get(api.HeaderTenant), req.Header.Values(api.HeaderTenantSAN), req.Header.Values("Authorization"))
		})
		r.serving()
		Eventually(func() int { return r.showing(clients.of(agent)).named("umbra").status }).Should(Equal(http.StatusOK), "all of it has arrived")
	}

	It("are known by Envoy in the place of a token, with the picker dead, too", func() {
		start(nil)
		for _, dead := range []bool{false, true} {
			if dead {
				r.router.stop()
			}
			for _, san := range []tenant.SAN{agent, web} {
				Expect(r.showing(clients.of(san)).named("umbra").body).To(Equal("umbra [][]"), "instances see nothing of it")
				if !dead {
					Expect(fmt.Sprint(r.router.picker.last())).To(And(ContainSubstring("mrgc-tenant-san"), ContainSubstring(string(san))))
				}
			}
			Expect(r.sealed().body).To(Equal("acme [][]"), "a token is as good as before")
		}
		umbra := r.showing(clients.of(agent))
		Expect(umbra.request(http.MethodGet, r.url+api.PathKeys+"?model=m", nil, api.HeaderTenant, "umbra").body).To(Equal("router says /.well-known/mrgc/keys?model=m to [" + agent + "]"))
		Expect(umbra.request(http.MethodGet, r.url+api.PathModels, nil, api.HeaderTenant, "umbra").body).To(Equal("router says /v1/models to [" + agent + "]"))
	})

	It("let nobody in as somebody else", func() {
		start(nil)
		umbra := r.showing(clients.of(agent))
		Expect(umbra.named("acme")).To(haveError(401, "invalid_api_key"))
		Expect(umbra.named("umbra", "Authorization", "Bearer token-of-umbra").status).To(Equal(http.StatusOK), "both are its own")
		Expect(umbra.named("umbra", "Authorization", "Bearer token-of-other")).To(haveError(401, "invalid_api_key"))
		Expect(umbra.named("other", "Authorization", "Bearer token-of-other")).To(haveError(401, "invalid_api_key"))
		Expect(umbra.named("umbra", "Authorization", "Bearer x")).To(haveError(401, "invalid_api_key"))
		Expect(umbra.named("umbra", "Authorization", "Basic x")).To(haveError(401, "invalid_api_key"))

		By("a certificate with the names of two")
		Expect(r.showing(clients.of(agent, "dns:other.example")).named("umbra")).To(haveError(401, "invalid_api_key"))
		By("one with a name that nobody has, beside a token or not")
		stranger := r.showing(clients.of("dns:x.example"))
		Expect(stranger.named("umbra")).To(haveError(401, "invalid_api_key"))
		Expect(stranger.named("umbra", "Authorization", "Bearer token-of-umbra").status).To(Equal(http.StatusOK))
		By("none, and the header in which Envoy says who it is")
		Expect(r.named("umbra", api.HeaderTenantSAN, agent)).To(haveError(401, "invalid_api_key"))
		Expect(r.asked(api.PathKeys, api.HeaderTenantSAN, agent).body).To(Equal("router says /.well-known/mrgc/keys"), "it goes no further")
		Expect(umbra.request(http.MethodGet, r.url+api.PathKeys, nil, api.HeaderTenant, "umbra", api.HeaderTenantSAN, web).body).To(HaveSuffix(" to [" + agent + "]"))
	})

	It("are no connection when they do not verify", func() {
		start(nil)
		for why, certificate := range map[string]*tls.Certificate{
			"another CA": newIssuer("clients").of(agent),
			"expired":    clients.Certificate(GinkgoTB(), time.Now().Add(-time.Hour), agent),
		} {
			Expect(r.showing(certificate).named("umbra").status).To(BeZero(), why)
		}
		Expect(r.envoy.Get("/stats?filter=ssl.fail_verify_error")).To(MatchRegexp(`ssl\.fail_verify_error: [2-9]`))
		Expect(r.sealed().status).To(Equal(http.StatusOK))
	})

	It("are of the CA that holds now, and of the list that does", func() {
		start(nil)
		fresh := newIssuer("fresh")
		Expect(r.server.SetTenantClientCA(append(clients.PEM(), fresh.PEM()...))).To(Succeed())
		Eventually(func() int { return r.showing(fresh.of(agent)).named("umbra").status }).Should(Equal(http.StatusOK))
		Expect(r.showing(clients.of(agent)).named("umbra").status).To(Equal(http.StatusOK), "both")
		Expect(r.server.SetTenantClientCA(fresh.PEM())).To(Succeed())
		// Go shows a certificate to who names its CA.
		Eventually(func() answer { return r.showing(clients.of(agent)).named("umbra") }).Should(haveError(401, "invalid_api_key"))

		umbra := r.showing(fresh.of(agent))
		Expect(umbra.named("umbra").status).To(Equal(http.StatusOK))
		r.server.SetTenants(tenantsOf(acme, certified("umbra", web)))
		Eventually(func() answer { return umbra.named("umbra") }).Should(haveError(401, "invalid_api_key"), "on the connection that it has")
	})

	It("are not asked for where there is no CA, and are of a CA where there is one", func() {
		r := startRegion(nil, "use1").serving()
		Expect(r.showing(newIssuer("clients").of(agent)).sealed().status).To(Equal(http.StatusOK), "nobody wants to see it")
		for _, bad := range []string{"", "x", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", string(newIssuer("a").PEM()) + "x"} {
			Expect(r.server.SetTenantClientCA([]byte(bad))).NotTo(Succeed())
		}
	})
})
