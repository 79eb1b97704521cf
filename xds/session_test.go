package xds

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	statusv3 "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/protobuf/types/known/anypb"
	"pgregory.net/rapid"
)

// model is an Envoy as the protocol describes it, kept apart from the session
// that serves it: it holds what it was sent and accepted.
type model struct {
	held     map[string]map[string]string // type → resource → version
	refused  map[string]bool              // "type resource version" that it rejected
	asked    map[string]bool              // endpoints it subscribes to
	unwanted func(name, version string) bool

	complaint string // message of its rejections
}

// TestSessionConverges drives sessions with random sets, rejections and answers
// that come late, and holds them to what the package comment promises.
func TestSessionConverges(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		bad := rapid.SampledFrom([]string{"", "v1", "v2"}).Draw(t, "version that Envoy rejects")
		envoy := &model{
			held:      map[string]map[string]string{typeCluster: {}, typeEndpoint: {}, typeListener: {}, typeRoute: {}},
			complaint: rapid.SampledFrom([]string{"bad", "bad cluster(s) beta"}).Draw(t, "message of a rejection"),
			refused:   map[string]bool{}, asked: map[string]bool{},
			unwanted: func(name, version string) bool { return name == "beta" && version == bad },
		}
		s := newSession()
		for _, typeURL := range []string{typeCluster, typeListener} {
			s.request(&discoveryv3.DeltaDiscoveryRequest{TypeUrl: typeURL})
		}
		s.request(&discoveryv3.DeltaDiscoveryRequest{TypeUrl: typeRoute, ResourceNamesSubscribe: []string{"routes"}})

		var set resourceSet
		for range rapid.IntRange(1, 6).Draw(t, "sets") {
			set = drawSet(t)
			for range rapid.IntRange(0, 4).Draw(t, "responses before the next set") {
				if !envoy.take(t, s, set) {
					break
				}
			}
		}
		for i := 0; envoy.take(t, s, set); i++ {
			if i > 50 {
				t.Fatal("the session never comes to rest")
			}
		}
		envoy.mustHave(t, set)
	})
}

func drawSet(t *rapid.T) resourceSet {
	versions := rapid.MapOf(rapid.SampledFrom([]string{"alpha", "beta", "gamma"}), rapid.SampledFrom([]string{"v1", "v2", "v3"}))
	clusters := versions.Draw(t, "clusters")
	endpoints := map[string]string{}
	for name := range clusters {
		endpoints[name] = rapid.SampledFrom([]string{"e1", "e2"}).Draw(t, "endpoints")
	}
	return resourceSet{
		typeCluster:  setOf(clusters),
		typeEndpoint: setOf(endpoints),
		typeListener: setOf(map[string]string{"l": "l1"}),
		// The route's version spells the clusters that it refers to.
		typeRoute: setOf(map[string]string{"routes": fmt.Sprint(slices.Sorted(maps.Keys(clusters)))}),
	}
}

func setOf(versions map[string]string) typeSet {
	ts := typeSet{byName: map[string]resource{}}
	for name, version := range versions {
		ts.byName[name] = resource{version: version, body: &anypb.Any{}}
	}
	ts.version = "1-" + hashOf(ts.byName)
	return ts
}

// take lets the session send one response, checks that it may be sent, and
// answers it: clusters when they have warmed, as Envoy does, which takes their
// endpoints. It says whether there was one.
func (m *model) take(t *rapid.T, s *session, set resourceSet) bool {
	resp := s.next(set)
	if resp == nil {
		return false
	}
	answer := m.apply(t, resp, set)
	if resp.GetTypeUrl() == typeCluster {
		m.subscribe(s)
		if endpoints := s.next(set); endpoints != nil {
			if endpoints.GetTypeUrl() != typeEndpoint {
				t.Fatalf("sent %s before %s was answered", endpoints.GetTypeUrl(), typeCluster)
			}
			s.request(m.apply(t, endpoints, set))
		}
		for name := range m.held[typeCluster] {
			if m.held[typeEndpoint][name] == "" && set[typeEndpoint].byName[name].version != "" {
				t.Fatalf("cluster %s never warms, and so is never answered", name)
			}
		}
	}
	if second := s.next(set); second != nil {
		t.Fatalf("sent %s before %s was answered", second.GetTypeUrl(), resp.GetTypeUrl())
	}
	s.request(answer)
	return true
}

// apply is what Envoy makes of a response, and its answer.
func (m *model) apply(t *rapid.T, resp *discoveryv3.DeltaDiscoveryResponse, set resourceSet) *discoveryv3.DeltaDiscoveryRequest {
	typeURL, answer := resp.GetTypeUrl(), &discoveryv3.DeltaDiscoveryRequest{TypeUrl: resp.GetTypeUrl(), ResponseNonce: resp.GetNonce()}
	for _, r := range resp.GetResources() {
		key := typeURL + " " + r.GetName() + " " + r.GetVersion()
		if m.refused[key] {
			t.Fatalf("sent again though rejected: %s", key)
		}
		if typeURL == typeCluster && m.unwanted(r.GetName(), r.GetVersion()) {
			m.refused[key] = true
			answer.ErrorDetail = &statusv3.Status{Message: m.complaint}
			continue
		}
		if typeURL == typeCluster {
			delete(m.held[typeEndpoint], r.GetName()) // it warms
			m.forgive(r.GetName())
		}
		m.held[typeURL][r.GetName()] = r.GetVersion()
	}
	for _, name := range resp.GetRemovedResources() {
		if typeURL == typeCluster && m.held[typeRoute]["routes"] != fmt.Sprint(slices.Sorted(maps.Keys(set[typeCluster].byName))) {
			t.Fatalf("cluster %s removed before the routes to it", name)
		}
		delete(m.held[typeURL], name)
		m.forgive(name)
	}
	if typeURL == typeRoute && len(m.refused) == 0 {
		for name := range set[typeCluster].byName {
			if m.held[typeEndpoint][name] == "" {
				t.Fatalf("route sent while cluster %s has no endpoints", name)
			}
		}
	}
	return answer
}

// forgive lets a cluster's old versions be sent again: it has changed since.
func (m *model) forgive(cluster string) {
	maps.DeleteFunc(m.refused, func(key string, _ bool) bool { return strings.Contains(key, " "+cluster+" ") })
}

// subscribe asks for the endpoints of the clusters that Envoy has.
func (m *model) subscribe(s *session) {
	req := &discoveryv3.DeltaDiscoveryRequest{TypeUrl: typeEndpoint}
	for name := range m.held[typeCluster] {
		if !m.asked[name] {
			m.asked[name] = true
			req.ResourceNamesSubscribe = append(req.ResourceNamesSubscribe, name)
		}
	}
	for name := range m.asked {
		if _, has := m.held[typeCluster][name]; !has {
			delete(m.asked, name)
			delete(m.held[typeEndpoint], name)
			req.ResourceNamesUnsubscribe = append(req.ResourceNamesUnsubscribe, name)
		}
	}
	if len(req.ResourceNamesSubscribe)+len(req.ResourceNamesUnsubscribe) > 0 {
		s.request(req)
	}
}

// mustHave checks that Envoy has all of a set but for what it rejects.
func (m *model) mustHave(t *rapid.T, set resourceSet) {
	for _, typeURL := range []string{typeCluster, typeEndpoint, typeListener, typeRoute} {
		held := m.held[typeURL]
		for name, r := range set[typeURL].byName {
			rejected := typeURL == typeCluster && m.unwanted(name, r.version)
			if typeURL == typeEndpoint && !m.asked[name] {
				continue // the cluster was rejected
			}
			if !rejected && held[name] != r.version {
				t.Fatalf("%s %s: has %q, should have %q", typeURL, name, held[name], r.version)
			}
		}
		for name := range held {
			if _, exists := set[typeURL].byName[name]; !exists && typeURL != typeEndpoint {
				t.Fatalf("%s %s should be gone", typeURL, name)
			}
		}
	}
}
