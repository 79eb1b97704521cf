package xds

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"testing"
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	routerv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/router/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	. "github.com/onsi/gomega"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/peer"
	grpcxds "google.golang.org/grpc/xds"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/mrgc/mrgc/internal/fleet"
)

// grpcTarget is what gRPC's client asks for.
const grpcTarget = "models"

// grpcResources is what gRPC's client can use, rendered as Envoy's resources
// are: an API listener, a route, a cluster without Envoy's TLS files, and the
// endpoints that Envoy gets. change, if any, replaces the cluster.
func grpcResources(g *WithT, backend netip.AddrPort, change func(r *renderer, name string) *clusterv3.Cluster) resourceSet {
	r := &renderer{byType: map[string]map[string]resource{}}
	for _, typeURL := range sendOrder {
		r.byType[typeURL] = map[string]resource{}
	}
	name := clusterName("smollm2", []fleet.Region{"use1"}, nil)
	cluster := &clusterv3.Cluster{
		Name: name, ClusterDiscoveryType: &clusterv3.Cluster_Type{Type: clusterv3.Cluster_EDS},
		EdsClusterConfig: &clusterv3.Cluster_EdsClusterConfig{EdsConfig: overADS()},
	}
	if change != nil {
		cluster = change(r, name)
	}
	r.add(name, cluster)
	endpoints := loadAssignment(name, [][]endpoint{{{id: "use1-0", address: backend, region: "use1", zone: "use1-az1", weight: 100}}})
	endpoints.Endpoints[0].LoadBalancingWeight = wrapperspb.UInt32(1) // gRPC goes to no locality without one
	r.add(name, endpoints)
	r.add(grpcTarget, &routev3.RouteConfiguration{Name: grpcTarget, VirtualHosts: []*routev3.VirtualHost{{
		Name: grpcTarget, Domains: []string{"*"},
		Routes: []*routev3.Route{{
			Match:  &routev3.RouteMatch{PathSpecifier: &routev3.RouteMatch_Prefix{Prefix: ""}},
			Action: &routev3.Route_Route{Route: &routev3.RouteAction{ClusterSpecifier: &routev3.RouteAction_Cluster{Cluster: name}}},
		}},
	}}})
	r.add(grpcTarget, &listenerv3.Listener{Name: grpcTarget, ApiListener: &listenerv3.ApiListener{ApiListener: r.pack(&hcmv3.HttpConnectionManager{
		StatPrefix:     grpcTarget,
		RouteSpecifier: &hcmv3.HttpConnectionManager_Rds{Rds: &hcmv3.Rds{ConfigSource: overADS(), RouteConfigName: grpcTarget}},
		HttpFilters:    []*hcmv3.HttpFilter{httpFilter(r, routerFilterName, &routerv3.Router{})},
	})}})
	g.Expect(r.err).NotTo(HaveOccurred())
	set := resourceSet{}
	for typeURL, byName := range r.byType {
		set[typeURL] = typeSet{version: "1-" + hashOf(byName), byName: byName}
	}
	return set
}

func serveGRPC(t *testing.T, g *WithT, register func(*grpc.Server)) netip.AddrPort {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	g.Expect(err).NotTo(HaveOccurred())
	server := grpc.NewServer()
	register(server)
	go func() { _ = server.Serve(l) }()
	t.Cleanup(server.Stop)
	return netip.MustParseAddrPort(l.Addr().String())
}

// TestGRPCClient has gRPC's own xDS client, which speaks state of the world,
// follow the server to a backend, to another one, and through a cluster that it
// rejects.
func TestGRPCClient(t *testing.T) {
	g := NewWithT(t)
	g.SetDefaultEventuallyTimeout(10 * time.Second)
	server, err := New(Config{
		Region: "use1", Models: []string{"smollm2"},
		TenantAddress: netip.MustParseAddrPort("127.0.0.1:0"), HealthAddress: netip.MustParseAddrPort("127.0.0.1:0"),
	})
	g.Expect(err).NotTo(HaveOccurred())
	control := serveGRPC(t, g, server.Register)
	var backends [2]netip.AddrPort
	for i := range backends {
		backends[i] = serveGRPC(t, g, func(s *grpc.Server) { healthv1.RegisterHealthServer(s, health.NewServer()) })
	}
	offer := func(set resourceSet) {
		server.offer(&publication{sets: map[fleet.Region]resourceSet{"use1": set}})
	}
	offer(grpcResources(g, backends[0], nil))

	resolver, err := grpcxds.NewXDSResolverWithConfigForTesting(fmt.Appendf(nil, `{
		"xds_servers": [{"server_uri": %q, "channel_creds": [{"type": "insecure"}], "server_features": ["xds_v3"]}],
		"node": {"id": "grpc", "locality": {"region": "use1"}}
	}`, control))
	g.Expect(err).NotTo(HaveOccurred())
	conn, err := grpc.NewClient("xds:///"+grpcTarget, grpc.WithResolvers(resolver), grpc.WithTransportCredentials(insecure.NewCredentials()))
	g.Expect(err).NotTo(HaveOccurred())
	t.Cleanup(func() { _ = conn.Close() })
	reached := func() string {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		var p peer.Peer
		if _, err := healthv1.NewHealthClient(conn).Check(ctx, &healthv1.HealthCheckRequest{}, grpc.Peer(&p)); err != nil {
			return err.Error()
		}
		return p.Addr.String()
	}
	clusters := func() TypeStatus {
		envoys := server.Envoys()
		if len(envoys) == 0 {
			return TypeStatus{}
		}
		return envoys[0].Types[0]
	}
	g.Eventually(reached).Should(Equal(backends[0].String()))
	g.Eventually(clusters).Should(HaveField("State", Synced))

	offer(grpcResources(g, backends[1], nil))
	g.Eventually(reached).Should(Equal(backends[1].String()))

	// Envoy's cluster, with Envoy's TLS files, is nothing for gRPC.
	forEnvoy := func(r *renderer, name string) *clusterv3.Cluster {
		return modelCluster(r, plan{config: server.config, region: "use1"}, clusterPlan{name: name})
	}
	offer(grpcResources(g, backends[1], forEnvoy))
	g.Eventually(clusters).Should(And(HaveField("State", Rejected), HaveField("Quarantine", HaveLen(1))))
	t.Log("the client says: ", clusters().Reason)
	g.Consistently(reached, "300ms").Should(Equal(backends[1].String()))

	offer(grpcResources(g, backends[0], forEnvoy)) // endpoints go on
	g.Eventually(reached).Should(Equal(backends[0].String()))
	g.Expect(clusters()).To(HaveField("State", Rejected))

	better := func(_ *renderer, name string) *clusterv3.Cluster {
		return &clusterv3.Cluster{
			Name: name, ClusterDiscoveryType: &clusterv3.Cluster_Type{Type: clusterv3.Cluster_EDS}, ConnectTimeout: durationpb.New(time.Second),
			EdsClusterConfig: &clusterv3.Cluster_EdsClusterConfig{EdsConfig: overADS()},
		}
	}
	offer(grpcResources(g, backends[1], better))
	g.Eventually(reached).Should(Equal(backends[1].String()))
	g.Eventually(clusters).Should(HaveField("State", Synced))
}
