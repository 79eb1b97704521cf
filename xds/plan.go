package xds

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/mrgc/mrgc/internal/fleet"
)

// plan is what the resources of one region are rendered from: the settings, and
// for each cluster its endpoints by priority. It holds values alone.
type plan struct {
	config   Config
	region   fleet.Region
	clusters []clusterPlan // those of all regions first, then those of fewer
	accesses []access
	routes   resource // the tenants', see admission
	cert     certificate
	clients  clientCA
}

// clusterPlan is a model, the regions in which it may run, and which of them some
// tenants prefer. The hard rule of where a request may go is in the choice of cluster,
// so that it holds when the picker is away, and so does what is preferred.
type clusterPlan struct {
	name      string
	model     string
	endpoints [][]endpoint // by priority; the local region's first, unless another is preferred
	until     time.Time    // when those that are leaving have left; zero: there are none
}

// endpoint is an instance as Envoy sees it.
type endpoint struct {
	id      string
	address netip.AddrPort
	region  fleet.Region
	zone    string
	weight  uint32
	leaving bool // it gets nothing any more, but for a while: see split
}

// instancesOf is what serves a model from a region.
type instancesOf struct {
	model  string
	region fleet.Region
}

// equal says whether two plans make the same resources.
func (c clusterPlan) equal(other clusterPlan) bool {
	return c.name == other.name && c.model == other.model && slices.EqualFunc(c.endpoints, other.endpoints, slices.Equal[[]endpoint])
}

// maxWeight and weightStep quantise weights: a change of less than a step is
// not worth the load balancer that Envoy rebuilds for it.
const (
	maxWeight  = 100
	weightStep = 5
)

// weightAfter is the weight that follows another, which is 0 for an instance
// that has had none. It stays as long as the score is less than a whole step
// away, so that a score that wavers about a limit between steps changes nothing.
func weightAfter(before, score uint32) uint32 {
	score = min(score, maxWeight)
	if before > 0 && before < score+weightStep && score < before+weightStep {
		return before
	}
	return quantise(score)
}

// quantise rounds a score to the nearest step. The least is 1: an endpoint that
// should have no traffic is not in the set, and Envoy does not take weight 0.
func quantise(score uint32) uint32 {
	score = min(score, maxWeight)
	return max(1, (score+weightStep/2)/weightStep*weightStep)
}

// clusterName names the cluster of a model restricted to a set of regions, of which
// some come first.
func clusterName(model string, allowed, prefer []fleet.Region) string {
	return model + "@" + regionNames(slices.Sorted(slices.Values(allowed)), "_") + preferred(prefer)
}

// newPlan chooses the endpoints for the Envoys of a region. The order of
// regions, its own first, is the order of priority, where the model has no other.
func newPlan(config Config, region fleet.Region, regions []fleet.Region, orders map[string][]fleet.Region, usable []dialableInstance, tenants admission, cert certificate) plan {
	p := plan{config: config, region: region, accesses: tenants.accesses, routes: tenants.routes, cert: cert}
	serving := map[instancesOf][]endpoint{}
	for _, in := range usable {
		e := endpoint{id: in.ID, address: in.address, region: in.Region, zone: in.Zone, weight: in.weight}
		for _, model := range in.Models {
			of := instancesOf{model, in.Region}
			serving[of] = append(serving[of], e)
		}
	}
	p.addClusters(config.Models, regions, nil, orders, serving) // those of all regions, whoever may use them
	for _, a := range p.accesses {
		p.addClusters(a.models, a.regions, a.prefer, orders, serving)
	}
	return p
}

// addClusters adds those of models in a set of regions that are not there yet.
func (p *plan) addClusters(models []string, allowed, prefer []fleet.Region, orders map[string][]fleet.Region, serving map[instancesOf][]endpoint) {
	for _, model := range models {
		name := clusterName(model, allowed, prefer)
		if slices.ContainsFunc(p.clusters, func(c clusterPlan) bool { return c.name == name }) {
			continue
		}
		c := clusterPlan{name: name, model: model}
		for _, from := range inOrder(allowed, prefer, orders, model) {
			c.endpoints = append(c.endpoints, serving[instancesOf{model, from}])
		}
		p.clusters = append(p.clusters, c)
	}
}

// dialableInstance is an instance that Envoy can be sent.
type dialableInstance struct {
	*fleet.Instance
	address netip.AddrPort
	weight  uint32
}

// dialable reads the instances' addresses. An instance whose address Envoy
// could not dial, or that another has taken, is left out and named in the
// error; one bad registration must not stop the news of all others.
func dialable(instances []*fleet.Instance) (usable []dialableInstance, err error) {
	owner := map[netip.AddrPort]string{}
	for _, in := range instances {
		address, parseErr := netip.ParseAddrPort(in.Address)
		if parseErr != nil || address.Port() == 0 || address.Addr().Zone() != "" {
			err = errors.Join(err, fmt.Errorf("instance %s: address %q is not IP:port", in.ID, in.Address))
			continue
		}
		if other, taken := owner[address]; taken {
			err = errors.Join(err, fmt.Errorf("instance %s: address %s is that of %s", in.ID, address, other))
			continue
		}
		owner[address] = in.ID
		usable = append(usable, dialableInstance{Instance: in, address: address})
	}
	return usable, err
}
