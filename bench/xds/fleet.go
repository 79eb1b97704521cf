package main

import (
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/mrgc/mrgc/internal/fleet"
	"github.com/mrgc/mrgc/xds"
)

const region = fleet.Region("use1")

// bigFleet is the instances of many models. A weight is what an instance's
// queue says, which the server takes as it is.
type bigFleet struct {
	models    []string
	instances []*fleet.Instance // each model's one after the other
	at        time.Time
}

func newFleet(models, perModel int) *bigFleet {
	f := &bigFleet{at: time.Now()}
	for m := range models {
		f.models = append(f.models, fmt.Sprintf("model-%03d", m))
		for range perModel {
			n := len(f.instances)
			f.instances = append(f.instances, &fleet.Instance{
				ID: fmt.Sprintf("use1-%05d", n), Region: region, Zone: fmt.Sprintf("use1-az%d", 1+n%3),
				Address: netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, byte(n >> 16), byte(n >> 8), byte(n)}), 8080).String(),
				Models:  []string{f.models[m]}, Health: fleet.Health{Enclave: true, Engine: true}, HeartbeatAt: f.at,
				Load: fleet.Load{Queued: 100},
			})
		}
	}
	return f
}

func (f *bigFleet) perModel() int { return len(f.instances) / len(f.models) }

// snapshot is the fleet as a store would hand it over.
func (f *bigFleet) snapshot() *fleet.Snapshot {
	return fleet.NewSnapshot(f.at, slices.Clone(f.instances))
}

// reweigh gives all instances of a model another weight.
func (f *bigFleet) reweigh(model int, weight int) {
	for i := model * f.perModel(); i < (model+1)*f.perModel(); i++ {
		changed := *f.instances[i]
		changed.Load.Queued = weight
		f.instances[i] = &changed
	}
}

// cluster is the name of a model's cluster.
func (f *bigFleet) cluster(model int) string { return f.models[model] + "@" + string(region) }

func (f *bigFleet) config() xds.Config {
	return xds.Config{
		Region: region, Models: f.models,
		TenantAddress: netip.MustParseAddrPort("127.0.0.1:443"), HealthAddress: netip.MustParseAddrPort("127.0.0.1:8080"),
		Weight: func(in *fleet.Instance) uint32 { return uint32(in.Load.Queued) },
	}
}
