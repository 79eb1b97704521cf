package main

import (
	"net/netip"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"

	"github.com/mrgc/mrgc/engine"
	"github.com/mrgc/mrgc/internal/config"
	"github.com/mrgc/mrgc/internal/fleet"
	"github.com/mrgc/mrgc/internal/identity"
)

var _ = Describe("A router's settings", func() {
	var cluster *config.Config
	BeforeEach(func() {
		var err error
		cluster, err = config.Load(example)
		Expect(err).NotTo(HaveOccurred())
	})

	It("are what the configuration says of its region", func() {
		s, err := routerConfig(cluster, "use1", routerOptions{tenantCert: "tls.crt", tenantKey: "tls.key"})
		Expect(err).NotTo(HaveOccurred())
		Expect(s.Region).To(BeEquivalentTo("use1"))
		Expect(s.SpillTo).To(Equal([]fleet.Region{"use2", "usw2"}))
		Expect(s.SpillNearest).To(BeFalse())
		Expect(s.RoundTrips).To(Equal(map[fleet.Region]time.Duration{"use2": 12 * time.Millisecond}))
		Expect(s.PreferByModel).To(Equal(cluster.PreferencesByModel()))
		Expect(s.PreferByTenant).To(Equal(cluster.PreferencesByTenant()))
		Expect(s.Models).To(Equal([]string{cluster.Models[0].Name}))
		Expect(s.Restrictions).To(Equal(cluster.Restrictions()))
		Expect(s.StaleAfter).To(Equal(cluster.Fleet.StaleAfter))
		Expect(s.XDS.Region).To(Equal(s.Region))
		Expect(s.Policies).To(Equal(cluster.Policies()))
		Expect(s.Splits).To(Equal(cluster.Splits()))
		Expect(s.Version).To(Equal(cluster.Version()))
		Expect(s.AutoRollback).To(Equal(map[string]bool{cluster.Models[0].Name: false}))
		Expect(s.FalsePerDay).To(BeNumerically("~", 0.01/3, 1e-12))
		Expect(s.MaxBodyBytes).To(BeEquivalentTo(cluster.Limits.RequestBodyBytes))
		Expect(s.MessageTimeout).To(Equal(cluster.Picker.MessageTimeout))
		Expect(s.ResponseIdleTimeout).To(Equal(cluster.Limits.ResponseIdleTimeout))
		Expect(s.XDS.TenantAddress).To(Equal(netip.MustParseAddrPort("0.0.0.0:443")))
		Expect(s.XDS.HealthAddress).To(Equal(netip.MustParseAddrPort("0.0.0.0:8080")))
	})

	It("tell peers of the region from those of others, with which it judges together", func() {
		s, err := routerConfig(cluster, "use1", routerOptions{peers: []string{"10.0.0.2:9001", "use2=routers.use2:9001", "usw2=10.2.0.1:9001", "usw2=10.2.0.2:9001"}})
		Expect(err).NotTo(HaveOccurred())
		Expect(s.Peers).To(Equal([]string{"10.0.0.2:9001"}))
		Expect(s.PeersAbroad).To(Equal(map[fleet.Region][]string{"use2": {"routers.use2:9001"}, "usw2": {"10.2.0.1:9001", "10.2.0.2:9001"}}))
		Expect(s.FalsePerDay).To(Equal(0.01))
	})

	It("take the addresses of the flags", func() {
		s, err := routerConfig(cluster, "usw2", routerOptions{tenantAddress: "127.0.0.1:1", healthAddr: "127.0.0.1:2"})
		Expect(err).NotTo(HaveOccurred())
		Expect(s.XDS.TenantAddress).To(Equal(netip.MustParseAddrPort("127.0.0.1:1")))
		Expect(s.XDS.HealthAddress).To(Equal(netip.MustParseAddrPort("127.0.0.1:2")))
	})

	DescribeTable("are refused for", func(region fleet.Region, o routerOptions, reason string) {
		o.config = "mrgc.yaml"
		_, err := routerConfig(cluster, region, o)
		Expect(err).To(MatchError(ContainSubstring(reason)))
	},
		Entry("a region that is not there", fleet.Region("euw1"), routerOptions{}, `mrgc.yaml has no region "euw1"`),
		Entry("a peer of no region", fleet.Region("use1"), routerOptions{peers: []string{"euw1=routers:9001"}}, "--peer euw1=routers:9001: want another region"),
		Entry("a peer of its own region, as if it were another's", fleet.Region("use1"), routerOptions{peers: []string{"use1=routers:9001"}}, "want another region"),
		Entry("a bad tenant address", fleet.Region("use1"), routerOptions{tenantAddress: "443"}, "--tenant-address"),
		Entry("a bad health address", fleet.Region("use1"), routerOptions{healthAddr: "localhost:1"}, "--health-address"),
	)
})

var _ = Describe("A guard's peers", func() {
	guard := identity.ID{Region: "use1", Instance: "use1-0", Role: identity.RoleGuard}

	DescribeTable("may do", func(peer identity.ID, role engine.Role) {
		Expect(roleAt(guard, peer)).To(Equal(role))
	},
		Entry("its enclave, requests", identity.ID{Region: "use1", Instance: "use1-0", Role: identity.RoleEnclave}, engine.RoleEnclave),
		Entry("its parent, probes", identity.ID{Region: "use1", Instance: "use1-0", Role: identity.RoleParent}, engine.RoleParent),
		Entry("another instance's enclave, nothing", identity.ID{Region: "use1", Instance: "use1-1", Role: identity.RoleEnclave}, engine.RoleNone),
		Entry("another region's enclave, nothing", identity.ID{Region: "use2", Instance: "use1-0", Role: identity.RoleEnclave}, engine.RoleNone),
		Entry("another guard, nothing", guard, engine.RoleNone),
		Entry("a router, nothing", identity.ID{Region: "use1", Role: identity.RoleRouter}, engine.RoleNone),
		Entry("nobody, nothing", identity.ID{}, engine.RoleNone),
	)
})
