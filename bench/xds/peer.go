package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"time"

	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/envoyproxy/go-control-plane/pkg/cache/types"
	cachev3 "github.com/envoyproxy/go-control-plane/pkg/cache/v3"
	serverv3 "github.com/envoyproxy/go-control-plane/pkg/server/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/test/bufconn"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// errAll ends a client that has everything.
var errAll = errors.New("everything is there")

// collector keeps what its client is sent, until that has the routes, the last
// type to come.
type collector struct {
	discoveryv3.AggregatedDiscoveryService_DeltaAggregatedResourcesClient
	all map[string][]*discoveryv3.Resource
}

func (c *collector) Recv() (*discoveryv3.DeltaDiscoveryResponse, error) {
	if len(c.all[typeRoute]) > 0 {
		return nil, errAll
	}
	resp, err := c.AggregatedDiscoveryService_DeltaAggregatedResourcesClient.Recv()
	if err == nil {
		c.all[resp.GetTypeUrl()] = append(c.all[resp.GetTypeUrl()], resp.GetResources()...)
	}
	return resp, err
}

func inMemory(register func(*grpc.Server)) (*grpc.ClientConn, func(), error) {
	l, server := bufconn.Listen(1<<20), grpc.NewServer()
	register(server)
	go func() { _ = server.Serve(l) }()
	conn, err := grpc.NewClient("passthrough:///xds", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return l.DialContext(ctx) }))
	if err != nil {
		server.Stop()
		return nil, nil, err
	}
	return conn, func() { _ = conn.Close(); server.Stop() }, nil
}

// measureControlPlane serves the same resources from go-control-plane's caches,
// one for each type.
func measureControlPlane(ctx context.Context, s settings, ends *network, mirror map[string][]*discoveryv3.Resource) (*pushes, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	mux := &cachev3.MuxCache{
		Classify:      func(req *cachev3.Request) string { return req.GetTypeUrl() },
		ClassifyDelta: func(req *cachev3.DeltaRequest) string { return req.GetTypeUrl() },
		Caches:        map[string]cachev3.Cache{},
	}
	caches := map[string]*cachev3.LinearCache{}
	for typeURL, resources := range mirror {
		byName := map[string]types.Resource{}
		for _, r := range resources {
			m, err := r.GetResource().UnmarshalNew()
			if err != nil {
				return nil, fmt.Errorf("%s: %w", r.GetName(), err)
			}
			byName[r.GetName()] = m
		}
		caches[typeURL] = cachev3.NewLinearCache(typeURL, cachev3.WithInitialResources(byName))
		mux.Caches[typeURL] = caches[typeURL]
	}
	l := newLedger()
	server := serverv3.NewServer(ctx, mux, nil)
	stop, err := ends.serve(ctx, s.clients, l, func(g *grpc.Server) { discoveryv3.RegisterAggregatedDiscoveryServiceServer(g, server) })
	if err != nil {
		return nil, err
	}
	defer stop()
	if _, err := l.everyone(ctx, s.clients, acknowledges(typeRoute, "tenants")); err != nil {
		return nil, err
	}
	time.Sleep(time.Second) // the last endpoints may still be on their way

	fleet := newFleet(s.models, s.perModel)
	endpoints := caches[typeEndpoint]
	out, err := l.push(ctx, s, func(i int) string { return fleet.cluster(i % s.models) }, func(i int) {
		name := fleet.cluster(i % s.models)
		changed := proto.CloneOf(endpoints.GetResources()[name].(*endpointv3.ClusterLoadAssignment))
		for _, locality := range changed.GetEndpoints() {
			for _, e := range locality.GetLbEndpoints() {
				e.LoadBalancingWeight = wrapperspb.UInt32(uint32(15 + 5*(i/s.models%18)))
			}
		}
		_ = endpoints.UpdateResource(name, changed) // an error is another type
	})
	return &out, err
}
