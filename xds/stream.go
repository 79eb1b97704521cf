package xds

import (
	"context"
	"errors"
	"io"
	"time"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/mrgc/mrgc/internal/fleet"
)

// ads is the gRPC service: delta, as Envoy is told to speak, and state of the
// world, which is all that gRPC's own clients do.
type ads struct {
	discoveryv3.UnimplementedAggregatedDiscoveryServiceServer
	server *Server
}

// DeltaAggregatedResources serves one Envoy until it goes.
func (a *ads) DeltaAggregatedResources(stream discoveryv3.AggregatedDiscoveryService_DeltaAggregatedResourcesServer) error {
	return a.serve(stream, stream.Recv, func(_ *session, resp *discoveryv3.DeltaDiscoveryResponse) error { return stream.Send(resp) })
}

// StreamAggregatedResources serves one client until it goes.
func (a *ads) StreamAggregatedResources(stream discoveryv3.AggregatedDiscoveryService_StreamAggregatedResourcesServer) error {
	asked := stateOfTheWorld{}
	receive := func() (*discoveryv3.DeltaDiscoveryRequest, error) {
		req, err := stream.Recv()
		if err != nil {
			return nil, err
		}
		return asked.delta(req), nil
	}
	return a.serve(stream, receive, func(s *session, resp *discoveryv3.DeltaDiscoveryResponse) error {
		return stream.Send(s.whole(resp))
	})
}

// serve runs a session. Its loop owns it; these things can happen:
//
//   - the Envoy asks for something or answers,
//   - what it should have changes,
//   - the stream ends.
func (a *ads) serve(
	stream grpc.ServerStream, recv func() (*discoveryv3.DeltaDiscoveryRequest, error),
	send func(*session, *discoveryv3.DeltaDiscoveryResponse) error,
) error {
	requests, failed := receive(stream.Context(), recv)
	var first *discoveryv3.DeltaDiscoveryRequest
	select {
	case first = <-requests:
	case err := <-failed:
		return err
	}
	node := first.GetNode()
	region := fleet.Region(node.GetLocality().GetRegion())
	if _, served := a.server.stages[region]; !served {
		return status.Errorf(codes.FailedPrecondition,
			"envoy %q is of region %q, which this router does not serve; check node.locality.region in its bootstrap, or SpillTo of the router", node.GetId(), region)
	}
	log := a.server.config.Logger.With("envoy", node.GetId(), "envoy_region", string(region))
	log.Info("envoy connected")
	defer log.Info("envoy gone")

	c := a.server.join(node.GetId(), region, len(first.GetInitialResourceVersions()) == 0)
	defer a.server.leave(c)
	for req := first; ; {
		if req != nil {
			if err := checkType(req.GetTypeUrl()); err != nil {
				return status.Errorf(codes.InvalidArgument, "envoy %q: %v", node.GetId(), err)
			}
			if detail := req.GetErrorDetail(); detail != nil {
				a.server.metrics.rejections.WithLabelValues(shortType(req.GetTypeUrl())).Inc()
				log.Warn("envoy rejects what it was sent; it keeps what it had, and is not sent it again",
					"type", shortType(req.GetTypeUrl()), "nack", reason(detail.GetMessage()))
			}
			c.take(req)
		}
		set, changed := a.server.view(region, node.GetId())
		for resp := c.next(set); resp != nil; resp = c.next(set) {
			if err := send(c.session, resp); err != nil {
				return err
			}
		}
		a.server.report(c)

		select {
		case req = <-requests:
		case err := <-failed:
			return err
		case <-changed:
			req = nil
		}
	}
}

func (c *connection) take(req *discoveryv3.DeltaDiscoveryRequest) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.session.request(req, time.Now())
}

func (c *connection) next(set resourceSet) *discoveryv3.DeltaDiscoveryResponse {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.session.next(set, time.Now())
}

// receive reads a stream into a channel. Its goroutine ends with the stream's
// context, that is, at the latest when the handler returns.
func receive(ctx context.Context, recv func() (*discoveryv3.DeltaDiscoveryRequest, error)) (<-chan *discoveryv3.DeltaDiscoveryRequest, <-chan error) {
	requests := make(chan *discoveryv3.DeltaDiscoveryRequest)
	failed := make(chan error, 1)
	go func() {
		for {
			req, err := recv()
			if err != nil {
				if errors.Is(err, io.EOF) || errors.Is(ctx.Err(), context.Canceled) {
					err = nil // the Envoy closed the stream
				}
				failed <- err
				return
			}
			select {
			case requests <- req:
			case <-ctx.Done():
				failed <- nil
				return
			}
		}
	}()
	return requests, failed
}
