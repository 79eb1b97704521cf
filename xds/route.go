package xds

import (
	"math"
	"net/http"
	"strings"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	extprocv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/ext_proc/v3"
	previoushostsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/retry/host/previous_hosts/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/mrgc/mrgc/internal/api"
	"github.com/mrgc/mrgc/internal/loadreport"
)

// tenantRoutes is the name of the tenants' route configuration.
const tenantRoutes = "tenants"

// routeConfiguration says which request goes where; the first route that
// matches wins. Whose request it is authenticate.lua has found out, and what
// that tenant may reach is in the choice of route: these rules hold without the
// picker. Only a sealed request for a model that its tenant may use asks the
// picker: all other answers are the same without it.
func routeConfiguration(r *renderer, p plan, callers map[string]*structpb.Value) *routev3.RouteConfiguration {
	unpicked := r.pack(&extprocv3.ExtProcPerRoute{Override: &extprocv3.ExtProcPerRoute_Disabled{Disabled: true}})
	var routes []*routev3.Route
	add := func(name string, match *routev3.RouteMatch, who ...*matcherv3.MetadataMatcher) *routev3.Route {
		match.DynamicMetadata = who
		route := &routev3.Route{Name: name, Match: match, TypedPerFilterConfig: map[string]*anypb.Any{extProcFilter: unpicked}}
		routes = append(routes, route)
		return route
	}
	answer := func(name string, match *routev3.RouteMatch, e *api.Error, who ...*matcherv3.MetadataMatcher) {
		add(name, match, who...).Action = directResponse(e)
	}

	for _, a := range p.accesses {
		route := add("keys/"+a.name, exactPath(http.MethodGet, api.PathKeys), hasAccess(a.name))
		route.Action = toKeys()
		route.RequestHeadersToAdd = []*corev3.HeaderValueOption{allowedRegions(a)}
	}
	answer("keys-elsewhere", exactPath(http.MethodGet, api.PathKeys), errElsewhere(p), hasAccess(accessElsewhere))
	answer("keys-nobody", exactPath(http.MethodGet, api.PathKeys), errNobody())
	add("models", exactPath(http.MethodGet, api.PathModels), isTenant()).Action = toRouter(p)
	answer("models-nobody", exactPath(http.MethodGet, api.PathModels), errNobody())
	answer("too-large", exactPath(http.MethodPost, api.PathSealed, bodyOver(p.config.MaxBodyBytes)),
		api.Errorf(http.StatusRequestEntityTooLarge, "request_too_large", "the request is larger than %d bytes", p.config.MaxBodyBytes))
	for _, a := range p.accesses {
		for _, model := range a.models {
			route := add("model/"+a.name+"/"+model,
				exactPath(http.MethodPost, api.PathSealed, sealed(), exactHeader(api.HeaderModel, model)), hasAccess(a.name))
			route.TypedPerFilterConfig = nil
			route.Action = toCluster(r, p, clusterName(model, a.regions, a.prefer))
			route.RequestHeadersToAdd = []*corev3.HeaderValueOption{allowedRegions(a)}
			// The picker has seen them; instances have no use for them.
			route.RequestHeadersToRemove = []string{"authorization", strings.ToLower(api.HeaderTenantSAN)}
			route.ResponseHeadersToAdd = []*corev3.HeaderValueOption{setHeader(api.HeaderServed, "%UPSTREAM_REMOTE_ADDRESS%")}
			// What can be sent again is what is kept: by default a body over the
			// connection's buffer limit would lose its retries.
			route.RequestBodyBufferLimit = wrapperspb.UInt64(uint64(p.config.MaxBodyBytes)) //nolint:gosec // checked not to be negative
		}
	}
	anyModel := func() *routev3.RouteMatch {
		return exactPath(http.MethodPost, api.PathSealed, sealed(), present(api.HeaderModel))
	}
	answer("elsewhere", anyModel(), errElsewhere(p), hasAccess(accessElsewhere))
	answer("unknown-model", anyModel(), errUnknownModel(), isTenant())
	answer("nobody", anyModel(), errNobody())
	answer("not-sealed", prefix(http.MethodPost, "/v1/"),
		api.Errorf(http.StatusBadRequest, "request_not_sealed", "this endpoint takes sealed requests alone (POST %s, Content-Type %s, %s): point your client at `mrgc connect`, or use the Go client",
			api.PathSealed, api.ContentTypeSealedRequest, api.HeaderModel))
	answer("not-found", &routev3.RouteMatch{PathSpecifier: &routev3.RouteMatch_Prefix{Prefix: "/"}},
		api.Errorf(http.StatusNotFound, "not_found", "there is nothing at this path"))

	return &routev3.RouteConfiguration{
		Name: tenantRoutes,
		// Envoy has read an instance's load by then, and it is no tenant's business.
		ResponseHeadersToRemove: []string{"server", strings.ToLower(loadreport.Header)},
		VirtualHosts: []*routev3.VirtualHost{{
			Name: tenantRoutes, Domains: []string{"*"}, Routes: routes,
			TypedPerFilterConfig: map[string]*anypb.Any{luaFilter: r.pack(knownTenants(callers))},
		}},
	}
}

func errNobody() *api.Error {
	return api.Errorf(http.StatusUnauthorized, "invalid_api_key",
		"this cluster knows no such API key for this tenant: check the key, and that it is for this cluster")
}

// errUnknownModel is the answer for a model that is not served and for one that
// the tenant may not use: it does not learn which exist.
func errUnknownModel() *api.Error {
	return api.Errorf(http.StatusNotFound, "model_not_found",
		"the model that %s names is not served here, or not to this tenant; GET %s lists those that are", api.HeaderModel, api.PathModels)
}

func errElsewhere(p plan) *api.Error {
	return api.Errorf(http.StatusForbidden, api.CodeRegionNotAllowed,
		"this tenant's data may not be in region %s: use the endpoint of a region that is allowed to it", p.region)
}

// toCluster sends a request to an instance, and to another one as long as there
// is no byte of an answer: the first could not be reached, refused the stream,
// answered 503, or died with the request (which may then have run: a request
// runs once per recipient at most, and a tenant who wants it once in all seals
// to one). There is no time limit but for silence: an answer may be long.
func toCluster(r *renderer, p plan, cluster string) *routev3.Route_Route {
	return &routev3.Route_Route{Route: &routev3.RouteAction{
		ClusterSpecifier: &routev3.RouteAction_Cluster{Cluster: cluster},
		Timeout:          durationpb.New(0),
		IdleTimeout:      durationpb.New(p.config.ResponseIdleTimeout),
		RetryPolicy: &routev3.RetryPolicy{
			RetryOn:              "connect-failure,refused-stream,reset-before-request,reset,retriable-status-codes",
			RetriableStatusCodes: []uint32{http.StatusServiceUnavailable},
			NumRetries:           wrapperspb.UInt32(2),
			// Without it a list of picks that has run out ends where it began.
			RetryHostPredicate: []*routev3.RetryPolicy_RetryHostPredicate{{
				Name:       "envoy.retry_host_predicates.previous_hosts",
				ConfigType: &routev3.RetryPolicy_RetryHostPredicate_TypedConfig{TypedConfig: r.pack(&previoushostsv3.PreviousHostsPredicate{})},
			}},
			HostSelectionRetryMaxAttempts: 3,
		},
	}}
}

// toRouter asks the region's routers, any of which knows the answer.
func toRouter(p plan) *routev3.Route_Route {
	return &routev3.Route_Route{Route: &routev3.RouteAction{
		ClusterSpecifier: &routev3.RouteAction_Cluster{Cluster: p.config.Names.RouterHTTP},
		Timeout:          durationpb.New(5 * time.Second),
		RetryPolicy: &routev3.RetryPolicy{
			RetryOn:    "connect-failure,refused-stream,reset-before-request",
			NumRetries: wrapperspb.UInt32(2),
		},
	}}
}

// toKeys asks the region's routers, and when they are gone its instances, each
// of which knows its own recipients. One that does not serve the model answers
// 503, and another is asked.
func toKeys() *routev3.Route_Route {
	return &routev3.Route_Route{Route: &routev3.RouteAction{
		ClusterSpecifier: &routev3.RouteAction_Cluster{Cluster: keysCluster},
		Timeout:          durationpb.New(5 * time.Second),
		RetryPolicy: &routev3.RetryPolicy{
			RetryOn:              "connect-failure,refused-stream,reset-before-request,reset,retriable-status-codes",
			RetriableStatusCodes: []uint32{http.StatusServiceUnavailable},
			NumRetries:           wrapperspb.UInt32(6),
			PerTryTimeout:        durationpb.New(time.Second), // a router that hangs is as good as gone
		},
	}}
}

func directResponse(e *api.Error) *routev3.Route_DirectResponse {
	return &routev3.Route_DirectResponse{DirectResponse: &routev3.DirectResponseAction{
		Status: uint32(e.Status), //nolint:gosec // an HTTP status
		Body:   &corev3.DataSource{Specifier: &corev3.DataSource_InlineBytes{InlineBytes: e.Body()}},
	}}
}

// exactPath matches a path with or without a query.
func exactPath(method, path string, also ...*routev3.HeaderMatcher) *routev3.RouteMatch {
	return &routev3.RouteMatch{
		PathSpecifier: &routev3.RouteMatch_Path{Path: path},
		Headers:       append([]*routev3.HeaderMatcher{exactHeader(":method", method)}, also...),
	}
}

func prefix(method, path string) *routev3.RouteMatch {
	return &routev3.RouteMatch{
		PathSpecifier: &routev3.RouteMatch_Prefix{Prefix: path},
		Headers:       []*routev3.HeaderMatcher{exactHeader(":method", method)},
	}
}

func sealed() *routev3.HeaderMatcher {
	return exactHeader("content-type", api.ContentTypeSealedRequest)
}

func exactHeader(name, value string) *routev3.HeaderMatcher {
	return &routev3.HeaderMatcher{Name: name, HeaderMatchSpecifier: &routev3.HeaderMatcher_StringMatch{
		StringMatch: &matcherv3.StringMatcher{MatchPattern: &matcherv3.StringMatcher_Exact{Exact: value}},
	}}
}

func present(name string) *routev3.HeaderMatcher {
	return &routev3.HeaderMatcher{Name: name, HeaderMatchSpecifier: &routev3.HeaderMatcher_PresentMatch{PresentMatch: true}}
}

// bodyOver matches a request that announces more than limit bytes. One that
// announces nothing is the parent's to limit: Envoy would have to hold the
// whole body back to count it.
func bodyOver(limit int64) *routev3.HeaderMatcher {
	return &routev3.HeaderMatcher{Name: "content-length", HeaderMatchSpecifier: &routev3.HeaderMatcher_RangeMatch{
		RangeMatch: &typev3.Int64Range{Start: limit + 1, End: math.MaxInt64},
	}}
}
