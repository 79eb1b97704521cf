package router_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"

	"github.com/mrgc/mrgc/internal/api"
	"github.com/mrgc/mrgc/internal/seal"
)

const keys = api.PathKeys + "?model=" + model

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

	It("lists a fleet's key once, after all others, whoever holds it", func(ctx SpecContext) {
		shared, _, err := seal.NewFleetKey(make([]byte, seal.FleetSeedSize), seal.FleetEpoch{Fleet: "prod", Region: "use1", Number: 1}, seal.Claims{
			Model: model, Mode: seal.ModeNitro, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		})
		Expect(err).NotTo(HaveOccurred())
		holder := func(id string) *parent {
			p := startParent(r.ca, "use1", id)
			p.instance.KeyIDs = []string{shared.KeyID().String(), kidOf(id)}
			p.answer(offer(api.Recipient{Claims: shared.RawClaims(), Attestation: []byte("document of " + id)},
				api.Recipient{Claims: claimsOf(id), Attestation: []byte("document of " + id)}))
			return p
		}
		r.publish(holder("use1-0"), holder("use1-1"), startParent(r.ca, "use1", "use1-2"))
		Eventually(func() int { return r.adminPage("/ready").status }).Should(Equal(http.StatusOK))
		Expect(recipients(r.get(ctx, keys))).To(HaveExactElements(HavePrefix("claims of "), HavePrefix("claims of "), HavePrefix("claims of "), BeEquivalentTo(shared.RawClaims())))
		Eventually(ctx, func() []string { return recipients(r.get(ctx, keys+"&n=1")) }).Should(HaveExactElements(HavePrefix("claims of "), BeEquivalentTo(shared.RawClaims())))
	})

	It("lists as many as are asked for", func(ctx SpecContext) {
		r.publish(
			startParent(r.ca, "use1", "use1-0"), startParent(r.ca, "use1", "use1-1"), startParent(r.ca, "use1", "use1-2"),
			startParent(r.ca, "use1", "use1-3"), startParent(r.ca, "use1", "use1-4"),
		)
		Eventually(func() int { return r.adminPage("/ready").status }).Should(Equal(http.StatusOK))
		Eventually(ctx, func() []string { return recipients(r.get(ctx, keys+"&n=4")) }).Should(HaveLen(4))
		Expect(recipients(r.get(ctx, keys))).To(HaveLen(3))
		Expect(recipients(r.get(ctx, keys+"&n=1"))).To(HaveLen(1))
	})

	It("draws several sets for who asks for them, and names what is known", func(ctx SpecContext) {
		var parents []*parent
		for i := range 9 {
			parents = append(parents, startParent(r.ca, "use1", fmt.Sprintf("use1-%d", i)))
		}
		r.publish(append(parents, startParent(r.ca, "use2", "use2-0"))...)
		Eventually(func() int { return r.adminPage("/ready").status }).Should(Equal(http.StatusOK))
		ask := func(query string) (answer api.Recipients) {
			GinkgoHelper()
			Expect(json.NewDecoder(r.get(ctx, keys+query).Body).Decode(&answer)).To(Succeed())
			return answer
		}
		Eventually(func() int { return len(ask("&sets=16").Recipients) }).Should(Equal(10), "all of the recipients have been fetched")
		answer := ask("&sets=16")
		Expect(answer.Sets).To(HaveLen(16))
		Expect(answer.Sets[0]).To(Equal([]int{0, 1, 2}))
		claims := func(place int) string { return string(answer.Recipients[place].Claims) }
		listed := map[string]bool{}
		for _, set := range answer.Sets {
			Expect(set).To(HaveExactElements(
				WithTransform(claims, HavePrefix("claims of use1-")), WithTransform(claims, HavePrefix("claims of use1-")), WithTransform(claims, Equal("claims of use2-0"))))
			for _, place := range set {
				listed[claims(place)] = true
			}
		}
		Expect(listed).To(And(HaveLen(10), HaveLen(len(answer.Recipients))), "all, each once, and none that is in no set")

		known := ask("&sets=1&known=" + kidOf("use2-0") + "," + kidOf("use1-99"))
		Expect(known.Recipients).To(HaveExactElements(
			HaveField("KeyID", ""), HaveField("KeyID", ""), Equal(api.Recipient{KeyID: kidOf("use2-0")})))
		Expect(known.Sets).To(Equal([][]int{{0, 1, 2}}))
		Expect(ask("").Sets).To(BeEmpty(), "nor for who does not")
		Expect(refusal(r.get(ctx, keys+"&known="+strings.Repeat(",", api.MaxKnown))).Code).To(Equal("invalid_request"))
	})

	DescribeTable("takes no number that is", func(ctx SpecContext, query string) {
		refused := refusal(r.get(ctx, keys+query))
		Expect(refused.Status).To(Equal(http.StatusBadRequest))
		Expect(refused.Code).To(Equal("invalid_request"))
	},
		Entry("nothing", "&n=0"), Entry("negative", "&n=-1"), Entry("more than a request can be sealed to", "&n=5"), Entry("no number", "&n=all"),
		Entry("nothing, of sets", "&sets=0"), Entry("negative, of sets", "&sets=-1"), Entry("more sets than there may be", "&sets=17"), Entry("no number, of sets", "&sets=all"),
	)

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
