package router_test

import (
	"context"
	"encoding/json"
	"net/http"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"

	"github.com/mrgc/mrgc/internal/api"
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

	It("of a tenant comes before its model's", func(ctx SpecContext) {
		r := newRouter()
		r.config.PreferByModel = map[string][]routing.Preference{model: {{Region: "use2"}}}
		r.config.PreferByTenant = map[string][]routing.Preference{"acme": {{Region: "use1"}}}
		r.start().publish(startParent(r.ca, "use1", "use1-0"), startParent(r.ca, "use2", "use2-0"))
		Expect(r.offered(ctx)).To(Equal([]string{"claims of use1-0", "claims of use2-0"}))
	})
})
