package main

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"github.com/mrgc/mrgc/controller"
	"github.com/mrgc/mrgc/internal/attest"
	"github.com/mrgc/mrgc/internal/audit"
	"github.com/mrgc/mrgc/internal/audit/cloudwatchlogs"
	"github.com/mrgc/mrgc/internal/config"
	"github.com/mrgc/mrgc/internal/fleet"
	"github.com/mrgc/mrgc/internal/fleet/open"
	"github.com/mrgc/mrgc/internal/identity"
	"github.com/mrgc/mrgc/internal/lockdown"
	releasefollow "github.com/mrgc/mrgc/internal/release/follow"
	stateopen "github.com/mrgc/mrgc/internal/state/open"
	"github.com/mrgc/mrgc/internal/tenant/follow"
	"github.com/mrgc/mrgc/router"
	"github.com/mrgc/mrgc/xds"
)

type routerOptions struct {
	config, store, identity   string
	grpc, http, admin         string
	tenantAddress, healthAddr string
	tenantCert, tenantKey     string
	peers                     []string
	tenants, tenantsKey       string
	releases, releasesKey     string
	developmentRoot           string
	audit, auditCopy          string
	state                     string
	envoyAdmins               []string
}

func routerCommand() *cobra.Command {
	var o routerOptions
	cmd := &cobra.Command{
		Use:   "router",
		Short: "Run a region's router: xDS server, picker, recipients, admin",
		Args:  cobra.NoArgs,
		RunE:  func(cmd *cobra.Command, _ []string) error { return runRouter(cmd.Context(), o, logger(cmd)) },
	}
	f := cmd.Flags()
	f.StringVar(&o.config, "config", "mrgc.yaml", "the cluster's configuration")
	f.StringVar(&o.store, "store", "", "fleet store: "+open.Forms)
	f.StringVar(&o.identity, "identity", "", "identity for mutual TLS: dir:PATH, or unix:PATH with MRGC_IDENTITY_TOKEN")
	f.StringVar(&o.grpc, "grpc-listen", ":9001", "xDS, ext_proc and access log, for this region's Envoys by mutual TLS")
	f.StringVar(&o.http, "http-listen", ":9002", "recipients and models, for this region's Envoys by mutual TLS")
	f.StringVar(&o.admin, "admin-listen", "127.0.0.1:9003", "operator's admin, loopback only")
	f.StringVar(&o.tenantAddress, "tenant-address", "", "IP:port that Envoy serves tenants on (default 0.0.0.0 and the configuration's port)")
	f.StringVar(&o.healthAddr, "health-address", "", "IP:port that Envoy serves health on (default likewise)")
	f.StringVar(&o.tenantCert, "tenant-cert", "", "PEM file of the certificate that tenants see")
	f.StringVar(&o.tenantKey, "tenant-key", "", "PEM file of its key")
	f.StringArrayVar(&o.peers, "peer", nil, "host:port of another router's gRPC of this region, by mutual TLS (repeat); a host with several\naddresses is as many routers, of which this one may be one. REGION=host:port is one of another region, of which is heard\nwhat it has found out of versions on trial and what tenants have used of their limits; give either none of these, or those of every other region")
	f.StringVar(&o.tenants, "tenants", "", "the list of tenants that mrgc tenants sign made, taken again when it changes")
	f.StringVar(&o.tenantsKey, "tenants-key", "", "PEM file of the key that verifies it")
	f.StringVar(&o.releases, "releases", "", "signed manifest of enclave releases, taken again when it changes: enclaves that are none of them are reported (default: nobody looks)")
	f.StringVar(&o.releasesKey, "releases-key", "", "PEM file of the key that verifies it")
	f.StringVar(&o.developmentRoot, "trust-development-root", "", "PEM file of a development root to verify enclaves by, in place of AWS's")
	f.StringVar(&o.audit, "audit", "", "file for what an auditor asks about: release changes, refused attestation; appended to, with hashes that chain it")
	f.StringVar(&o.auditCopy, "audit-cloudwatch", "", "CloudWatch log group to which it is copied as it grows, GROUP[?region=REGION&endpoint=URL],\nin a stream with this machine's name")
	f.StringVar(&o.state, "state", "", "state store, for which regions are drained: "+stateopen.Forms+" (default: none ever is)")
	f.StringArrayVar(&o.envoyAdmins, "envoy-admin", nil, "IP:port of the admin of an Envoy beside this router, on loopback, which it has drain with the region (repeat)")
	cmd.MarkFlagsRequiredTogether("releases", "releases-key")
	required(cmd, "store", "identity", "tenant-cert", "tenant-key", "tenants", "tenants-key")
	return cmd
}

func runRouter(ctx context.Context, o routerOptions, log *slog.Logger) (err error) {
	if err := errors.Join(lockdown.NoDumps(), lockdown.Untraceable()); err != nil {
		return err
	}
	cluster, err := config.Load(o.config)
	if err != nil {
		return err
	}
	self, err := identity.Open(ctx, o.identity, os.Getenv("MRGC_IDENTITY_TOKEN"))
	if err != nil {
		return err
	}
	store, err := open.Store(ctx, o.store, log)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, store.Close()) }()
	settings, err := routerConfig(cluster, fleet.Region(self.ID().Region), o)
	if err != nil {
		return err
	}
	tenants, err := follow.Open(o.tenants, o.tenantsKey, log)
	if err != nil {
		return err
	}
	settings.Store, settings.Identity, settings.Logger, settings.XDS.Logger = store, self, log, log
	settings.Tenants = tenants.Keeper()
	settings.Rollback = rollBack(o.config, settings.Region, log)
	inspection, err := o.inspection(ctx, log)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, inspection.close()) }()
	settings.Inspection = inspection.config
	settings.EnvoyAdmins = o.envoyAdmins
	if o.state != "" {
		states, err := stateopen.Store(ctx, o.state, log)
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, states.Close()) }()
		settings.Drained = func(ctx context.Context) (map[fleet.Region]bool, error) { return controller.Drained(ctx, states) }
	}
	r, err := router.New(settings)
	if err != nil {
		return err
	}
	var on router.Listeners
	for _, port := range []struct {
		address string
		into    *net.Listener
	}{{o.grpc, &on.GRPC}, {o.http, &on.HTTP}, {o.admin, &on.Admin}} {
		if *port.into, err = net.Listen("tcp", port.address); err != nil {
			return err
		}
	}
	following, stop := context.WithCancel(ctx)
	var followed sync.WaitGroup
	followed.Go(func() { tenants.Run(following) })
	followed.Go(func() { followConfig(following, o.config, cluster, settings, r, log) })
	followed.Go(func() { inspection.run(following) })
	defer followed.Wait()
	defer stop()
	log.Info("routing", "identity", self.ID(), "admin", o.admin)
	return r.Run(ctx, on)
}

// inspection is what keeps an eye on the fleet's enclaves.
type inspection struct {
	config *router.Inspection // nil: nobody looks
	run    func(context.Context)
	close  func() error
}

func (o *routerOptions) inspection(ctx context.Context, log *slog.Logger) (inspection, error) {
	none := inspection{run: func(context.Context) {}, close: func() error { return nil }}
	if o.auditCopy != "" && o.audit == "" {
		return none, errors.New("--audit-cloudwatch without --audit: there is nothing to copy")
	}
	if o.releases == "" {
		if o.audit != "" {
			return none, errors.New("--audit without --releases: there would be nothing to write")
		}
		return none, nil
	}
	manifest, err := releasefollow.Open(o.releases, o.releasesKey, log)
	if err != nil {
		return none, err
	}
	found := inspection{config: &router.Inspection{Manifest: manifest.Manifest, Roots: []*x509.Certificate{attest.AWSRoot()}}, run: manifest.Run, close: none.close}
	if o.developmentRoot != "" {
		root, err := readCertificate(o.developmentRoot)
		if err != nil {
			return none, fmt.Errorf("--trust-development-root: %w", err)
		}
		found.config.Roots = []*x509.Certificate{root}
	}
	if o.audit == "" {
		return found, nil
	}
	records, err := audit.Open(o.audit)
	if err != nil {
		return none, err
	}
	host, err := os.Hostname()
	if err != nil {
		return none, err
	}
	stopCopying, err := cloudwatchlogs.Start(ctx, o.auditCopy, "router/"+host, o.audit, log)
	if err != nil {
		return none, fmt.Errorf("--audit-cloudwatch: %w", errors.Join(err, records.Close()))
	}
	found.close = func() error {
		stopCopying()
		return records.Close()
	}
	found.config.Record = func(events ...audit.Event) {
		if err := records.Append(time.Now(), events...); err != nil {
			log.Error("AUDIT LOG FAILS", "error", err)
		}
	}
	return found, nil
}

// routerConfig is what mrgc.yaml says to one region's router.
func routerConfig(cluster *config.Config, region fleet.Region, o routerOptions) (router.Config, error) {
	if cluster.Region(region) == nil {
		return router.Config{}, fmt.Errorf("%s has no region %q, which this router's identity names", o.config, region)
	}
	tenantAddress, err := addressOr(o.tenantAddress, cluster.Listeners.TenantPort)
	if err != nil {
		return router.Config{}, fmt.Errorf("--tenant-address: %w", err)
	}
	healthAddress, err := addressOr(o.healthAddr, cluster.Listeners.HealthPort)
	if err != nil {
		return router.Config{}, fmt.Errorf("--health-address: %w", err)
	}
	peers, abroad, err := splitPeers(cluster, region, o.peers)
	if err != nil {
		return router.Config{}, err
	}
	return router.Config{
		Region: region, Settings: routerSettings(cluster, region, len(abroad) > 0),
		TenantCertificate: o.tenantCert, TenantKey: o.tenantKey, TenantClientCA: cluster.TenantClientCA,
		Peers: peers, PeersAbroad: abroad,
		XDS: xds.Config{Region: region, TenantAddress: tenantAddress, HealthAddress: healthAddress},
	}, nil
}

// falsePerDay is how many false verdicts a day cost a version on trial at most, on
// average, of all regions' routers.
const falsePerDay = 0.01

// splitPeers tells the region's peers from those of other regions.
func splitPeers(cluster *config.Config, own fleet.Region, given []string) (peers []string, abroad map[fleet.Region][]string, err error) {
	abroad = map[fleet.Region][]string{}
	for _, peer := range given {
		region, address, elsewhere := strings.Cut(peer, "=")
		switch {
		case !elsewhere:
			peers = append(peers, peer)
		case region == string(own) || cluster.Region(fleet.Region(region)) == nil:
			return nil, nil, fmt.Errorf("--peer %s: want another region of the cluster's before the =", peer)
		default:
			abroad[fleet.Region(region)] = append(abroad[fleet.Region(region)], address)
		}
	}
	return peers, abroad, nil
}

// routerSettings are what of it may change while the router runs. Regions judge
// together, or each by itself.
func routerSettings(cluster *config.Config, region fleet.Region, together bool) router.Settings {
	at := cluster.Region(region)
	s := router.Settings{
		SpillTo: at.SpillTo, SpillNearest: at.SpillNearest, RoundTrips: at.RoundTripTimes(),
		PreferByModel: cluster.PreferencesByModel(), PreferByTenant: cluster.PreferencesByTenant(),
		Restrictions: cluster.Restrictions(),
		Policies:     cluster.Policies(), Splits: cluster.Splits(), AutoRollback: map[string]bool{},
		StaleAfter:          cluster.Fleet.StaleAfter,
		MessageTimeout:      cluster.Picker.MessageTimeout,
		ResponseIdleTimeout: cluster.Limits.ResponseIdleTimeout,
		MaxBodyBytes:        int64(cluster.Limits.RequestBodyBytes),
		FalsePerDay:         falsePerDay,
		Version:             cluster.Version(),
	}
	if !together {
		s.FalsePerDay /= float64(len(cluster.Regions))
	}
	for _, m := range cluster.Models {
		s.Models = append(s.Models, m.Name)
		s.AutoRollback[m.Name] = m.AutoRollback
	}
	return s
}

// followConfig has a router go by what the file says, from what it began with, until
// ctx ends. What cannot be had as a whole changes nothing.
func followConfig(ctx context.Context, path string, holds *config.Config, from router.Config, r *router.Router, log *slog.Logger) {
	config.Follow(ctx, path, func(next *config.Config, err error) {
		if err == nil && next.Version() == holds.Version() {
			r.Confirmed()
			return
		}
		if err == nil {
			err = holds.Change(next, from.Region)
		}
		if err == nil {
			err = r.SetSettings(routerSettings(next, from.Region, len(from.PeersAbroad) > 0))
		}
		if err != nil {
			log.Error("the configuration is refused; the one before stays in force", "in_force", holds.Version(), "error", err)
			r.Refused(err)
			return
		}
		log.Info("the configuration has changed", "version", next.Version(), "before", holds.Version())
		holds = next
	})
}

// addressOr reads an address, or makes one of every interface and a port.
func addressOr(text string, port int) (netip.AddrPort, error) {
	if text == "" {
		return netip.AddrPortFrom(netip.IPv4Unspecified(), uint16(port)), nil
	}
	return netip.ParseAddrPort(text)
}
