package xds

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	statusv3 "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/protobuf/types/known/anypb"
	"pgregory.net/rapid"
)

// model is an Envoy as the protocol describes it, kept apart from the session
// that serves it.
type model struct {
	held     map[string]map[string]string // type → resource → version in use
	good     map[string]map[string]string // that it has acknowledged
	refused  map[string]bool              // "type resource version" that it rejected
	asked    map[string]bool              // endpoints it subscribes to
	unwanted func(name, version string) bool

	complaint string // message of its rejections
}

// at is when everything happens.
var at = time.Date(2026, 11, 1, 12, 0, 0, 0, time.UTC)

func newModel() *model {
	m := &model{held: map[string]map[string]string{}, good: map[string]map[string]string{}, refused: map[string]bool{}, asked: map[string]bool{}}
	for _, typeURL := range sendOrder {
		m.held[typeURL], m.good[typeURL] = map[string]string{}, map[string]string{}
	}
	return m
}

// TestSessionConverges drives sessions with random sets, rejections and answers
// that come late, and holds them to what the package comment promises.
func TestSessionConverges(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		bad := rapid.SampledFrom([]string{"", "v1", "v2"}).Draw(t, "version that Envoy rejects")
		envoy := newModel()
		envoy.complaint = rapid.SampledFrom([]string{"bad", "bad cluster(s) beta"}).Draw(t, "message of a rejection")
		envoy.unwanted = func(name, version string) bool { return name == "beta" && version == bad }
		s := newSession(nil)
		for _, typeURL := range []string{typeCluster, typeListener} {
			s.request(&discoveryv3.DeltaDiscoveryRequest{TypeUrl: typeURL}, at)
		}
		s.request(&discoveryv3.DeltaDiscoveryRequest{TypeUrl: typeRoute, ResourceNamesSubscribe: []string{"routes"}}, at)

		var set resourceSet
		for range rapid.IntRange(1, 6).Draw(t, "sets") {
			set = drawSet(t).after(set)
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
	resp := s.next(set, at)
	if resp == nil {
		return false
	}
	answer := m.apply(t, resp, set)
	if resp.GetTypeUrl() == typeCluster {
		m.subscribe(s)
		if endpoints := s.next(set, at); endpoints != nil {
			if endpoints.GetTypeUrl() != typeEndpoint {
				t.Fatalf("sent %s before %s was answered", endpoints.GetTypeUrl(), typeCluster)
			}
			s.request(m.apply(t, endpoints, set), at)
		}
		for name := range m.held[typeCluster] {
			if m.held[typeEndpoint][name] == "" && set[typeEndpoint].byName[name].version != "" {
				t.Fatalf("cluster %s never warms, and so is never answered", name)
			}
		}
	}
	if second := s.next(set, at); second != nil {
		t.Fatalf("sent %s before %s was answered", second.GetTypeUrl(), resp.GetTypeUrl())
	}
	s.request(answer, at)
	return true
}

// apply is what Envoy makes of a response, and its answer.
func (m *model) apply(t *rapid.T, resp *discoveryv3.DeltaDiscoveryResponse, set resourceSet) *discoveryv3.DeltaDiscoveryRequest {
	typeURL, answer := resp.GetTypeUrl(), &discoveryv3.DeltaDiscoveryRequest{TypeUrl: resp.GetTypeUrl(), ResponseNonce: resp.GetNonce()}
	if typeURL == typeRoute && m.lacksCluster(set) && m.good[typeRoute]["routes"] != "" {
		t.Fatalf("route sent though a cluster was rejected")
	}
	for _, r := range resp.GetResources() {
		if m.refused[typeURL+" "+r.GetName()+" "+r.GetVersion()] {
			t.Fatalf("sent again though rejected: %s %s", r.GetName(), r.GetVersion())
		}
		if typeURL == typeCluster && m.unwanted(r.GetName(), r.GetVersion()) {
			answer.ErrorDetail = &statusv3.Status{Message: m.complaint}
			continue
		}
		if typeURL == typeCluster {
			delete(m.held[typeEndpoint], r.GetName()) // it warms
		}
		m.held[typeURL][r.GetName()] = r.GetVersion() // even when the response is refused as a whole
	}
	for _, name := range resp.GetRemovedResources() {
		_, known := m.good[typeURL][name]
		if typeURL == typeCluster && known && m.held[typeRoute]["routes"] != fmt.Sprint(slices.Sorted(maps.Keys(set[typeCluster].byName))) {
			t.Fatalf("cluster %s removed before the routes to it", name)
		}
	}
	m.remember(resp, answer)
	if typeURL == typeRoute && len(m.refused) == 0 {
		for name := range set[typeCluster].byName {
			if m.held[typeEndpoint][name] == "" {
				t.Fatalf("route sent while cluster %s has no endpoints", name)
			}
		}
	}
	return answer
}

// remember takes what it answers for what is good and what is refused.
func (m *model) remember(resp *discoveryv3.DeltaDiscoveryResponse, answer *discoveryv3.DeltaDiscoveryRequest) {
	typeURL := resp.GetTypeUrl()
	good := m.good[typeURL]
	for _, r := range resp.GetResources() {
		switch {
		case good[r.GetName()] == r.GetVersion():
		case answer.GetErrorDetail() == nil:
			m.forgive(typeURL, r.GetName())
			good[r.GetName()] = r.GetVersion()
		case !strings.Contains(m.complaint, "beta") || r.GetName() == "beta":
			m.refused[typeURL+" "+r.GetName()+" "+r.GetVersion()] = true
		}
	}
	for _, name := range resp.GetRemovedResources() {
		if _, known := good[name]; known {
			m.forgive(typeURL, name)
		}
		delete(good, name)
		delete(m.held[typeURL], name)
	}
}

// lacksCluster says whether a cluster of the set was rejected.
func (m *model) lacksCluster(set resourceSet) bool {
	for name, r := range set[typeCluster].byName {
		if m.refused[typeCluster+" "+name+" "+r.version] {
			return true
		}
	}
	return false
}

// forgive lets a resource's old versions be sent again: it has changed since.
func (m *model) forgive(typeURL, name string) {
	maps.DeleteFunc(m.refused, func(key string, _ bool) bool { return strings.HasPrefix(key, typeURL+" "+name+" ") })
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
		s.request(req, at)
	}
}

// mustHave checks that Envoy has all of a set, and where it rejected something,
// what it last accepted.
func (m *model) mustHave(t *rapid.T, set resourceSet) {
	held := func(typeURL, name, want string) {
		if m.held[typeURL][name] != want {
			t.Fatalf("%s %s: has %q, should have %q", typeURL, name, m.held[typeURL][name], want)
		}
	}
	lacks := m.lacksCluster(set)
	for _, typeURL := range []string{typeCluster, typeEndpoint, typeListener, typeRoute} {
		for name, r := range set[typeURL].byName {
			switch {
			case typeURL == typeEndpoint && !m.asked[name]: // the cluster was rejected
			case m.refused[typeURL+" "+name+" "+r.version], typeURL == typeRoute && lacks:
				held(typeURL, name, m.good[typeURL][name])
			default:
				held(typeURL, name, r.version)
			}
		}
		for name := range m.held[typeURL] {
			if _, exists := set[typeURL].byName[name]; !exists && typeURL != typeEndpoint && !lacks {
				t.Fatalf("%s %s should be gone", typeURL, name)
			}
		}
	}
}
