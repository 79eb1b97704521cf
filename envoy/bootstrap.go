package envoy

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math"
	"net/netip"
	"time"

	bootstrapv3 "github.com/envoyproxy/go-control-plane/envoy/config/bootstrap/v3"
	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	overloadv3 "github.com/envoyproxy/go-control-plane/envoy/config/overload/v3"
	downstreamv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/resource_monitors/downstream_connections/v3"
	heapv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/resource_monitors/fixed_heap/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	httpv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/upstreams/http/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/mrgc/mrgc/internal/identity"
)

// Bootstrap renders the bootstrap file as JSON; the same Config gives the same
// bytes.
func Bootstrap(config Config) ([]byte, error) {
	if err := config.check(); err != nil {
		return nil, err
	}
	config = config.withDefaults()
	p := &packer{}
	b := &bootstrapv3.Bootstrap{
		Node: &corev3.Node{
			Id:       config.NodeID,
			Cluster:  "mrgc-" + string(config.Region),
			Locality: &corev3.Locality{Region: string(config.Region), Zone: config.Zone},
		},
		Admin:            &bootstrapv3.Admin{Address: address(config.Admin)},
		DynamicResources: dynamicResources(),
		StaticResources: &bootstrapv3.Bootstrap_StaticResources{
			Clusters: []*clusterv3.Cluster{
				routerCluster(p, ClusterRouter, config.RouterGRPC, grpcCheck(), config),
				routerCluster(p, ClusterRouterHTTP, config.RouterHTTP, httpCheck(), config),
			},
			Secrets: secrets(config),
		},
		OverloadManager: overloadManager(p, config),
	}
	if p.err != nil {
		return nil, p.err
	}
	if err := b.ValidateAll(); err != nil {
		return nil, fmt.Errorf("envoy bootstrap: %w", err)
	}
	return marshal(b)
}

// marshal gives stable JSON: protojson alone varies its white space between
// builds, so that nobody depends on it.
func marshal(m proto.Message) ([]byte, error) {
	raw, err := protojson.MarshalOptions{UseProtoNames: true}.Marshal(m)
	if err != nil {
		return nil, fmt.Errorf("envoy bootstrap: %w", err)
	}
	var out bytes.Buffer
	if err := json.Indent(&out, raw, "", "  "); err != nil {
		return nil, fmt.Errorf("envoy bootstrap: %w", err)
	}
	out.WriteByte('\n')
	return out.Bytes(), nil
}

// dynamicResources asks for everything over one delta stream to the router.
func dynamicResources() *bootstrapv3.Bootstrap_DynamicResources {
	overADS := &corev3.ConfigSource{
		ResourceApiVersion:    corev3.ApiVersion_V3,
		ConfigSourceSpecifier: &corev3.ConfigSource_Ads{Ads: &corev3.AggregatedConfigSource{}},
	}
	return &bootstrapv3.Bootstrap_DynamicResources{
		AdsConfig: &corev3.ApiConfigSource{
			ApiType:                   corev3.ApiConfigSource_DELTA_GRPC,
			TransportApiVersion:       corev3.ApiVersion_V3,
			SetNodeOnFirstMessageOnly: true,
			GrpcServices: []*corev3.GrpcService{{
				TargetSpecifier: &corev3.GrpcService_EnvoyGrpc_{EnvoyGrpc: &corev3.GrpcService_EnvoyGrpc{ClusterName: ClusterRouter}},
			}},
		},
		CdsConfig: overADS,
		LdsConfig: overADS,
	}
}

// routerCluster is a static list of routers. The first address, the local
// router, is a priority of its own and all others are the next, so that they
// serve only while it is ejected, which one failed connection does; with every
// router ejected Envoy tries them all (panic), because a control plane that looks
// dead is still worth asking.
//
// Where there is another to go to, a router that hangs is left as well. It keeps
// its connections: each pick costs the picker's time-out, and the streams of
// configuration and log stay with it. Pings that it does not answer end these
// within 2 s, connections that it does not accept eject it 1 s later, and a
// health check, which is later still, keeps it out. The order matters: picks that
// went elsewhere before the log did would never be seen to end.
func routerCluster(p *packer, name string, addresses []netip.AddrPort, check *corev3.HealthCheck, config Config) *clusterv3.Cluster {
	assignment := &endpointv3.ClusterLoadAssignment{ClusterName: name}
	for i, a := range addresses {
		assignment.Endpoints = append(assignment.Endpoints, &endpointv3.LocalityLbEndpoints{
			Priority: uint32(min(i, 1)),
			LbEndpoints: []*endpointv3.LbEndpoint{{
				HostIdentifier: &endpointv3.LbEndpoint_Endpoint{Endpoint: &endpointv3.Endpoint{Address: address(a)}},
			}},
		})
	}
	cluster := &clusterv3.Cluster{
		Name:                 name,
		ClusterDiscoveryType: &clusterv3.Cluster_Type{Type: clusterv3.Cluster_STATIC},
		ConnectTimeout:       durationpb.New(time.Second),
		LoadAssignment:       assignment,
		TransportSocket:      routerTLS(p, config),
		// One ext_proc stream per tenant request: the default of 1,024 would shed.
		CircuitBreakers: &clusterv3.CircuitBreakers{Thresholds: []*clusterv3.CircuitBreakers_Thresholds{{
			MaxConnections:     wrapperspb.UInt32(1024),
			MaxPendingRequests: wrapperspb.UInt32(65536),
			MaxRequests:        wrapperspb.UInt32(65536),
		}}},
		OutlierDetection: &clusterv3.OutlierDetection{
			SplitExternalLocalOriginErrors:         true,
			ConsecutiveLocalOriginFailure:          wrapperspb.UInt32(1),
			EnforcingConsecutiveLocalOriginFailure: wrapperspb.UInt32(100),
			EnforcingConsecutive_5Xx:               wrapperspb.UInt32(0),
			EnforcingConsecutiveGatewayFailure:     wrapperspb.UInt32(0),
			EnforcingSuccessRate:                   wrapperspb.UInt32(0),
			EnforcingLocalOriginSuccessRate:        wrapperspb.UInt32(0),
			Interval:                               durationpb.New(time.Second),
			BaseEjectionTime:                       durationpb.New(time.Second),
			MaxEjectionTime:                        durationpb.New(5 * time.Second),
			MaxEjectionPercent:                     wrapperspb.UInt32(100),
		},
		TypedExtensionProtocolOptions: map[string]*anypb.Any{
			"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": p.pack(http2Options(len(addresses) > 1)),
		},
		UpstreamConnectionOptions: &clusterv3.UpstreamConnectionOptions{TcpKeepalive: &corev3.TcpKeepalive{
			KeepaliveProbes: wrapperspb.UInt32(3), KeepaliveTime: wrapperspb.UInt32(10), KeepaliveInterval: wrapperspb.UInt32(5),
		}},
	}
	if len(addresses) > 1 {
		cluster.HealthChecks = []*corev3.HealthCheck{check}
	}
	return cluster
}

func grpcCheck() *corev3.HealthCheck {
	check := routerCheck()
	check.HealthChecker = &corev3.HealthCheck_GrpcHealthCheck_{GrpcHealthCheck: &corev3.HealthCheck_GrpcHealthCheck{}}
	return check
}

func httpCheck() *corev3.HealthCheck {
	check := routerCheck()
	check.HealthChecker = &corev3.HealthCheck_HttpHealthCheck_{HttpHealthCheck: &corev3.HealthCheck_HttpHealthCheck{
		Host: "router", Path: "/healthz", CodecClientType: typev3.CodecClientType_HTTP2,
	}}
	return check
}

// routerCheck keeps out a router that hangs, at the cost of one small request a
// second. The interval without traffic is set as well: its default is a minute.
func routerCheck() *corev3.HealthCheck {
	return &corev3.HealthCheck{
		Timeout:            durationpb.New(time.Second),
		Interval:           durationpb.New(time.Second),
		NoTrafficInterval:  durationpb.New(time.Second),
		UnhealthyThreshold: wrapperspb.UInt32(2),
		HealthyThreshold:   wrapperspb.UInt32(1),
	}
}

// http2Options pings a router that is silent, so that a half-open connection is
// known as such: at once if there is another router to go to, else in seconds.
func http2Options(severalRouters bool) *httpv3.HttpProtocolOptions {
	pings := &corev3.KeepaliveSettings{Interval: durationpb.New(10 * time.Second), Timeout: durationpb.New(3 * time.Second)}
	if severalRouters {
		pings = &corev3.KeepaliveSettings{Interval: durationpb.New(time.Second), Timeout: durationpb.New(time.Second)}
	}
	return &httpv3.HttpProtocolOptions{
		UpstreamProtocolOptions: &httpv3.HttpProtocolOptions_ExplicitHttpConfig_{
			ExplicitHttpConfig: &httpv3.HttpProtocolOptions_ExplicitHttpConfig{
				ProtocolConfig: &httpv3.HttpProtocolOptions_ExplicitHttpConfig_Http2ProtocolOptions{
					Http2ProtocolOptions: &corev3.Http2ProtocolOptions{
						ConnectionKeepalive: pings,
					},
				},
			},
		},
	}
}

func routerTLS(p *packer, config Config) *corev3.TransportSocket {
	return &corev3.TransportSocket{
		Name: "envoy.transport_sockets.tls",
		ConfigType: &corev3.TransportSocket_TypedConfig{TypedConfig: p.pack(&tlsv3.UpstreamTlsContext{
			CommonTlsContext: &tlsv3.CommonTlsContext{
				TlsParams:                      &tlsv3.TlsParameters{TlsMinimumProtocolVersion: tlsv3.TlsParameters_TLSv1_3, TlsMaximumProtocolVersion: tlsv3.TlsParameters_TLSv1_3},
				AlpnProtocols:                  []string{"h2"},
				TlsCertificateSdsSecretConfigs: []*tlsv3.SdsSecretConfig{{Name: SecretIdentity}},
				ValidationContextType: &tlsv3.CommonTlsContext_CombinedValidationContext{
					CombinedValidationContext: &tlsv3.CommonTlsContext_CombinedCertificateValidationContext{
						DefaultValidationContext: &tlsv3.CertificateValidationContext{
							MatchTypedSubjectAltNames: []*tlsv3.SubjectAltNameMatcher{{
								SanType: tlsv3.SubjectAltNameMatcher_URI,
								Matcher: &matcherv3.StringMatcher{MatchPattern: &matcherv3.StringMatcher_Exact{
									Exact: identity.ID{Region: string(config.Region), Role: identity.RoleRouter}.String(),
								}},
							}},
						},
						ValidationContextSdsSecretConfig: &tlsv3.SdsSecretConfig{Name: SecretTrust},
					},
				},
			},
		})},
	}
}

func secrets(config Config) []*tlsv3.Secret {
	return []*tlsv3.Secret{
		{Name: SecretIdentity, Type: &tlsv3.Secret_TlsCertificate{TlsCertificate: &tlsv3.TlsCertificate{
			CertificateChain: file(config.CertificateFile), PrivateKey: file(config.KeyFile),
		}}},
		{Name: SecretTrust, Type: &tlsv3.Secret_ValidationContext{ValidationContext: &tlsv3.CertificateValidationContext{
			TrustedCa: file(config.TrustFile),
		}}},
	}
}

// overloadManager refuses connections and requests before the kernel kills
// Envoy for its memory.
func overloadManager(p *packer, config Config) *overloadv3.OverloadManager {
	return &overloadv3.OverloadManager{
		RefreshInterval: durationpb.New(250 * time.Millisecond),
		ResourceMonitors: []*overloadv3.ResourceMonitor{
			{Name: "envoy.resource_monitors.fixed_heap", ConfigType: &overloadv3.ResourceMonitor_TypedConfig{
				TypedConfig: p.pack(&heapv3.FixedHeapConfig{MaxHeapSizeBytes: min(config.MaxHeapBytes, math.MaxInt64)}),
			}},
			{Name: "envoy.resource_monitors.global_downstream_max_connections", ConfigType: &overloadv3.ResourceMonitor_TypedConfig{
				TypedConfig: p.pack(&downstreamv3.DownstreamConnectionsConfig{MaxActiveDownstreamConnections: config.MaxConnections}),
			}},
		},
		Actions: []*overloadv3.OverloadAction{
			heapAction("envoy.overload_actions.shrink_heap", 0.95),
			heapAction("envoy.overload_actions.stop_accepting_requests", 0.98),
		},
	}
}

func heapAction(name string, threshold float64) *overloadv3.OverloadAction {
	return &overloadv3.OverloadAction{Name: name, Triggers: []*overloadv3.Trigger{{
		Name:         "envoy.resource_monitors.fixed_heap",
		TriggerOneof: &overloadv3.Trigger_Threshold{Threshold: &overloadv3.ThresholdTrigger{Value: threshold}},
	}}}
}

func file(path string) *corev3.DataSource {
	return &corev3.DataSource{Specifier: &corev3.DataSource_Filename{Filename: path}}
}

func address(a netip.AddrPort) *corev3.Address {
	return &corev3.Address{Address: &corev3.Address_SocketAddress{SocketAddress: &corev3.SocketAddress{
		Address: a.Addr().String(), PortSpecifier: &corev3.SocketAddress_PortValue{PortValue: uint32(a.Port())},
	}}}
}

// packer wraps messages into Any and keeps the first error, so that building a
// bootstrap reads as one expression.
type packer struct{ err error }

type validated interface {
	proto.Message
	ValidateAll() error
}

func (p *packer) pack(m validated) *anypb.Any {
	if err := m.ValidateAll(); err != nil && p.err == nil {
		p.err = fmt.Errorf("envoy bootstrap: %w", err)
	}
	out, err := anypb.New(m)
	if err != nil && p.err == nil {
		p.err = fmt.Errorf("envoy bootstrap: %w", err)
	}
	return out
}
