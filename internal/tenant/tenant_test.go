package tenant_test

import (
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	"pgregory.net/rapid"

	"github.com/mrgc/mrgc/internal/tenant"
	"github.com/mrgc/mrgc/internal/tenant/tenanttest"
)

// someNames are a rule's, nil and empty ones too.
var someNames = rapid.Custom(func(t *rapid.T) tenant.Names {
	if rapid.Bool().Draw(t, "all") {
		return nil
	}
	return append(tenant.Names{}, rapid.SliceOfNDistinct(rapid.SampledFrom([]string{"a", "b", "c"}), 0, 3, rapid.ID[string]).Draw(t, "names")...)
})

var _ = Describe("A set", func() {
	now := time.Date(2026, 11, 1, 12, 0, 0, 0, time.UTC)
	acme := tenanttest.Tenant("acme", "edge", "enclave")

	It("admits a tenant by its own tokens, each where it belongs", func() {
		set := tenanttest.Keeper(GinkgoTB(), acme, tenanttest.Tenant("umbra", "other", "others")).Set()
		for _, ask := range []struct {
			admit       func(string, []byte, time.Time) (*tenant.Tenant, error)
			name, token string
			want        error
		}{
			{set.AdmitToEdge, "acme", "edge", nil},
			{set.AdmitToEdge, "acme", "enclave", tenant.ErrUnknown},
			{set.AdmitToEdge, "acme", "other", tenant.ErrUnknown},
			{set.AdmitToEdge, "nobody", "edge", tenant.ErrUnknown},
			{set.AdmitToEnclave, "acme", "enclave", nil},
			{set.AdmitToEnclave, "acme", "edge", tenant.ErrUnknown},
			{set.AdmitToEnclave, "acme", "", tenant.ErrUnknown},
		} {
			got, err := ask.admit(ask.name, []byte(ask.token), now)
			if ask.want == nil {
				Expect(err).NotTo(HaveOccurred())
				Expect(got.Name).To(Equal(ask.name))
			} else {
				Expect(err).To(MatchError(ask.want))
				Expect(got).To(BeNil())
			}
		}
	})

	DescribeTable("reads a request's headers", func(tenants, authorizations, sans []string, want bool) {
		certified := acme
		certified.SANs = []tenant.SAN{"uri:spiffe://acme.example/agent", "dns:agent.acme.example"}
		other := tenanttest.Tenant("umbra", "other", "others")
		other.SANs = []tenant.SAN{"dns:umbra.example"}
		t, err := tenanttest.Keeper(GinkgoTB(), certified, other).Set().AdmitRequest(tenants, authorizations, sans, now)
		Expect(err == nil).To(Equal(want))
		Expect(t != nil).To(Equal(want))
	},
		Entry("of each one", []string{"acme"}, []string{"Bearer edge"}, nil, true),
		Entry("no tenant", nil, []string{"Bearer edge"}, nil, false),
		Entry("two tenants", []string{"acme", "acme"}, []string{"Bearer edge"}, nil, false),
		Entry("no token", []string{"acme"}, nil, nil, false),
		Entry("two tokens", []string{"acme"}, []string{"Bearer edge", "Bearer edge"}, nil, false),
		Entry("another scheme", []string{"acme"}, []string{"Basic edge"}, nil, false),
		Entry("no scheme", []string{"acme"}, []string{"edge"}, nil, false),
		Entry("another token", []string{"acme"}, []string{"Bearer edges"}, nil, false),
		Entry("a certificate in the place of a token", []string{"acme"}, nil, []string{"uri:spiffe://acme.example/agent"}, true),
		Entry("another name of it", []string{"acme"}, nil, []string{"dns:agent.acme.example"}, true),
		Entry("a certificate and a token", []string{"acme"}, []string{"Bearer edge"}, []string{"dns:agent.acme.example"}, true),
		Entry("a certificate without a tenant", nil, nil, []string{"dns:agent.acme.example"}, false),
		Entry("two certificates", []string{"acme"}, nil, []string{"dns:agent.acme.example", "dns:agent.acme.example"}, false),
		Entry("another tenant's certificate", []string{"acme"}, nil, []string{"dns:umbra.example"}, false),
		Entry("another tenant's certificate beside the own token", []string{"acme"}, []string{"Bearer edge"}, []string{"dns:umbra.example"}, false),
		Entry("another tenant's token beside the own certificate", []string{"acme"}, []string{"Bearer other"}, []string{"dns:agent.acme.example"}, false),
		Entry("nobody's certificate", []string{"acme"}, nil, []string{"dns:acme.example"}, false),
		Entry("a name without its kind", []string{"acme"}, nil, []string{"agent.acme.example"}, false),
	)

	It("knows nobody before there is a list, and when its grace is over", func() {
		var none *tenant.Set
		_, err := none.Find("acme", now)
		Expect(err).To(MatchError(tenant.ErrNoList))
		Expect(none.Active()).To(BeEmpty())
		Expect(none.Version()).To(BeZero())
		Expect(none.Restrict([]tenant.Restriction{{Name: "acme"}})).To(BeNil())

		set := tenanttest.Keeper(GinkgoTB(), acme).Set()
		over := set.Expires().Add(tenant.Grace)
		_, err = set.Find("acme", over.Add(-1))
		Expect(err).NotTo(HaveOccurred())
		_, err = set.Find("acme", over)
		Expect(err).To(MatchError(tenant.ErrNoList))
	})

	It("does not tell who was revoked from who never was", func() {
		gone := acme
		gone.Revoked = true
		set := tenanttest.Keeper(GinkgoTB(), gone, tenanttest.Tenant("umbra", "other", "others")).Set()
		_, revoked := set.AdmitToEdge("acme", []byte("edge"), now)
		_, never := set.AdmitToEdge("nobody", []byte("edge"), now)
		Expect(revoked).To(Equal(never))
		Expect(set.Active()).To(HaveExactElements(HaveField("Name", "umbra")))
	})

	DescribeTable("lets limits be lowered, and not raised", func(signed, by, want tenant.Limits) {
		limited := acme
		limited.Limits = signed
		restricted := tenanttest.Keeper(GinkgoTB(), limited).Set().Restrict([]tenant.Restriction{{Name: "acme", Limits: by}})
		Expect(restricted.Active()).To(HaveExactElements(HaveField("Limits", want)))
	},
		Entry("by nothing", tenant.Limits{RequestsPerSecond: 5, TokensPerMinute: 6, Weight: 7}, tenant.Limits{}, tenant.Limits{RequestsPerSecond: 5, TokensPerMinute: 6, Weight: 7}),
		Entry("by less", tenant.Limits{RequestsPerSecond: 5, TokensPerMinute: 6, Weight: 7}, tenant.Limits{RequestsPerSecond: 4, TokensPerMinute: 3, Weight: 2}, tenant.Limits{RequestsPerSecond: 4, TokensPerMinute: 3, Weight: 2}),
		Entry("by more", tenant.Limits{RequestsPerSecond: 5, TokensPerMinute: 6, Weight: 7}, tenant.Limits{RequestsPerSecond: 8, TokensPerMinute: 8, Weight: 8}, tenant.Limits{RequestsPerSecond: 5, TokensPerMinute: 6, Weight: 7}),
		Entry("where there are none", tenant.Limits{}, tenant.Limits{RequestsPerSecond: 8, TokensPerMinute: 9}, tenant.Limits{RequestsPerSecond: 8, TokensPerMinute: 9}),
		Entry("a weight that is not given is 1", tenant.Limits{}, tenant.Limits{Weight: 5}, tenant.Limits{Weight: 1}),
	)

	// Whatever somebody who cannot sign writes, nobody may do more than is signed.
	It("is never more than what is signed, whatever restricts it", func() {
		rapid.Check(GinkgoT(), func(t *rapid.T) {
			signed := acme
			signed.Models, signed.Regions = someNames.Draw(t, "models"), someNames.Draw(t, "regions")
			signed.Revoked = rapid.Bool().Draw(t, "revoked")
			set := tenanttest.Keeper(GinkgoTB(), signed).Set()
			by := []tenant.Restriction{
				{Name: "acme", Blocked: rapid.Bool().Draw(t, "blocked"), Models: someNames.Draw(t, "models left"), Regions: someNames.Draw(t, "regions left")},
				{Name: "nobody"},
			}
			restricted := set.Restrict(by)
			may := func(s *tenant.Set, model, region string) bool {
				rules, err := s.AdmitToEdge("acme", []byte("edge"), now)
				return err == nil && rules.Models.Allow(model) && rules.Regions.Allow(region)
			}
			for _, model := range []string{"a", "b", "c", "d"} {
				for _, region := range []string{"a", "b", "c", "d"} {
					want := may(set, model, region) && !by[0].Blocked && by[0].Models.Allow(model) && by[0].Regions.Allow(region)
					if may(restricted, model, region) != want {
						t.Fatalf("model %s, region %s: want %t", model, region, want)
					}
				}
			}
			if _, err := restricted.Find("nobody", now); err == nil {
				t.Fatal("a restriction made a tenant")
			}
			if restricted.Version() != set.Version() || !restricted.Expires().Equal(set.Expires()) {
				t.Fatal("a restriction is another list")
			}
		})
	})
})
