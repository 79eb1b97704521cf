package router_test

import (
	"context"
	"encoding/json"
	"net/http"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"

	"github.com/mrgc/mrgc/internal/api"
	"github.com/mrgc/mrgc/internal/fleet"
	"github.com/mrgc/mrgc/internal/routing"
)

// offered are the claims that the keys route lists.
func (r *running) offered(ctx context.Context) (claims []string) {
	GinkgoHelper()
	Eventually(func() int { return r.adminPage("/ready").status }).Should(Equal(http.StatusOK))
	resp := r.get(ctx, keys)
	Expect(resp.StatusCode).To(Equal(http.StatusOK))
	var answer api.Recipients
	Expect(json.NewDecoder(resp.Body).Decode(&answer)).To(Succeed())
	for _, recipient := range answer.Recipients {
		claims = append(claims, string(recipient.Claims))
	}
	return claims
}

var _ = Describe("The regions to spill to", func() {
	It("are in the order of their round trips, for picks and for Envoy, unless the configuration has one", func() {
		for nearest, order := range map[bool][]string{true: {"use1", "usw2", "use2"}, false: {"use1", "use2", "usw2"}} {
			r := newRouter()
			r.config.SpillTo, r.config.SpillNearest = []fleet.Region{"use2", "usw2"}, nearest
			r.config.XDS.SpillTo = map[fleet.Region][]fleet.Region{"use1": r.config.SpillTo}
			r.config.RoundTrips = map[fleet.Region]time.Duration{"use2": 60 * time.Millisecond, "usw2": 10 * time.Millisecond}
			r.start().publish(startParent(r.ca, "use2", "use2-0"), startParent(r.ca, "usw2", "usw2-0"))
			var page struct{ Regions []struct{ Region string } }
			Expect(json.Unmarshal([]byte(r.adminPage("/regions").text), &page)).To(Succeed())
			var shown []string
			for _, e := range page.Regions {
				shown = append(shown, e.Region)
			}
			Expect(shown).To(Equal(order))
			Eventually(func() string { return r.adminPage("/weights").text }).Should(
				MatchRegexp(`(?s)"priority": 1,\s*"endpoints": \[\s*\{\s*"instance": "` + order[1] + `-0"`))
			r.stop()
		}
	})
})

var _ = Describe("A preferred region", func() {
	It("has most of the recipients, and the first priority", func(ctx SpecContext) {
		r := newRouter()
		r.config.PreferByModel = map[string][]routing.Preference{model: {{Region: "use2"}}}
		r.start().publish(
			startParent(r.ca, "use1", "use1-0"), startParent(r.ca, "use1", "use1-1"), startParent(r.ca, "use2", "use2-0"), startParent(r.ca, "use2", "use2-1"))
		for range 5 {
			Expect(r.offered(ctx)).To(HaveExactElements(HavePrefix("claims of use2-"), HavePrefix("claims of use2-"), HavePrefix("claims of use1-")))
		}
		Expect(r.adminPage("/weights").text).To(MatchRegexp(`"priority": 0,\s*"endpoints": \[\s*\{\s*"instance": "use2-0"`))
	})

	It("of a tenant is its Envoys' to know, too, unless it is as it would be", func() {
		r := newRouter()
		r.config.PreferByTenant = map[string][]routing.Preference{"acme": {{Region: "use2"}}}
		r.start().publish(startParent(r.ca, "use1", "use1-0"), startParent(r.ca, "use2", "use2-0"))
		weights := func() string { return r.adminPage("/weights").text }
		Eventually(weights).Should(MatchRegexp(`(?s)"smol@use1_use2\+use2": \[\s*\{\s*"priority": 0,\s*"endpoints": \[\s*\{\s*"instance": "use2-0"`))
		settings := r.config.Settings
		settings.PreferByTenant = map[string][]routing.Preference{"acme": {{Region: "use1"}}}
		Expect(r.router.SetSettings(settings)).To(Succeed())
		Eventually(weights).Should(And(ContainSubstring(`"smol@use1_use2"`), Not(ContainSubstring("+"))))
		settings.PreferByModel = map[string][]routing.Preference{model: {{Region: "use2"}}}
		Expect(r.router.SetSettings(settings)).To(Succeed())
		Eventually(weights).Should(MatchRegexp(`(?s)"smol@use1_use2\+use1": \[\s*\{\s*"priority": 0,\s*"endpoints": \[\s*\{\s*"instance": "use1-0"`))
	})

	It("of a tenant comes before its model's", func(ctx SpecContext) {
		r := newRouter()
		r.config.PreferByModel = map[string][]routing.Preference{model: {{Region: "use2"}}}
		r.config.PreferByTenant = map[string][]routing.Preference{"acme": {{Region: "use1"}}}
		r.start().publish(startParent(r.ca, "use1", "use1-0"), startParent(r.ca, "use2", "use2-0"))
		Expect(r.offered(ctx)).To(Equal([]string{"claims of use1-0", "claims of use2-0"}))
	})
})
