package xds_test

import (
	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"

	"github.com/mrgc/mrgc/internal/fleet"
	"github.com/mrgc/mrgc/internal/tenant"
	"github.com/mrgc/mrgc/xds"
)

var _ = Describe("Regions' priorities", func() {
	It("are as spilling says, or the model's own, within what is allowed", func() {
		server := startServer(testConfig())
		server.SetTenants(tenantsOf(acme, ruled("two", nil, tenant.Names{"use1", "usw2"})))
		here, away := readyInstance("use1-0", "use1", "10.0.0.1:8080"), readyInstance("usw2-0", "usw2", "10.0.0.3:8080")
		tiny := readyInstance("use1-1", "use1", "10.0.0.2:8080")
		tiny.Models = []string{"tiny"}
		server.Update(snapshotOf(here, away, tiny))
		setCertificate(server)
		now := func(cluster string) func() map[string]int {
			return func() map[string]int { return priorities(server, cluster) }
		}
		Eventually(now(modelCluster)).Should(Equal(map[string]int{"use1-0": 0, "usw2-0": 2}))

		server.SetOrders(map[string][]fleet.Region{"": {"use1", "usw2", "use2"}})
		Eventually(now(modelCluster)).Should(Equal(map[string]int{"use1-0": 0, "usw2-0": 1}))

		server.SetOrders(map[string][]fleet.Region{"": {"use1", "use2", "usw2"}, model: {"usw2", "use1", "use2"}})
		Eventually(now(modelCluster)).Should(Equal(map[string]int{"usw2-0": 0, "use1-0": 1}))
		Eventually(now(model + "@use1_usw2")).Should(Equal(map[string]int{"usw2-0": 0, "use1-0": 1}))
		Expect(now("tiny@use1_use2_usw2")()).To(Equal(map[string]int{"use1-1": 0}))

		server.SetOrders(nil)
		Eventually(now(modelCluster)).Should(Equal(map[string]int{"use1-0": 0, "usw2-0": 2}))
	})

	It("are a tenant's own in clusters of its own, one for each order", func() {
		config := testConfig()
		config.Prefer = map[string][]fleet.Region{
			"far": {"usw2"}, "as-far": {"usw2"}, "two": {"usw2", "use2"}, "home": {"usw2"}, "nowhere": {"euw1"}, "gone": {"use2"},
		}
		server := startServer(config)
		server.SetTenants(tenantsOf(acme, ruled("far", nil, nil), ruled("as-far", nil, nil), ruled("nowhere", nil, nil),
			ruled("two", nil, tenant.Names{"use1", "usw2"}), ruled("home", nil, tenant.Names{"use1"})))
		server.Update(snapshotOf(readyInstance("use1-0", "use1", "10.0.0.1:8080"), readyInstance("use2-0", "use2", "10.0.0.2:8080"), readyInstance("usw2-0", "usw2", "10.0.0.3:8080")))
		setCertificate(server)
		server.SetOrders(map[string][]fleet.Region{"": {"use1", "use2", "usw2"}, model: {"use2", "use1", "usw2"}})
		now := func(cluster string) map[string]int { return priorities(server, cluster) }
		Eventually(func() map[string]int { return now(modelCluster) }).Should(Equal(map[string]int{"use2-0": 0, "use1-0": 1, "usw2-0": 2}))
		Expect(now(modelCluster+"+usw2")).To(Equal(map[string]int{"usw2-0": 0, "use1-0": 1, "use2-0": 2}), "in the place of the model's order")
		Expect(now(model + "@use1_usw2+usw2")).To(Equal(map[string]int{"usw2-0": 0, "use1-0": 1}))
		Expect(now(model + "@use1")).To(Equal(map[string]int{"use1-0": 0}))
		page := get[map[string]map[string]any](server, "/weights")
		Expect(page["use1"]).To(HaveLen(2*4), "of two models, and nothing for tenants that are not there")
	})
})

// priorities are those of a cluster's instances for use1's Envoys.
func priorities(server *xds.Server, cluster string) map[string]int {
	GinkgoHelper()
	page := get[map[string]map[string][]struct {
		Priority  int
		Endpoints []struct{ Instance string }
	}](server, "/weights")
	out := map[string]int{}
	for _, entry := range page["use1"][cluster] {
		for _, e := range entry.Endpoints {
			out[e.Instance] = entry.Priority
		}
	}
	return out
}
