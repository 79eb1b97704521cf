package router_test

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"net"
	"net/http"
	"os"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	csdsv3 "github.com/envoyproxy/go-control-plane/envoy/service/status/v3"
	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	"github.com/onsi/gomega/gbytes"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	"github.com/mrgc/mrgc/internal/fleet"
	"github.com/mrgc/mrgc/internal/identity"
	"github.com/mrgc/mrgc/router"
	"github.com/mrgc/mrgc/xds"
)

const (
	clusterType = "type.googleapis.com/envoy.config.cluster.v3.Cluster"
	secretType  = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret"
)

type stream = discoveryv3.AggregatedDiscoveryService_DeltaAggregatedResourcesClient

// dial opens an xDS stream with a client's TLS.
func (r *running) dial(ctx context.Context, config *tls.Config) (stream, error) {
	GinkgoHelper()
	conn, err := grpc.NewClient("passthrough:///"+r.grpc, grpc.WithTransportCredentials(credentials.NewTLS(config)))
	Expect(err).NotTo(HaveOccurred())
	DeferCleanup(conn.Close)
	return discoveryv3.NewAggregatedDiscoveryServiceClient(conn).DeltaAggregatedResources(ctx)
}

func (r *running) tlsOf(id identity.ID) *tls.Config {
	GinkgoHelper()
	return sourceOf(r.ca, id).ClientTLS(func(peer identity.ID) bool { return peer == routerID })
}

// subscribe is what an Envoy of the router's region sends first.
func (r *running) subscribe(ctx context.Context, typeURL string, names ...string) stream {
	GinkgoHelper()
	s, err := r.dial(ctx, r.tlsOf(envoyID))
	Expect(err).NotTo(HaveOccurred())
	Expect(s.Send(&discoveryv3.DeltaDiscoveryRequest{
		Node: &corev3.Node{Id: "use1-envoy-0", Locality: &corev3.Locality{Region: "use1"}}, TypeUrl: typeURL, ResourceNamesSubscribe: names,
	})).To(Succeed())
	return s
}

// nextSecret receives, and acknowledges, a certificate.
func nextSecret(s stream) string {
	GinkgoHelper()
	resp, err := s.Recv()
	Expect(err).NotTo(HaveOccurred())
	Expect(resp.GetResources()).To(HaveLen(1))
	var secret tlsv3.Secret
	Expect(resp.GetResources()[0].GetResource().UnmarshalTo(&secret)).To(Succeed())
	Expect(s.Send(&discoveryv3.DeltaDiscoveryRequest{TypeUrl: secretType, ResponseNonce: resp.GetNonce()})).To(Succeed())
	return string(secret.GetTlsCertificate().GetCertificateChain().GetInlineBytes())
}

var _ = Describe("A router", func() {
	var r *running
	BeforeEach(func() { r = newRouter() })

	It("configures its region's Envoys", SpecTimeout(20*time.Second), func(ctx SpecContext) {
		r.start()
		r.publish(startParent(r.ca, "use1", "use1-0"))
		resp, err := r.subscribe(ctx, clusterType, "*").Recv()
		Expect(err).NotTo(HaveOccurred())
		Expect(resp.GetTypeUrl()).To(Equal(clusterType))
		Expect(resp.GetResources()).NotTo(BeEmpty())
	})

	DescribeTable("admits nobody else", func(ctx SpecContext, id identity.ID, refused codes.Code) {
		r.start()
		s, err := r.dial(ctx, r.tlsOf(id))
		if err == nil {
			_, err = s.Recv()
		}
		Expect(status.Code(err)).To(Equal(refused), "%v", err)
		_, err = clientOf(sourceOf(r.ca, id)).Get("https://" + r.http + keys)
		Expect(err).To(HaveOccurred())                                               // a TLS alert, or the connection's end if that comes first
		Expect(r.get(ctx, keys).StatusCode).To(Equal(http.StatusServiceUnavailable)) // as its Envoy
	},
		Entry("an Envoy of another region", identity.ID{Region: "use2", Role: identity.RoleEnvoy}, codes.Unavailable),
		Entry("a router of another region", identity.ID{Region: "use2", Role: identity.RoleRouter}, codes.PermissionDenied), // which may hear of trials
		Entry("a parent", parentID("use1", "use1-0"), codes.Unavailable),
	)

	It("admits nobody of another authority", func(ctx SpecContext) {
		r.start()
		config := sourceOf(newAuthority(), envoyID).ClientTLS(func(identity.ID) bool { return true })
		config.VerifyConnection = nil // so that the router is who refuses
		s, err := r.dial(ctx, config)
		if err == nil {
			_, err = s.Recv()
		}
		Expect(status.Code(err)).To(Equal(codes.Unavailable), "%v", err)
	})

	It("is ready once it has the attestation documents", func() {
		r.start()
		Expect(r.adminPage("/ready").status).To(Equal(http.StatusServiceUnavailable)) // the fleet is not known
		parent := startParent(r.ca, "use1", "use1-0")
		release := parent.block()
		r.publish(parent)
		Eventually(parent.times).Should(Equal(1))
		waiting := r.adminPage("/ready")
		Expect(waiting.status).To(Equal(http.StatusServiceUnavailable))
		Expect(waiting.contentType).To(Equal("application/json"))
		Expect(waiting.text).To(MatchJSON(`{"ready":false,"reason":"no attestation documents yet from use1-0"}`))
		release()
		Eventually(func() int { return r.adminPage("/ready").status }).Should(Equal(http.StatusOK))
	})

	It("shows the fleet and its metrics to the operator", func() {
		r.start()
		r.publish(startParent(r.ca, "use1", "use1-0"))
		Eventually(func() string { return r.adminPage("/fleet").text }).Should(ContainSubstring(`"use1-0"`))
		Expect(r.adminPage("/metrics").text).To(ContainSubstring("go_goroutines"))
	})

	It("names all its pages to the operator", func() {
		r.start()
		var index struct {
			Pages []string `json:"pages"`
		}
		Expect(json.Unmarshal([]byte(r.adminPage("/").text), &index)).To(Succeed())
		Expect(index.Pages).To(ConsistOf("/canary", "/config", "/decisions", "/decisions/{id}", "/envoys", "/fleet", "/load", "/metrics", "/peers", "/ready", "/regions", "/scores", "/weights"))
		for _, page := range index.Pages {
			if page != "/decisions/{id}" {
				Expect(r.adminPage(page).status).NotTo(Equal(http.StatusNotFound), page)
			}
		}
		Expect(r.adminPage("/none").status).To(Equal(http.StatusNotFound))
	})

	It("shows the operator its Envoys, over xDS too", func(ctx SpecContext) {
		r.start()
		r.publish(startParent(r.ca, "use1", "use1-0"))
		nextSecret(r.subscribe(ctx, secretType, "tenant-server"))
		fetch := func(address string, tls credentials.TransportCredentials) (*csdsv3.ClientStatusResponse, error) {
			conn, err := grpc.NewClient("passthrough:///"+address, grpc.WithTransportCredentials(tls))
			Expect(err).NotTo(HaveOccurred())
			defer conn.Close()
			return csdsv3.NewClientStatusDiscoveryServiceClient(conn).FetchClientStatus(ctx, &csdsv3.ClientStatusRequest{})
		}
		Eventually(func() csdsv3.ConfigStatus {
			page, err := fetch(r.admin, insecure.NewCredentials())
			Expect(err).NotTo(HaveOccurred())
			Expect(page.GetConfig()).To(HaveExactElements(HaveField("Node.Id", "use1-envoy-0")))
			return page.GetConfig()[0].GetGenericXdsConfigs()[0].GetConfigStatus()
		}).Should(Equal(csdsv3.ConfigStatus_SYNCED))
		Expect(r.adminPage("/metrics").text).To(ContainSubstring(`mrgc_xds_envoys{envoy_region="use1",region="use1",state="STALE"} 1`))

		_, err := fetch(r.grpc, credentials.NewTLS(r.tlsOf(envoyID)))
		Expect(status.Code(err)).To(Equal(codes.Unimplemented), "Envoys have no business there")
	})

	It("pushes a renewed tenant certificate, and never one that does not load", SpecTimeout(20*time.Second), func(ctx SpecContext) {
		first := r.renewCertificate()
		r.start()
		r.publish(startParent(r.ca, "use1", "use1-0"))
		s := r.subscribe(ctx, secretType, "tenant-server")
		Expect(nextSecret(s)).To(Equal(string(first)))

		r.writeCertificate([]byte("no certificate"), []byte("no key"))
		Eventually(r.log).Should(gbytes.Say("renewed tenant certificate does not load; the old one stays"))
		renewed := r.renewCertificate()
		Expect(nextSecret(s)).To(Equal(string(renewed)))
	})

	It("takes a renewed certificate up when its key comes later", SpecTimeout(20*time.Second), func(ctx SpecContext) {
		r.start()
		r.publish(startParent(r.ca, "use1", "use1-0"))
		s := r.subscribe(ctx, secretType, "tenant-server")
		nextSecret(s)
		certPEM, keyPEM, err := r.ca.ServerCertificate(time.Now(), "localhost")
		Expect(err).NotTo(HaveOccurred())
		Expect(os.WriteFile(r.config.TenantCertificate, certPEM, 0o600)).To(Succeed())
		Eventually(r.log).Should(gbytes.Say("does not load"))
		Expect(os.WriteFile(r.config.TenantKey, keyPEM, 0o600)).To(Succeed())
		Expect(nextSecret(s)).To(Equal(string(certPEM)))
	})

	DescribeTable("does not run", func(change func(*router.Listeners), reason string) {
		made, err := router.New(r.config)
		Expect(err).NotTo(HaveOccurred())
		on := router.Listeners{GRPC: listen(), HTTP: listen(), Admin: listen()}
		change(&on)
		Expect(made.Run(context.Background(), on)).To(MatchError(ContainSubstring(reason)))
		for _, l := range []net.Listener{on.GRPC, on.HTTP, on.Admin} {
			_, err := l.Accept()
			Expect(err).To(MatchError(net.ErrClosed))
		}
	},
		Entry("with an admin that others can reach", func(on *router.Listeners) {
			Expect(on.Admin.Close()).To(Succeed())
			var err error
			on.Admin, err = net.Listen("tcp", "0.0.0.0:0")
			Expect(err).NotTo(HaveOccurred())
		}, "loopback only"),
		Entry("without a tenant certificate", func(*router.Listeners) {
			Expect(os.Remove(r.config.TenantCertificate)).To(Succeed())
		}, "tenant certificate"),
		Entry("without its key", func(*router.Listeners) { Expect(os.Remove(r.config.TenantKey)).To(Succeed()) }, "tenant key"),
		Entry("with a port that is closed", func(on *router.Listeners) { Expect(on.HTTP.Close()).To(Succeed()) }, "use of closed network connection"),
	)
})

var _ = Describe("New", func() {
	DescribeTable("refuses", func(change func(*running), reason string) {
		r := newRouter()
		change(r)
		_, err := router.New(r.config)
		Expect(err).To(MatchError(ContainSubstring(reason)))
	},
		Entry("no store", func(r *running) { r.config.Store = nil }, "store, identity and tenants are required"),
		Entry("no identity", func(r *running) { r.config.Identity = nil }, "store, identity and tenants are required"),
		Entry("another region's identity", func(r *running) {
			r.config.Identity = sourceOf(r.ca, identity.ID{Region: "use2", Role: identity.RoleRouter})
		}, "identity is spiffe://mrgc.internal/region/use2/router, want spiffe://mrgc.internal/region/use1/router"),
		Entry("another role's identity", func(r *running) { r.config.Identity = sourceOf(r.ca, envoyID) }, "identity is"),
		Entry("a bad xDS configuration", func(r *running) { r.config.XDS = xds.Config{Region: "use1"} }, "TenantAddress is not set"),
		Entry("no model", func(r *running) { r.config.Models = nil }, "Models is empty"),
		Entry("a bad picker configuration", func(r *running) { r.config.StaleAfter = 0 }, "StaleAfter"),
		Entry("a peer without a port", func(r *running) { r.config.Peers = []string{"10.0.0.9"} }, `peer "10.0.0.9": want host:port`),
		Entry("a peer without a host", func(r *running) { r.config.Peers = []string{":9001"} }, `peer ":9001": want host:port`),
		Entry("a peer at port 0", func(r *running) { r.config.Peers = []string{"routers:0"} }, `peer "routers:0": want host:port`),
		Entry("a peer at a port by name", func(r *running) { r.config.Peers = []string{"routers:http"} }, `peer "routers:http": want host:port`),
		Entry("peers abroad that are its own region's", func(r *running) { r.config.PeersAbroad = map[fleet.Region][]string{"use1": {"routers:9001"}} }, `peers of region "use1"`),
		Entry("a peer abroad without a port", func(r *running) { r.config.PeersAbroad = map[fleet.Region][]string{"use2": {"10.0.0.9"}} }, `peer "10.0.0.9": want host:port`),
		Entry("a peer twice", func(r *running) { r.config.Peers = []string{"routers:9001", "routers:9001"} }, "given twice"),
	)
})
