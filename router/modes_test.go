package router_test

import (
	"encoding/json"
	"net/http"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"

	"github.com/mrgc/mrgc/internal/api"
	"github.com/mrgc/mrgc/internal/fleet"
	"github.com/mrgc/mrgc/internal/seal"
	"github.com/mrgc/mrgc/internal/tenant"
	"github.com/mrgc/mrgc/internal/tenant/tenanttest"
)

// inMode starts the parent of an instance whose enclave claims a mode.
func (r *running) inMode(region fleet.Region, id, mode string) *parent {
	GinkgoHelper()
	key, err := seal.NewRecipientKey(seal.Claims{
		Model: model, Region: string(region), Mode: mode, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
	})
	Expect(err).NotTo(HaveOccurred())
	p := startParent(r.ca, region, id)
	p.instance.KeyIDs = []string{key.KeyID().String()}
	p.answer(offer(api.Recipient{Claims: key.RawClaims(), Attestation: []byte("document of " + id)}))
	return p
}

var _ = Describe("Modes of isolation", func() {
	It("are in the list of models, those that the tenant could be served in now, and each instance's on a page", func(ctx SpecContext) {
		r := newRouter()
		acme := tenanttest.Tenant("acme", string(r.key.EdgeToken()), "enclave")
		acme.Regions = tenant.Names{"use1", "usw2"}
		r.config.Tenants = tenanttest.Keeper(GinkgoTB(), acme)
		r.start()
		draining := r.inMode("usw2", "usw2-0", seal.ModeNitroAttestedHostCC)
		draining.instance.Draining = true
		r.publish(
			r.inMode("use1", "use1-0", seal.ModeProcess), r.inMode("use1", "use1-1", seal.ModeNitro), r.inMode("usw2", "usw2-1", seal.ModeNitro),
			r.inMode("use2", "use2-0", seal.ModeNitroAttestedHost), draining,
			startParent(r.ca, "use1", "use1-2"), // whose claims nobody can read
		)
		Eventually(func() int { return r.adminPage("/ready").status }).Should(Equal(http.StatusOK))
		Eventually(ctx, func(g Gomega) {
			var models api.Models
			g.Expect(json.NewDecoder(r.get(ctx, api.PathModels).Body).Decode(&models)).To(Succeed())
			g.Expect(models.Data).To(HaveExactElements(HaveField("Metadata.Modes", Equal([]string{seal.ModeNitro, seal.ModeProcess}))))
		}).Should(Succeed())
		modes := func() map[string]string {
			var page struct {
				Instances []struct{ Instance, Mode string }
			}
			Expect(json.Unmarshal([]byte(r.adminPage("/scores").text), &page)).To(Succeed())
			all := map[string]string{}
			for _, in := range page.Instances {
				all[in.Instance] = in.Mode
			}
			return all
		}
		Eventually(modes).Should(Equal(map[string]string{
			"use1-0": "process", "use1-1": "nitro", "use1-2": "", "use2-0": "nitro+attested-host", "usw2-0": "nitro+attested-host+gpu-cc", "usw2-1": "nitro",
		}))
	})

	It("of a model that nobody serves are none, and not null", func(ctx SpecContext) {
		r := newRouter().start()
		var answer map[string]any
		Expect(json.NewDecoder(r.get(ctx, api.PathModels).Body).Decode(&answer)).To(Succeed())
		Expect(answer["data"]).To(HaveExactElements(HaveKeyWithValue("metadata", map[string]any{"modes": []any{}})))
	})
})
