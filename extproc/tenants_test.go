package extproc_test

import (
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"

	"github.com/mrgc/mrgc/extproc"
	"github.com/mrgc/mrgc/internal/api"
	rules "github.com/mrgc/mrgc/internal/tenant"
)

var _ = Describe("A tenant's rules", func() {
	with := func(t rules.Tenant, err error) func(*extproc.Config) {
		return func(c *extproc.Config) {
			c.Admit = func(string, []byte, time.Time) (*rules.Tenant, error) {
				if err != nil {
					return nil, err
				}
				return &t, nil
			}
		}
	}

	DescribeTable("refuse", func(ctx SpecContext, t rules.Tenant, err error, status int, code string) {
		answer := start(with(t, err)).ask(ctx, sealed("1"))
		Expect(answer.GetImmediateResponse().GetStatus().GetCode()).To(BeEquivalentTo(status))
		Expect(api.ParseError(status, answer.GetImmediateResponse().GetBody()).Code).To(Equal(code))
	},
		Entry("a model that is not allowed", rules.Tenant{Models: rules.Names{"large"}}, nil, 404, "model_not_found"),
		Entry("every model", rules.Tenant{Models: rules.Names{}}, nil, 404, "model_not_found"),
		Entry("a region that is not allowed", rules.Tenant{Regions: rules.Names{"usw2"}}, nil, 403, "region_not_allowed"),
		Entry("everyone, when the list has expired", rules.Tenant{}, rules.ErrNoList, 503, "tenants_expired"),
	)

	DescribeTable("are those of whom a certificate names, which Envoy has verified", func(ctx SpecContext, allowed bool, request headers) {
		h := start(func(c *extproc.Config) {
			c.AdmitCertificate = func(name string, san rules.SAN, _ time.Time) (*rules.Tenant, error) {
				if name == tenant && san == "dns:acme.example" {
					return &rules.Tenant{Name: tenant}, nil
				}
				return nil, rules.ErrUnknown
			}
		})
		answer := h.ask(ctx, request)
		if allowed {
			Expect(picked(answer)).NotTo(BeEmpty())
			return
		}
		Expect(answer.GetImmediateResponse().GetStatus().GetCode()).To(BeEquivalentTo(401))
	},
		Entry("in the place of a token", true, sealed("1").without("authorization").and("mrgc-tenant-san", "dns:acme.example")),
		Entry("beside its token", true, sealed("1").and("mrgc-tenant-san", "dns:acme.example")),
		Entry("of another name", false, sealed("1").without("authorization").and("mrgc-tenant-san", "dns:other.example")),
		Entry("of another name beside a token", false, sealed("1").and("mrgc-tenant-san", "dns:other.example")),
		Entry("beside another's token", false, sealed("1").with("authorization", "Bearer x").and("mrgc-tenant-san", "dns:acme.example")),
		Entry("beside what is no token", false, sealed("1").with("authorization", "Basic x").and("mrgc-tenant-san", "dns:acme.example")),
		Entry("beside two tokens", false, sealed("1").and("authorization", "Bearer "+token).and("mrgc-tenant-san", "dns:acme.example")),
		Entry("twice", false, sealed("1").without("authorization").and("mrgc-tenant-san", "dns:acme.example").and("mrgc-tenant-san", "dns:acme.example")),
		Entry("as another tenant", false, sealed("1").without("authorization").with("mrgc-tenant", "other").and("mrgc-tenant-san", "dns:acme.example")),
		Entry("not at all", false, sealed("1").without("authorization")),
	)

	It("know nobody by a certificate unless they are told to", func(ctx SpecContext) {
		answer := start().ask(ctx, sealed("1").without("authorization").and("mrgc-tenant-san", "dns:acme.example"))
		Expect(answer.GetImmediateResponse().GetStatus().GetCode()).To(BeEquivalentTo(401))
	})

	It("say when to ask again about a list that has expired", func(ctx SpecContext) {
		answer := start(with(rules.Tenant{}, rules.ErrNoList)).ask(ctx, sealed("1"))
		Expect(setHeaders(answer.GetImmediateResponse())).To(HaveKeyWithValue("retry-after", "60"))
	})

	It("keep requests in the regions that are allowed, those of sick instances too", func(ctx SpecContext) {
		toAll := sealed("1").with("mrgc-recipients", kidA+","+kidC) // use1-0, usw2-0
		sickHome := func(h *harness) {
			h.see(instance("use1-0", "use1", kidA, sick), instance("usw2-0", "usw2", kidC))
		}
		free := start(with(rules.Tenant{}, nil))
		sickHome(free)
		Expect(picked(free.ask(ctx, toAll))).To(Equal("addr-usw2-0"))

		wide := start(with(rules.Tenant{Regions: rules.Names{"use1", "usw2"}}, nil))
		sickHome(wide)
		Expect(picked(wide.ask(ctx, toAll))).To(Equal("addr-usw2-0"))

		home := start(with(rules.Tenant{Regions: rules.Names{"use1"}}, nil))
		Expect(picked(home.ask(ctx, toAll))).To(Equal("addr-use1-0"), "and nobody else to try")
		sickHome(home)
		Expect(home.ask(ctx, toAll).GetImmediateResponse().GetStatus().GetCode()).To(BeEquivalentTo(503))
	})
})
