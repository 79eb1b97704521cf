package router_test

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/mrgc/mrgc/internal/fleet"
	"github.com/mrgc/mrgc/internal/identity"
	"github.com/mrgc/mrgc/internal/loadreport"
	"github.com/mrgc/mrgc/internal/tenant/tenanttest"
	"github.com/mrgc/mrgc/internal/vsock"
	instance "github.com/mrgc/mrgc/parent"
	"github.com/mrgc/mrgc/router"
	"github.com/mrgc/mrgc/standin/devca"
	"github.com/mrgc/mrgc/xds"
)

// BenchmarkIdleReports is what the load reports of 100 idle instances cost, on
// all sides together, in one process: parents, TLS and routers. The figure is
// cores/op, of which the line without a router and without reports is the part
// that the parents and this program take anyway. An iteration is one second.
func BenchmarkIdleReports(b *testing.B) {
	const instances = 100
	for _, bench := range []struct {
		name    string
		idle    time.Duration // between reports; 0: as it is
		routers int
	}{
		{"none", time.Hour, 0},
		{"to 1 router", 0, 1},
		{"to 2 routers", 0, 2},
	} {
		b.Run(bench.name, func(b *testing.B) {
			c := &benchCluster{ca: must(devca.New(time.Now())), dir: b.TempDir()}
			ctx, cancel := context.WithCancel(context.Background())
			defer c.running.Wait()
			defer cancel()
			var fleetNow []*fleet.Instance
			for i := range instances {
				fleetNow = append(fleetNow, c.parent(ctx, b, fmt.Sprintf("use1-%d", i), bench.idle))
			}
			for range bench.routers {
				c.router(ctx, b, fleetNow)
			}
			b.ResetTimer()
			began, before := time.Now(), processorTime()
			for b.Loop() {
				<-time.After(time.Second)
			}
			b.ReportMetric((processorTime()-before).Seconds()/time.Since(began).Seconds(), "cores")
		})
	}
}

// benchCluster is parents and routers without anything else.
type benchCluster struct {
	ca      *devca.Authority
	dir     string
	running sync.WaitGroup
}

func must[T any](value T, err error) T {
	if err != nil {
		panic(err)
	}
	return value
}

func (c *benchCluster) source(id identity.ID) *identity.Source {
	dir := filepath.Join(c.dir, strings.NewReplacer("/", "_", ":", "_").Replace(id.String()))
	must(0, c.ca.WriteFiles(dir, id, time.Now()))
	return must(identity.Open(context.Background(), "dir:"+dir, ""))
}

// parent starts a real one, whose enclave and engine are away.
func (c *benchCluster) parent(ctx context.Context, b *testing.B, id string, idle time.Duration) *fleet.Instance {
	listener := must(net.Listen("tcp", "127.0.0.1:0"))
	in := fleet.Instance{ID: id, Region: "use1", Address: listener.Addr().String(), Models: []string{model}}
	away := func(context.Context) (net.Conn, error) { return nil, net.ErrClosed }
	service := must(instance.New(instance.Config{
		Instance: in, Store: benchStore{}, Identity: c.source(parentID("use1", id)), DialEnclave: away, DialGuard: away,
		EngineRelay: must(vsock.Listen("unix:" + filepath.Join(c.dir, id))), IdleReportInterval: idle, Tenants: tenanttest.Keeper(b),
	}))
	c.running.Go(func() {
		if err := service.Run(ctx, listener); err != nil {
			b.Error(err)
		}
	})
	in.Health, in.HeartbeatAt = fleet.Health{Enclave: true, Engine: true}, time.Now()
	return &in
}

// router starts a real one, and waits until it has every instance's report.
func (c *benchCluster) router(ctx context.Context, b *testing.B, instances []*fleet.Instance) {
	certPEM, keyPEM, err := c.ca.ServerCertificate(time.Now(), "localhost")
	must(0, err)
	certFile, keyFile := filepath.Join(c.dir, "tls.crt"), filepath.Join(c.dir, "tls.key")
	must(0, os.WriteFile(certFile, certPEM, 0o600))
	must(0, os.WriteFile(keyFile, keyPEM, 0o600))
	store := &fakeStore{snapshots: make(chan *fleet.Snapshot, 1)}
	store.snapshots <- fleet.NewSnapshot(time.Now(), slices.Clone(instances))
	made := must(router.New(router.Config{
		Region: "use1", Settings: router.Settings{Models: []string{model}, StaleAfter: time.Hour}, Tenants: tenanttest.Keeper(b),
		XDS: xds.Config{
			Region:        "use1",
			TenantAddress: netip.MustParseAddrPort("127.0.0.1:443"), HealthAddress: netip.MustParseAddrPort("127.0.0.1:8080"),
		},
		Store: store, Identity: c.source(routerID), TenantCertificate: certFile, TenantKey: keyFile,
	}))
	listenTCP := func() net.Listener { return must(net.Listen("tcp", "127.0.0.1:0")) }
	c.running.Go(func() {
		if err := made.Run(ctx, router.Listeners{GRPC: listenTCP(), HTTP: listenTCP(), Admin: listenTCP()}); err != nil {
			b.Error(err)
		}
	})
	for _, in := range instances {
		for deadline := time.Now().Add(time.Minute); ; {
			if _, age := made.Report(in.ID); age == loadreport.Fresh {
				break
			}
			if time.Now().After(deadline) {
				b.Fatalf("no report of %s", in.ID)
			}
			<-time.After(10 * time.Millisecond)
		}
	}
}

// benchStore is a fleet store that takes everything and tells nothing.
type benchStore struct{ fleet.Store }

func (benchStore) Register(context.Context, fleet.Instance) error   { return nil }
func (benchStore) Heartbeat(context.Context, fleet.Heartbeat) error { return nil }
func (benchStore) Deregister(context.Context, string) error         { return nil }

func (benchStore) Watch(ctx context.Context) <-chan *fleet.Snapshot {
	none := make(chan *fleet.Snapshot)
	context.AfterFunc(ctx, func() { close(none) })
	return none
}

// processorTime is what this process has used so far.
func processorTime() time.Duration {
	var usage syscall.Rusage
	must(0, syscall.Getrusage(syscall.RUSAGE_SELF, &usage))
	return time.Duration(usage.Utime.Nano() + usage.Stime.Nano())
}
