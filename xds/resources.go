package xds

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"maps"
	"slices"
	"strings"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
)

// Type URLs of the resources, as xDS names them.
const (
	typeCluster  = "type.googleapis.com/envoy.config.cluster.v3.Cluster"
	typeEndpoint = "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment"
	typeSecret   = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret" //nolint:gosec // a type's name
	typeListener = "type.googleapis.com/envoy.config.listener.v3.Listener"
	typeRoute    = "type.googleapis.com/envoy.config.route.v3.RouteConfiguration"
)

// sendOrder is the order in which a change of several types is sent: what is
// referred to goes before what refers to it.
var sendOrder = []string{typeCluster, typeEndpoint, typeSecret, typeListener, typeRoute}

// resource is one message, ready to send.
type resource struct {
	version string // hash of the content
	body    *anypb.Any
}

// typeSet holds all resources of a type.
type typeSet struct {
	version string // "<count>-<hash>": the hash of the set, and how many sets there were before
	byName  map[string]resource

	before  string   // version of the set before; "" if there is none
	changed []string // names of what was not the same in it
}

// resourceSet is what one region's Envoys should have: type URL → resources.
// It is immutable.
type resourceSet map[string]typeSet

// rendered is what was made of plans before, under the same Config.
type rendered struct {
	clusters []clusterPlan // the union last
	set      resourceSet
}

// render makes the resources of a plan; those of a cluster of which the plan is
// as before are those from before. Each message is validated; the first that
// does not validate is the error.
func render(p plan, before rendered) (rendered, error) {
	r := &renderer{byType: map[string]map[string]resource{}}
	known := map[string]clusterPlan{}
	for _, c := range before.clusters {
		known[c.name] = c
	}
	for _, typeURL := range sendOrder {
		r.byType[typeURL] = map[string]resource{}
	}
	union := unionOf(p)
	clusters := append(slices.Clone(p.clusters), union)
	for _, c := range clusters {
		if old, is := known[c.name]; is && old.equal(c) {
			for _, typeURL := range []string{typeCluster, typeEndpoint} {
				r.byType[typeURL][c.name] = before.set[typeURL].byName[c.name]
			}
			continue
		}
		if c.name == union.name {
			r.add(c.name, healthCluster(r, p, c))
		} else {
			r.add(c.name, modelCluster(r, p, c))
		}
		r.add(c.name, loadAssignment(c.name, c.endpoints))
	}
	r.add(keysCluster, recipientsCluster(r, p))
	r.add(tenantSecret, p.cert.secret())
	if p.clients != nil {
		r.add(tenantClientSecret, p.clients.secret())
	}
	r.add(tenantListener, tenantsListener(r, p))
	r.add(healthListenerName, healthListener(r, p))
	r.byType[typeRoute][tenantRoutes] = p.routes
	if r.err != nil {
		return rendered{}, fmt.Errorf("render %s: %w", p.region, r.err)
	}
	set := resourceSet{}
	for typeURL, byName := range r.byType {
		set[typeURL] = typeSet{version: "1-" + hashOf(byName), byName: byName}
	}
	return rendered{clusters: clusters, set: set}, nil
}

// after numbers a set's versions on from those of the set before.
func (s resourceSet) after(before resourceSet) resourceSet {
	out := resourceSet{}
	for typeURL, ts := range s {
		if old, ok := before[typeURL]; ok {
			ts.version, ts.before = nextVersion(old.version, ts.version), old.version
			ts.changed = changes(old.byName, ts.byName)
		}
		out[typeURL] = ts
	}
	return out
}

// changes lists, sorted, what is new, gone or of another version.
func changes(before, now map[string]resource) (names []string) {
	for name, r := range now {
		if old, was := before[name]; !was || old.version != r.version {
			names = append(names, name)
		}
	}
	for name := range before {
		if _, is := now[name]; !is {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

func nextVersion(old, fresh string) string {
	count, oldHash, _ := strings.Cut(old, "-")
	_, hash, _ := strings.Cut(fresh, "-")
	if oldHash == hash {
		return old
	}
	var n uint64
	_, _ = fmt.Sscanf(count, "%d", &n) // our own format
	return fmt.Sprintf("%d-%s", n+1, hash)
}

func (s resourceSet) equal(other resourceSet) bool {
	return maps.EqualFunc(s, other, func(a, b typeSet) bool { return a.version == b.version })
}

func hashOf(byName map[string]resource) string {
	h := sha256.New()
	for _, name := range slices.Sorted(maps.Keys(byName)) {
		fmt.Fprintf(h, "%q %s\n", name, byName[name].version)
	}
	return hex.EncodeToString(h.Sum(nil)[:8])
}

// validated is a generated message with its protoc-gen-validate rules.
type validated interface {
	proto.Message
	ValidateAll() error
}

// renderer collects resources and keeps the first error, so that a resource
// reads as one expression.
type renderer struct {
	byType map[string]map[string]resource
	err    error
}

// add validates a resource and files it under its type.
func (r *renderer) add(name string, m validated) {
	if made := r.resource(m); r.err == nil {
		r.byType[made.body.GetTypeUrl()][name] = made
	}
}

// resource validates a resource and names its version.
func (r *renderer) resource(m validated) resource {
	body := r.pack(m)
	sum := sha256.Sum256(body.GetValue())
	return resource{version: hex.EncodeToString(sum[:8]), body: body}
}

// pack validates a message and wraps it, with the same bytes for the same
// content.
func (r *renderer) pack(m validated) *anypb.Any {
	out := &anypb.Any{}
	err := m.ValidateAll()
	if err == nil {
		err = anypb.MarshalFrom(out, m, proto.MarshalOptions{Deterministic: true})
	}
	if err != nil && r.err == nil {
		r.err = fmt.Errorf("%s: %w", m.ProtoReflect().Descriptor().Name(), err)
	}
	return out
}

// extension is a message under the name by which Envoy knows what reads it.
func (r *renderer) extension(name string, m validated) *corev3.TypedExtensionConfig {
	return &corev3.TypedExtensionConfig{Name: name, TypedConfig: r.pack(m)}
}

// overADS is the config source of everything that this server sends.
func overADS() *corev3.ConfigSource {
	return &corev3.ConfigSource{
		ResourceApiVersion:    corev3.ApiVersion_V3,
		ConfigSourceSpecifier: &corev3.ConfigSource_Ads{Ads: &corev3.AggregatedConfigSource{}},
	}
}

// routerService is a gRPC service on the routers.
func routerService(p plan) *corev3.GrpcService {
	return &corev3.GrpcService{
		TargetSpecifier: &corev3.GrpcService_EnvoyGrpc_{EnvoyGrpc: &corev3.GrpcService_EnvoyGrpc{ClusterName: p.config.Names.Router}},
	}
}
