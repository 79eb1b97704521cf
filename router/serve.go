package router

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"time"

	accesslogv3 "github.com/envoyproxy/go-control-plane/envoy/service/accesslog/v3"
	extprocv3 "github.com/envoyproxy/go-control-plane/envoy/service/ext_proc/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"

	"github.com/mrgc/mrgc/internal/api"
	"github.com/mrgc/mrgc/internal/fleet"
	"github.com/mrgc/mrgc/internal/identity"
)

func (r *Router) serveGRPC(ctx context.Context, l net.Listener) error {
	config := r.config.Identity.ServerTLS(func(id identity.ID) bool { return r.isEnvoy(id) || id == routerOf(fleet.Region(id.Region)) })
	config.NextProtos = []string{"h2"}
	server := grpc.NewServer(
		grpc.Creds(credentials.NewTLS(config)),
		grpc.StreamInterceptor(r.admitStream),
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: 30 * time.Second, Timeout: 10 * time.Second}),
		// Package envoy's pings come every second.
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 500 * time.Millisecond, PermitWithoutStream: true}),
	)
	r.xds.Register(server)
	extprocv3.RegisterExternalProcessorServer(server, r.picker)
	accesslogv3.RegisterAccessLogServiceServer(server, r.picker)
	server.RegisterService(&peersDesc, r.peers)
	healthpb.RegisterHealthServer(server, health.NewServer())
	stop := context.AfterFunc(ctx, server.Stop) // streams never end by themselves, and Envoy reconnects
	defer stop()
	if err := server.Serve(l); err != nil && ctx.Err() == nil {
		return fmt.Errorf("router: serve gRPC: %w", err)
	}
	return nil
}

// admitStream keeps Envoys and routers to what is each one's own, and other regions'
// routers to what they may hear.
func (r *Router) admitStream(service any, stream grpc.ServerStream, info *grpc.StreamServerInfo, handle grpc.StreamHandler) error {
	who, err := callerOf(stream.Context())
	own := who.Region == string(r.config.Region) && r.isEnvoy(who) != isRouter(info.FullMethod)
	if err != nil || !own && !r.isRouterAbroad(who, info.FullMethod) {
		return status.Error(codes.PermissionDenied, "this service is not for "+who.String())
	}
	return handle(service, stream)
}

// callerOf is who has the other end of a connection.
func callerOf(ctx context.Context) (identity.ID, error) {
	caller, ok := peer.FromContext(ctx)
	if !ok {
		return identity.ID{}, errors.New("no peer")
	}
	info, ok := caller.AuthInfo.(credentials.TLSInfo)
	if !ok || len(info.State.PeerCertificates) == 0 {
		return identity.ID{}, errors.New("no certificate")
	}
	return identity.Of(info.State.PeerCertificates[0])
}

// isEnvoy admits this region's Envoys.
func (r *Router) isEnvoy(id identity.ID) bool {
	return id == identity.ID{Region: string(r.config.Region), Role: identity.RoleEnvoy}
}

func (r *Router) serveHTTP(ctx context.Context, l net.Listener) error {
	mux := http.NewServeMux()
	mux.HandleFunc("GET "+api.PathKeys, r.serveKeys)
	mux.HandleFunc("GET "+api.PathModels, r.serveModels)
	mux.HandleFunc("GET "+api.PathDoor, r.serveDoor)
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusOK) })
	server := &http.Server{
		Handler:           mux,
		TLSConfig:         r.config.Identity.ServerTLS(r.isEnvoy),
		ReadHeaderTimeout: 10 * time.Second,
		ErrorLog:          slog.NewLogLogger(r.log.Handler(), slog.LevelDebug),
	}
	return serveUntil(ctx, server, l, true)
}

func requireLoopback(l net.Listener) error {
	if addr, ok := l.Addr().(*net.TCPAddr); !ok || !addr.IP.IsLoopback() {
		return fmt.Errorf("router: the admin listens without authentication and so on loopback only, not on %s", l.Addr())
	}
	return nil
}

func serveUntil(ctx context.Context, server *http.Server, l net.Listener, useTLS bool) error {
	stop := context.AfterFunc(ctx, func() { _ = server.Close() })
	defer stop()
	serve := func() error { return server.Serve(l) }
	if useTLS {
		serve = func() error { return server.ServeTLS(l, "", "") }
	}
	if err := serve(); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("router: serve on %s: %w", l.Addr(), err)
	}
	return nil
}
