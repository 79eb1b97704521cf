package xds

import (
	"context"
	"errors"
	"io"
	"time"

	adminv3 "github.com/envoyproxy/go-control-plane/envoy/admin/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	csdsv3 "github.com/envoyproxy/go-control-plane/envoy/service/status/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/timestamppb"
)

// csds is the client status discovery service: what /envoys says, for tools that
// speak xDS. It shows names and versions, and no content: secrets are among it.
type csds struct {
	csdsv3.UnimplementedClientStatusDiscoveryServiceServer
	server *Server
}

// FetchClientStatus answers once.
func (c *csds) FetchClientStatus(_ context.Context, req *csdsv3.ClientStatusRequest) (*csdsv3.ClientStatusResponse, error) {
	return c.server.clientStatus(req)
}

// StreamClientStatus answers each request.
func (c *csds) StreamClientStatus(stream csdsv3.ClientStatusDiscoveryService_StreamClientStatusServer) error {
	for {
		req, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		resp, err := c.server.clientStatus(req)
		if err != nil {
			return err
		}
		if err := stream.Send(resp); err != nil {
			return err
		}
	}
}

func (s *Server) clientStatus(req *csdsv3.ClientStatusRequest) (*csdsv3.ClientStatusResponse, error) {
	nodes := map[string]bool{}
	for _, m := range req.GetNodeMatchers() {
		exact, is := m.GetNodeId().GetMatchPattern().(*matcherv3.StringMatcher_Exact)
		if !is || len(m.GetNodeMetadatas()) > 0 {
			return nil, status.Error(codes.InvalidArgument, "node_matchers: node_id.exact is all that is served")
		}
		nodes[exact.Exact] = true
	}
	out := &csdsv3.ClientStatusResponse{}
	for _, c := range s.roster.list() {
		if len(nodes) > 0 && !nodes[c.node] {
			continue
		}
		published, _, _ := s.stages[c.region].show(c.node)
		c.mu.Lock()
		resources := c.session.resources(published)
		c.mu.Unlock()
		config := &csdsv3.ClientConfig{Node: &corev3.Node{Id: c.node, Locality: &corev3.Locality{Region: string(c.region)}}}
		for _, r := range resources {
			config.GenericXdsConfigs = append(config.GenericXdsConfigs, r.generic())
		}
		out.Config = append(out.Config, config)
	}
	return out, nil
}

func (r resourceStatus) generic() *csdsv3.ClientConfig_GenericXdsConfig {
	out := &csdsv3.ClientConfig_GenericXdsConfig{
		TypeUrl: r.typeURL, Name: r.name, VersionInfo: r.accepted.version, LastUpdated: timestamp(r.accepted.at),
		ClientStatus: adminv3.ClientResourceStatus_REQUESTED,
	}
	if r.accepted.version != "" {
		out.ClientStatus = adminv3.ClientResourceStatus_ACKED
	}
	switch r.state {
	case Synced:
		out.ConfigStatus = csdsv3.ConfigStatus_SYNCED
	case Stale:
		out.ConfigStatus = csdsv3.ConfigStatus_STALE
	case NotSent:
		out.ConfigStatus = csdsv3.ConfigStatus_NOT_SENT
	case Rejected:
		out.ConfigStatus, out.ClientStatus = csdsv3.ConfigStatus_ERROR, adminv3.ClientResourceStatus_NACKED
		out.ErrorState = &adminv3.UpdateFailureState{
			Details: r.rejected.message, VersionInfo: r.published, LastUpdateAttempt: timestamp(r.rejected.at),
		}
	}
	return out
}

func timestamp(at time.Time) *timestamppb.Timestamp {
	if at.IsZero() {
		return nil
	}
	return timestamppb.New(at)
}
