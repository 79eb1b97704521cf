package main

import (
	"context"
	"fmt"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"golang.org/x/sync/errgroup"
	statusv3 "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/protobuf/proto"

	"github.com/mrgc/mrgc/internal/identity"
)

// Type URLs, as xDS names them.
const (
	typeCluster  = "type.googleapis.com/envoy.config.cluster.v3.Cluster"
	typeEndpoint = "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment"
	typeSecret   = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret" //nolint:gosec // a type's name
	typeListener = "type.googleapis.com/envoy.config.listener.v3.Listener"
	typeRoute    = "type.googleapis.com/envoy.config.route.v3.RouteConfiguration"
)

// What the clients reject: endpoints of this weight, and secrets whose chain is
// this long at least.
const (
	refusedWeight = 5
	refusedChain  = 8 << 10
)

// runClients connects n clients, each over a connection of its own, and serves
// until ctx ends. They subscribe and answer as Envoy does, and use nothing.
func runClients(ctx context.Context, n int, to, certificates string) error {
	source, err := identity.Open(ctx, "dir:"+certificates, "")
	if err != nil {
		return err
	}
	config := source.ClientTLS(func(id identity.ID) bool { return id.Role == identity.RoleRouter })
	group, ctx := errgroup.WithContext(ctx)
	for i := range n {
		group.Go(func() error {
			conn, err := grpc.NewClient("passthrough:///"+to, grpc.WithTransportCredentials(credentials.NewTLS(config)),
				grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(64<<20)))
			if err != nil {
				return err
			}
			defer func() { _ = conn.Close() }()
			stream, err := discoveryv3.NewAggregatedDiscoveryServiceClient(conn).DeltaAggregatedResources(ctx)
			if err != nil {
				return err
			}
			return (&client{stream: stream, asked: map[string]bool{}}).run(fmt.Sprintf("envoy-%04d", i))
		})
	}
	return group.Wait()
}

type client struct {
	stream discoveryv3.AggregatedDiscoveryService_DeltaAggregatedResourcesClient
	asked  map[string]bool // endpoints
}

func (c *client) run(node string) error {
	first := &discoveryv3.DeltaDiscoveryRequest{
		Node: &corev3.Node{Id: node, Locality: &corev3.Locality{Region: string(region)}}, TypeUrl: typeCluster,
	}
	if err := c.stream.Send(first); err != nil {
		return err
	}
	for {
		resp, err := c.stream.Recv()
		if err != nil {
			return err
		}
		answer := &discoveryv3.DeltaDiscoveryRequest{TypeUrl: resp.GetTypeUrl(), ResponseNonce: resp.GetNonce()}
		if name := rejected(resp); name != "" {
			answer.ErrorDetail = &statusv3.Status{Code: 13, Message: name + " is refused"}
		}
		if err := c.stream.Send(answer); err != nil {
			return err
		}
		if err := c.subscribe(resp); err != nil {
			return err
		}
	}
}

// subscribe asks for what a response refers to.
func (c *client) subscribe(resp *discoveryv3.DeltaDiscoveryResponse) error {
	var requests []*discoveryv3.DeltaDiscoveryRequest
	switch resp.GetTypeUrl() {
	case typeCluster:
		var names []string
		for _, r := range resp.GetResources() {
			if !c.asked[r.GetName()] {
				c.asked[r.GetName()] = true
				names = append(names, r.GetName())
			}
		}
		if len(names) > 0 {
			requests = append(requests, &discoveryv3.DeltaDiscoveryRequest{TypeUrl: typeEndpoint, ResourceNamesSubscribe: names},
				&discoveryv3.DeltaDiscoveryRequest{TypeUrl: typeListener})
		}
	case typeListener:
		requests = append(requests,
			&discoveryv3.DeltaDiscoveryRequest{TypeUrl: typeSecret, ResourceNamesSubscribe: []string{"tenant-server"}},
			&discoveryv3.DeltaDiscoveryRequest{TypeUrl: typeRoute, ResourceNamesSubscribe: []string{"tenants"}})
	}
	for _, req := range requests {
		if err := c.stream.Send(req); err != nil {
			return err
		}
	}
	return nil
}

// rejected is the name of a resource that a client does not take. Both kinds come
// alone; what is sent at the beginning is not looked at, for the clients share
// the server's machine.
func rejected(resp *discoveryv3.DeltaDiscoveryResponse) string {
	if len(resp.GetResources()) != 1 {
		return ""
	}
	r := resp.GetResources()[0]
	switch resp.GetTypeUrl() {
	case typeEndpoint:
		var a endpointv3.ClusterLoadAssignment
		err := proto.Unmarshal(r.GetResource().GetValue(), &a)
		if err != nil || a.GetEndpoints()[0].GetLbEndpoints()[0].GetLoadBalancingWeight().GetValue() == refusedWeight {
			return r.GetName()
		}
	case typeSecret:
		var s tlsv3.Secret
		err := proto.Unmarshal(r.GetResource().GetValue(), &s)
		if err != nil || len(s.GetTlsCertificate().GetCertificateChain().GetInlineBytes()) >= refusedChain {
			return r.GetName()
		}
	}
	return ""
}
