package router_test

import (
	"encoding/json"
	"errors"
	"net/http"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"

	"github.com/mrgc/mrgc/internal/api"
	"github.com/mrgc/mrgc/internal/fleet"
	"github.com/mrgc/mrgc/internal/routing"
	"github.com/mrgc/mrgc/internal/tenant"
	"github.com/mrgc/mrgc/router"
)

var _ = Describe("A router's settings", func() {
	now := func(r *running, change func(*router.Settings)) router.Settings {
		s := r.config.Settings
		s.Version = "second"
		change(&s)
		return s
	}

	It("hold from then on: models, what tenants may, and which version it is", func(ctx SpecContext) {
		r := newRouter().start()
		r.publish(startParent(r.ca, "use1", "use1-0"))
		Eventually(func() int { return r.adminPage("/ready").status }).Should(Equal(http.StatusOK))
		Expect(r.get(ctx, keys).StatusCode).To(Equal(http.StatusOK))
		Expect(r.adminPage("/config").text).To(ContainSubstring(`"version":"first"`))

		Expect(r.router.SetSettings(now(r, func(s *router.Settings) { s.Models = []string{model, "new"} }))).To(Succeed())
		var models api.Models
		Expect(json.NewDecoder(r.get(ctx, api.PathModels).Body).Decode(&models)).To(Succeed())
		Expect(models.Data).To(HaveLen(2))
		Expect(r.adminPage("/config").text).To(And(ContainSubstring(`"version":"second"`), Not(ContainSubstring("refused"))))
		Expect(r.adminPage("/metrics").text).To(ContainSubstring(`mrgc_config_info{region="use1",version="second"} 1`))

		Expect(r.router.SetSettings(now(r, func(s *router.Settings) {
			s.Restrictions = []tenant.Restriction{{Name: "acme", Models: tenant.Names{}}}
		}))).To(Succeed())
		Expect(refusal(r.get(ctx, keys)).Code).To(Equal("model_not_found"))
		Expect(r.router.SetSettings(now(r, func(*router.Settings) {}))).To(Succeed())
		Expect(r.get(ctx, keys).StatusCode).To(Equal(http.StatusOK))
	})

	It("say where requests are rather served, and where they spill to", func(ctx SpecContext) {
		r := newRouter()
		r.config.SpillTo = []fleet.Region{"use2", "usw2"}
		r.start()
		r.publish(startParent(r.ca, "use1", "use1-0"), startParent(r.ca, "use2", "use2-0"), startParent(r.ca, "usw2", "usw2-0"))
		order := func() string { return r.adminPage("/regions").text }
		Expect(r.offered(ctx)).To(HaveLen(3))
		Expect(order()).To(MatchRegexp("use1.*use2.*usw2"))
		Expect(r.router.SetSettings(now(r, func(s *router.Settings) { s.SpillTo = []fleet.Region{"usw2", "use2"} }))).To(Succeed())
		Expect(order()).To(MatchRegexp("use1.*usw2.*use2"))
		Expect(r.offered(ctx)[0]).To(Equal("claims of use1-0"))
		Expect(r.router.SetSettings(now(r, func(s *router.Settings) {
			s.PreferByModel = map[string][]routing.Preference{model: {{Region: "usw2"}}}
		}))).To(Succeed())
		Expect(r.offered(ctx)[0]).To(Equal("claims of usw2-0"))
		Expect(r.router.SetSettings(now(r, func(s *router.Settings) { s.SpillTo = nil }))).To(Succeed())
		Expect(r.offered(ctx)).To(Equal([]string{"claims of use1-0"}))
		Expect(order()).NotTo(ContainSubstring("use2"))
	})

	It("that are not valid change nothing, and what was refused is shown until it is gone", func() {
		r := newRouter().start()
		err := r.router.SetSettings(now(r, func(s *router.Settings) { s.Models = nil }))
		Expect(err).To(MatchError(ContainSubstring("Models is empty")))
		Expect(r.router.SetSettings(now(r, func(s *router.Settings) { s.StaleAfter = -1 }))).To(MatchError(ContainSubstring("StaleAfter")))
		r.router.Refused(errors.New("mrgc.yaml:3: no"))
		Expect(r.adminPage("/config").text).To(And(ContainSubstring(`"version":"first"`), ContainSubstring(`"refused":"mrgc.yaml:3: no"`)))
		Expect(r.adminPage("/metrics").text).To(ContainSubstring(`mrgc_config_refused{region="use1"} 1`))
		r.router.Confirmed()
		Expect(r.adminPage("/config").text).NotTo(ContainSubstring("refused"))
		Expect(r.adminPage("/metrics").text).To(ContainSubstring(`mrgc_config_refused{region="use1"} 0`))
	})
})
