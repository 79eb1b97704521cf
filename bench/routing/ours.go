package main

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/mrgc/mrgc/envoy"
	"github.com/mrgc/mrgc/internal/api"
	"github.com/mrgc/mrgc/internal/credential"
	"github.com/mrgc/mrgc/internal/fleet"
	"github.com/mrgc/mrgc/internal/identity"
	"github.com/mrgc/mrgc/internal/routing"
	"github.com/mrgc/mrgc/internal/size"
	"github.com/mrgc/mrgc/internal/tenant"
	"github.com/mrgc/mrgc/router"
	"github.com/mrgc/mrgc/xds"
)

// defaultPolicy is the contender that the goals are about.
const defaultPolicy = "MRGC gate-then-load"

// ours are our policies: the real Envoy, our xDS server, our picker.
func ours(tools string) []contender {
	var all []contender
	for _, policy := range []routing.Policy{
		routing.PolicyGateThenLoad, routing.PolicyScore, routing.PolicyLeastInFlight, routing.PolicyPowerOfTwo, routing.PolicyRoundRobin,
	} {
		all = append(all, contender{name: "MRGC " + policy.String(), ours: true, start: ourStart(tools, policy)})
	}
	return all
}

// routerConfig is what the router's process is told.
type routerConfig struct {
	Dir              string // of identities and the tenants' certificate
	Parents          []string
	Policy           string
	Tenant           string
	EdgeToken        string // digest
	GRPC, HTTP       string // addresses
	Tenants, Healths string // Envoy's
}

func ourStart(tools string, policy routing.Policy) func(context.Context, string, *engines) (*running, error) {
	return func(ctx context.Context, dir string, e *engines) (*running, error) {
		key, err := credential.New(rand.Reader, "bench")
		if err != nil {
			return nil, err
		}
		digest := credential.DigestOf(key.EdgeToken())
		config := routerConfig{
			Dir: dir, Parents: e.Parents, Policy: policy.String(), Tenant: key.Tenant(), EdgeToken: hex.EncodeToString(digest[:]),
			GRPC: "127.0.0.1:" + freePort(), HTTP: "127.0.0.1:" + freePort(),
			Tenants: "127.0.0.1:" + freePort(), Healths: "127.0.0.1:" + freePort(),
		}
		picker, input, err := startChild(ctx, "router", config, &struct{}{})
		if err != nil {
			return nil, err
		}
		identityDir := filepath.Join(dir, string(identity.RoleEnvoy))
		bootstrap, err := envoy.Bootstrap(envoy.Config{
			NodeID: "bench", Region: region, Admin: netip.MustParseAddrPort("127.0.0.1:" + freePort()),
			RouterGRPC:      []netip.AddrPort{netip.MustParseAddrPort(config.GRPC)},
			RouterHTTP:      []netip.AddrPort{netip.MustParseAddrPort(config.HTTP)},
			CertificateFile: filepath.Join(identityDir, identity.CertificateFile),
			KeyFile:         filepath.Join(identityDir, identity.KeyFile),
			TrustFile:       filepath.Join(identityDir, identity.RootsFile),
		})
		path := filepath.Join(dir, "bootstrap.json")
		if err == nil {
			err = os.WriteFile(path, bootstrap, 0o600)
		}
		var f front
		if err == nil {
			f, err = sealedFront(dir, config.Tenants, key)
		}
		var r *running
		if err == nil {
			r, err = launch(ctx, dir, f, envoy.Command(envoyBinary(tools), path))
		}
		if err != nil {
			_ = input.Close()
			return nil, errors.Join(err, picker.Wait())
		}
		r.processes = append(r.processes, picker)
		return r, nil
	}
}

// sealedFront sends requests with the headers of sealed ones, each to every
// instance: the body alone is in clear.
func sealedFront(dir, address string, key credential.Key) (front, error) {
	roots := x509.NewCertPool()
	ca, err := os.ReadFile(filepath.Join(dir, "ca.crt"))
	if err != nil {
		return front{}, err
	}
	roots.AppendCertsFromPEM(ca)
	var kids []string
	for i := range engineCount {
		kids = append(kids, keyID(i))
	}
	bearer := "Bearer " + string(key.EdgeToken())
	return front{
		url: "https://" + address + api.PathSealed,
		client: &http.Client{Transport: &http.Transport{
			TLSClientConfig: &tls.Config{RootCAs: roots, ServerName: "localhost"}, ForceAttemptHTTP2: true,
		}},
		header: func(r request) http.Header {
			id := make([]byte, 16)
			_, _ = rand.Read(id)
			h := http.Header{}
			h.Set("Content-Type", api.ContentTypeSealedRequest)
			h.Set("Authorization", bearer)
			h.Set(api.HeaderModel, model)
			h.Set(api.HeaderTenant, key.Tenant())
			h.Set(api.HeaderRequestID, hex.EncodeToString(id))
			h.Set(api.HeaderRecipients, strings.Join(kids, ","))
			h.Set(api.HeaderAffinity, fmt.Sprintf("conversation-%d", r.conversation))
			h.Set(api.HeaderSize, size.Round(r.promptTokens, r.outputTokens).String())
			return h
		},
	}, nil
}

func keyID(engine int) string { return fmt.Sprintf("%016x", engine+1) }

// fixedStore is a fleet that does not change, but for its heartbeats.
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
			if !sleepUntil(ctx, now.Add(fleet.RefreshInterval)) {
				return
			}
		}
	}()
	return snapshots
}

// keeperOf holds a list of one tenant, signed here.
func keeperOf(one tenant.Tenant) (*tenant.Keeper, error) {
	public, private, err := ed25519.GenerateKey(nil)
	if err != nil {
		return nil, err
	}
	file, err := tenant.Sign(private, &tenant.List{Version: 1, ExpiresAt: time.Now().Add(24 * time.Hour), Tenants: []tenant.Tenant{one}})
	if err != nil {
		return nil, err
	}
	keeper, err := tenant.NewKeeper(public)
	if err != nil {
		return nil, err
	}
	return keeper, keeper.Offer(file, time.Now())
}

// serveRouter starts a router over a fixed fleet.
func serveRouter(ctx context.Context, c routerConfig) error {
	policy, err := routing.ParsePolicy(c.Policy)
	if err != nil {
		return err
	}
	token, err := credential.ParseDigest(c.EdgeToken)
	if err != nil {
		return err
	}
	tenants, err := keeperOf(tenant.Tenant{Name: c.Tenant, EdgeTokens: tenant.Digests{token}, EnclaveTokens: tenant.Digests{token}})
	if err != nil {
		return err
	}
	source, err := identity.Open(ctx, "dir:"+filepath.Join(c.Dir, string(identity.RoleRouter)), "")
	if err != nil {
		return err
	}
	var store fixedStore
	for i, address := range c.Parents {
		store.instances = append(store.instances, &fleet.Instance{
			ID: engineID(i), Region: region, Zone: fmt.Sprintf("%s-az%d", region, i%2), Address: address, Models: []string{model}, KeyIDs: []string{keyID(i)},
			Health: fleet.Health{Enclave: true, Engine: true}, Load: fleet.Load{Slots: profile().MaxSequences},
		})
	}
	r, err := router.New(router.Config{
		Region: region, Models: []string{model}, StaleAfter: time.Minute, Policies: map[string]routing.Policy{model: policy},
		Tenants: tenants,
		XDS: xds.Config{
			Region: region, SpillTo: map[fleet.Region][]fleet.Region{region: nil}, Models: []string{model}, StaleAfter: time.Minute,
			TenantAddress: netip.MustParseAddrPort(c.Tenants), HealthAddress: netip.MustParseAddrPort(c.Healths),
		},
		Store: store, Identity: source,
		TenantCertificate: filepath.Join(c.Dir, "tenant.crt"), TenantKey: filepath.Join(c.Dir, "tenant.key"),
	})
	if err != nil {
		return err
	}
	var on router.Listeners
	for _, l := range []struct {
		on      *net.Listener
		address string
	}{{&on.GRPC, c.GRPC}, {&on.HTTP, c.HTTP}, {&on.Admin, "127.0.0.1:0"}} {
		if *l.on, err = net.Listen("tcp", l.address); err != nil {
			return err
		}
	}
	go func() {
		if err := r.Run(ctx, on); err != nil {
			say("router: %v", err)
		}
	}()
	return nil
}
