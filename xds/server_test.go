package xds_test

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"slices"
	"time"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/mrgc/mrgc/internal/fleet"
	"github.com/mrgc/mrgc/xds"
)

var _ = Describe("Delta ADS", func() {
	var (
		server  *xds.Server
		connect func(node, region string) *envoyDouble
		first   = readyInstance("use1-0", "use1", "10.0.0.1:8080")
		second  = readyInstance("use1-1", "use1", "10.0.0.2:8080")
	)
	BeforeEach(func() {
		server = startServer(testConfig())
		connect = dialer(server)
	})
	publish := func(instances ...*fleet.Instance) {
		GinkgoHelper()
		server.Update(snapshotOf(instances...))
		setCertificate(server)
		Eventually(server.Ready).Should(Succeed())
	}

	It("publishes nothing before there is a fleet and a certificate", func() {
		envoy := connect("e1", "use1")
		envoy.subscribe(cluster)
		Expect(server.Ready()).To(MatchError(ContainSubstring("fleet")))
		server.Update(snapshotOf(first))
		Consistently(envoy.responses, "100ms").ShouldNot(Receive())
		Expect(server.Ready()).To(MatchError(ContainSubstring("certificate")))
		setCertificate(server)
		Expect(names(envoy.next(cluster))).To(ConsistOf(modelCluster, "tiny@use1_use2_usw2", "health", "keys"))
	})

	It("refuses an Envoy of a region that it does not serve", func() {
		envoy := connect("stray", "euw1")
		envoy.subscribe(cluster)
		var err error
		Eventually(envoy.ended).Should(Receive(&err))
		Expect(status.Code(err)).To(Equal(codes.FailedPrecondition))
		Expect(err).To(MatchError(And(ContainSubstring("euw1"), ContainSubstring("node.locality.region"))))
	})

	It("refuses a type that it does not have", func() {
		envoy := connect("e1", "use1")
		envoy.subscribe("type.googleapis.com/envoy.service.runtime.v3.Runtime")
		var err error
		Eventually(envoy.ended).Should(Receive(&err))
		Expect(status.Code(err)).To(Equal(codes.InvalidArgument))
	})

	It("brings an Envoy up to date and says so", func() {
		publish(first)
		Expect(server.Acked("use1")).To(BeFalse(), "nobody is connected")
		envoy := connect("e1", "use1")
		envoy.settle()
		Eventually(func() bool { return server.Acked("use1") }).Should(BeTrue())
		Expect(server.Acked("use2")).To(BeFalse())
		envoy.close()
		Eventually(server.Envoys).Should(BeEmpty())
	})

	It("sends what has changed and nothing else", func() {
		publish(first)
		envoy := connect("e1", "use1")
		envoy.settle()
		server.Update(snapshotOf(first))
		Consistently(envoy.responses, "100ms").ShouldNot(Receive(), "nothing has changed")
		server.Update(snapshotOf(first, second))
		Expect(names(envoy.take(endpoint))).To(ConsistOf(modelCluster, "health"))
		Consistently(envoy.responses, "50ms").ShouldNot(Receive())
	})

	It("has versions that outlive the router", func() {
		publish(first)
		before := connect("e1", "use1").settle()
		versions := map[string]string{}
		for _, r := range before[cluster].GetResources() {
			versions[r.GetName()] = r.GetVersion()
		}

		successor := startServer(testConfig())
		successor.Update(snapshotOf(first))
		setCertificate(successor)
		Eventually(successor.Ready).Should(Succeed())
		envoy := dialer(successor)("e1", "use1")
		envoy.send(&discoveryv3.DeltaDiscoveryRequest{TypeUrl: cluster, InitialResourceVersions: versions})
		Consistently(envoy.responses, "100ms").ShouldNot(Receive(), "the Envoy has it all")
		Eventually(func() xds.State { return successor.Envoys()[0].Types[0].State }).Should(Equal(xds.Synced))
	})

	It("withdraws nothing while it knows nothing", func() {
		envoy := connect("e1", "use1")
		envoy.send(&discoveryv3.DeltaDiscoveryRequest{TypeUrl: cluster, InitialResourceVersions: map[string]string{modelCluster: "v"}})
		envoy.send(&discoveryv3.DeltaDiscoveryRequest{TypeUrl: listener, InitialResourceVersions: map[string]string{"tenants": "v"}})
		Consistently(envoy.responses, "100ms").ShouldNot(Receive())
	})

	It("holds listeners back until clusters and endpoints are taken", func() {
		publish(first)
		envoy := connect("e1", "use1")
		envoy.subscribe(listener)
		listeners := envoy.take(listener) // no cluster is asked for: nothing to wait for
		Expect(names(listeners)).To(ConsistOf("tenants", "health"))

		late := connect("e2", "use1")
		late.subscribe(cluster)
		clusters := late.next(cluster)
		late.subscribe(listener)
		Consistently(late.responses, "50ms").ShouldNot(Receive(), "clusters are not acknowledged")
		late.ack(clusters)
		Consistently(late.responses, "50ms").ShouldNot(Receive(), "endpoints are not asked for")
		late.subscribe(endpoint, names(clusters)...)
		endpoints := late.next(endpoint)
		Consistently(late.responses, "50ms").ShouldNot(Receive(), "endpoints are not acknowledged")
		late.ack(endpoints)
		late.next(listener)
	})

	It("removes clusters after everything that refers to them", func() {
		publish(first)
		envoy := connect("e1", "use1")
		envoy.send(&discoveryv3.DeltaDiscoveryRequest{TypeUrl: cluster, InitialResourceVersions: map[string]string{"retired@use1": "x"}})
		clusters := envoy.next(cluster)
		Expect(clusters.GetRemovedResources()).To(BeEmpty())
		envoy.subscribe(endpoint, names(clusters)...)
		envoy.subscribe(route, "tenants")
		envoy.ack(clusters)
		envoy.take(endpoint)
		envoy.take(route)
		removal := envoy.take(cluster)
		Expect(removal.GetRemovedResources()).To(ConsistOf("retired@use1"))
		Expect(removal.GetResources()).To(BeEmpty())
	})

	It("sends a region its own view", func() {
		config := testConfig()
		config.SpillTo["use2"] = []fleet.Region{"use1"}
		server = startServer(config)
		publish(first)
		Expect(names(dialer(server)("e2", "use2").settle()[cluster])).To(ContainElement(model + "@use1_use2"))
	})

	It("sends again what is subscribed again", func() {
		publish(first)
		envoy := connect("e1", "use1")
		envoy.subscribe(endpoint, modelCluster)
		envoy.take(endpoint)
		envoy.subscribe(endpoint, modelCluster)
		Expect(names(envoy.take(endpoint))).To(ConsistOf(modelCluster))
	})

	It("coalesces a burst and does not lose its end", func() {
		config := testConfig()
		config.MinPushInterval = 50e6 // 50 ms
		server = startServer(config)
		connect = dialer(server)
		publish(first)
		envoy := connect("e1", "use1")
		envoy.settle()
		for i := range 200 {
			moved := *second
			moved.Address = netip.AddrPortFrom(netip.MustParseAddr("10.0.1.1"), uint16(1000+i)).String()
			server.Update(snapshotOf(first, &moved))
		}
		pushes, last := 0, ""
		Eventually(func() string {
			select {
			case resp := <-envoy.responses:
				pushes++
				envoy.ack(resp)
				last = resp.String()
			default:
			}
			return last
		}).Should(ContainSubstring("1199"))
		Expect(pushes).To(BeNumerically("<=", 10))
	})

	It("refuses a certificate and key that do not fit, and keeps the last", func() {
		publish(first)
		Expect(server.SetTenantCertificate([]byte("none"), []byte("none"))).To(MatchError(ContainSubstring("tenant certificate")))
		Expect(server.Ready()).To(Succeed())
	})

	It("leaves out an instance that cannot be dialled, and says which", func() {
		odd, twin := readyInstance("odd", "use1", "host.example:80"), readyInstance("z-twin", "use1", "10.0.0.1:8080")
		publish(first, odd, twin)
		page := get[struct{ Error string }](server, "/fleet")
		Expect(page.Error).To(And(ContainSubstring("odd"), ContainSubstring("z-twin: address 10.0.0.1:8080 is that of use1-0")))
		Expect(weights(server)).To(HaveKey("use1-0"))
		Expect(weights(server)).NotTo(Or(HaveKey("odd"), HaveKey("z-twin")))
	})

	Describe("the admin pages", func() {
		It("show the fleet, the weights, the Envoys and readiness", func() {
			Expect(code(server, "/ready")).To(Equal(http.StatusServiceUnavailable))
			sick := readyInstance("use1-9", "use1", "10.0.0.9:8080")
			sick.Health = fleet.Health{Enclave: true, Reason: "engine loads"}
			publish(first, sick)
			connect("e1", "use1").settle()

			Expect(code(server, "/ready")).To(Equal(http.StatusOK))
			page := get[struct {
				Instances []struct {
					ID, Reason string
					Ready      bool
				}
			}](server, "/fleet")
			Expect(page.Instances).To(HaveLen(2))
			Expect(page.Instances[0].Ready).To(BeTrue())
			Expect(page.Instances[1]).To(And(HaveField("Ready", false), HaveField("Reason", "engine loads")))
			Expect(weights(server)).To(Equal(map[string]uint32{"use1-0": 100}))
			Eventually(func() bool {
				envoys := get[struct {
					Envoys []struct {
						Node   string
						Synced bool
						Types  []struct{ Type, State, Sent, Acked string }
					}
				}](server, "/envoys").Envoys
				return len(envoys) == 1 && envoys[0].Node == "e1" && envoys[0].Synced &&
					envoys[0].Types[4].Type == "RouteConfiguration" && envoys[0].Types[4].Acked == envoys[0].Types[4].Sent
			}).Should(BeTrue())
		})

		It("have no key in them", func() {
			publish(first)
			for _, path := range []string{"/fleet", "/weights", "/envoys", "/ready"} {
				Expect(body(server, path)).NotTo(ContainSubstring("PRIVATE KEY"))
			}
		})
	})
})

var _ = DescribeTable("A configuration is refused",
	func(breakIt func(*xds.Config), want string) {
		config := testConfig()
		breakIt(&config)
		_, err := xds.New(config)
		Expect(err).To(MatchError(ContainSubstring(want)))
	},
	Entry("without a region", func(c *xds.Config) { c.Region = "" }, "Region"),
	Entry("without models", func(c *xds.Config) { c.Models = nil }, "Models"),
	Entry("with a nameless model", func(c *xds.Config) { c.Models = []string{""} }, "Models"),
	Entry("without a tenant address", func(c *xds.Config) { c.TenantAddress = netip.AddrPort{} }, "TenantAddress"),
	Entry("without a health address", func(c *xds.Config) { c.HealthAddress = netip.AddrPort{} }, "HealthAddress"),
	Entry("with a negative limit", func(c *xds.Config) { c.MaxBodyBytes = -1 }, "MaxBodyBytes"),
	Entry("with a negative time", func(c *xds.Config) { c.ResponseIdleTimeout = -1 }, "negative"),
	Entry("that spills in a circle", func(c *xds.Config) { c.SpillTo["use1"] = []fleet.Region{"use1"} }, "itself"),
	Entry("with what no message may hold", func(c *xds.Config) { c.MessageTimeout = 2 * time.Hour }, "MessageTimeout"),
)

func body(server *xds.Server, path string) string {
	GinkgoHelper()
	w := httptest.NewRecorder()
	server.Admin().ServeHTTP(w, httptest.NewRequest(http.MethodGet, path, nil))
	return w.Body.String()
}

func code(server *xds.Server, path string) int {
	w := httptest.NewRecorder()
	server.Admin().ServeHTTP(w, httptest.NewRequest(http.MethodGet, path, nil))
	return w.Code
}

func get[T any](server *xds.Server, path string) (page T) {
	GinkgoHelper()
	Expect(json.Unmarshal([]byte(body(server, path)), &page)).To(Succeed())
	return page
}

// weights are those of the model's cluster for use1, by instance.
func weights(server *xds.Server) map[string]uint32 {
	GinkgoHelper()
	page := get[map[string]map[string][]struct {
		Endpoints []struct {
			Instance string
			Weight   uint32
		}
	}](server, "/weights")
	out := map[string]uint32{}
	for _, priority := range slices.Concat(page["use1"][modelCluster]) {
		for _, e := range priority.Endpoints {
			out[e.Instance] = e.Weight
		}
	}
	return out
}
