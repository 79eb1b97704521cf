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
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"golang.org/x/sync/errgroup"

	"github.com/mrgc/mrgc/extproc"
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
