package xds_test

import (
	"context"
	"strings"
	"time"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	csdsv3 "github.com/envoyproxy/go-control-plane/envoy/service/status/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/mrgc/mrgc/xds"
)

// versions are a response's, by resource.
func versions(resp *discoveryv3.DeltaDiscoveryResponse) map[string]string {
	out := map[string]string{}
	for _, r := range resp.GetResources() {
		out[r.GetName()] = r.GetVersion()
	}
	return out
}

// stateOf is how far an Envoy is with a type, "Secret" for example.
func stateOf(server *xds.Server, node, short string) xds.TypeStatus {
	for _, envoy := range server.Envoys() {
		for _, t := range envoy.Types {
			if envoy.Node == node && t.Type == short {
				return t
			}
		}
	}
	return xds.TypeStatus{}
}

// metricsOf reads gauges and counters: name and label values → value.
func metricsOf(reg *prometheus.Registry) map[string]float64 {
	GinkgoHelper()
	families, err := reg.Gather()
	Expect(err).NotTo(HaveOccurred())
	out := map[string]float64{}
	for _, family := range families {
		for _, m := range family.GetMetric() {
			key := family.GetName()
			for _, label := range m.GetLabel() {
				key += " " + label.GetValue()
			}
			out[key] = m.GetGauge().GetValue() + m.GetCounter().GetValue()
		}
	}
	return out
}

var _ = Describe("What an Envoy rejects", func() {
	var (
		config  xds.Config
		server  *xds.Server
		connect func(node, region string) *envoyDouble
		first   = readyInstance("use1-0", "use1", "10.0.0.1:8080")
		second  = readyInstance("use1-1", "use1", "10.0.0.2:8080")
	)
	BeforeEach(func() {
		config = testConfig()
		config.TrialTimeout = time.Hour
	})
	JustBeforeEach(func() {
		server = startServer(config)
		connect = dialer(server)
		server.Update(snapshotOf(first))
		setCertificate(server)
		Eventually(server.Ready).Should(Succeed())
	})

	It("is rolled back to what it last accepted, shown, and not sent again", func() {
		envoy := connect("e1", "use1")
		accepted := versions(envoy.settle()[endpoint])
		server.Update(snapshotOf(first, second))
		refused := envoy.next(endpoint)
		envoy.nack(refused, "no such weight")
		Expect(versions(envoy.take(endpoint))).To(Equal(map[string]string{modelCluster: accepted[modelCluster], "health": accepted["health"]}))
		endpoints := func() xds.TypeStatus { return stateOf(server, "e1", "ClusterLoadAssignment") }
		Eventually(endpoints).Should(And(HaveField("State", xds.Rejected), HaveField("Reason", "no such weight")))
		Expect(endpoints().Quarantine).To(ContainElement(And(
			HaveField("Name", modelCluster), HaveField("Version", versions(refused)[modelCluster]),
			HaveField("Accepted", accepted[modelCluster]), HaveField("Reason", "no such weight"))))
		Expect(server.Acked("use1")).To(BeFalse())
		Consistently(envoy.responses, "100ms").ShouldNot(Receive())

		server.Update(snapshotOf(second))
		envoy.take(endpoint)
		Eventually(endpoints).Should(And(HaveField("State", xds.Synced), HaveField("Reason", ""), HaveField("Quarantine", BeEmpty())))
	})

	It("is not sent again when what was before it comes back, nor when it comes back itself", func() {
		envoy := connect("e1", "use1")
		envoy.settle()
		server.Update(snapshotOf(first, second))
		envoy.nack(envoy.next(endpoint), "no")
		envoy.take(endpoint)
		server.Update(snapshotOf(first))
		Eventually(func() xds.State { return stateOf(server, "e1", "ClusterLoadAssignment").State }).Should(Equal(xds.Synced))
		server.Update(snapshotOf(first, second))
		Eventually(func() xds.State { return stateOf(server, "e1", "ClusterLoadAssignment").State }).Should(Equal(xds.Rejected))
		Consistently(envoy.responses, "100ms").ShouldNot(Receive())
	})

	It("stays rejected when a refused rollback ends the matter", func() {
		envoy := connect("e1", "use1")
		envoy.settle()
		server.Update(snapshotOf(first, second))
		envoy.nack(envoy.next(endpoint), "no")
		envoy.nack(envoy.next(endpoint), "not that either")
		Consistently(envoy.responses, "100ms").ShouldNot(Receive())
		Expect(stateOf(server, "e1", "ClusterLoadAssignment").Reason).To(Equal("no"))
	})

	It("is remembered over streams, until the Envoy starts anew", func() {
		envoy := connect("e1", "use1")
		got := envoy.settle()
		server.Update(snapshotOf(first, second))
		refused := versions(envoy.next(endpoint))
		envoy.send(&discoveryv3.DeltaDiscoveryRequest{TypeUrl: endpoint, ResponseNonce: "none"}) // an answer to nothing
		envoy.close()
		Eventually(server.Envoys).Should(BeEmpty())

		envoy = connect("e1", "use1")
		reconnect := func() {
			envoy.send(&discoveryv3.DeltaDiscoveryRequest{TypeUrl: cluster, InitialResourceVersions: versions(got[cluster])})
			envoy.send(&discoveryv3.DeltaDiscoveryRequest{
				TypeUrl: endpoint, InitialResourceVersions: versions(got[endpoint]), ResourceNamesSubscribe: names(got[cluster]),
			})
		}
		reconnect()
		unanswered := envoy.next(endpoint)
		Expect(versions(unanswered)).To(Equal(refused), "it had not said no")
		envoy.nack(unanswered, "no")
		Eventually(func() xds.State { return stateOf(server, "e1", "ClusterLoadAssignment").State }).Should(Equal(xds.Rejected))
		envoy.close()
		Eventually(server.Envoys).Should(BeEmpty())

		envoy = connect("e1", "use1")
		reconnect()
		Consistently(envoy.responses, "100ms").ShouldNot(Receive())
		Expect(stateOf(server, "e1", "ClusterLoadAssignment").State).To(Equal(xds.Rejected))
		envoy.close()
		Eventually(server.Envoys).Should(BeEmpty())

		Expect(versions(connect("e1", "use1").settle()[endpoint])).To(HaveKeyWithValue(modelCluster, refused[modelCluster]))
	})

	It("has a reason that can be shown", func() {
		envoy := connect("e1", "use1")
		envoy.settle()
		server.Update(snapshotOf(first, second))
		envoy.nack(envoy.next(endpoint), "bad\x1b[31m\nline -----BEGIN PRIVATE KEY----- c2VjcmV0"+strings.Repeat("x", 10_000))
		envoy.take(endpoint)
		Expect(stateOf(server, "e1", "ClusterLoadAssignment").Reason).To(Equal("bad [31m line (a PEM block, left out)"))
		server.Update(snapshotOf(second))
		envoy.nack(envoy.next(endpoint), strings.Repeat("ü", 10_000))
		envoy.take(endpoint)
		Eventually(func() int { return len(stateOf(server, "e1", "ClusterLoadAssignment").Reason) }).Should(BeNumerically("<=", 515))
	})

	It("leaves a bad first publication with nothing but what can be had", func() {
		envoy := connect("e1", "use1")
		envoy.subscribe(cluster)
		envoy.nack(envoy.next(cluster), "Error adding/updating cluster(s) "+modelCluster+": no")
		gone := envoy.take(cluster)
		Expect(gone.GetRemovedResources()).To(ConsistOf(modelCluster), "whether it is in use is not known")
		rest := envoy.take(cluster)
		Expect(names(rest)).To(ConsistOf("tiny@use1_use2_usw2", "health", "keys"))
		envoy.subscribe(endpoint, names(rest)...)
		envoy.take(endpoint)
		envoy.subscribe(route, "tenants")
		envoy.take(route)
		Consistently(envoy.responses, "100ms").ShouldNot(Receive())
	})

	Describe("with others beside it", func() {
		var one, other *envoyDouble
		JustBeforeEach(func() {
			one = connect("e1", "use1")
			one.settle()
			Eventually(func() bool { return server.Acked("use1") }).Should(BeTrue())
			other = connect("e2", "use1")
			other.settle()
		})

		It("goes to one of them first, and to the others when that one has accepted it", func() {
			setCertificate(server)
			tried := one.next(secret)
			Consistently(other.responses, "100ms").ShouldNot(Receive())
			Expect(stateOf(server, "e2", "Secret")).To(And(HaveField("State", xds.Stale), HaveField("Reason", "envoy e1 tries it first")))
			Expect(server.Envoys()[0].Trying).To(BeTrue())

			server.Update(snapshotOf(second)) // endpoints do not wait
			other.take(endpoint)

			one.ack(tried)
			Expect(versions(other.take(secret))).To(Equal(versions(tried)))
			one.take(endpoint)
			Eventually(func() bool { return server.Acked("use1") }).Should(BeTrue())
		})

		It("reaches nobody else, and both say why", func() {
			reg := prometheus.NewRegistry()
			config.Metrics = reg
			server = startServer(config)
			connect = dialer(server)
			server.Update(snapshotOf(first))
			setCertificate(server)
			one, other = connect("e1", "use1"), connect("e2", "use1")
			before := one.settle()[secret]
			other.settle()

			setCertificate(server)
			one.nack(one.next(secret), "only RSA certificates with 2048-bit or larger keys are supported")
			Expect(versions(one.take(secret))).To(Equal(versions(before)))
			Eventually(func() xds.TypeStatus { return stateOf(server, "e2", "Secret") }).Should(And(
				HaveField("State", xds.Stale), HaveField("Reason", HavePrefix("held back: Secret tenant-server: envoy e1 rejected it: only RSA"))))
			Expect(stateOf(server, "e1", "Secret").State).To(Equal(xds.Rejected))
			Consistently(other.responses, "100ms").ShouldNot(Receive())
			Expect(metricsOf(reg)).To(Equal(map[string]float64{
				"mrgc_xds_envoys use1 use1 REJECTED": 1, "mrgc_xds_envoys use1 use1 STALE": 1, "mrgc_xds_envoys use1 use1 SYNCED": 0,
				"mrgc_xds_held_back use1 use1": 1, "mrgc_xds_rejections_total use1 Secret": 1,
			}))

			setCertificate(server)
			fixed := other.take(secret) // the other tries it: the first may be the odd one
			Expect(versions(one.take(secret))).To(Equal(versions(fixed)))
			Eventually(func() bool { return server.Acked("use1") }).Should(BeTrue())
		})

		It("newcomers have what the others have", func() {
			setCertificate(server)
			one.nack(one.next(secret), "no")
			kept := one.take(secret)
			Expect(versions(connect("e3", "use1").settle()[secret])).To(Equal(versions(kept)))
		})

		Context("when the first one hangs", func() {
			BeforeEach(func() { config.TrialTimeout = 100 * time.Millisecond })
			It("is tried by the next", func() {
				setCertificate(server)
				tried := one.next(secret)
				Expect(versions(other.take(secret))).To(Equal(versions(tried)))
				one.ack(tried)
				Eventually(func() bool {
					select {
					case resp := <-one.responses: // what was good, if the other has not answered yet
						one.ack(resp)
					default:
					}
					return server.Acked("use1")
				}).Should(BeTrue())
			})
		})
	})
})

var _ = Describe("The client status discovery service", func() {
	It("says for each resource what /envoys says for all", func(ctx SpecContext) {
		server := startServer(testConfig())
		connect := dialer(server)
		client := csdsv3.NewClientStatusDiscoveryServiceClient(statusConn(server))
		server.Update(snapshotOf(readyInstance("use1-0", "use1", "10.0.0.1:8080")))
		setCertificate(server)
		envoy := connect("e1", "use1")
		got := envoy.settle()
		connect("e2", "use1").settle()
		setCertificate(server)
		refused := versions(envoy.next(secret))["tenant-server"]
		of := func(typeURL, name string) *csdsv3.ClientConfig_GenericXdsConfig {
			page, err := client.FetchClientStatus(ctx, &csdsv3.ClientStatusRequest{NodeMatchers: []*matcherv3.NodeMatcher{
				{NodeId: &matcherv3.StringMatcher{MatchPattern: &matcherv3.StringMatcher_Exact{Exact: "e1"}}},
			}})
			Expect(err).NotTo(HaveOccurred())
			Expect(page.GetConfig()).To(HaveLen(1))
			for _, r := range page.GetConfig()[0].GetGenericXdsConfigs() {
				if r.GetTypeUrl() == typeURL && r.GetName() == name {
					return r
				}
			}
			return nil
		}
		Expect(of(secret, "tenant-server").GetConfigStatus()).To(Equal(csdsv3.ConfigStatus_STALE))
		Expect(of(cluster, modelCluster)).To(And(
			HaveField("ConfigStatus", csdsv3.ConfigStatus_SYNCED), HaveField("VersionInfo", versions(got[cluster])[modelCluster])))
		envoy.send(&discoveryv3.DeltaDiscoveryRequest{TypeUrl: secret, ResponseNonce: "0"})
		server.Update(snapshotOf())
		envoy.nack(envoy.next(endpoint), "no")
		envoy.take(endpoint)
		Eventually(func() csdsv3.ConfigStatus { return of(endpoint, modelCluster).GetConfigStatus() }).Should(Equal(csdsv3.ConfigStatus_ERROR))
		Expect(of(endpoint, modelCluster).GetErrorState()).To(And(
			HaveField("Details", "no"), HaveField("VersionInfo", Not(Equal(versions(got[endpoint])[modelCluster])))))
		Expect(of(endpoint, modelCluster).GetVersionInfo()).To(Equal(versions(got[endpoint])[modelCluster]))
		Expect(of(secret, "tenant-server").GetVersionInfo()).To(And(Equal(versions(got[secret])["tenant-server"]), Not(Equal(refused))))

		stream, err := client.StreamClientStatus(ctx)
		Expect(err).NotTo(HaveOccurred())
		for range 2 {
			Expect(stream.Send(&csdsv3.ClientStatusRequest{})).To(Succeed())
			page, err := stream.Recv()
			Expect(err).NotTo(HaveOccurred())
			Expect(page.GetConfig()).To(HaveLen(2))
			Expect(page.String()).NotTo(ContainSubstring("PRIVATE KEY"))
		}
		Expect(stream.CloseSend()).To(Succeed())
	})

	It("refuses what it would have to ignore", func(ctx context.Context) {
		client := csdsv3.NewClientStatusDiscoveryServiceClient(statusConn(startServer(testConfig())))
		_, err := client.FetchClientStatus(ctx, &csdsv3.ClientStatusRequest{NodeMatchers: []*matcherv3.NodeMatcher{
			{NodeId: &matcherv3.StringMatcher{MatchPattern: &matcherv3.StringMatcher_Prefix{Prefix: "e"}}},
		}})
		Expect(status.Code(err)).To(Equal(codes.InvalidArgument))
	})
})
