package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"

	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	accesslogv3 "github.com/envoyproxy/go-control-plane/envoy/service/accesslog/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/mrgc/mrgc/bench/rig"
	"github.com/mrgc/mrgc/internal/credential"
	"github.com/mrgc/mrgc/internal/identity"
	"github.com/mrgc/mrgc/xds"
)

// serveWithoutPicker is the part that tells an Envoy what a router would, but
// that there is a picker; it reads access logs and does nothing with them.
func serveWithoutPicker(ctx context.Context, c rig.RouterConfig) (any, error) {
	source, err := identity.Open(ctx, "dir:"+filepath.Join(c.Dir, string(identity.RoleRouter)), "")
	if err != nil {
		return nil, err
	}
	server, err := xds.New(c.XDS())
	if err != nil {
		return nil, err
	}
	certPEM, certErr := os.ReadFile(filepath.Join(c.Dir, "tenant.crt"))
	keyPEM, keyErr := os.ReadFile(filepath.Join(c.Dir, "tenant.key"))
	if err := errors.Join(certErr, keyErr); err != nil {
		return nil, err
	}
	token, err := credential.ParseDigest(c.EdgeToken)
	if err != nil {
		return nil, err
	}
	tenants, err := rig.Tenants(c.Tenant, token)
	if err := errors.Join(err, server.SetTenantCertificate(certPEM, keyPEM)); err != nil {
		return nil, err
	}
	server.SetTenants(tenants.Set())
	listener, err := net.Listen("tcp", c.GRPC)
	if err != nil {
		return nil, err
	}
	config := source.ServerTLS(func(id identity.ID) bool { return id.Role == identity.RoleEnvoy })
	config.NextProtos = []string{"h2"}
	g := grpc.NewServer(grpc.Creds(credentials.NewTLS(config)), grpc.StreamInterceptor(
		func(srv any, stream grpc.ServerStream, _ *grpc.StreamServerInfo, handler grpc.StreamHandler) error {
			return handler(srv, withoutPicker{stream})
		}))
	server.Register(g)
	accesslogv3.RegisterAccessLogServiceServer(g, unread{})
	go func() { _ = server.Run(ctx) }()
	go func() {
		for snapshot := range c.Store().Watch(ctx) {
			server.Update(snapshot)
		}
	}()
	go func() { _ = g.Serve(listener) }()
	return struct{}{}, nil
}

// withoutPicker is an Envoy's stream on which no listener has the picker.
type withoutPicker struct{ grpc.ServerStream }

func (s withoutPicker) SendMsg(m any) error {
	if response, ok := m.(*discoveryv3.DeltaDiscoveryResponse); ok {
		changed := proto.Clone(response).(*discoveryv3.DeltaDiscoveryResponse)
		for _, resource := range changed.GetResources() {
			if err := removePicker(resource); err != nil {
				return err
			}
		}
		m = changed
	}
	return s.ServerStream.SendMsg(m)
}

func removePicker(resource *discoveryv3.Resource) error {
	var listener listenerv3.Listener
	if resource.GetName() != "tenants" || !resource.GetResource().MessageIs(&listener) {
		return nil
	}
	if err := resource.GetResource().UnmarshalTo(&listener); err != nil {
		return err
	}
	filter := listener.GetFilterChains()[0].GetFilters()[0]
	var manager hcmv3.HttpConnectionManager
	if err := filter.GetTypedConfig().UnmarshalTo(&manager); err != nil {
		return err
	}
	before := len(manager.GetHttpFilters())
	manager.HttpFilters = slices.DeleteFunc(manager.GetHttpFilters(), func(f *hcmv3.HttpFilter) bool { return f.GetName() == "envoy.filters.http.ext_proc" })
	if len(manager.GetHttpFilters()) != before-1 {
		return fmt.Errorf("listener %s has no picker to leave out", resource.GetName())
	}
	packed, err := anypb.New(&manager)
	if err != nil {
		return err
	}
	filter.ConfigType = &listenerv3.Filter_TypedConfig{TypedConfig: packed}
	resource.Resource, err = anypb.New(&listener)
	return err
}

// unread takes access logs.
type unread struct {
	accesslogv3.UnimplementedAccessLogServiceServer
}

func (unread) StreamAccessLogs(stream accesslogv3.AccessLogService_StreamAccessLogsServer) error {
	for {
		if _, err := stream.Recv(); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
	}
}
