package xds

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
)

// session is one Envoy's side of a delta stream: what it asked for, what it was
// sent, and what it answered. It has no clock and does no I/O: request takes
// what the Envoy sends, next gives what to send to it.
type session struct {
	types     map[string]*subscription
	lastNonce uint64
}

// subscription is the state of one type. At most one response is unanswered.
type subscription struct {
	wildcard bool
	names    map[string]bool   // subscribed by name
	held     map[string]string // resource → version that the Envoy has or was sent

	unanswered *response
	sent       string // version of the set that the last response brought up to
	acked      string // version of the set that the Envoy has acknowledged
	rejected   *rejection
}

// response is what was sent and not yet answered.
type response struct {
	nonce   string
	version string // of the set
	names   []string
}

// rejection is the last NACK that still holds.
type rejection struct {
	message string
	names   map[string]bool // what it is about, see suspects
}

// suspects are the resources that a NACK is about: those of the response that
// its message names, or all when it names none. xDS does not say it otherwise.
func suspects(sent []string, message string) map[string]bool {
	named, all := map[string]bool{}, map[string]bool{}
	for _, name := range sent {
		all[name] = true
		if strings.Contains(message, name) {
			named[name] = true
		}
	}
	if len(named) > 0 {
		return named
	}
	return all
}

// absolve ends the suspicion of resources that were accepted since, or are no
// longer asked for.
func (sub *subscription) absolve(names ...string) {
	if sub.rejected == nil {
		return
	}
	for _, name := range names {
		delete(sub.rejected.names, name)
	}
	if len(sub.rejected.names) == 0 {
		sub.rejected = nil
	}
}

func newSession() *session { return &session{types: map[string]*subscription{}} }

// request takes a request: a change of subscriptions, an answer, or both.
func (s *session) request(req *discoveryv3.DeltaDiscoveryRequest) {
	sub, known := s.types[req.GetTypeUrl()]
	if !known {
		sub = &subscription{names: map[string]bool{}, held: map[string]string{}}
		s.types[req.GetTypeUrl()] = sub
		// Clusters and listeners are asked for by asking for nothing.
		sub.wildcard = len(req.GetResourceNamesSubscribe()) == 0
	}
	if nonce := req.GetResponseNonce(); nonce != "" {
		sub.answer(req, nonce)
	}
	for _, name := range req.GetResourceNamesSubscribe() {
		if name == "*" {
			sub.wildcard = true
			continue
		}
		// Whoever subscribes again has forgotten, and is sent it again.
		sub.names[name] = true
		delete(sub.held, name)
	}
	for _, name := range req.GetResourceNamesUnsubscribe() {
		if name == "*" {
			sub.wildcard = false
			continue
		}
		delete(sub.names, name)
		delete(sub.held, name)
		sub.absolve(name)
	}
	if !known {
		maps.Copy(sub.held, req.GetInitialResourceVersions())
	}
}

// answer takes an ACK or a NACK. One for an older response says nothing any
// more.
func (sub *subscription) answer(req *discoveryv3.DeltaDiscoveryRequest, nonce string) {
	sent := sub.unanswered
	if sent == nil || sent.nonce != nonce {
		return
	}
	sub.unanswered = nil
	if detail := req.GetErrorDetail(); detail != nil {
		sub.rejected = &rejection{message: detail.GetMessage(), names: suspects(sent.names, detail.GetMessage())}
		return
	}
	sub.absolve(sent.names...)
	if sub.rejected == nil {
		sub.acked = sent.version
	}
}

// next is the next response to send so that the Envoy gets nearer to set, or
// nil while there is none: because it has all, or because it must answer first.
// Clusters alone need not be answered before their endpoints are sent: Envoy
// answers when they have warmed, which takes endpoints.
func (s *session) next(set resourceSet) *discoveryv3.DeltaDiscoveryResponse {
	warming := false
	for _, typeURL := range sendOrder {
		sub := s.types[typeURL]
		switch {
		case sub == nil:
		case sub.unanswered != nil && typeURL == typeCluster:
			warming = true
		case sub.unanswered != nil:
			return nil
		default:
			if out := s.bring(typeURL, sub, set[typeURL]); out != nil {
				return out
			}
		}
		if typeURL == typeEndpoint && (warming || s.awaitsEndpoints(set)) {
			return nil
		}
	}
	return s.removeClusters(set)
}

// bring is the response that gives a type what it lacks; nil when it lacks
// nothing. Clusters that it has too much wait until the routes to them are
// gone.
func (s *session) bring(typeURL string, sub *subscription, want typeSet) *discoveryv3.DeltaDiscoveryResponse {
	resources, removed := sub.difference(want)
	if typeURL == typeCluster {
		if len(resources) == 0 && len(removed) > 0 {
			return nil
		}
		removed = nil
	}
	if len(resources)+len(removed) > 0 {
		return s.respond(typeURL, sub, want, resources, removed)
	}
	sub.upToDate(want)
	return nil
}

// removeClusters comes last: nothing refers to them any more.
func (s *session) removeClusters(set resourceSet) *discoveryv3.DeltaDiscoveryResponse {
	sub := s.types[typeCluster]
	if sub == nil {
		return nil
	}
	want := set[typeCluster]
	if _, removed := sub.difference(want); len(removed) > 0 {
		return s.respond(typeCluster, sub, want, nil, removed)
	}
	sub.upToDate(want)
	return nil
}

// awaitsEndpoints says whether the Envoy is still about to ask for the
// endpoints of a cluster that it has accepted; a route to it would find it
// warming.
func (s *session) awaitsEndpoints(set resourceSet) bool {
	clusters, endpoints := s.types[typeCluster], s.types[typeEndpoint]
	if clusters == nil {
		return false
	}
	for name := range clusters.held {
		rejected := clusters.rejected != nil && clusters.rejected.names[name]
		asked := endpoints != nil && endpoints.names[name]
		if _, exists := set[typeEndpoint].byName[name]; exists && !asked && !rejected {
			return true
		}
	}
	return false
}

// difference lists what the Envoy lacks and what it has too much, sorted. Only
// a wildcard subscription can have too much: what is asked for by name goes
// when what refers to it does, and Envoy ignores its removal.
func (sub *subscription) difference(want typeSet) (resources, removed []string) {
	for name, r := range want.byName {
		if (sub.wildcard || sub.names[name]) && sub.held[name] != r.version {
			resources = append(resources, name)
		}
	}
	for name := range sub.held {
		if _, exists := want.byName[name]; !exists && sub.wildcard {
			removed = append(removed, name)
		}
	}
	slices.Sort(resources)
	slices.Sort(removed)
	return resources, removed
}

// upToDate notes that there is nothing to send: the set changed, if at all, in
// what this Envoy does not ask for, or it has it from an earlier stream.
func (sub *subscription) upToDate(want typeSet) {
	if sub.unanswered != nil || sub.rejected != nil {
		return
	}
	if len(sub.held) > 0 || sub.wildcard {
		sub.sent, sub.acked = want.version, want.version
	}
}

func (s *session) respond(typeURL string, sub *subscription, want typeSet, resources, removed []string) *discoveryv3.DeltaDiscoveryResponse {
	s.lastNonce++
	out := &discoveryv3.DeltaDiscoveryResponse{
		TypeUrl:           typeURL,
		Nonce:             strconv.FormatUint(s.lastNonce, 10),
		SystemVersionInfo: want.version,
		RemovedResources:  removed,
	}
	for _, name := range resources {
		r := want.byName[name]
		out.Resources = append(out.Resources, &discoveryv3.Resource{Name: name, Version: r.version, Resource: r.body})
		sub.held[name] = r.version
		if typeURL == typeCluster {
			s.forgetEndpoints(name)
		}
	}
	for _, name := range removed {
		delete(sub.held, name)
	}
	sub.unanswered = &response{nonce: out.Nonce, version: want.version, names: slices.Concat(resources, removed)}
	sub.sent = want.version
	return out
}

// forgetEndpoints has a cluster's endpoints sent again: a changed cluster warms
// anew, and Envoy does not ask for what it is subscribed to already.
func (s *session) forgetEndpoints(cluster string) {
	if endpoints := s.types[typeEndpoint]; endpoints != nil {
		delete(endpoints.held, cluster)
	}
}

// checkType refuses a type that this server does not have.
func checkType(typeURL string) error {
	if !slices.Contains(sendOrder, typeURL) {
		return fmt.Errorf("type %q is not served", typeURL)
	}
	return nil
}
