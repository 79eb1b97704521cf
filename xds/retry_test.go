package xds_test

import (
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync/atomic"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"

	"github.com/mrgc/mrgc/envoy/envoytest"
	"github.com/mrgc/mrgc/internal/api"
	"github.com/mrgc/mrgc/internal/fleet"
	"github.com/mrgc/mrgc/internal/routing"
	"github.com/mrgc/mrgc/internal/tenant"
	"github.com/mrgc/mrgc/xds"
)

// refusing has an instance refuse every request as an enclave does whose engine
// has failed before it answered.
func refusing(parents ...*envoytest.Parent) {
	failed := api.Errorf(http.StatusServiceUnavailable, "engine_failed", "the engine failed before it answered")
	for _, p := range parents {
		p.Handle(func(w http.ResponseWriter, req *http.Request) {
			_, _ = io.Copy(io.Discard, req.Body)
			failed.Write(w)
		})
	}
}

// addresses is a list of picks.
func addresses(parents ...*envoytest.Parent) string {
	var all []string
	for _, p := range parents {
		all = append(all, p.Address.String())
	}
	return strings.Join(all, ",")
}

var _ = Describe("A request that an instance has failed", func() {
	for what, become := range map[string]func(*region){
		"the picker names":           func(r *region) { r.router.picker.picks(addresses(r.parents...)) },
		"Envoy's weights lead it to": func(r *region) { r.router.picker.hangs(true) },
	} {
		It("goes to another region that "+what+" only if it is allowed there", func() {
			r := startRegion(func(c *xds.Config) { c.MessageTimeout = 200 * time.Millisecond }, "use1", "use1", "use2")
			r.server.SetTenants(tenantsOf(acme, ruled("home", nil, tenant.Names{"use1"})))
			r.serving()
			Eventually(func() int { return r.sealed(as("home")...).status }).Should(Equal(http.StatusOK), "the tenants have arrived")
			become(r)
			near, far := r.parents[:2], r.parents[2]

			refusing(near[0])
			for range 10 {
				Expect(r.sealed(as("home")...).body).To(Equal(near[1].ID))
			}
			refusing(near...)
			before := far.Served()
			for range 10 {
				Expect(r.sealed(as("home")...)).To(haveError(503, "engine_failed"))
			}
			Expect(far.Served()).To(Equal(before), "data has left the regions that are allowed to it")
		})
	}

	It("goes where the picker says next, in another region too", func() {
		r := startRegion(nil, "use1", "use1", "use2").serving()
		refusing(r.parents[:2]...)
		r.router.picker.picks(addresses(r.parents...))
		Expect(r.many(20, 4)).To(Equal(map[string]int{r.parents[2].ID: 20}))
	})

	It("never goes to a version that is withdrawn, and to others as they are listed", func() {
		r := startRegion(nil, "use1", "use1", "use1").serving()
		versions := []string{"v1", "v2", "v1"}
		var instances []*fleet.Instance
		for i, p := range r.parents {
			in := readyInstance(p.ID, p.Region, p.Address.String())
			in.Versions = map[string]string{model: versions[i]}
			instances = append(instances, in)
		}
		r.server.Update(snapshotOf(instances...))
		split := func(v2 int) {
			r.server.SetSplits(map[string]routing.Split{model: {{Name: "v1", Weight: routing.SplitTotal - v2}, {Name: "v2", Weight: v2}}})
		}
		refusing(r.parents[0])
		r.router.picker.picks(addresses(r.parents...))

		split(500)
		Eventually(func() string { return r.sealed().body }).Should(Equal("use1-1"), "the next that is listed")
		split(0)
		Eventually(func() int { return r.hosts("membership_total") }).Should(Equal(2), "v2 is no endpoint any more")
		withdrawn := r.parents[1].Served()
		Expect(r.many(20, 4)).To(Equal(map[string]int{"use1-2": 20}))
		refusing(r.parents[2])
		for range 10 {
			Expect(r.sealed()).To(haveError(503, "engine_failed"))
		}
		Expect(r.parents[1].Served()).To(Equal(withdrawn))
	})

	It("is tried three times in all, and picked once", func() {
		r := startRegion(nil, "use1", "use1", "use1", "use1").serving()
		r.router.picker.picks(addresses(r.parents...))
		refusing(r.parents...)
		served := func() (n int) {
			for _, p := range r.parents {
				n += p.Served()
			}
			return n
		}
		attempts, picks := served(), r.router.picker.count()
		const requests = 20
		for range requests {
			Expect(r.sealed()).To(haveError(503, "engine_failed"))
		}
		Expect(served() - attempts).To(Equal(3 * requests))
		Expect(r.router.picker.count()-picks).To(Equal(requests), "a tenant's limits count a request once, however often it is tried")
	})

	DescribeTable("stays where it was when the status may be its own fault, or an answer", func(status int) {
		r := startRegion(nil, "use1", "use1").serving()
		r.router.picker.picks(addresses(r.parents...))
		var asked atomic.Int64
		r.parents[0].Handle(func(w http.ResponseWriter, req *http.Request) {
			asked.Add(1)
			_, _ = io.Copy(io.Discard, req.Body)
			w.WriteHeader(status)
			_, _ = fmt.Fprint(w, "this one's")
		})
		other := r.parents[1].Served()
		Expect(r.sealed().status).To(Equal(status))
		Expect(asked.Load()).To(Equal(int64(1)))
		Expect(r.parents[1].Served()).To(Equal(other))
	},
		Entry("400", http.StatusBadRequest), Entry("409", http.StatusConflict), Entry("429", http.StatusTooManyRequests),
		Entry("500", http.StatusInternalServerError), Entry("502", http.StatusBadGateway), Entry("504", http.StatusGatewayTimeout),
	)
})
