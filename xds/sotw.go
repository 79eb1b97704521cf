package xds

import (
	"maps"
	"slices"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
)

// stateOfTheWorld turns a client's requests, each of which lists all that it
// wants of a type, into changes of what it wants: type → names so far.
type stateOfTheWorld map[string]map[string]bool

func (w stateOfTheWorld) delta(req *discoveryv3.DiscoveryRequest) *discoveryv3.DeltaDiscoveryRequest {
	out := &discoveryv3.DeltaDiscoveryRequest{
		Node: req.GetNode(), TypeUrl: req.GetTypeUrl(), ResponseNonce: req.GetResponseNonce(), ErrorDetail: req.GetErrorDetail(),
	}
	before, now := w[req.GetTypeUrl()], map[string]bool{}
	for _, name := range req.GetResourceNames() {
		now[name] = true
		if !before[name] {
			out.ResourceNamesSubscribe = append(out.ResourceNamesSubscribe, name)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(before)) {
		if !now[name] {
			out.ResourceNamesUnsubscribe = append(out.ResourceNamesUnsubscribe, name)
		}
	}
	w[req.GetTypeUrl()] = now
	return out
}

// whole turns a response into what a client of this kind takes: of clusters and
// listeners all that it should have, of the other types what has changed.
func (s *session) whole(resp *discoveryv3.DeltaDiscoveryResponse) *discoveryv3.DiscoveryResponse {
	out := &discoveryv3.DiscoveryResponse{VersionInfo: resp.GetSystemVersionInfo(), TypeUrl: resp.GetTypeUrl(), Nonce: resp.GetNonce()}
	changed := map[string]bool{}
	for _, r := range resp.GetResources() {
		changed[r.GetName()] = true
		out.Resources = append(out.Resources, r.GetResource())
	}
	if resp.GetTypeUrl() != typeCluster && resp.GetTypeUrl() != typeListener {
		return out
	}
	has := s.types[resp.GetTypeUrl()].accepted
	for _, name := range slices.Sorted(maps.Keys(has)) {
		if !changed[name] && !slices.Contains(resp.GetRemovedResources(), name) && has[name].body != nil {
			out.Resources = append(out.Resources, has[name].body)
		}
	}
	return out
}
