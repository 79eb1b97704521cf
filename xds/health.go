package xds

import (
	"net/http"
	"net/netip"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	healthcheckv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/health_check/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// healthPath is where both Envoy and a parent answer about their health.
const healthPath = "/healthz"

const (
	healthListenerName = "health"
	// healthClusterName is the union of all models' endpoints. Envoy's
	// health_check filter demands healthy hosts of every cluster that it is
	// given, and one model without hosts is no reason to take the region's
	// front door out of service. It serves the recipients, too, while no router
	// does.
	healthClusterName = "health"
)

// unionOf is every endpoint of every model, once.
func unionOf(p plan) clusterPlan {
	out := clusterPlan{name: healthClusterName}
	seen := map[netip.AddrPort]bool{}
	for _, c := range p.clusters {
		for priority, endpoints := range c.endpoints {
			if priority >= len(out.endpoints) {
				out.endpoints = append(out.endpoints, nil)
			}
			for _, e := range endpoints {
				if !seen[e.address] {
					seen[e.address] = true
					e.weight = 1 // weights must not make this cluster change
					out.endpoints[priority] = append(out.endpoints[priority], e)
				}
			}
		}
	}
	return out
}

func healthCluster(r *renderer, p plan, union clusterPlan) *clusterv3.Cluster {
	cluster := instanceCluster(r, p, union.name)
	cluster.LoadBalancingPolicy = roundRobin(r)
	return cluster
}

// healthListener answers the load balancer in front: GET /healthz is 200 while
// any endpoint is healthy, else 503. There is nothing else on its port.
func healthListener(r *renderer, p plan) *listenerv3.Listener {
	manager := connectionManager(p, healthListenerName)
	manager.RouteSpecifier = &hcmv3.HttpConnectionManager_RouteConfig{RouteConfig: &routev3.RouteConfiguration{
		Name: healthListenerName,
		VirtualHosts: []*routev3.VirtualHost{{
			Name:    healthListenerName,
			Domains: []string{"*"},
			Routes: []*routev3.Route{{
				Match:  &routev3.RouteMatch{PathSpecifier: &routev3.RouteMatch_Prefix{Prefix: "/"}},
				Action: &routev3.Route_DirectResponse{DirectResponse: &routev3.DirectResponseAction{Status: http.StatusNotFound}},
			}},
		}},
	}}
	manager.HttpFilters = []*hcmv3.HttpFilter{
		httpFilter(r, "envoy.filters.http.health_check", &healthcheckv3.HealthCheck{
			PassThroughMode: wrapperspb.Bool(false),
			Headers: []*routev3.HeaderMatcher{
				exactHeader(":path", healthPath),
				exactHeader(":method", http.MethodGet),
			},
			// One of a hundred. Envoy takes less than 1 % for 0 %, which an
			// empty cluster has.
			ClusterMinHealthyPercentages: map[string]*typev3.Percent{healthClusterName: {Value: 1}},
		}),
		routerFilter(r),
	}
	return &listenerv3.Listener{
		Name:                          healthListenerName,
		Address:                       socketAddress(p.config.HealthAddress),
		EnableReusePort:               wrapperspb.Bool(false),
		PerConnectionBufferLimitBytes: wrapperspb.UInt32(32 << 10),
		FilterChains:                  []*listenerv3.FilterChain{{Filters: managerFilters(r, manager)}},
	}
}
