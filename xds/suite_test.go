package xds_test

import (
	"context"
	"net"
	"net/netip"
	"testing"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	"github.com/onsi/gomega/gleak"
	statusv3 "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/test/bufconn"

	"github.com/mrgc/mrgc/envoy/envoytest"
	"github.com/mrgc/mrgc/internal/fleet"
	"github.com/mrgc/mrgc/internal/tenant"
	"github.com/mrgc/mrgc/internal/tenant/tenanttest"
	"github.com/mrgc/mrgc/xds"
)

func TestXDS(t *testing.T) {
	RegisterFailHandler(Fail)
	SetDefaultEventuallyTimeout(10 * time.Second)
	SetDefaultEventuallyPollingInterval(10 * time.Millisecond)
	RunSpecs(t, "xds")
}

var _ = BeforeEach(func() {
	before := gleak.Goroutines()
	DeferCleanup(func() { Eventually(gleak.Goroutines).ShouldNot(gleak.HaveLeaked(before)) })
})

// Short names of the types, as the admin pages have them.
const (
	cluster  = "type.googleapis.com/envoy.config.cluster.v3.Cluster"
	endpoint = "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment"
	secret   = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret"
	listener = "type.googleapis.com/envoy.config.listener.v3.Listener"
	route    = "type.googleapis.com/envoy.config.route.v3.RouteConfiguration"
)

const model = "smollm2"

// modelCluster is the cluster of model for use1's Envoys under testConfig.
const modelCluster = model + "@use1_use2_usw2"

func testConfig() xds.Config {
	return xds.Config{
		Region:          "use1",
		SpillTo:         map[fleet.Region][]fleet.Region{"use1": {"use2", "usw2"}},
		Models:          []string{model, "tiny"},
		TenantAddress:   netip.MustParseAddrPort("127.0.0.1:0"),
		HealthAddress:   netip.MustParseAddrPort("127.0.0.1:0"),
		MinPushInterval: time.Millisecond,
	}
}

// readyInstance is one that takes requests.
func readyInstance(id string, region fleet.Region, address string) *fleet.Instance {
	return &fleet.Instance{
		ID: id, Region: region, Zone: string(region) + "-az1", Address: address, Models: []string{model},
		Health: fleet.Health{Enclave: true, Engine: true}, HeartbeatAt: readAt,
	}
}

var readAt = time.Date(2026, 11, 1, 12, 0, 0, 0, time.UTC)

func snapshotOf(instances ...*fleet.Instance) *fleet.Snapshot {
	return fleet.NewSnapshot(readAt, instances)
}

// acme is a tenant without rules; token is its edge token.
var acme = tenanttest.Tenant("acme", token, "enclave")

const token = "secret"

func tenantsOf(tenants ...tenant.Tenant) *tenant.Set {
	GinkgoHelper()
	return tenanttest.Keeper(GinkgoTB(), tenants...).Set()
}

// startServer runs a server that has acme.
func startServer(config xds.Config) *xds.Server {
	GinkgoHelper()
	server, err := xds.New(config)
	Expect(err).NotTo(HaveOccurred())
	server.SetTenants(tenantsOf(acme))
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- server.Run(ctx) }()
	DeferCleanup(func() {
		cancel()
		Eventually(ended).Should(Receive(BeNil()))
	})
	return server
}

func setCertificate(server *xds.Server) {
	GinkgoHelper()
	certPEM, keyPEM := envoytest.NewCA(GinkgoTB()).Server(GinkgoTB(), "localhost")
	Expect(server.SetTenantCertificate(certPEM, keyPEM)).To(Succeed())
}

// serveInMemory serves what register registers, and returns what connects to it.
func serveInMemory(register func(*grpc.Server)) func() *grpc.ClientConn {
	l := bufconn.Listen(1 << 20)
	g := grpc.NewServer()
	register(g)
	go func() { _ = g.Serve(l) }()
	DeferCleanup(g.Stop)
	return func() *grpc.ClientConn {
		GinkgoHelper()
		conn, err := grpc.NewClient("passthrough:///xds",
			grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return l.DialContext(ctx) }),
			grpc.WithTransportCredentials(insecure.NewCredentials()))
		Expect(err).NotTo(HaveOccurred())
		DeferCleanup(conn.Close)
		return conn
	}
}

// statusConn is a connection to a server's status service.
func statusConn(server *xds.Server) *grpc.ClientConn { return serveInMemory(server.RegisterStatus)() }

// dialer serves a server in memory and returns what connects Envoys to it.
func dialer(server *xds.Server) func(node, region string) *envoyDouble {
	dial := serveInMemory(server.Register)
	return func(node, region string) *envoyDouble {
		GinkgoHelper()
		conn := dial()
		ctx, cancel := context.WithCancel(context.Background())
		stream, err := discoveryv3.NewAggregatedDiscoveryServiceClient(conn).DeltaAggregatedResources(ctx)
		Expect(err).NotTo(HaveOccurred())
		e := &envoyDouble{
			stream: stream, responses: make(chan *discoveryv3.DeltaDiscoveryResponse), ended: make(chan error, 1),
			node: &corev3.Node{Id: node, Locality: &corev3.Locality{Region: region}},
		}
		e.close = cancel
		DeferCleanup(cancel)
		go e.receive(ctx)
		return e
	}
}

// envoyDouble is the client's half of a delta stream, as Envoy speaks it.
type envoyDouble struct {
	stream    discoveryv3.AggregatedDiscoveryService_DeltaAggregatedResourcesClient
	node      *corev3.Node
	responses chan *discoveryv3.DeltaDiscoveryResponse
	ended     chan error
	close     func()
}

func (e *envoyDouble) receive(ctx context.Context) {
	for {
		resp, err := e.stream.Recv()
		if err != nil {
			e.ended <- err
			return
		}
		select {
		case e.responses <- resp:
		case <-ctx.Done():
			return
		}
	}
}

func (e *envoyDouble) send(req *discoveryv3.DeltaDiscoveryRequest) {
	GinkgoHelper()
	req.Node, e.node = e.node, nil // on the first message alone
	Expect(e.stream.Send(req)).To(Succeed())
}

func (e *envoyDouble) subscribe(typeURL string, names ...string) {
	GinkgoHelper()
	e.send(&discoveryv3.DeltaDiscoveryRequest{TypeUrl: typeURL, ResourceNamesSubscribe: names})
}

// next is the next response, which must be of a type.
func (e *envoyDouble) next(typeURL string) *discoveryv3.DeltaDiscoveryResponse {
	GinkgoHelper()
	var resp *discoveryv3.DeltaDiscoveryResponse
	Eventually(e.responses).Should(Receive(&resp))
	Expect(resp.GetTypeUrl()).To(Equal(typeURL))
	return resp
}

func (e *envoyDouble) ack(resp *discoveryv3.DeltaDiscoveryResponse) {
	GinkgoHelper()
	e.send(&discoveryv3.DeltaDiscoveryRequest{TypeUrl: resp.GetTypeUrl(), ResponseNonce: resp.GetNonce()})
}

func (e *envoyDouble) nack(resp *discoveryv3.DeltaDiscoveryResponse, message string) {
	GinkgoHelper()
	e.send(&discoveryv3.DeltaDiscoveryRequest{
		TypeUrl: resp.GetTypeUrl(), ResponseNonce: resp.GetNonce(), ErrorDetail: &statusv3.Status{Code: 13, Message: message},
	})
}

// take receives and acknowledges.
func (e *envoyDouble) take(typeURL string) *discoveryv3.DeltaDiscoveryResponse {
	GinkgoHelper()
	resp := e.next(typeURL)
	e.ack(resp)
	return resp
}

// settle does what Envoy does at its start, until it has everything.
func (e *envoyDouble) settle() map[string]*discoveryv3.DeltaDiscoveryResponse {
	GinkgoHelper()
	got := map[string]*discoveryv3.DeltaDiscoveryResponse{}
	e.subscribe(cluster)
	got[cluster] = e.take(cluster)
	var names []string
	for _, r := range got[cluster].GetResources() {
		names = append(names, r.GetName())
	}
	e.subscribe(endpoint, names...)
	got[endpoint] = e.take(endpoint)
	e.subscribe(listener)
	got[listener] = e.take(listener)
	e.subscribe(secret, "tenant-server")
	got[secret] = e.take(secret)
	e.subscribe(route, "tenants")
	got[route] = e.take(route)
	return got
}

func names(resp *discoveryv3.DeltaDiscoveryResponse) []string {
	var out []string
	for _, r := range resp.GetResources() {
		out = append(out, r.GetName())
	}
	return out
}
