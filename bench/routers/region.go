package main

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"

	"github.com/mrgc/mrgc/bench/rig"
	"github.com/mrgc/mrgc/internal/credential"
	"github.com/mrgc/mrgc/internal/fleet"
	"github.com/mrgc/mrgc/internal/identity"
	"github.com/mrgc/mrgc/router"
	"github.com/mrgc/mrgc/standin/devca"
	"github.com/mrgc/mrgc/xds"
)

const (
	regionName = "use1"
	model      = "bench"
)

// region is the routers of one, and a connection to each as Envoy has it.
type region struct {
	dir     string
	key     credential.Key
	conns   []*grpc.ClientConn
	stopAll context.CancelFunc
	running *errgroup.Group
}

func instanceID(i int) string { return fmt.Sprintf("%s-%d", regionName, i) }
func keyID(i int) string      { return fmt.Sprintf("%016x", i) }

// address is where nobody listens: instances are never asked.
func address(i int) netip.AddrPort {
	return netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 1, 0, byte(i)}), 1)
}

// snapshot is a fleet of healthy instances.
func snapshot(instances int) *fleet.Snapshot {
	var all []*fleet.Instance
	for i := range instances {
		all = append(all, &fleet.Instance{
			ID: instanceID(i), Region: regionName, Address: address(i).String(), Models: []string{model}, KeyIDs: []string{keyID(i)},
			Health: fleet.Health{Enclave: true, Engine: true}, Load: fleet.Load{Slots: 64}, HeartbeatAt: time.Now(),
		})
	}
	return fleet.NewSnapshot(time.Now(), all)
}

// still is a store whose fleet does not change.
type still struct {
	fleet.Store
	snapshot *fleet.Snapshot
}

func (s still) Watch(ctx context.Context) <-chan *fleet.Snapshot {
	out := make(chan *fleet.Snapshot, 1)
	out <- s.snapshot
	context.AfterFunc(ctx, func() { close(out) })
	return out
}

// startRegion starts routers, and waits until each picks and hears the others.
func startRegion(ctx context.Context, s scene, routers int, share bool) (_ *region, err error) {
	r := &region{}
	defer func() {
		if err != nil {
			err = errors.Join(err, r.stop())
		}
	}()
	if r.dir, err = os.MkdirTemp("", "mrgc-routers-"); err != nil {
		return nil, err
	}
	if r.key, err = credential.New(rand.Reader, "bench"); err != nil {
		return nil, err
	}
	ca, err := devca.New(time.Now())
	if err != nil {
		return nil, err
	}
	ctx, r.stopAll = context.WithCancel(ctx)
	r.running, ctx = errgroup.WithContext(ctx)
	listeners := make([]router.Listeners, routers)
	var addresses []string
	for i := range listeners {
		for _, l := range []*net.Listener{&listeners[i].GRPC, &listeners[i].HTTP, &listeners[i].Admin} {
			if *l, err = net.Listen("tcp", "127.0.0.1:0"); err != nil {
				return nil, err
			}
		}
		addresses = append(addresses, listeners[i].GRPC.Addr().String())
	}
	config, err := r.config(ctx, ca, s)
	if err != nil {
		return nil, err
	}
	if share {
		config.Peers = addresses // each finds out which is its own
	}
	for _, on := range listeners {
		made, err := router.New(config)
		if err != nil {
			return nil, err
		}
		r.running.Go(func() error { return made.Run(ctx, on) })
	}
	if err := r.connect(ctx, ca, addresses); err != nil {
		return nil, err
	}
	for _, on := range listeners {
		if err := awaitPeers(ctx, on.Admin.Addr().String(), len(config.Peers)); err != nil {
			return nil, err
		}
	}
	return r, nil
}

func (r *region) config(ctx context.Context, ca *devca.Authority, s scene) (router.Config, error) {
	self, err := r.source(ctx, ca, identity.RoleRouter)
	if err != nil {
		return router.Config{}, err
	}
	certPEM, keyPEM, err := ca.ServerCertificate(time.Now(), "localhost")
	if err != nil {
		return router.Config{}, err
	}
	certFile, keyFile := filepath.Join(r.dir, "tls.crt"), filepath.Join(r.dir, "tls.key")
	xdsConfig := xds.Config{
		Region:        regionName,
		TenantAddress: netip.MustParseAddrPort("127.0.0.1:443"), HealthAddress: netip.MustParseAddrPort("127.0.0.1:8080"),
	}
	tenants, err := rig.Tenants(r.key.Tenant(), credential.DigestOf(r.key.EdgeToken()))
	if err != nil {
		return router.Config{}, err
	}
	return router.Config{
		Region: regionName, Settings: router.Settings{Models: []string{model}, StaleAfter: time.Hour}, XDS: xdsConfig, Tenants: tenants,
		Store: still{snapshot: snapshot(s.instances)}, Identity: self, TenantCertificate: certFile, TenantKey: keyFile,
	}, errors.Join(os.WriteFile(certFile, certPEM, 0o600), os.WriteFile(keyFile, keyPEM, 0o600))
}

func (r *region) source(ctx context.Context, ca *devca.Authority, role identity.Role) (*identity.Source, error) {
	dir := filepath.Join(r.dir, string(role))
	if err := ca.WriteFiles(dir, identity.ID{Region: regionName, Role: role}, time.Now()); err != nil {
		return nil, err
	}
	return identity.Open(ctx, "dir:"+dir, "")
}

func (r *region) connect(ctx context.Context, ca *devca.Authority, addresses []string) error {
	envoy, err := r.source(ctx, ca, identity.RoleEnvoy)
	if err != nil {
		return err
	}
	isRouter := func(id identity.ID) bool { return id.Role == identity.RoleRouter }
	for _, address := range addresses {
		conn, err := grpc.NewClient("passthrough:///"+address, grpc.WithTransportCredentials(credentials.NewTLS(envoy.ClientTLS(isRouter))))
		if err != nil {
			return err
		}
		r.conns = append(r.conns, conn)
	}
	return nil
}

// awaitPeers waits until a router knows every address as a peer's or its own.
func awaitPeers(ctx context.Context, admin string, peers int) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	for {
		var page struct {
			Peers []struct{ State string }
		}
		if err := getJSON(ctx, "http://"+admin+"/peers", &page); err == nil {
			known := 0
			for _, p := range page.Peers {
				if p.State != "not heard" {
					known++
				}
			}
			if known == peers {
				return nil
			}
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("the router at %s does not hear its peers", admin)
		case <-time.After(10 * time.Millisecond):
		}
	}
}

func getJSON(ctx context.Context, url string, into any) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	return json.NewDecoder(resp.Body).Decode(into)
}

func (r *region) stop() error {
	var errs []error
	for _, conn := range r.conns {
		errs = append(errs, conn.Close())
	}
	if r.stopAll != nil {
		r.stopAll()
		errs = append(errs, r.running.Wait())
	}
	return errors.Join(append(errs, os.RemoveAll(r.dir))...)
}

// recipients names every instance's key.
func recipients(instances int) string {
	var kids []string
	for i := range instances {
		kids = append(kids, keyID(i))
	}
	return strings.Join(kids, ",")
}
