package xds

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"time"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
)

// session is one Envoy's side of a delta stream: what it asked for, what it was
// sent, and what it answered. It has no clock and does no I/O: request takes
// what the Envoy sends, next gives what to send to it.
type session struct {
	types     map[string]*subscription
	lastNonce uint64
	past      *session // of the Envoy's stream before, if it has rejections
	asked     string   // version of the clusters of which all endpoints are asked for; "" when that is not known
}

// subscription is the state of one type. At most one response is unanswered.
type subscription struct {
	wildcard bool
	names    map[string]bool       // subscribed by name
	accepted map[string]accepted   // what the Envoy has, as far as it has said so
	rejected map[version]rejection // what it must not be sent: it refused it, and has accepted no other since
	again    map[string]bool       // to be sent anyhow: the Envoy has forgotten it, or it is not known whether it has it
	doubtful map[string]bool       // to be rolled back: a response with it was refused

	unanswered *response

	// All but open is as it should be under the set of version base, so that a
	// small change of a large set is small work. Without base nothing is known.
	base    string
	open    map[string]bool
	unknown bool // there may be accepted ones without a body

	sent, acked     string // version of the set that was last sent, and that is accepted as a whole
	sentAt, ackedAt time.Time
}

// accepted is a resource that an Envoy has.
type accepted struct {
	resource // without body when the Envoy had it before its stream, and it is not known
	at       time.Time
}

// response is what was sent and not yet answered.
type response struct {
	nonce     string
	resources map[string]resource
	removed   []string
	rollback  bool
}

func (r *response) names() []string {
	return append(slices.Sorted(maps.Keys(r.resources)), r.removed...)
}

// newSession begins a stream. past is the Envoy's session before, or nil.
func newSession(past *session) *session {
	if past != nil {
		past.past = nil
	}
	return &session{types: map[string]*subscription{}, past: past}
}

// request takes a request: a change of subscriptions, an answer, or both.
func (s *session) request(req *discoveryv3.DeltaDiscoveryRequest, now time.Time) {
	sub, known := s.types[req.GetTypeUrl()]
	if !known {
		sub = s.subscribe(req, now)
	}
	if changes := len(req.GetResourceNamesSubscribe()) + len(req.GetResourceNamesUnsubscribe()); !known || changes > 0 || req.GetTypeUrl() == typeCluster {
		s.asked = ""
	}
	if nonce := req.GetResponseNonce(); nonce != "" {
		sub.answer(req, nonce, now)
	}
	for _, name := range req.GetResourceNamesSubscribe() {
		if name == "*" {
			sub.wildcard, sub.base = true, ""
			continue
		}
		sub.open[name] = true
		if _, has := sub.accepted[name]; has && known || sub.names[name] {
			sub.again[name] = true // whoever subscribes again has forgotten
		}
		sub.names[name] = true
	}
	for _, name := range req.GetResourceNamesUnsubscribe() {
		if name == "*" {
			sub.wildcard, sub.base = false, ""
			continue
		}
		delete(sub.names, name)
		if sub.unanswered != nil {
			delete(sub.unanswered.resources, name)
		}
		sub.forget(name)
	}
}

// subscribe begins a type, with what the Envoy says that it has.
func (s *session) subscribe(req *discoveryv3.DeltaDiscoveryRequest, now time.Time) *subscription {
	sub := &subscription{
		names: map[string]bool{}, accepted: map[string]accepted{}, rejected: map[version]rejection{},
		again: map[string]bool{}, doubtful: map[string]bool{}, open: map[string]bool{},
		// Clusters and listeners are asked for by asking for nothing.
		wildcard: len(req.GetResourceNamesSubscribe()) == 0,
	}
	s.types[req.GetTypeUrl()] = sub
	var before subscription
	if s.past != nil && s.past.types[req.GetTypeUrl()] != nil {
		before = *s.past.types[req.GetTypeUrl()]
		maps.Copy(sub.rejected, before.rejected)
	}
	for name, hash := range req.GetInitialResourceVersions() {
		has, known := before.accepted[name]
		if !known || has.version != hash {
			has = accepted{resource: resource{version: hash}, at: now}
			sub.unknown = true
		}
		sub.accepted[name] = has
	}
	return sub
}

// forget ends all that is known of a resource.
func (sub *subscription) forget(name string) {
	delete(sub.accepted, name)
	sub.absolve(name)
	delete(sub.again, name)
	delete(sub.doubtful, name)
}

// answer takes an ACK or a NACK. One for an older response says nothing any
// more.
func (sub *subscription) answer(req *discoveryv3.DeltaDiscoveryRequest, nonce string, now time.Time) {
	sent := sub.unanswered
	if sent == nil || sent.nonce != nonce {
		return
	}
	sub.unanswered = nil
	for _, name := range sent.names() {
		sub.open[name] = true
	}
	switch detail := req.GetErrorDetail(); {
	case detail == nil:
		sub.accept(sent, now)
	case !sent.rollback: // an Envoy that refuses what it had cannot be helped
		message := detail.GetMessage()
		sub.refuse(sent, message[:min(len(message), maxNACK)], now)
	}
}

func (sub *subscription) accept(sent *response, now time.Time) {
	for name, r := range sent.resources {
		if sub.accepted[name].version != r.version {
			sub.absolve(name) // it has changed since
			sub.accepted[name] = accepted{resource: r, at: now}
		}
	}
	for _, name := range sent.removed {
		if !sent.rollback {
			sub.absolve(name)
		}
		delete(sub.accepted, name)
	}
}

// next is the next response to send so that the Envoy gets nearer to set, or
// nil while there is none: because it has all, because it must answer first, or
// because it is not known what it should have. Clusters alone need not be answered
// before their endpoints are sent: Envoy answers when they have warmed, which
// takes endpoints.
func (s *session) next(set resourceSet, now time.Time) *discoveryv3.DeltaDiscoveryResponse {
	if set == nil {
		return nil
	}
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
			if out := s.bring(typeURL, sub, set, now); out != nil {
				return out
			}
		}
		if typeURL == typeEndpoint && (warming || s.awaitsEndpoints(set)) {
			return nil
		}
	}
	return s.removeClusters(set, now)
}

// bring is the response that gives a type what it lacks; nil when it lacks
// nothing, or what it refers to was rejected. Clusters that it has too much wait
// until the routes to them are gone.
func (s *session) bring(typeURL string, sub *subscription, set resourceSet, now time.Time) *discoveryv3.DeltaDiscoveryResponse {
	want := set[typeURL]
	if resources, removed := sub.rollback(); len(resources)+len(removed) > 0 {
		out := s.respond(typeURL, sub, want, resources, removed, now)
		sub.unanswered.rollback = true
		return out
	}
	if sub.base == want.version && len(sub.open) == 0 || s.blocked(typeURL, set) {
		return nil
	}
	resources, removed := sub.difference(want)
	sub.looked(want, resources, removed)
	if typeURL == typeCluster {
		if len(resources) == 0 && len(removed) > 0 {
			return nil
		}
		removed = nil
	}
	if len(resources)+len(removed) > 0 {
		return s.respond(typeURL, sub, want, resources, removed, now)
	}
	sub.upToDate(want, now)
	return nil
}

// blocked says whether something that a type refers to was rejected, or is
// itself held back for that. An Envoy that has nothing of the type is given it
// all the same, see withhold.
func (s *session) blocked(typeURL string, set resourceSet) bool {
	sub := s.types[typeURL]
	if sub == nil || len(sub.accepted) == 0 {
		return false
	}
	return slices.ContainsFunc(refersTo[typeURL], func(other string) bool {
		if s.types[other] == nil {
			return false
		}
		if len(s.types[other].quarantined(set[other])) > 0 {
			return true
		}
		return s.blocked(other, set) && s.types[other].lacks(set[other])
	})
}

// removeClusters comes last: nothing refers to them any more, unless the routes
// are not those that they should be.
func (s *session) removeClusters(set resourceSet, now time.Time) *discoveryv3.DeltaDiscoveryResponse {
	sub := s.types[typeCluster]
	if sub == nil || len(sub.open) == 0 {
		return nil
	}
	if routes := s.types[typeRoute]; routes != nil && (s.blocked(typeRoute, set) || len(routes.quarantined(set[typeRoute])) > 0) {
		return nil
	}
	want := set[typeCluster]
	resources, removed := sub.difference(want)
	sub.looked(want, resources, removed)
	if len(removed) > 0 {
		return s.respond(typeCluster, sub, want, nil, removed, now)
	}
	sub.upToDate(want, now)
	return nil
}

// awaitsEndpoints says whether the Envoy is still about to ask for the
// endpoints of a cluster that it has accepted; a route to it would find it
// warming.
func (s *session) awaitsEndpoints(set resourceSet) bool {
	clusters, endpoints := s.types[typeCluster], s.types[typeEndpoint]
	if clusters == nil || s.asked == set[typeCluster].version {
		return false
	}
	for name := range clusters.accepted {
		asked := endpoints != nil && endpoints.names[name]
		if _, exists := set[typeEndpoint].byName[name]; exists && !asked {
			return true
		}
	}
	s.asked = set[typeCluster].version
	return false
}

func (sub *subscription) asksFor(name string) bool { return sub.wildcard || sub.names[name] }

// difference lists what the Envoy lacks and may have, and what it has too much,
// sorted. Only a wildcard subscription can have too much: what is asked for by
// name goes when what refers to it does, and Envoy ignores its removal.
func (sub *subscription) difference(want typeSet) (resources map[string]resource, removed []string) {
	resources = map[string]resource{}
	look := func(name string) {
		has, had := sub.accepted[name]
		r, exists := want.byName[name]
		switch {
		case !exists:
			if sub.wildcard && (had || sub.again[name]) && !sub.refuses(name, "") {
				removed = append(removed, name)
			}
			return
		case !sub.asksFor(name):
			return
		case sub.refuses(name, r.version):
			r = has.resource // what it last accepted
		}
		if (has.version != r.version || sub.again[name]) && r.body != nil {
			resources[name] = r
		}
	}
	for _, name := range sub.unsettled(want) {
		look(name)
	}
	slices.Sort(removed)
	return resources, removed
}

// unsettled lists what may not be as it should be under a set, each name once.
func (sub *subscription) unsettled(want typeSet) []string {
	names := slices.Collect(maps.Keys(sub.open))
	switch {
	case sub.base == "" || sub.base != want.version && sub.base != want.before:
		names = slices.AppendSeq(slices.Collect(maps.Keys(want.byName)), maps.Keys(sub.accepted))
		names = slices.AppendSeq(names, maps.Keys(sub.again))
	case sub.base == want.before:
		names = append(names, want.changed...)
	}
	slices.Sort(names)
	return slices.Compact(names)
}

// looked remembers what was found to be missing, and that all else is well.
func (sub *subscription) looked(want typeSet, resources map[string]resource, removed []string) {
	sub.base = want.version
	clear(sub.open)
	for name := range resources {
		sub.open[name] = true
	}
	for _, name := range removed {
		sub.open[name] = true
	}
}

func (sub *subscription) lacks(want typeSet) bool {
	resources, removed := sub.difference(want)
	return len(resources)+len(removed) > 0
}

// upToDate notes that there is nothing to send: the Envoy has it all, but for
// what it refused, or it has it from an earlier stream.
func (sub *subscription) upToDate(want typeSet, now time.Time) {
	if sub.unknown {
		for name, has := range sub.accepted {
			if r := want.byName[name]; has.body == nil && has.version == r.version {
				has.body = r.body
				sub.accepted[name] = has
			}
		}
		sub.unknown = false
	}
	if len(sub.quarantined(want)) > 0 || len(sub.accepted) == 0 && !sub.wildcard {
		return
	}
	sub.sent = want.version
	if sub.acked != want.version {
		sub.acked, sub.ackedAt = want.version, now
	}
}

func (s *session) respond(typeURL string, sub *subscription, want typeSet, resources map[string]resource, removed []string, now time.Time) *discoveryv3.DeltaDiscoveryResponse {
	s.lastNonce++
	out := &discoveryv3.DeltaDiscoveryResponse{
		TypeUrl:           typeURL,
		Nonce:             strconv.FormatUint(s.lastNonce, 10),
		SystemVersionInfo: want.version,
		RemovedResources:  removed,
	}
	for _, name := range slices.Sorted(maps.Keys(resources)) {
		r := resources[name]
		out.Resources = append(out.Resources, &discoveryv3.Resource{Name: name, Version: r.version, Resource: r.body})
		delete(sub.again, name)
		if typeURL == typeCluster {
			s.endpointsAgain(name)
		}
	}
	for _, name := range removed {
		delete(sub.again, name)
	}
	sub.unanswered = &response{nonce: out.Nonce, resources: resources, removed: removed}
	sub.sent, sub.sentAt = want.version, now
	return out
}

// endpointsAgain has a cluster's endpoints sent again: a changed cluster warms
// anew, and Envoy does not ask for what it is subscribed to already.
func (s *session) endpointsAgain(cluster string) {
	if endpoints := s.types[typeEndpoint]; endpoints != nil && endpoints.names[cluster] {
		endpoints.again[cluster], endpoints.open[cluster] = true, true
	}
}

// report is how far the Envoy is from good to target.
func (s *session) report(target, good resourceSet) report {
	out := report{rejected: map[resourceKey]rejection{}, complete: true, idle: true}
	for _, typeURL := range staged {
		sub := s.types[typeURL]
		if sub == nil {
			sub = &subscription{} // it asks for nothing
		}
		for _, v := range sub.quarantined(target[typeURL]) {
			out.rejected[resourceKey{typeURL, v}] = sub.rejected[v]
		}
		if sub.unanswered != nil || sub.lacks(target[typeURL]) {
			out.complete, out.idle = false, false
			continue
		}
		for name, r := range target[typeURL].byName {
			if good[typeURL].byName[name].version != r.version && sub.accepted[name].version != r.version {
				out.complete = false
			}
		}
	}
	return out
}

// checkType refuses a type that this server does not have.
func checkType(typeURL string) error {
	if !slices.Contains(sendOrder, typeURL) {
		return fmt.Errorf("type %q is not served", typeURL)
	}
	return nil
}
