package xds_test

import (
	"bytes"
	"encoding/json"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	"google.golang.org/protobuf/encoding/protojson"

	"github.com/mrgc/mrgc/envoy"
	"github.com/mrgc/mrgc/envoy/envoytest"
	"github.com/mrgc/mrgc/internal/fleet"
	"github.com/mrgc/mrgc/internal/identity"
	"github.com/mrgc/mrgc/xds"
)

var update = os.Getenv("UPDATE_GOLDEN") != ""

// served is what an Envoy of use1 is sent for a fleet.
func served(config xds.Config, instances ...*fleet.Instance) map[string]*discoveryv3.DeltaDiscoveryResponse {
	GinkgoHelper()
	server := startServer(config)
	server.Update(snapshotOf(instances...))
	setCertificate(server)
	Eventually(server.Ready).Should(Succeed())
	return dialer(server)("e1", "use1").settle()
}

// byName are a response's resources as JSON, Any fields opened.
func byName(resp *discoveryv3.DeltaDiscoveryResponse) map[string]json.RawMessage {
	GinkgoHelper()
	out := map[string]json.RawMessage{}
	for _, r := range resp.GetResources() {
		message, err := r.GetResource().UnmarshalNew()
		Expect(err).NotTo(HaveOccurred())
		text, err := protojson.MarshalOptions{UseProtoNames: true}.Marshal(message)
		Expect(err).NotTo(HaveOccurred())
		out[r.GetName()] = text
	}
	return out
}

// productionConfig has the ports and defaults that a deployment has.
func productionConfig() xds.Config {
	config := testConfig()
	config.TenantAddress, config.HealthAddress = netip.MustParseAddrPort("0.0.0.0:443"), netip.MustParseAddrPort("0.0.0.0:8080")
	config.Models = []string{model}
	return config
}

func productionFleet() []*fleet.Instance {
	return []*fleet.Instance{
		readyInstance("use1-0", "use1", "10.0.0.1:8080"),
		readyInstance("use1-1", "use1", "10.0.0.2:8080"),
		readyInstance("usw2-0", "usw2", "10.2.0.1:8080"),
	}
}

var _ = Describe("The resources", func() {
	// What is sent is Envoy's whole behaviour: a change of it should be seen in
	// review. Rewrite with UPDATE_GOLDEN=1.
	DescribeTable("are these", func(typeURL, file string) {
		text, err := json.MarshalIndent(byName(served(productionConfig(), productionFleet()...)[typeURL]), "", "  ")
		Expect(err).NotTo(HaveOccurred())
		path := filepath.Join("testdata", file)
		if update {
			Expect(os.WriteFile(path, append(text, '\n'), 0o600)).To(Succeed())
		}
		want, err := os.ReadFile(path)
		Expect(err).NotTo(HaveOccurred())
		Expect(string(bytes.TrimSpace(want))).To(Equal(string(text)))
	},
		Entry("clusters", cluster, "clusters.json"),
		Entry("endpoints", endpoint, "endpoints.json"),
		Entry("listeners", listener, "listeners.json"),
		Entry("routes", route, "routes.json"),
	)

	It("are accepted by Envoy's own validation", func(ctx SpecContext) {
		binary := envoytest.Binary(GinkgoTB())
		ca := envoytest.NewCA(GinkgoTB())
		dir := ca.Files(GinkgoTB(), identity.ID{Region: "use1", Role: identity.RoleEnvoy})
		bootstrap, err := envoy.Bootstrap(envoy.Config{
			NodeID: "lint", Region: "use1", Admin: netip.MustParseAddrPort("127.0.0.1:0"),
			RouterGRPC: []netip.AddrPort{netip.MustParseAddrPort("127.0.0.1:1")}, RouterHTTP: []netip.AddrPort{netip.MustParseAddrPort("127.0.0.1:2")},
			CertificateFile: filepath.Join(dir, identity.CertificateFile),
			KeyFile:         filepath.Join(dir, identity.KeyFile),
			TrustFile:       filepath.Join(dir, identity.RootsFile),
		})
		Expect(err).NotTo(HaveOccurred())

		sent := served(productionConfig(), productionFleet()...)
		var page map[string]any
		Expect(json.Unmarshal(bootstrap, &page)).To(Succeed())
		static := page["static_resources"].(map[string]any)
		for _, c := range byName(sent[cluster]) {
			static["clusters"] = append(static["clusters"].([]any), c)
		}
		static["listeners"] = slices.Collect(maps.Values(byName(sent[listener])))
		text, err := json.Marshal(page)
		Expect(err).NotTo(HaveOccurred())
		path := filepath.Join(dir, "static.json")
		Expect(os.WriteFile(path, text, 0o600)).To(Succeed())
		Expect(envoy.Validate(ctx, binary, path)).To(Succeed())
	}, SpecTimeout(30*time.Second))

	It("refer to the names that the bootstrap has", func() {
		sent := served(productionConfig(), productionFleet()...)
		all := ""
		for _, typeURL := range []string{cluster, listener, route} {
			text, err := json.Marshal(byName(sent[typeURL]))
			Expect(err).NotTo(HaveOccurred())
			all += string(text)
		}
		for _, name := range []string{envoy.ClusterRouter, envoy.ClusterRouterHTTP, envoy.SecretIdentity, envoy.SecretTrust} {
			Expect(all).To(ContainSubstring(`"` + name + `"`))
		}
	})

	It("end a silent request when the configuration says", func() {
		config := productionConfig()
		config.ResponseIdleTimeout = 90 * time.Second
		sent := served(config)
		for typeURL, want := range map[string]string{listener: `"stream_idle_timeout":"90s"`, route: `"idle_timeout":"90s"`} {
			text, err := json.Marshal(byName(sent[typeURL])) // which compacts
			Expect(err).NotTo(HaveOccurred())
			Expect(string(text)).To(And(ContainSubstring(want), Not(ContainSubstring(`"300s"`))))
		}
	})

	It("do not merge updates, which would delay a weight by a second", func() {
		for _, r := range served(productionConfig())[cluster].GetResources() {
			c := &clusterv3.Cluster{}
			Expect(r.GetResource().UnmarshalTo(c)).To(Succeed())
			if c.GetEdsClusterConfig() == nil {
				continue // no endpoints of its own to update
			}
			Expect(c.GetCommonLbConfig().GetUpdateMergeWindow()).NotTo(BeNil())
			Expect(c.GetCommonLbConfig().GetUpdateMergeWindow().AsDuration()).To(BeZero())
		}
	})

	DescribeTable("quantise a score", func(score, want uint32) {
		config := testConfig()
		config.Weight = func(*fleet.Instance) uint32 { return score }
		Expect(endpoints(served(config, readyInstance("use1-0", "use1", "10.0.0.1:8080")))).To(Equal(map[string]placed{"10.0.0.1": {0, want}}))
	},
		Entry("never to nothing", uint32(0), uint32(1)),
		Entry("down", uint32(2), uint32(1)),
		Entry("up", uint32(3), uint32(5)),
		Entry("to the nearest step", uint32(52), uint32(50)),
		Entry("to itself", uint32(55), uint32(55)),
		Entry("to a hundred at most", uint32(4_000_000_000), uint32(100)),
	)

	DescribeTable("hold who takes requests", func(change func(*fleet.Instance), want map[string]placed) {
		changed := readyInstance("use1-0", "use1", "10.0.0.1:8080")
		change(changed)
		Expect(endpoints(served(testConfig(), changed, readyInstance("use1-1", "use1", "10.0.0.2:8080")))).To(Equal(want))
	},
		Entry("a ready one", func(*fleet.Instance) {}, map[string]placed{"10.0.0.1": {0, 100}, "10.0.0.2": {0, 100}}),
		Entry("not a draining one", func(in *fleet.Instance) { in.Draining = true }, map[string]placed{"10.0.0.2": {0, 100}}),
		Entry("not a sick one", func(in *fleet.Instance) { in.Health.Engine = false }, map[string]placed{"10.0.0.2": {0, 100}}),
		Entry("not a silent one", func(in *fleet.Instance) { in.HeartbeatAt = readAt.Add(-time.Minute) }, map[string]placed{"10.0.0.2": {0, 100}}),
		Entry("not one with other models", func(in *fleet.Instance) { in.Models = []string{"other"} }, map[string]placed{"10.0.0.2": {0, 100}}),
		Entry("not one of a region that is not allowed", func(in *fleet.Instance) { in.Region = "euw1" }, map[string]placed{"10.0.0.2": {0, 100}}),
		Entry("the next region's, after one's own", func(in *fleet.Instance) { in.Region = "use2" }, map[string]placed{"10.0.0.1": {1, 100}, "10.0.0.2": {0, 100}}),
		Entry("the last region's, last", func(in *fleet.Instance) { in.Region = "usw2" }, map[string]placed{"10.0.0.1": {2, 100}, "10.0.0.2": {0, 100}}),
	)
})

type placed struct{ priority, weight uint32 }

// endpoints are those of the model's cluster, by IP address.
func endpoints(sent map[string]*discoveryv3.DeltaDiscoveryResponse) map[string]placed {
	GinkgoHelper()
	out := map[string]placed{}
	for _, r := range sent[endpoint].GetResources() {
		if r.GetName() != modelCluster {
			continue
		}
		assignment := &endpointv3.ClusterLoadAssignment{}
		Expect(r.GetResource().UnmarshalTo(assignment)).To(Succeed())
		for _, locality := range assignment.GetEndpoints() {
			for _, e := range locality.GetLbEndpoints() {
				out[e.GetEndpoint().GetAddress().GetSocketAddress().GetAddress()] = placed{locality.GetPriority(), e.GetLoadBalancingWeight().GetValue()}
			}
		}
	}
	return out
}
