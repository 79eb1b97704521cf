// Package router is the process beside each region's Envoys: it tells them
// where instances are (package xds), picks an instance for each request
// (package extproc), and serves the recipients that requests are sealed to. It
// follows the load of its region's instances by their parents' reports, and what
// the region's other routers have in flight there (see package peers).
//
// All of them look at one immutable view of the fleet, which the router follows
// in the store. A store that has gone leaves the last view in place; a router
// that has gone leaves Envoy with its last configuration and weights.
//
// A router listens on three ports: gRPC for Envoy (xDS, ext_proc, access log) and
// for the region's other routers, HTTPS for Envoy (recipients, models), both
// mutual TLS, and the operator's admin on loopback.
package router

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	accesslogv3 "github.com/envoyproxy/go-control-plane/envoy/service/accesslog/v3"
	extprocv3 "github.com/envoyproxy/go-control-plane/envoy/service/ext_proc/v3"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"

	"github.com/mrgc/mrgc/extproc"
	"github.com/mrgc/mrgc/internal/api"
	"github.com/mrgc/mrgc/internal/fleet"
	"github.com/mrgc/mrgc/internal/identity"
	"github.com/mrgc/mrgc/internal/tenant"
	"github.com/mrgc/mrgc/xds"
)

// Config says what a router serves. Every field without a default is required.
type Config struct {
	Region fleet.Region
	// Settings are those that [Router.SetSettings] may change.
	Settings
	Tenants *tenant.Keeper // holds the signed list of them
	XDS     xds.Config     // what the router does not fill in itself: addresses, intervals
	// Peers are the gRPC ports of the region's other routers, "host:port" each. A
	// host with several addresses is several routers, looked up again and again;
	// this router may be among them. Default: it is the only one.
	Peers []string
	// PeersAbroad are likewise those of other regions, of which only what they have found
	// out of versions on trial is heard, and what tenants have used of their limits.
	// Default: each region judges by itself, and a tenant has its limits in each.
	PeersAbroad map[fleet.Region][]string

	// Rollback sets the weight of a version to 0 where every router takes it from, and
	// records why; [ErrDivided] when that is not what there is to do any more. It may be
	// called by every router at the same time. Default: nobody can.
	Rollback func(Rollback) error
	// CanaryWarmUp is how long requests are passed over after weights have changed;
	// default as in package controller/canary.
	CanaryWarmUp time.Duration

	// Inspection is which releases the enclaves should be of; nil: nobody looks.
	Inspection *Inspection

	// Drained says which regions are being drained: their Envoys send connections away,
	// and requests go there when no other region can serve them. It is asked every two
	// seconds; when it fails, what it said last holds. Default: none ever is.
	Drained func(context.Context) (map[fleet.Region]bool, error)
	// EnvoyAdmins are the loopback addresses, "IP:port", of the admins of the Envoys
	// beside this router, which it has drain.
	EnvoyAdmins []string

	Store    fleet.Store
	Identity *identity.Source
	// TenantCertificate and TenantKey are PEM files of the certificate that
	// tenants see. They are read again when they change.
	TenantCertificate, TenantKey string
	// TenantClientCA is a PEM file of the CAs whose certificates tenants may show,
	// likewise. Default: none, and no certificate is asked for.
	TenantClientCA string

	Logger *slog.Logger // default: none
}

// Listeners are the router's ports.
type Listeners struct {
	GRPC, HTTP net.Listener // mutual TLS is added here
	Admin      net.Listener // plain HTTP: loopback only
}

// Router is the process. It is made by New and used once.
type Router struct {
	config     Config
	log        *slog.Logger
	started    time.Time
	view       atomic.Pointer[fleet.Snapshot]
	applying   sync.Mutex               // held while settings, tenants or ways are shown: the newest of all
	settings   atomic.Pointer[Settings] // never nil
	versions   versions
	tenants    atomic.Pointer[tenant.Set] // with the restrictions; nil before the first list
	changed    chan struct{}              // the view has
	xds        *xds.Server
	picker     *extproc.Picker
	recipients *collector
	judges     *judges
	inspector  *inspector // nil: nobody looks
	loads      *loads
	scores     *scores
	peers      *exchange
	abroad     []*exchange
	metrics    *prometheus.Registry
	trips      *roundTrips
	ways       atomic.Pointer[ways]
	spillTo    []fleet.Region            // of New, then guarded by applying: where ways lead now
	waysOf     *Settings                 // likewise: by which they were worked out
	orders     map[string][]fleet.Region // likewise: what Envoys were told last
	drained    map[fleet.Region]bool     // likewise: which regions are

	certificatePoll time.Duration
	loaded          [3]int64 // versions of the tenant certificate's files; of Run, then of the goroutine that watches them
}

// New checks the configuration and builds the parts.
func New(config Config) (*Router, error) {
	if config.Logger == nil {
		config.Logger = slog.New(slog.DiscardHandler)
	}
	if config.Store == nil || config.Identity == nil || config.Tenants == nil {
		return nil, errors.New("router: store, identity and tenants are required")
	}
	want := routerOf(config.Region)
	if self := config.Identity.ID(); self != want {
		return nil, fmt.Errorf("router: identity is %s, want %s", self, want)
	}
	r := &Router{
		config: config, log: config.Logger.With("region", config.Region), started: time.Now(),
		changed: make(chan struct{}, 1), metrics: prometheus.NewRegistry(), certificatePoll: certificatePoll,
	}
	r.settings.Store(&config.Settings)
	r.versions.took(config.Version, r.started)
	r.metrics.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	r.recipients = newCollector(&http.Client{Transport: &http.Transport{
		TLSClientConfig:     config.Identity.ClientTLS(func(id identity.ID) bool { return id.Role == identity.RoleParent }),
		ForceAttemptHTTP2:   true,
		MaxIdleConnsPerHost: 1,
		IdleConnTimeout:     2 * documentRefresh,
	}}, r.log)

	r.judges = newJudges(&config, r.log)
	r.trips = &roundTrips{configured: func() map[fleet.Region]time.Duration { return r.settings.Load().RoundTrips }}
	spillTo := func() []fleet.Region { return r.settings.Load().SpillTo }
	r.loads = newLoads(config.Region, spillTo, r.trips, config.Identity, r.heard, r.log)
	if r.config.XDS.Weight == nil {
		r.config.XDS.Weight = r.weight
	}
	if config.Inspection != nil {
		r.inspector = newInspector(*config.Inspection, r.log)
		r.recipients.inspect = r.inspector.inspect
		r.metrics.MustRegister(r.inspector)
	}
	r.scores = newScores(r.config.XDS.Weight, r.view.Load)
	if err := errors.Join(registerLoadMetrics(r.metrics, config.Region, &r.loads.tracker), r.scores.register(r.metrics, config.Region),
		registerTripMetrics(r.metrics, config.Region, r.trips, spillTo)); err != nil {
		return nil, fmt.Errorf("router: %w", err)
	}
	err := checkEnvoyAdmins(config.EnvoyAdmins)
	if err != nil {
		return nil, fmt.Errorf("router: %w", err)
	}
	if r.xds, err = xds.New(r.xdsConfig()); err != nil {
		return nil, fmt.Errorf("router: %w", err)
	}
	r.xds.SetSplits(config.Splits)
	if err := errors.Join(r.judges.set(&config.Settings, r.started), r.judges.register(r.metrics)); err != nil {
		return nil, fmt.Errorf("router: %w", err)
	}
	r.updateWays()
	r.picker, err = extproc.New(extproc.Config{
		Region:   config.Region,
		Settings: config.picker(),
		Way:      r.way,
		View:     r.view.Load,
		Admit: func(name string, bearer []byte, now time.Time) (*tenant.Tenant, error) {
			return r.tenants.Load().AdmitToEdge(name, bearer, now)
		},
		AdmitCertificate: func(name string, san tenant.SAN, now time.Time) (*tenant.Tenant, error) {
			return r.tenants.Load().AdmitCertificate(name, san, now)
		},
		Split:   r.split,
		Ended:   r.judges.observe,
		Report:  r.reported,
		Logger:  r.log,
		Metrics: r.metrics,
	})
	if err != nil {
		return nil, fmt.Errorf("router: %w", err)
	}
	if r.peers, err = newExchange(&config, r.picker, r.judges, r.log); err != nil {
		return nil, fmt.Errorf("router: %w", err)
	}
	for region := range config.PeersAbroad {
		abroad, err := newExchangeAbroad(&config, region, r.picker, r.judges, r.log)
		if err != nil {
			return nil, fmt.Errorf("router: %w", err)
		}
		r.abroad = append(r.abroad, abroad)
	}
	r.showTenants()
	if err := errors.Join(registerPeerMetrics(r.metrics, config.Region, r.peers), r.registerTenantMetrics(),
		registerConfigMetrics(r.metrics, config.Region, &r.versions)); err != nil {
		return nil, fmt.Errorf("router: %w", err)
	}
	return r, nil
}

// xdsConfig is package xds's, with what the router fills in.
func (r *Router) xdsConfig() xds.Config {
	config, settings := r.config.XDS, r.config.xds(r.config.Region)
	config.SpillTo, config.Prefer, config.Models, config.StaleAfter = settings.SpillTo, settings.Prefer, settings.Models, settings.StaleAfter
	config.MessageTimeout, config.ResponseIdleTimeout = settings.MessageTimeout, settings.ResponseIdleTimeout
	config.MaxBodyBytes = settings.MaxBodyBytes
	config.Metrics = r.metrics
	return config
}

func (r *Router) models() []string { return r.settings.Load().Models }

// Run serves until ctx ends, and closes the listeners.
func (r *Router) Run(ctx context.Context, on Listeners) error {
	if err := errors.Join(requireLoopback(on.Admin), r.loadTenantCertificate()); err != nil {
		return errors.Join(err, on.GRPC.Close(), on.HTTP.Close(), on.Admin.Close())
	}
	defer r.recipients.client.CloseIdleConnections()
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return r.serveGRPC(ctx, on.GRPC) })
	group.Go(func() error { return r.serveHTTP(ctx, on.HTTP) })
	group.Go(func() error { return r.serveAdmin(ctx, on.Admin) })
	group.Go(func() error { r.follow(ctx); return nil })
	group.Go(func() error { r.collect(ctx); return nil })
	group.Go(func() error { r.peers.run(ctx); return nil })
	for _, abroad := range r.abroad {
		group.Go(func() error { abroad.run(ctx); return nil })
	}
	group.Go(func() error { r.judges.run(ctx); return nil })
	group.Go(func() error { r.keepWays(ctx); return nil })
	group.Go(func() error { r.watchTenantCertificate(ctx); return nil })
	if r.config.Drained != nil {
		group.Go(func() error { r.followDrains(ctx); return nil })
	}
	group.Go(func() error { r.followTenants(ctx); return nil })
	group.Go(func() error { return r.xds.Run(ctx) })
	return group.Wait()
}

func requireLoopback(l net.Listener) error {
	if addr, ok := l.Addr().(*net.TCPAddr); !ok || !addr.IP.IsLoopback() {
		return fmt.Errorf("router: the admin listens without authentication and so on loopback only, not on %s", l.Addr())
	}
	return nil
}

// follow shows each new snapshot to the picker and to Envoy, and to those who
// follow the load of its instances. It never waits for an instance.
func (r *Router) follow(ctx context.Context) {
	defer r.loads.stop()
	for snapshot := range r.config.Store.Watch(ctx) {
		r.view.Store(snapshot)
		r.xds.Update(snapshot)
		ready := snapshot.Ready(r.settings.Load().StaleAfter)
		r.scores.keep(ready)
		r.loads.update(ctx, ready)
		select {
		case r.changed <- struct{}{}:
		default: // collect has yet to look at the change before
		}
	}
}

// collect keeps the recipients up to date: after each change, and as documents
// age.
func (r *Router) collect(ctx context.Context) {
	tick := time.NewTicker(documentRefresh / 4)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-r.changed:
		case <-tick.C:
		}
		if snapshot := r.view.Load(); snapshot != nil {
			r.recipients.refresh(ctx, snapshot, time.Now())
			if r.inspector != nil {
				r.inspector.forget(snapshot)
				r.inspector.recheck(time.Now())
			}
		}
	}
}

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

// serveAdmin serves the operator: pages, and on the same port, over HTTP/2
// without TLS, the client status discovery service for tools that speak xDS.
func (r *Router) serveAdmin(ctx context.Context, l net.Listener) error {
	statuses := grpc.NewServer()
	r.xds.RegisterStatus(statuses)
	defer statuses.Stop()
	pages := r.adminHandler()
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	protocols.SetUnencryptedHTTP2(true)
	return serveUntil(ctx, &http.Server{
		ReadHeaderTimeout: 10 * time.Second, Protocols: protocols,
		Handler: http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
			if req.ProtoMajor == 2 && strings.HasPrefix(req.Header.Get("Content-Type"), "application/grpc") {
				statuses.ServeHTTP(w, req)
				return
			}
			pages.ServeHTTP(w, req)
		}),
	}, l, false)
}

// missingRecipients lists the ready instances whose documents are not there yet.
func (r *Router) missingRecipients() []string {
	var missing []string
	if snapshot := r.view.Load(); snapshot != nil {
		for _, in := range snapshot.Ready(r.settings.Load().StaleAfter) {
			if !slices.ContainsFunc(in.KeyIDs, func(kid string) bool { h, ok := r.recipients.get(kid); return ok && !h.shared }) {
				missing = append(missing, in.ID)
			}
		}
	}
	return missing
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

// certificatePoll is how soon a renewed tenant certificate is taken up.
const certificatePoll = 5 * time.Second

// loadTenantCertificate takes the files up as they are now.
func (r *Router) loadTenantCertificate() error {
	r.loaded = r.tenantFiles()
	certPEM, err := os.ReadFile(r.config.TenantCertificate)
	if err != nil {
		return fmt.Errorf("router: tenant certificate: %w", err)
	}
	keyPEM, err := os.ReadFile(r.config.TenantKey)
	if err != nil {
		return fmt.Errorf("router: tenant key: %w", err)
	}
	if r.config.TenantClientCA != "" {
		clients, err := os.ReadFile(r.config.TenantClientCA)
		if err != nil {
			return fmt.Errorf("router: CA of tenants' certificates: %w", err)
		}
		if err := r.xds.SetTenantClientCA(clients); err != nil {
			return fmt.Errorf("router: %s: %w", r.config.TenantClientCA, err)
		}
	}
	return r.xds.SetTenantCertificate(certPEM, keyPEM)
}

// watchTenantCertificate pushes a renewed certificate by SDS. One that does not
// load leaves the present one in place.
func (r *Router) watchTenantCertificate(ctx context.Context) {
	ticker := time.NewTicker(r.certificatePoll)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		if r.tenantFiles() == r.loaded {
			continue
		}
		if err := r.loadTenantCertificate(); err != nil {
			r.log.Error("renewed tenant certificate does not load; the old one stays", "error", err)
		}
	}
}

// tenantFiles says which versions of certificate, key and CA lie there, by their
// times: any may be written first.
func (r *Router) tenantFiles() (versions [3]int64) {
	for i, path := range []string{r.config.TenantCertificate, r.config.TenantKey, r.config.TenantClientCA} {
		if info, err := os.Stat(path); err == nil {
			versions[i] = info.ModTime().UnixNano()
		}
	}
	return versions
}
