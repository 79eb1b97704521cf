package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"time"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc"

	"github.com/mrgc/mrgc/internal/tenant"
	"github.com/mrgc/mrgc/xds"
)

// patience is how long anything may take.
const patience = 5 * time.Minute

// pause is longer than the least time between two changes of weights, lest that is
// what is measured.
const pause = time.Second + 50*time.Millisecond

// pushes are changes of weights.
type pushes struct {
	milliseconds []float64
	processor    float64 // milliseconds of the server's processor time for each
}

type ourFigures struct {
	pushes       pushes
	start        float64 // seconds
	memory, heap float64 // MiB
	resent       int64
	rollbacks    []float64 // milliseconds, of each client
	reached      int
	staged       float64 // milliseconds
}

// everyone waits until all clients have given an answer for which is is true,
// and returns when the last came.
func (l *ledger) everyone(ctx context.Context, clients int, is func(answer) bool) (last time.Time, err error) {
	ctx, cancel := context.WithTimeoutCause(ctx, patience, errors.New("not all clients have answered"))
	defer cancel()
	seen := map[int64]bool{}
	for len(seen) < clients {
		select {
		case a := <-l.answers:
			if is(a) && !seen[a.client] {
				seen[a.client], last = true, a.at
			}
		case <-ctx.Done():
			return last, fmt.Errorf("%w: %d of %d", context.Cause(ctx), len(seen), clients)
		}
	}
	return last, nil
}

func acknowledges(typeURL, name string) func(answer) bool {
	return func(a answer) bool {
		_, is := a.versions[name]
		return is && a.typeURL == typeURL && !a.refused
	}
}

// push measures changes, each of which change makes.
func (l *ledger) push(ctx context.Context, s settings, name func(i int) string, change func(i int)) (pushes, error) {
	var out pushes
	before := processorTime()
	for i := range s.changes {
		time.Sleep(pause)
		started := time.Now()
		change(i)
		last, err := l.everyone(ctx, s.clients, acknowledges(typeEndpoint, name(i)))
		if err != nil {
			return out, fmt.Errorf("change %d: %w", i, err)
		}
		out.milliseconds = append(out.milliseconds, last.Sub(started).Seconds()*1000)
	}
	out.processor = (processorTime() - before).Seconds() * 1000 / float64(s.changes)
	return out, nil
}

func measureOurs(ctx context.Context, s settings, ends *network) (*ourFigures, map[string][]*discoveryv3.Resource, error) {
	fleet, l := newFleet(s.models, s.perModel), newLedger()
	server, err := xds.New(fleet.config())
	if err != nil {
		return nil, nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() { _ = server.Run(ctx) }()
	server.Update(fleet.snapshot())
	server.SetTenants(&tenant.Set{})
	certPEM, keyPEM, err := ends.authority.ServerCertificate(time.Now(), "localhost")
	if err := errors.Join(err, server.SetTenantCertificate(certPEM, keyPEM)); err != nil {
		return nil, nil, err
	}
	out := &ourFigures{}
	started := time.Now()
	stop, err := ends.serve(ctx, s.clients, l, server.Register)
	if err != nil {
		return nil, nil, err
	}
	defer stop()
	last, err := l.everyone(ctx, s.clients, acknowledges(typeRoute, "tenants"))
	if err != nil {
		return nil, nil, err
	}
	out.start = last.Sub(started).Seconds()
	fmt.Printf("%d clients have everything after %.1f s\n", s.clients, out.start)

	out.pushes, err = l.push(ctx, s, func(i int) string { return fleet.cluster(i % s.models) }, func(i int) {
		fleet.reweigh(i%s.models, 10+5*(i/s.models%18)) // never what it was, nor what is refused
		server.Update(fleet.snapshot())
	})
	if err != nil {
		return nil, nil, err
	}
	if out.memory, out.heap, err = memory(); err != nil {
		return nil, nil, err
	}
	if err := out.reject(ctx, s, l, server, fleet); err != nil {
		return nil, nil, err
	}
	if err := out.stage(ctx, s, l, server, ends, certPEM, keyPEM); err != nil {
		return nil, nil, err
	}
	mirror, err := readAll(ctx, server)
	return out, mirror, err
}

// reject pushes weights that every client refuses, and then others, which give
// the server every reason to send the refused ones again.
func (f *ourFigures) reject(ctx context.Context, s settings, l *ledger, server *xds.Server, fleet *bigFleet) error {
	name := fleet.cluster(0)
	time.Sleep(pause)
	fleet.reweigh(0, refusedWeight)
	server.Update(fleet.snapshot())
	refusedAt := map[int64]time.Time{}
	_, err := l.everyone(ctx, s.clients, func(a answer) bool {
		if _, is := a.versions[name]; !is || a.typeURL != typeEndpoint {
			return false
		}
		if a.refused {
			refusedAt[a.client] = a.at
			return false
		}
		f.rollbacks = append(f.rollbacks, a.at.Sub(refusedAt[a.client]).Seconds()*1000)
		return true
	})
	if err != nil {
		return fmt.Errorf("roll-back: %w", err)
	}
	for i := range 10 {
		time.Sleep(pause)
		fleet.reweigh(1, 50+5*(i%2))
		server.Update(fleet.snapshot())
		if _, err := l.everyone(ctx, s.clients, acknowledges(typeEndpoint, fleet.cluster(1))); err != nil {
			return fmt.Errorf("after a rejection: %w", err)
		}
	}
	f.resent = l.resent.Load()
	return nil
}

// stage pushes a certificate that clients refuse, and then one that they take.
func (f *ourFigures) stage(ctx context.Context, s settings, l *ledger, server *xds.Server, ends *network, certPEM, keyPEM []byte) error {
	if err := server.SetTenantCertificate(bytes.Repeat(certPEM, 1+refusedChain/len(certPEM)), keyPEM); err != nil {
		return err
	}
	waiting := time.NewTimer(time.Second) // long enough for all of them
	defer waiting.Stop()
	for more := true; more; {
		select {
		case a := <-l.answers:
			if a.refused && a.typeURL == typeSecret {
				f.reached++
			}
		case <-waiting.C:
			more = false
		}
	}
	certPEM, keyPEM, err := ends.authority.ServerCertificate(time.Now(), "localhost")
	if err != nil {
		return err
	}
	started := time.Now()
	if err := server.SetTenantCertificate(certPEM, keyPEM); err != nil {
		return err
	}
	last, err := l.everyone(ctx, s.clients, acknowledges(typeSecret, "tenant-server"))
	f.staged = last.Sub(started).Seconds() * 1000
	return err
}

// readAll is every resource that a client gets, by type.
func readAll(ctx context.Context, server *xds.Server) (map[string][]*discoveryv3.Resource, error) {
	conn, stop, err := inMemory(server.Register)
	if err != nil {
		return nil, err
	}
	defer stop()
	stream, err := discoveryv3.NewAggregatedDiscoveryServiceClient(conn).DeltaAggregatedResources(ctx, grpc.MaxCallRecvMsgSize(64<<20))
	if err != nil {
		return nil, err
	}
	c := &collector{AggregatedDiscoveryService_DeltaAggregatedResourcesClient: stream, all: map[string][]*discoveryv3.Resource{}}
	err = (&client{stream: c, asked: map[string]bool{}}).run("mirror")
	if errors.Is(err, errAll) {
		return c.all, nil
	}
	return nil, err
}
