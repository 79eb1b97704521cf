package xds

import (
	"regexp"
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	aggregatev3 "github.com/envoyproxy/go-control-plane/envoy/extensions/clusters/aggregate/v3"
	overridehostv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/load_balancing_policies/override_host/v3"
	roundrobinv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/load_balancing_policies/round_robin/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	httpv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/upstreams/http/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	metadatav3 "github.com/envoyproxy/go-control-plane/envoy/type/metadata/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/mrgc/mrgc/internal/identity"
)

// The picker's answer is dynamic metadata of this namespace and key: a list
// "ip:port,ip:port" in order of preference (endpoint picker protocol 1.0.0).
const (
	pickNamespace = "envoy.lb"
	pickKey       = "x-gateway-destination-endpoint"
)

// parentSAN matches the SPIFFE id of any instance's parent (package identity).
var parentSAN = regexp.QuoteMeta("spiffe://"+identity.TrustDomain) + `/region/[A-Za-z0-9._-]+/instance/[A-Za-z0-9._-]+/parent`

// modelCluster is where the requests for one model go. The picker's choice
// comes first; without one, weighted round robin (least request would skew the
// weights) over the best priority that has healthy hosts.
func modelCluster(r *renderer, p plan, c clusterPlan) *clusterv3.Cluster {
	cluster := instanceCluster(r, p, c.name)
	cluster.LoadBalancingPolicy = &clusterv3.LoadBalancingPolicy{Policies: []*clusterv3.LoadBalancingPolicy_Policy{{
		TypedExtensionConfig: r.extension("envoy.load_balancing_policies.override_host", &overridehostv3.OverrideHost{
			// Metadata alone: a header as source would let a tenant choose.
			OverrideHostSources: []*overridehostv3.OverrideHost_OverrideHostSource{{Metadata: metadataKey(pickKey)}},
			SelectedHostKey:     metadataKey(pickKey + "-selected"),
			FallbackPolicy:      roundRobin(r),
		}),
	}}}
	// Only what the connection says counts against a host: an instance's own
	// 500s may be the request's fault. At most half of the hosts are ejected;
	// when more are broken, the active checks say so.
	cluster.OutlierDetection = &clusterv3.OutlierDetection{
		SplitExternalLocalOriginErrors:         true,
		ConsecutiveLocalOriginFailure:          wrapperspb.UInt32(3),
		EnforcingConsecutiveLocalOriginFailure: wrapperspb.UInt32(100),
		ConsecutiveGatewayFailure:              wrapperspb.UInt32(5),
		EnforcingConsecutiveGatewayFailure:     wrapperspb.UInt32(100),
		EnforcingConsecutive_5Xx:               wrapperspb.UInt32(0),
		EnforcingSuccessRate:                   wrapperspb.UInt32(0),
		EnforcingLocalOriginSuccessRate:        wrapperspb.UInt32(0),
		Interval:                               durationpb.New(time.Second),
		BaseEjectionTime:                       durationpb.New(5 * time.Second),
		MaxEjectionTime:                        durationpb.New(30 * time.Second),
		MaxEjectionPercent:                     wrapperspb.UInt32(50),
	}
	// A retry budget, because the default breaker lets three retries through at
	// a time, which one dead host uses up.
	cluster.CircuitBreakers = &clusterv3.CircuitBreakers{Thresholds: []*clusterv3.CircuitBreakers_Thresholds{{
		MaxConnections:     wrapperspb.UInt32(4096),
		MaxPendingRequests: wrapperspb.UInt32(16384),
		MaxRequests:        wrapperspb.UInt32(65536),
		RetryBudget: &clusterv3.CircuitBreakers_Thresholds_RetryBudget{
			BudgetPercent:       &typev3.Percent{Value: 100},
			MinRetryConcurrency: wrapperspb.UInt32(256),
		},
		TrackRemaining: true,
	}}}
	return cluster
}

// instanceCluster is what all clusters of instances have in common: endpoints
// over ADS, HTTP/2 over mutual TLS, and active health checks that alone decide
// who is healthy.
func instanceCluster(r *renderer, p plan, name string) *clusterv3.Cluster {
	return &clusterv3.Cluster{
		Name:                 name,
		ClusterDiscoveryType: &clusterv3.Cluster_Type{Type: clusterv3.Cluster_EDS},
		EdsClusterConfig:     &clusterv3.Cluster_EdsClusterConfig{EdsConfig: overADS()},
		ConnectTimeout:       durationpb.New(time.Second),
		TransportSocket:      parentTLS(r, p),
		TypedExtensionProtocolOptions: map[string]*anypb.Any{
			"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": r.pack(upstreamHTTP2()),
		},
		CommonLbConfig: &clusterv3.Cluster_CommonLbConfig{
			// No panic: when no host is healthy, a 503 or another region is a
			// better answer than a sick host.
			HealthyPanicThreshold: &typev3.Percent{Value: 0},
			UpdateMergeWindow:     durationpb.New(0),
		},
		HealthChecks: []*corev3.HealthCheck{healthCheck()},
		// Without this an endpoint that has left EDS keeps its traffic for as
		// long as it passes its checks, and no drain would ever begin.
		IgnoreHealthOnHostRemoval: true,
		UpstreamConnectionOptions: &clusterv3.UpstreamConnectionOptions{TcpKeepalive: &corev3.TcpKeepalive{
			KeepaliveProbes: wrapperspb.UInt32(3), KeepaliveTime: wrapperspb.UInt32(10), KeepaliveInterval: wrapperspb.UInt32(5),
		}},
	}
}

// keysCluster serves the recipients.
const keysCluster = "keys"

// recipientsCluster is the routers, and after them every instance: one failed
// connection ejects a router (package envoy), and a cluster without hosts that
// take requests yields to the next.
func recipientsCluster(r *renderer, p plan) *clusterv3.Cluster {
	return &clusterv3.Cluster{
		Name:           keysCluster,
		ConnectTimeout: durationpb.New(time.Second),
		LbPolicy:       clusterv3.Cluster_CLUSTER_PROVIDED,
		ClusterDiscoveryType: &clusterv3.Cluster_ClusterType{ClusterType: &clusterv3.Cluster_CustomClusterType{
			Name:        "envoy.clusters.aggregate",
			TypedConfig: r.pack(&aggregatev3.ClusterConfig{Clusters: []string{p.config.Names.RouterHTTP, healthClusterName}}),
		}},
	}
}

func roundRobin(r *renderer) *clusterv3.LoadBalancingPolicy {
	return &clusterv3.LoadBalancingPolicy{Policies: []*clusterv3.LoadBalancingPolicy_Policy{{
		TypedExtensionConfig: r.extension("envoy.load_balancing_policies.round_robin", &roundrobinv3.RoundRobin{}),
	}}}
}

// metadataKey is a key of the picker's namespace.
func metadataKey(key string) *metadatav3.MetadataKey {
	return &metadatav3.MetadataKey{Key: pickNamespace, Path: []*metadatav3.MetadataKey_PathSegment{{
		Segment: &metadatav3.MetadataKey_PathSegment_Key{Key: key},
	}}}
}

const (
	healthCheckInterval = 2 * time.Second
	healthCheckTimeout  = time.Second
)

// healthCheck asks a parent whether it takes requests. The interval without
// traffic is set as well: its default of a minute is what a new cluster waits.
func healthCheck() *corev3.HealthCheck {
	return &corev3.HealthCheck{
		Timeout:            durationpb.New(healthCheckTimeout),
		Interval:           durationpb.New(healthCheckInterval),
		NoTrafficInterval:  durationpb.New(healthCheckInterval),
		UnhealthyThreshold: wrapperspb.UInt32(2),
		HealthyThreshold:   wrapperspb.UInt32(1),
		HealthChecker: &corev3.HealthCheck_HttpHealthCheck_{HttpHealthCheck: &corev3.HealthCheck_HttpHealthCheck{
			// The default is the cluster's name, whose @ no server takes in a host.
			Host: "parent",
			Path: healthPath, CodecClientType: typev3.CodecClientType_HTTP2,
		}},
	}
}

// upstreamHTTP2 opens another connection to an instance beyond 256 streams, and
// pings it, so that a host that has vanished is noticed within seconds.
func upstreamHTTP2() *httpv3.HttpProtocolOptions {
	return &httpv3.HttpProtocolOptions{
		CommonHttpProtocolOptions: &corev3.HttpProtocolOptions{IdleTimeout: durationpb.New(5 * time.Minute)},
		UpstreamProtocolOptions: &httpv3.HttpProtocolOptions_ExplicitHttpConfig_{
			ExplicitHttpConfig: &httpv3.HttpProtocolOptions_ExplicitHttpConfig{
				ProtocolConfig: &httpv3.HttpProtocolOptions_ExplicitHttpConfig_Http2ProtocolOptions{
					Http2ProtocolOptions: &corev3.Http2ProtocolOptions{
						MaxConcurrentStreams:        wrapperspb.UInt32(256),
						InitialStreamWindowSize:     wrapperspb.UInt32(1 << 20),
						InitialConnectionWindowSize: wrapperspb.UInt32(16 << 20),
						ConnectionKeepalive: &corev3.KeepaliveSettings{
							Interval: durationpb.New(10 * time.Second), Timeout: durationpb.New(3 * time.Second),
						},
					},
				},
			},
		},
	}
}

// parentTLS proves Envoy's name to a parent and asks for a parent's.
func parentTLS(r *renderer, p plan) *corev3.TransportSocket {
	common := internalTLS(p, parentSAN)
	common.AlpnProtocols = []string{"h2"}
	return tlsSocket(r.pack(&tlsv3.UpstreamTlsContext{CommonTlsContext: common}))
}

// internalTLS is between Envoy and a part whose SPIFFE id matches. Both secrets are
// static: they are Envoy's own files.
func internalTLS(p plan, san string) *tlsv3.CommonTlsContext {
	return &tlsv3.CommonTlsContext{
		TlsParams:                      tlsVersions(tlsv3.TlsParameters_TLSv1_3),
		TlsCertificateSdsSecretConfigs: []*tlsv3.SdsSecretConfig{{Name: p.config.Names.Identity}},
		ValidationContextType: &tlsv3.CommonTlsContext_CombinedValidationContext{
			CombinedValidationContext: &tlsv3.CommonTlsContext_CombinedCertificateValidationContext{
				DefaultValidationContext: &tlsv3.CertificateValidationContext{
					MatchTypedSubjectAltNames: []*tlsv3.SubjectAltNameMatcher{{
						SanType: tlsv3.SubjectAltNameMatcher_URI,
						Matcher: &matcherv3.StringMatcher{MatchPattern: &matcherv3.StringMatcher_SafeRegex{
							SafeRegex: &matcherv3.RegexMatcher{Regex: san},
						}},
					}},
				},
				ValidationContextSdsSecretConfig: &tlsv3.SdsSecretConfig{Name: p.config.Names.Trust},
			},
		},
	}
}

func tlsSocket(config *anypb.Any) *corev3.TransportSocket {
	return &corev3.TransportSocket{
		Name:       "envoy.transport_sockets.tls",
		ConfigType: &corev3.TransportSocket_TypedConfig{TypedConfig: config},
	}
}

func tlsVersions(least tlsv3.TlsParameters_TlsProtocol) *tlsv3.TlsParameters {
	return &tlsv3.TlsParameters{TlsMinimumProtocolVersion: least, TlsMaximumProtocolVersion: tlsv3.TlsParameters_TLSv1_3}
}
