// Xds measures the xDS server with as many Envoys as a region will ever have:
// from the change of one cluster's weights to the last acknowledgement, what a
// rejection costs, and the same change through go-control-plane's own caches.
//
// The server runs in this process and the clients in another, each over a
// connection of its own with mutual TLS.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"slices"
	"syscall"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"

	"github.com/mrgc/mrgc/bench/result"
	"github.com/mrgc/mrgc/internal/identity"
	"github.com/mrgc/mrgc/standin/devca"
)

type settings struct {
	clients, models, perModel, changes int
}

func main() {
	var s settings
	flag.IntVar(&s.clients, "clients", 1000, "delta-xDS clients")
	flag.IntVar(&s.models, "clusters", 250, "clusters of models")
	flag.IntVar(&s.perModel, "endpoints", 40, "endpoints of each cluster")
	flag.IntVar(&s.changes, "changes", 200, "changes of one cluster's weights")
	to := flag.String("connect", "", "be the clients, of the server at this address")
	certificates := flag.String("certificates", "", "directory of the clients' certificate")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	var err error
	if *to != "" {
		err = runClients(ctx, s.clients, *to, *certificates)
	} else {
		err = run(ctx, s)
	}
	if err != nil && ctx.Err() == nil {
		fmt.Fprintln(os.Stderr, "xds:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, s settings) error {
	dir, err := os.MkdirTemp("", "mrgc-bench-xds-")
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(dir) }()
	ends, err := newNetwork(ctx, dir)
	if err != nil {
		return err
	}
	ours, mirror, err := measureOurs(ctx, s, ends)
	if err != nil {
		return fmt.Errorf("our server: %w", err)
	}
	theirs, err := measureControlPlane(ctx, s, ends, mirror)
	if err != nil {
		return fmt.Errorf("go-control-plane: %w", err)
	}
	r := describe(s, ours, theirs)
	r.Print(os.Stdout)
	return r.Write()
}

func describe(s settings, ours *ourFigures, theirs *pushes) result.Result {
	median, last := result.SpreadOf(ours.pushes.milliseconds), quantile(ours.pushes.milliseconds, 0.99)
	rollback := quantile(ours.rollbacks, 1)
	return result.Result{
		Name: "xds", Title: fmt.Sprintf("xDS: %d Envoys, %d endpoints in %d clusters", s.clients, s.models*s.perModel, s.models),
		Command: "make bench-xds",
		Figures: []result.Figure{
			{Name: "one cluster's weights changed, to the last acknowledgement, p50", Value: median.P50, Unit: "ms", Spread: &median},
			{Name: "the same, p99", Value: last, Unit: "ms", Goal: "≤ 250"},
			{Name: "the same, slowest", Value: quantile(ours.pushes.milliseconds, 1), Unit: "ms"},
			{Name: "processor time of the server for one change", Value: ours.pushes.processor, Unit: "ms"},
			{Name: "memory of the server (RSS)", Value: ours.memory, Unit: "MiB"},
			{Name: "memory of the server (Go's live heap)", Value: ours.heap, Unit: "MiB"},
			{Name: "all clients connected, from nothing to everything acknowledged", Value: ours.start, Unit: "s"},
			{Name: "re-sends after a rejection by all clients", Value: float64(ours.resent), Unit: "", Goal: "0"},
			{Name: "rejection to acknowledged roll-back, slowest of all clients", Value: rollback / 1000, Unit: "s", Goal: "≤ 2"},
			{Name: "clients that were sent a certificate that the first one rejected", Value: float64(ours.reached), Unit: "", Goal: "1"},
			{Name: "a good certificate, tried by one and then sent to all, to the last acknowledgement", Value: ours.staged, Unit: "ms"},
			{Name: "go-control-plane's LinearCache, the same change, p50", Value: quantile(theirs.milliseconds, 0.5), Unit: "ms"},
			{Name: "go-control-plane's LinearCache, the same change, p99", Value: quantile(theirs.milliseconds, 0.99), Unit: "ms"},
			{Name: "go-control-plane's LinearCache, processor time for one change", Value: theirs.processor, Unit: "ms"},
			{Name: "p50 of ours over LinearCache's", Value: median.P50 / quantile(theirs.milliseconds, 0.5), Unit: ""},
			{Name: "p99 of ours over LinearCache's", Value: last / quantile(theirs.milliseconds, 0.99), Unit: ""},
		},
		Notes: []string{
			fmt.Sprintf("%d changes, each when the one before is acknowledged by all and the least time between two changes of weights (1 s) is over. "+
				"Clients run in a process of their own on the same machine, each over its own connection with mutual TLS, and subscribe to all types. "+
				"An acknowledgement counts when the server has read it.", len(ours.pushes.milliseconds)),
			"Memory is after all clients have connected at once and been sent everything, 1.2 MB each; what Go's collector has not given back is in the RSS.",
			"Our time begins with a new snapshot of the fleet, of which a whole publication is made; LinearCache's with a finished ClusterLoadAssignment that is put in. LinearCache's clients have the same resources.",
		},
	}
}

// quantile is by nearest rank.
func quantile(samples []float64, share float64) float64 {
	sorted := slices.Sorted(slices.Values(samples))
	if len(sorted) == 0 {
		return 0
	}
	return sorted[min(int(share*float64(len(sorted))), len(sorted)-1)]
}

// network is the names of both sides.
type network struct {
	authority    *devca.Authority
	router       *identity.Source
	certificates string // the clients'
}

func newNetwork(ctx context.Context, dir string) (*network, error) {
	authority, err := devca.New(time.Now())
	if err != nil {
		return nil, err
	}
	n := &network{authority: authority, certificates: dir + "/envoy"}
	for path, id := range map[string]identity.ID{
		dir + "/router": {Region: string(region), Role: identity.RoleRouter},
		n.certificates:  {Region: string(region), Role: identity.RoleEnvoy},
	} {
		if err := errors.Join(os.Mkdir(path, 0o700), authority.WriteFiles(path, id, time.Now())); err != nil {
			return nil, err
		}
	}
	n.router, err = identity.Open(ctx, "dir:"+dir+"/router", "")
	return n, err
}

// serve runs a gRPC server and as many clients; stop ends both.
func (n *network) serve(ctx context.Context, clients int, l *ledger, register func(*grpc.Server)) (stop func(), err error) {
	config := n.router.ServerTLS(func(id identity.ID) bool { return id.Role == identity.RoleEnvoy })
	config.NextProtos = []string{"h2"}
	server := grpc.NewServer(grpc.Creds(credentials.NewTLS(config)), grpc.StreamInterceptor(l.intercept))
	register(server)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	go func() { _ = server.Serve(listener) }()
	self, err := os.Executable()
	if err != nil {
		server.Stop()
		return nil, err
	}
	cmd := exec.CommandContext(ctx, self, "-clients", fmt.Sprint(clients), "-connect", listener.Addr().String(), "-certificates", n.certificates)
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		server.Stop()
		return nil, err
	}
	return func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		_ = cmd.Wait() // it was told to go
		server.Stop()
	}, nil
}

// processorTime is what this process has used so far.
func processorTime() time.Duration {
	var usage syscall.Rusage
	_ = syscall.Getrusage(syscall.RUSAGE_SELF, &usage) // cannot fail for oneself
	return time.Duration(usage.Utime.Nano() + usage.Stime.Nano())
}

// memory is what this process holds, in MiB: of the system, and alive in Go's
// heap.
func memory() (rss, heap float64, err error) {
	var stats runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&stats)
	var size, resident float64
	content, err := os.ReadFile("/proc/self/statm")
	if err == nil {
		_, err = fmt.Sscan(string(content), &size, &resident)
	}
	return resident * float64(os.Getpagesize()) / (1 << 20), float64(stats.HeapAlloc) / (1 << 20), err
}
