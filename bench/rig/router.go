package rig

import (
	"context"
	"encoding/hex"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"time"

	"github.com/mrgc/mrgc/internal/credential"
	"github.com/mrgc/mrgc/internal/fleet"
	"github.com/mrgc/mrgc/internal/identity"
	"github.com/mrgc/mrgc/internal/routing"
	"github.com/mrgc/mrgc/router"
	"github.com/mrgc/mrgc/xds"
)

// RouterConfig is what a router's process is told.
type RouterConfig struct {
	Dir               string // of identities and the tenants' certificate
	Parents           []string
	Slots             int // of each instance
	Policy            string
	Tenant            string
	EdgeToken         string // digest
	GRPC, HTTP, Admin string // addresses
	Tenants, Healths  string // Envoy's
}

// NewRouterConfig has ports that are free, and a tenant of its own.
func NewRouterConfig(dir string, parents []string, slots int, policy routing.Policy, key credential.Key) RouterConfig {
	digest := credential.DigestOf(key.EdgeToken())
	at := func() string { return "127.0.0.1:" + FreePort() }
	return RouterConfig{
		Dir: dir, Parents: parents, Slots: slots, Policy: policy.String(), Tenant: key.Tenant(), EdgeToken: hex.EncodeToString(digest[:]),
		GRPC: at(), HTTP: at(), Admin: at(), Tenants: at(), Healths: at(),
	}
}

// XDS is what a router that is told c tells Envoy, beside the fleet.
func (c RouterConfig) XDS() xds.Config {
	return xds.Config{
		Region: Region, SpillTo: map[fleet.Region][]fleet.Region{Region: nil}, Models: []string{Model}, StaleAfter: time.Minute,
		TenantAddress: netip.MustParseAddrPort(c.Tenants), HealthAddress: netip.MustParseAddrPort(c.Healths),
	}
}

// Store is a fleet that does not change, but for its heartbeats.
func (c RouterConfig) Store() fleet.Store {
	var store fixedStore
	for i, address := range c.Parents {
		store.instances = append(store.instances, &fleet.Instance{
			ID: InstanceID(i), Region: Region, Zone: fmt.Sprintf("%s-az%d", Region, i%2), Address: address, Models: []string{Model}, KeyIDs: []string{KeyID(i)},
			Health: fleet.Health{Enclave: true, Engine: true}, Load: fleet.Load{Slots: c.Slots},
		})
	}
	return store
}

type fixedStore struct {
	fleet.Store
	instances []*fleet.Instance
}

func (s fixedStore) Watch(ctx context.Context) <-chan *fleet.Snapshot {
	snapshots := make(chan *fleet.Snapshot)
	go func() {
		defer close(snapshots)
		for {
			now := time.Now()
			for i := range s.instances {
				in := *s.instances[i]
				in.HeartbeatAt = now
				s.instances[i] = &in
			}
			select {
			case snapshots <- fleet.NewSnapshot(now, append([]*fleet.Instance(nil), s.instances...)):
			case <-ctx.Done():
				return
			}
			if !SleepUntil(ctx, now.Add(fleet.RefreshInterval)) {
				return
			}
		}
	}()
	return snapshots
}

// ServeRouter is the part that is a router over a fixed fleet.
func ServeRouter(ctx context.Context, c RouterConfig) (any, error) {
	policy, err := routing.ParsePolicy(c.Policy)
	if err != nil {
		return nil, err
	}
	token, err := credential.ParseDigest(c.EdgeToken)
	if err != nil {
		return nil, err
	}
	tenants, err := Tenants(c.Tenant, token)
	if err != nil {
		return nil, err
	}
	source, err := identity.Open(ctx, "dir:"+filepath.Join(c.Dir, string(identity.RoleRouter)), "")
	if err != nil {
		return nil, err
	}
	r, err := router.New(router.Config{
		Region:   Region,
		Settings: router.Settings{Models: []string{Model}, StaleAfter: time.Minute, Policies: map[string]routing.Policy{Model: policy}},
		Tenants:  tenants, XDS: c.XDS(), Store: c.Store(), Identity: source,
		TenantCertificate: filepath.Join(c.Dir, "tenant.crt"), TenantKey: filepath.Join(c.Dir, "tenant.key"),
	})
	if err != nil {
		return nil, err
	}
	var on router.Listeners
	for _, l := range []struct {
		on      *net.Listener
		address string
	}{{&on.GRPC, c.GRPC}, {&on.HTTP, c.HTTP}, {&on.Admin, c.Admin}} {
		if *l.on, err = net.Listen("tcp", l.address); err != nil {
			return nil, err
		}
	}
	go func() {
		if err := r.Run(ctx, on); err != nil {
			fmt.Fprintln(os.Stderr, "router:", err)
		}
	}()
	return struct{}{}, nil
}
