// Package parent is the service on each GPU instance, outside its enclave.
//
// It relays sealed requests to the enclave and sealed answers back, byte for
// byte: it holds no key and sees no plaintext. Beside that it
//
//   - carries the enclave's connections to the engine's guard, and to KMS, as
//     bytes under the enclave's own TLS;
//   - admits no more requests than the instance can work on;
//   - registers the instance in the fleet and reports its health and load;
//   - streams load reports to the routers of its region, and puts one on every
//     answer (package loadreport says what is in them);
//   - hands the enclave's claims and attestation documents to the routers.
//
// [New] takes a [Config]; [Parent.Run] serves until its context ends, then
// drains: the instance leaves the fleet, so that no router picks it any more,
// and requests under way are finished.
package parent

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"

	"github.com/mrgc/mrgc/internal/api"
	"github.com/mrgc/mrgc/internal/audit"
	"github.com/mrgc/mrgc/internal/fleet"
	"github.com/mrgc/mrgc/internal/identity"
	"github.com/mrgc/mrgc/internal/loadreport"
	"github.com/mrgc/mrgc/internal/tenant"
	"github.com/mrgc/mrgc/parent/wash"
)

// Config says which instance this is and how its parts are reached. Every
// field without a default is required.
type Config struct {
	// Instance is what is registered: ID, Region, Zone, Address and Models. The
	// rest of it is the parent's to find out.
	Instance fleet.Instance
	Store    fleet.Store
	Identity *identity.Source
	// Tenants holds the signed list of them, to hand to the enclave, and for when
	// tenants ask this parent for recipients because no router answers.
	Tenants *tenant.Keeper

	// DialEnclave connects to the request port of an enclave that somebody else has
	// started. Either this, and there are no full washes, or Enclaves and Wash.
	DialEnclave func(context.Context) (net.Conn, error)
	// Enclaves starts the instance's enclave, and each that takes its place.
	Enclaves Enclaves
	// Wash is what full washes need.
	Wash *Wash
	// EngineRelay accepts the enclave's connections to the guard; DialGuard
	// connects them.
	EngineRelay net.Listener
	DialGuard   func(context.Context) (net.Conn, error)
	// KMSRelay accepts the enclave's connections to KMS, and DialKMS connects them:
	// to the region's KMS and nowhere else, whatever the enclave wants. Credentials
	// gives those that the enclave asks KMS with; it is called every
	// ProbeInterval and keeps them itself until they expire. All three or none:
	// without them the enclave does not ask KMS.
	KMSRelay    net.Listener
	DialKMS     func(context.Context) (net.Conn, error)
	Credentials func(context.Context) (api.AWSCredentials, error)
	// DynamoDBRelay and DialDynamoDB are the same for the region's DynamoDB, where an
	// enclave of a fleet has its table, with the same credentials. Both or none, and
	// only with those for KMS.
	DynamoDBRelay net.Listener
	DialDynamoDB  func(context.Context) (net.Conn, error)
	// Audit gets the data keys that KMS released to the enclave, what the enclave thinks of
	// its engine's host, and the washes; nil: nobody does.
	Audit *audit.Log

	// Settings are those that [Parent.SetSettings] may change.
	Settings
	ProbeInterval time.Duration // how often enclave and engine are asked how they are; default 1 s
	DrainTimeout  time.Duration // how long requests under way may take after a stop; default 30 s
	// BodyWait is how long a request's body may take at first; what is longer has to
	// come at [bodyBytesPerSecond]. AnswerWait is how long an answer may wait for who
	// reads it. Who is slower holds places that others wait for, and is cut. Default 5
	// and 30 s.
	BodyWait, AnswerWait time.Duration
	EngineSlots          int // requests that the engine runs at once; 0: not known

	// ModelVersions are the versions of Instance.Models, for the store and load
	// reports; a model that is not among them has none.
	ModelVersions map[string]string
	// ReadGPU reads the instance's GPUs. It is called up to ten times a second,
	// never twice at once; nil: there is none to see. While its
	// error is [gpu.ErrLost] the instance takes no requests.
	ReadGPU func() (loadreport.GPU, error)
	// ModelFiles are the files that the engine has its model from; nil: they are not
	// looked at.
	ModelFiles *ModelFiles
	// BusyReportInterval is how often a load report is made while there is work,
	// and IdleReportInterval while there is none; default 100 and 500 ms. Longer
	// than half of loadreport.FreshFor, and routers take reports for stale.
	BusyReportInterval, IdleReportInterval time.Duration

	Metrics *prometheus.Registry // default: one of its own
	// MetricsListener is where Run serves Metrics, in clear: on loopback. Default:
	// nowhere.
	MetricsListener net.Listener
	Logger          *slog.Logger // default: none
}

// Settings are what mrgc.yaml says to a parent, and may change while it runs. Zero
// values have the defaults.
type Settings struct {
	HeartbeatInterval  time.Duration // default 5 s
	StaleAfter         time.Duration // age of another instance's heartbeat that no longer counts; default 15 s
	RequestBodyBytes   int64         // default 8 MiB
	ConcurrentRequests int           // default 64; more are told to go elsewhere
	FirstTokenWithin   time.Duration // an answer that begins later is counted as late; default 2 s
	Wash               wash.Config   // when the instance is washed in full; whose is not said here
}

func (s Settings) withDefaults() *Settings {
	s.HeartbeatInterval = cmp.Or(s.HeartbeatInterval, 5*time.Second)
	s.StaleAfter = cmp.Or(s.StaleAfter, 15*time.Second)
	s.RequestBodyBytes = cmp.Or(s.RequestBodyBytes, 8<<20)
	s.ConcurrentRequests = cmp.Or(s.ConcurrentRequests, 64)
	s.FirstTokenWithin = cmp.Or(s.FirstTokenWithin, 2*time.Second)
	return &s
}

// SetSettings has these hold for every request from now on. Those that are under way
// go on, also if there are more than may begin then. The enclave has limits of its
// own, which are measured with it: more than those it refuses whatever is said here.
func (p *Parent) SetSettings(s Settings) {
	p.settings.Store(s.withDefaults())
	p.probeNow() // a heartbeat may be due
}

// Parent is the service. It is made by New and used once.
type Parent struct {
	config   Config
	settings atomic.Pointer[Settings] // never nil
	log      *slog.Logger
	enclaves *enclaves
	guard    *http.Client
	peers    *http.Client // other instances' parents
	load     *load
	gauges   gauges
	files    modelFiles
	reports  *reporter
	metrics  *metrics

	forwarded forwards

	probeAgain chan struct{}
	leaving    chan struct{} // closed when the instance leaves the fleet

	washer *washer                        // nil: there are no full washes
	known  atomic.Pointer[known]          // keys that the fleet was last told of
	untold atomic.Bool                    // the last report to the fleet has failed
	view   atomic.Pointer[fleet.Snapshot] // who holds which keys elsewhere
}

// New checks the configuration and fills in its defaults.
func New(config Config) (*Parent, error) {
	config.ProbeInterval = cmp.Or(config.ProbeInterval, time.Second)
	config.DrainTimeout = cmp.Or(config.DrainTimeout, 30*time.Second)
	config.BodyWait = cmp.Or(config.BodyWait, 5*time.Second)
	config.AnswerWait = cmp.Or(config.AnswerWait, 30*time.Second)
	config.BusyReportInterval = cmp.Or(config.BusyReportInterval, 100*time.Millisecond)
	config.IdleReportInterval = cmp.Or(config.IdleReportInterval, 500*time.Millisecond)
	config.Metrics = cmp.Or(config.Metrics, prometheus.NewRegistry())
	config.Logger = cmp.Or(config.Logger, slog.New(slog.DiscardHandler))
	if files := config.ModelFiles; files != nil {
		config.ModelFiles = &ModelFiles{
			Look: files.Look, Every: cmp.Or(files.Every, 30*time.Second), Timeout: cmp.Or(files.Timeout, 10*time.Second),
		}
	}
	switch {
	case config.Store == nil:
		return nil, errors.New("parent: no store")
	case config.Identity == nil:
		return nil, errors.New("parent: no identity")
	case config.Tenants == nil:
		return nil, errors.New("parent: no tenants")
	case (config.DialEnclave == nil) == (config.Enclaves == nil):
		return nil, errors.New("parent: want a way to dial the enclave, or one to start it")
	case (config.Wash == nil) != (config.Enclaves == nil):
		return nil, errors.New("parent: a way to start enclaves and what washes need: both or none")
	case config.EngineRelay == nil || config.DialGuard == nil:
		return nil, errors.New("parent: no relay to the engine's guard")
	case (config.KMSRelay == nil) != (config.DialKMS == nil) || (config.KMSRelay == nil) != (config.Credentials == nil):
		return nil, errors.New("parent: a relay to KMS, a way to dial it and credentials: all three or none")
	case (config.DynamoDBRelay == nil) != (config.DialDynamoDB == nil) || config.DynamoDBRelay != nil && config.KMSRelay == nil:
		return nil, errors.New("parent: a relay to DynamoDB and a way to dial it: both or none, and only with a relay to KMS")
	}
	if err := config.Instance.Validate(); err != nil {
		return nil, fmt.Errorf("parent: %w", err)
	}
	self := config.Identity.ID()
	want := identity.ID{Region: string(config.Instance.Region), Instance: config.Instance.ID, Role: identity.RoleParent}
	if self != want {
		return nil, fmt.Errorf("parent: identity is %s, want %s", self, want)
	}
	p := &Parent{
		config: config,
		log:    config.Logger.With("instance", config.Instance.ID),
		guard:  guardClient(&config),
		peers:  peerClient(config.Identity),

		probeAgain: make(chan struct{}, 1),
		leaving:    make(chan struct{}),
	}
	p.settings.Store(config.withDefaults())
	first := &held{client: enclaveClient(config.DialEnclave)}
	if config.Enclaves != nil {
		first.client = enclaveClient(func(context.Context) (net.Conn, error) { return nil, errNoEnclave })
	}
	p.enclaves = newEnclaves(first)
	p.load = newLoad(
		func() int { return p.settings.Load().ConcurrentRequests },
		func() time.Duration { return p.settings.Load().FirstTokenWithin }, config.Instance.Models)
	empty := loadreport.Report{Slots: config.EngineSlots, Models: reportedModels(&config)}
	if err := empty.Validate(); err != nil {
		return nil, fmt.Errorf("parent: %w", err)
	}
	var err error
	if p.metrics, err = newMetrics(config.Metrics, config.Instance); err != nil {
		return nil, fmt.Errorf("parent: %w", err)
	}
	if config.MetricsListener != nil {
		if err := checkMetricsListener(config.MetricsListener); err != nil {
			return nil, fmt.Errorf("parent: %w", err)
		}
	}
	p.reports = newReporter(empty)
	if config.Wash != nil {
		if p.washer, err = newWasher(p, *config.Wash); err != nil {
			return nil, fmt.Errorf("parent: %w", err)
		}
	}
	return p, nil
}

// enclaveClient speaks HTTP/1.1 over the vsock, with connections kept open: an
// enclave's round trip is short, its connections are few.
func enclaveClient(dial func(context.Context) (net.Conn, error)) *http.Client {
	return &http.Client{Transport: &http.Transport{
		DialContext:           func(ctx context.Context, _, _ string) (net.Conn, error) { return dial(ctx) },
		WriteBufferSize:       16 << 10, // a usual request leaves in one piece: three recipients alone take 3.5 KB
		MaxIdleConnsPerHost:   64,
		IdleConnTimeout:       time.Minute,
		DisableCompression:    true,
		ExpectContinueTimeout: time.Second,
	}}
}

// guardClient is for probes, which are short: one connection is enough, and
// keeps them from asking the engine two things at once.
func guardClient(config *Config) *http.Client {
	self := config.Identity.ID()
	guard := identity.ID{Region: self.Region, Instance: self.Instance, Role: identity.RoleGuard}
	return &http.Client{Transport: &http.Transport{
		DialTLSContext:      config.Identity.DialTLS(config.DialGuard, func(id identity.ID) bool { return id == guard }),
		MaxConnsPerHost:     1,
		MaxIdleConnsPerHost: 1,
		IdleConnTimeout:     time.Minute,
	}}
}

func peerClient(self *identity.Source) *http.Client {
	return &http.Client{Transport: &http.Transport{
		TLSClientConfig:    self.ClientTLS(func(id identity.ID) bool { return id.Role == identity.RoleParent }),
		ForceAttemptHTTP2:  true,
		IdleConnTimeout:    time.Minute,
		DisableCompression: true,
	}}
}

// Run serves requests on listener until ctx ends, then drains and returns nil.
// It returns an error when a part of it fails for good.
func (p *Parent) Run(ctx context.Context, listener net.Listener) error {
	server := &http.Server{
		Handler:           p.Handler(),
		TLSConfig:         p.config.Identity.ServerTLS(p.admits),
		ReadHeaderTimeout: 10 * time.Second,
		IdleTimeout:       5 * time.Minute,
		ErrorLog:          slog.NewLogLogger(p.log.Handler(), slog.LevelDebug),
	}
	server.RegisterOnShutdown(p.reports.end) // else a drain would wait for streams that have no end
	defer p.reports.end()
	if p.washer != nil {
		p.washer.begin(ctx)
	}
	if err := p.startEnclave(); err != nil {
		return err
	}
	defer p.endEnclaves(ctx)
	defer p.guard.CloseIdleConnections()
	defer p.peers.CloseIdleConnections()
	// What goes on after ctx ends, until requests under way are done.
	serving, stopServing := context.WithCancel(context.WithoutCancel(ctx))
	defer stopServing()

	group, groupCtx := errgroup.WithContext(serving)
	// What ends with ctx, or when a part fails for good.
	registering, stopRegistering := context.WithCancel(groupCtx)
	defer stopRegistering()
	defer context.AfterFunc(ctx, stopRegistering)()
	group.Go(func() error {
		if err := server.ServeTLS(listener, "", ""); !errors.Is(err, http.ErrServerClosed) {
			return fmt.Errorf("serve requests: %w", err)
		}
		return nil
	})
	group.Go(func() error {
		return p.relay(groupCtx, "the engine", p.config.EngineRelay, p.config.DialGuard)
	})
	if p.config.KMSRelay != nil {
		group.Go(func() error { return p.relay(groupCtx, "KMS", p.config.KMSRelay, p.config.DialKMS) })
		group.Go(func() error { p.handCredentials(groupCtx); return nil })
	}
	if p.config.Audit != nil {
		group.Go(func() error { p.recordKeyReleases(groupCtx); return nil })
	}
	if p.config.DynamoDBRelay != nil {
		group.Go(func() error { return p.relay(groupCtx, "DynamoDB", p.config.DynamoDBRelay, p.config.DialDynamoDB) })
	}
	group.Go(func() error { p.makeReports(groupCtx); return nil })
	if p.config.ModelFiles != nil {
		group.Go(func() error { p.watchModelFiles(groupCtx); return nil })
	}
	if p.washer != nil {
		group.Go(func() error { p.keepEnclave(groupCtx); return nil })
		group.Go(func() error { p.washer.run(groupCtx); return nil })
	}
	if p.config.MetricsListener != nil {
		group.Go(func() error { return p.serveMetrics(groupCtx) })
	}
	group.Go(func() error {
		for snapshot := range p.config.Store.Watch(registering) {
			p.view.Store(snapshot)
		}
		return nil
	})
	group.Go(func() error {
		defer stopServing()
		p.register(registering)
		return p.drain(context.WithoutCancel(ctx), server)
	})
	return group.Wait()
}

// admits says who may connect, from any region: Envoys, routers that ask for
// recipients, and parents that forward what is sealed to this enclave; from its own, the
// controller, which has it washed before it is terminated.
func (p *Parent) admits(id identity.ID) bool {
	if id == (identity.ID{Region: string(p.config.Instance.Region), Role: identity.RoleController}) {
		return true
	}
	return id.Role == identity.RoleEnvoy || id.Role == identity.RoleRouter || id.Role == identity.RoleParent
}

// deregisterTimeout bounds what a store that hangs takes from a drain.
const deregisterTimeout = 5 * time.Second

// drain takes the instance out of the fleet in the order that costs no request:
// first no router picks it, then what runs is finished.
func (p *Parent) drain(ctx context.Context, server *http.Server) error {
	close(p.leaving)
	p.deregister(ctx)
	ctx, cancel := context.WithTimeout(ctx, p.config.DrainTimeout)
	defer cancel()
	if err := server.Shutdown(ctx); err != nil {
		p.log.Warn("requests were cut by the drain time-out", "error", err)
		return server.Close()
	}
	return nil
}

func (p *Parent) deregister(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, deregisterTimeout)
	defer cancel()
	if err := p.config.Store.Deregister(ctx, p.config.Instance.ID); err != nil {
		p.log.Warn("could not deregister; routers will notice by the missing heartbeat", "error", err)
	}
}
