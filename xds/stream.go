package xds

import (
	"context"
	"errors"
	"io"
	"time"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/mrgc/mrgc/internal/fleet"
)

// ads is the gRPC service. Envoy's state-of-the-world variant is not
// implemented.
type ads struct {
	discoveryv3.UnimplementedAggregatedDiscoveryServiceServer
	server *Server
}

type adsStream = discoveryv3.AggregatedDiscoveryService_DeltaAggregatedResourcesServer

// DeltaAggregatedResources serves one Envoy until it goes. The loop owns the
// session; these things can happen:
//
//   - the Envoy asks for something or answers,
//   - there is a new publication,
//   - the stream ends.
func (a *ads) DeltaAggregatedResources(stream adsStream) error {
	requests, failed := receive(stream)
	var first *discoveryv3.DeltaDiscoveryRequest
	select {
	case first = <-requests:
	case err := <-failed:
		return err
	}
	node := first.GetNode()
	region := fleet.Region(node.GetLocality().GetRegion())
	if _, served := a.server.served[region]; !served {
		return status.Errorf(codes.FailedPrecondition,
			"envoy %q is of region %q, which this router does not serve; check node.locality.region in its bootstrap, or SpillTo of the router", node.GetId(), region)
	}
	log := a.server.config.Logger.With("envoy", node.GetId(), "envoy_region", string(region))
	log.Info("envoy connected")
	defer log.Info("envoy gone")

	id := a.server.roster.join(node.GetId(), region, time.Now())
	defer a.server.roster.leave(id)
	s := newSession()
	for req := first; ; {
		if req != nil {
			if err := checkType(req.GetTypeUrl()); err != nil {
				return status.Errorf(codes.InvalidArgument, "envoy %q: %v", node.GetId(), err)
			}
			if detail := req.GetErrorDetail(); detail != nil {
				log.Warn("envoy rejects what it was sent; it keeps what it has", "type", req.GetTypeUrl(), "nack", detail.GetMessage())
			}
			s.request(req)
		}
		current, changed := a.server.feed.get()
		set := current.set(region)
		for resp := s.next(set); resp != nil; resp = s.next(set) {
			if err := stream.Send(resp); err != nil {
				return err
			}
		}
		a.server.roster.record(id, s.status(set), time.Now())

		select {
		case req = <-requests:
		case err := <-failed:
			return err
		case <-changed:
			req = nil
		}
	}
}

// receive reads a stream into a channel. Its goroutine ends with the stream's
// context, that is, at the latest when the handler returns.
func receive(stream adsStream) (<-chan *discoveryv3.DeltaDiscoveryRequest, <-chan error) {
	requests := make(chan *discoveryv3.DeltaDiscoveryRequest)
	failed := make(chan error, 1)
	go func() {
		for {
			req, err := stream.Recv()
			if err != nil {
				if errors.Is(err, io.EOF) || errors.Is(stream.Context().Err(), context.Canceled) {
					err = nil // the Envoy closed the stream
				}
				failed <- err
				return
			}
			select {
			case requests <- req:
			case <-stream.Context().Done():
				failed <- nil
				return
			}
		}
	}()
	return requests, failed
}
