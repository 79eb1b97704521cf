package router_test

import (
	"encoding/json"
	"net/http"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"

	"github.com/mrgc/mrgc/internal/api"
	"github.com/mrgc/mrgc/internal/fleet"
	"github.com/mrgc/mrgc/router"
)

const keys = api.PathKeys + "?model=" + model

var _ = Describe("Candidates", func() {
	type load map[string]int // id → in flight

	DescribeTable("are", func(ready []string, busy load, want ...string) {
		regions := map[byte]fleet.Region{'a': "use1", 'b': "use2", 'c': "usw2", 'x': "euw1"}
		var instances []*fleet.Instance
		for _, id := range ready {
			instances = append(instances, &fleet.Instance{ID: id, Region: regions[id[0]], Models: []string{model}})
		}
		instances = append(instances, &fleet.Instance{ID: "a-other", Region: "use1", Models: []string{"large"}})
		chosen := router.Candidates(instances, model, "use1", []fleet.Region{"usw2", "use2"}, func(id string) int { return busy[id] })
		var ids []string
		for _, in := range chosen {
			ids = append(ids, in.ID)
		}
		Expect(ids).To(HaveExactElements(want))
	},
		Entry("none of none", nil, nil),
		Entry("the only one", []string{"a1"}, nil, "a1"),
		Entry("two here and one away", []string{"a1", "a2", "a3", "b1", "b2"}, nil, "a1", "a2", "b1"),
		Entry("the least busy here first", []string{"a1", "a2", "a3"}, load{"a1": 2, "a2": 1}, "a3", "a2", "a1"),
		Entry("the first of those alike", []string{"a1", "a2", "a3"}, load{"a1": 1, "a2": 1, "a3": 1}, "a1", "a2", "a3"),
		Entry("three at most", []string{"a1", "a2", "a3", "a4"}, load{"a1": 1}, "a2", "a3", "a4"),
		Entry("away in the order of spill, however busy", []string{"a1", "a2", "b1", "c1"}, load{"c1": 9}, "a1", "a2", "c1"),
		Entry("away by load within a region", []string{"a1", "a2", "c1", "c2"}, load{"c1": 9}, "a1", "a2", "c2"),
		Entry("filled up from away", []string{"a1", "b1", "c1", "c2"}, nil, "a1", "c1", "c2"),
		Entry("all from away", []string{"b1", "b2", "c1", "c2"}, nil, "c1", "c2", "b1"),
		Entry("not from where nothing spills to", []string{"a1", "x1"}, nil, "a1"),
	)
})

var _ = Describe("The keys route", func() {
	var r *running
	BeforeEach(func() { r = newRouter().start() })

	recipients := func(resp *http.Response) []string {
		GinkgoHelper()
		Expect(resp.StatusCode).To(Equal(http.StatusOK))
		Expect(resp.Header.Get("Content-Type")).To(Equal("application/json"))
		Expect(resp.Header.Get("Cache-Control")).To(Equal("no-store"))
		var answer api.Recipients
		Expect(json.NewDecoder(resp.Body).Decode(&answer)).To(Succeed())
		var claims []string
		for _, recipient := range answer.Recipients {
			claims = append(claims, string(recipient.Claims))
		}
		return claims
	}

	It("lists the best instances' recipients, local ones first", func(ctx SpecContext) {
		sick := startParent(r.ca, "use1", "use1-0")
		sick.instance.Health.Engine = false
		r.publish(
			sick,
			startParent(r.ca, "use1", "use1-1"), startParent(r.ca, "use1", "use1-2"), startParent(r.ca, "use1", "use1-3"),
			startParent(r.ca, "use2", "use2-0"), startParent(r.ca, "usw2", "usw2-0"),
		)
		Eventually(func() int { return r.adminPage("/ready").status }).Should(Equal(http.StatusOK))
		seen := map[string]bool{}
		Eventually(ctx, func() map[string]bool {
			got := recipients(r.get(ctx, keys))
			Expect(got).To(HaveExactElements(HavePrefix("claims of use1-"), HavePrefix("claims of use1-"), Equal("claims of use2-0")))
			Expect(got[0]).NotTo(Equal(got[1]))
			seen[got[0]] = true
			return seen
		}).Should(HaveLen(3), "those that are alike take turns")
		Expect(seen).NotTo(HaveKey("claims of use1-0"))
	})

	It("knows no other model", func(ctx SpecContext) {
		for _, path := range []string{api.PathKeys + "?model=large", api.PathKeys} {
			refused := refusal(r.get(ctx, path))
			Expect(refused.Status).To(Equal(http.StatusNotFound))
			Expect(refused.Code).To(Equal("model_not_found"))
		}
	})

	It("says when to ask again while no instance is ready", func(ctx SpecContext) {
		resp := r.get(ctx, keys) // nothing is known of the fleet yet
		Expect(resp.Header.Get("Retry-After")).To(Equal("5"))
		Expect(refusal(resp).Code).To(Equal("no_instance_ready"))
		draining := startParent(r.ca, "use1", "use1-0")
		draining.instance.Draining = true
		r.publish(draining)
		Eventually(draining.times).Should(Equal(1))
		refused := refusal(r.get(ctx, keys))
		Expect(refused.Status).To(Equal(http.StatusServiceUnavailable))
		Expect(refused.Code).To(Equal("no_instance_ready"))
	})

	It("lists the models", func(ctx SpecContext) {
		resp := r.get(ctx, api.PathModels)
		var models api.Models
		Expect(json.NewDecoder(resp.Body).Decode(&models)).To(Succeed())
		Expect(models.Object).To(Equal("list"))
		Expect(models.Data).To(HaveExactElements(And(
			HaveField("ID", model), HaveField("Object", "model"), HaveField("OwnedBy", "mrgc"), HaveField("Created", BeNumerically(">", 0)))))
	})

	DescribeTable("is for tenants alone", func(ctx SpecContext, change func(http.Header)) {
		for _, path := range []string{keys, api.PathModels} {
			refused := refusal(r.get(ctx, path, change))
			Expect(refused.Status).To(Equal(http.StatusUnauthorized))
			Expect(refused.Code).To(Equal("invalid_api_key"))
		}
	},
		Entry("with a token", func(h http.Header) { h.Del("Authorization") }),
		Entry("with a bearer token", func(h http.Header) { h.Set("Authorization", h.Get("Authorization")[len("Bearer "):]) }),
		Entry("with a token of the cluster's", func(h http.Header) { h.Set("Authorization", "Bearer x") }),
		Entry("with one token", func(h http.Header) { h.Add("Authorization", h.Get("Authorization")) }),
		Entry("with a name", func(h http.Header) { h.Del(api.HeaderTenant) }),
		Entry("with their own token", func(h http.Header) { h.Set(api.HeaderTenant, "other") }),
		Entry("with one name", func(h http.Header) { h.Add(api.HeaderTenant, "acme") }),
	)
})
