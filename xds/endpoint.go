package xds

import (
	"cmp"
	"net/netip"
	"slices"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// loadAssignment lists a cluster's endpoints. Priorities are kept when they are
// empty, so that a region's priority never depends on who else has instances;
// Envoy counts an empty one as unhealthy and goes on to the next.
func loadAssignment(cluster string, byPriority [][]endpoint) *endpointv3.ClusterLoadAssignment {
	out := &endpointv3.ClusterLoadAssignment{ClusterName: cluster}
	for priority, endpoints := range byPriority {
		endpoints = slices.Clone(endpoints)
		slices.SortFunc(endpoints, func(a, b endpoint) int {
			return cmp.Or(cmp.Compare(a.region, b.region), cmp.Compare(a.zone, b.zone), cmp.Compare(a.id, b.id))
		})
		if len(endpoints) == 0 {
			out.Endpoints = append(out.Endpoints, &endpointv3.LocalityLbEndpoints{Priority: uint32(priority)}) //nolint:gosec // a handful of regions
		}
		for len(endpoints) > 0 {
			first := endpoints[0]
			zone := slices.IndexFunc(endpoints, func(e endpoint) bool { return e.region != first.region || e.zone != first.zone })
			if zone < 0 {
				zone = len(endpoints)
			}
			out.Endpoints = append(out.Endpoints, localityEndpoints(uint32(priority), endpoints[:zone])) //nolint:gosec // a handful of regions
			endpoints = endpoints[zone:]
		}
	}
	return out
}

func localityEndpoints(priority uint32, endpoints []endpoint) *endpointv3.LocalityLbEndpoints {
	out := &endpointv3.LocalityLbEndpoints{
		Priority: priority,
		Locality: &corev3.Locality{Region: string(endpoints[0].region), Zone: endpoints[0].zone},
	}
	for _, e := range endpoints {
		out.LbEndpoints = append(out.LbEndpoints, &endpointv3.LbEndpoint{
			HostIdentifier:      &endpointv3.LbEndpoint_Endpoint{Endpoint: &endpointv3.Endpoint{Address: socketAddress(e.address)}},
			LoadBalancingWeight: wrapperspb.UInt32(e.weight),
		})
	}
	return out
}

func socketAddress(a netip.AddrPort) *corev3.Address {
	return &corev3.Address{Address: &corev3.Address_SocketAddress{SocketAddress: &corev3.SocketAddress{
		Address: a.Addr().String(), PortSpecifier: &corev3.SocketAddress_PortValue{PortValue: uint32(a.Port())},
	}}}
}
