package xds

import (
	"time"

	accesslogv3 "github.com/envoyproxy/go-control-plane/envoy/config/accesslog/v3"
	mutationrulesv3 "github.com/envoyproxy/go-control-plane/envoy/config/common/mutation_rules/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	accesslogdatav3 "github.com/envoyproxy/go-control-plane/envoy/data/accesslog/v3"
	grpclogv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/access_loggers/grpc/v3"
	extprocv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/ext_proc/v3"
	routerv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/router/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	earlymutationv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/http/early_header_mutation/header_mutation/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/mrgc/mrgc/internal/api"
)

const (
	tenantListener = "tenants"
	extProcFilter  = "envoy.filters.http.ext_proc"

	routerFilterName = "envoy.filters.http.router"
)

// tenantsListener is what tenants connect to.
func tenantsListener(r *renderer, p plan) *listenerv3.Listener {
	manager := connectionManager(p, tenantListener)
	manager.RouteSpecifier = &hcmv3.HttpConnectionManager_Rds{Rds: &hcmv3.Rds{ConfigSource: overADS(), RouteConfigName: tenantRoutes}}
	manager.EarlyHeaderMutationExtensions = []*corev3.TypedExtensionConfig{withoutSteering(r)}
	log := accessLog(r, p)
	manager.AccessLog = []*accesslogv3.AccessLog{log}
	manager.LocalReplyConfig = localReplies(r)
	manager.HttpFilters = []*hcmv3.HttpFilter{
		httpFilter(r, luaFilter, authenticator()),
		httpFilter(r, extProcFilter, picker(p)),
		httpFilter(r, routerFilterName, &routerv3.Router{
			SuppressEnvoyHeaders: true,
			UpstreamLog:          []*accesslogv3.AccessLog{elsewhere(r, log)},
			UpstreamLogOptions:   &routerv3.Router_UpstreamAccessLogOptions{FlushUpstreamLogOnUpstreamStream: true},
		}),
	}
	manager.Http2ProtocolOptions = &corev3.Http2ProtocolOptions{
		// One mrgc connect may carry a whole company's requests.
		MaxConcurrentStreams:        wrapperspb.UInt32(1000),
		InitialStreamWindowSize:     wrapperspb.UInt32(1 << 20),
		InitialConnectionWindowSize: wrapperspb.UInt32(16 << 20),
		// A bad request ends its own stream, not its neighbours'.
		OverrideStreamErrorOnInvalidHttpMessage: wrapperspb.Bool(true),
		ConnectionKeepalive: &corev3.KeepaliveSettings{
			Interval: durationpb.New(30 * time.Second), Timeout: durationpb.New(10 * time.Second),
		},
	}
	return &listenerv3.Listener{
		Name:    tenantListener,
		Address: socketAddress(p.config.TenantAddress),
		// A second Envoy on the same port is an error, and not half the traffic.
		EnableReusePort:               wrapperspb.Bool(false),
		PerConnectionBufferLimitBytes: wrapperspb.UInt32(1 << 20),
		ListenerFilters:               []*listenerv3.ListenerFilter{serverNames(r)},
		FilterChains: []*listenerv3.FilterChain{{
			Filters:                       managerFilters(r, manager),
			TransportSocket:               tenantTLS(r, p),
			TransportSocketConnectTimeout: durationpb.New(10 * time.Second),
		}, doorChain(r, p)},
	}
}

// tenantTLS asks for a client's certificate where there are CAs that tenants' may be
// of. Who has none is known by a token; one that does not verify is no connection.
func tenantTLS(r *renderer, p plan) *corev3.TransportSocket {
	common := &tlsv3.CommonTlsContext{
		TlsParams:                      tlsVersions(tlsv3.TlsParameters_TLSv1_3),
		AlpnProtocols:                  []string{"h2", "http/1.1"},
		TlsCertificateSdsSecretConfigs: []*tlsv3.SdsSecretConfig{{Name: tenantSecret, SdsConfig: overADS()}},
	}
	if p.clients != nil {
		common.ValidationContextType = &tlsv3.CommonTlsContext_ValidationContextSdsSecretConfig{
			ValidationContextSdsSecretConfig: &tlsv3.SdsSecretConfig{Name: tenantClientSecret, SdsConfig: overADS()},
		}
	}
	return tlsSocket(r.pack(&tlsv3.DownstreamTlsContext{CommonTlsContext: common, RequireClientCertificate: wrapperspb.Bool(false)}))
}

// connectionManager has the limits that hold at every port, as Envoy's own
// advice for an edge proxy says, spelled out where the default differs.
func connectionManager(p plan, name string) *hcmv3.HttpConnectionManager {
	return &hcmv3.HttpConnectionManager{
		StatPrefix:                   name,
		UseRemoteAddress:             wrapperspb.Bool(true),
		NormalizePath:                wrapperspb.Bool(true),
		MergeSlashes:                 true,
		PathWithEscapedSlashesAction: hcmv3.HttpConnectionManager_REJECT_REQUEST,
		ServerHeaderTransformation:   hcmv3.HttpConnectionManager_PASS_THROUGH,
		StreamIdleTimeout:            durationpb.New(p.config.ResponseIdleTimeout),
		RequestHeadersTimeout:        durationpb.New(10 * time.Second),
		MaxRequestHeadersKb:          wrapperspb.UInt32(60),
		CommonHttpProtocolOptions: &corev3.HttpProtocolOptions{
			IdleTimeout:                  durationpb.New(15 * time.Minute),
			MaxHeadersCount:              wrapperspb.UInt32(100),
			HeadersWithUnderscoresAction: corev3.HttpProtocolOptions_REJECT_REQUEST,
		},
	}
}

// withoutSteering takes from a request what would choose its instance or change
// how Envoy treats it, before anything looks at it.
func withoutSteering(r *renderer) *corev3.TypedExtensionConfig {
	remove := func(prefix string) *mutationrulesv3.HeaderMutation {
		return &mutationrulesv3.HeaderMutation{Action: &mutationrulesv3.HeaderMutation_RemoveOnMatch_{
			RemoveOnMatch: &mutationrulesv3.HeaderMutation_RemoveOnMatch{KeyMatcher: &matcherv3.StringMatcher{
				MatchPattern: &matcherv3.StringMatcher_Prefix{Prefix: prefix}, IgnoreCase: true,
			}},
		}}
	}
	return r.extension("envoy.http.early_header_mutation.header_mutation", &earlymutationv3.HeaderMutation{
		Mutations: []*mutationrulesv3.HeaderMutation{remove(pickKey), remove(api.HeaderUncached), remove(api.HeaderTenantSAN), remove("x-envoy-")},
	})
}

// picker asks the routers where a request should go. It sees headers alone: a
// callback per body chunk would cost more than the choice is worth. When it
// does not answer in time, or at all, the weights decide.
func picker(p plan) *extprocv3.ExternalProcessor {
	return &extprocv3.ExternalProcessor{
		GrpcService:      routerService(p),
		FailureModeAllow: true,
		MessageTimeout:   durationpb.New(p.config.MessageTimeout),
		ProcessingMode: &extprocv3.ProcessingMode{
			RequestHeaderMode:   extprocv3.ProcessingMode_SEND,
			ResponseHeaderMode:  extprocv3.ProcessingMode_SKIP,
			RequestBodyMode:     extprocv3.ProcessingMode_NONE,
			ResponseBodyMode:    extprocv3.ProcessingMode_NONE,
			RequestTrailerMode:  extprocv3.ProcessingMode_SKIP,
			ResponseTrailerMode: extprocv3.ProcessingMode_SKIP,
		},
		RequestAttributes: []string{"request.id", "source.address", "xds.cluster_name"},
		// The cluster is a hard rule, which a pick does not change.
		RouteCacheAction: extprocv3.ExternalProcessor_RETAIN,
		MetadataOptions: &extprocv3.MetadataOptions{
			ReceivingNamespaces: &extprocv3.MetadataOptions_MetadataNamespaces{Untyped: []string{pickNamespace}},
		},
	}
}

// accessLog tells the routers how each request ended: final host, flags,
// timings and bytes, which ext_proc's short stream cannot know. Of the headers
// it has those that people look for, and never Authorization.
func accessLog(r *renderer, p plan) *accesslogv3.AccessLog {
	return &accesslogv3.AccessLog{
		Name: "envoy.access_loggers.http_grpc",
		ConfigType: &accesslogv3.AccessLog_TypedConfig{TypedConfig: r.pack(&grpclogv3.HttpGrpcAccessLogConfig{
			CommonConfig: &grpclogv3.CommonGrpcAccessLogConfig{
				LogName:             tenantListener,
				GrpcService:         routerService(p),
				TransportApiVersion: corev3.ApiVersion_V3,
				// Each entry goes at once: requests that have ended and still count are
				// load that is not there, and a fast engine's tenants would be held to
				// their shares by it. The interval has nothing left to do.
				BufferSizeBytes:     wrapperspb.UInt32(0),
				BufferFlushInterval: durationpb.New(time.Second),
				// How long the request has waited for the picker.
				FilterStateObjectsToLog: []string{extProcFilter},
			},
			AdditionalRequestHeadersToLog:   []string{api.HeaderModel, api.HeaderTenant, api.HeaderRequestID, api.HeaderSize},
			AdditionalResponseTrailersToLog: []string{api.HeaderOutcome, api.HeaderUsage},
		})},
	}
}

// elsewhere logs the beginning of an attempt at an instance other than the one
// picked first: what a picker needs to count a request where it is, at no cost
// to the others. (Where one instance's address begins with another's, which
// takes two ports of one host, an attempt may go unseen.)
func elsewhere(r *renderer, log *accesslogv3.AccessLog) *accesslogv3.AccessLog {
	return &accesslogv3.AccessLog{
		Name:       log.GetName(),
		ConfigType: log.GetConfigType(),
		Filter: &accesslogv3.AccessLogFilter{FilterSpecifier: &accesslogv3.AccessLogFilter_AndFilter{
			AndFilter: &accesslogv3.AndFilter{Filters: []*accesslogv3.AccessLogFilter{
				{FilterSpecifier: &accesslogv3.AccessLogFilter_LogTypeFilter{LogTypeFilter: &accesslogv3.LogTypeFilter{
					Types: []accesslogdatav3.AccessLogType{accesslogdatav3.AccessLogType_UpstreamPoolReady},
				}}},
				celFilter(r, `!request.headers["`+pickKey+`"].startsWith(upstream.address)`),
			}},
		}},
	}
}

func httpFilter(r *renderer, name string, m validated) *hcmv3.HttpFilter {
	return &hcmv3.HttpFilter{Name: name, ConfigType: &hcmv3.HttpFilter_TypedConfig{TypedConfig: r.pack(m)}}
}

func routerFilter(r *renderer) *hcmv3.HttpFilter {
	return httpFilter(r, routerFilterName, &routerv3.Router{SuppressEnvoyHeaders: true})
}

func managerFilters(r *renderer, manager *hcmv3.HttpConnectionManager) []*listenerv3.Filter {
	return []*listenerv3.Filter{{
		Name:       "envoy.filters.network.http_connection_manager",
		ConfigType: &listenerv3.Filter_TypedConfig{TypedConfig: r.pack(manager)},
	}}
}
