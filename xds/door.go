package xds

import (
	"net/http"
	"regexp"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	tlsinspectorv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/listener/tls_inspector/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/mrgc/mrgc/internal/api"
	"github.com/mrgc/mrgc/internal/identity"
)

const doorName = "door"

// controllerSAN matches the SPIFFE id of any region's controller.
var controllerSAN = regexp.QuoteMeta("spiffe://"+identity.TrustDomain) + `/region/[A-Za-z0-9._-]+/controller`

// serverNames reads which server name a TLS client asks for, before it is answered.
func serverNames(r *renderer) *listenerv3.ListenerFilter {
	return &listenerv3.ListenerFilter{
		Name:       "envoy.filters.listener.tls_inspector",
		ConfigType: &listenerv3.ListenerFilter_TypedConfig{TypedConfig: r.pack(&tlsinspectorv3.TlsInspector{})},
	}
}

// doorChain is for the cluster's own controllers, who judge by it whether the region
// takes requests ([api.PathDoor]). It is on the tenants' port, so that what is
// judged is the way that tenants take, and there is nothing else behind it.
func doorChain(r *renderer, p plan) *listenerv3.FilterChain {
	manager := connectionManager(p, doorName)
	manager.RouteSpecifier = &hcmv3.HttpConnectionManager_RouteConfig{RouteConfig: &routev3.RouteConfiguration{
		Name: doorName,
		VirtualHosts: []*routev3.VirtualHost{{
			Name: doorName, Domains: []string{"*"},
			Routes: []*routev3.Route{
				{Match: exactPath(http.MethodGet, api.PathDoor), Action: &routev3.Route_Route{Route: &routev3.RouteAction{
					ClusterSpecifier: &routev3.RouteAction_Cluster{Cluster: keysCluster},
					Timeout:          durationpb.New(time.Second),
					RetryPolicy: &routev3.RetryPolicy{
						RetryOn:    "connect-failure,refused-stream,reset-before-request,reset",
						NumRetries: wrapperspb.UInt32(6),
						// Of a router that hangs. Who asks waits little longer.
						PerTryTimeout: durationpb.New(300 * time.Millisecond),
					},
				}}},
				{
					Match:  &routev3.RouteMatch{PathSpecifier: &routev3.RouteMatch_Prefix{Prefix: "/"}},
					Action: &routev3.Route_DirectResponse{DirectResponse: &routev3.DirectResponseAction{Status: http.StatusNotFound}},
				},
			},
		}},
	}}
	manager.HttpFilters = []*hcmv3.HttpFilter{routerFilter(r)}
	return &listenerv3.FilterChain{
		FilterChainMatch:              &listenerv3.FilterChainMatch{ServerNames: []string{api.DoorName}},
		Filters:                       managerFilters(r, manager),
		TransportSocket:               doorTLS(r, p),
		TransportSocketConnectTimeout: durationpb.New(10 * time.Second),
	}
}

// doorTLS proves Envoy's own name and asks for a controller's.
func doorTLS(r *renderer, p plan) *corev3.TransportSocket {
	common := internalTLS(p, controllerSAN)
	common.AlpnProtocols = []string{"h2", "http/1.1"}
	return tlsSocket(r.pack(&tlsv3.DownstreamTlsContext{CommonTlsContext: common, RequireClientCertificate: wrapperspb.Bool(true)}))
}
