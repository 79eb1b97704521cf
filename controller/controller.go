package controller

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/mrgc/mrgc/internal/fleet"
	"github.com/mrgc/mrgc/internal/lease"
	"github.com/mrgc/mrgc/internal/state"
)

// Config says what a controller is for.
type Config struct {
	// Region that it controls, one of Regions. Required.
	Region fleet.Region
	// Regions of the cluster.
	Regions []fleet.Region
	// Name of the process, for people, such as its host's. To it is added what makes
	// it another's after each start.
	Name string
	// Store holds leases, the loops' rows and metrics. Required.
	Store state.Store
	// Fleet is where the region's instances are counted for its metrics. nil: no
	// minutes are written.
	Fleet fleet.Store
	// Door sends a request of the controller's own through a region's front door, and
	// fails unless it is answered and the region takes requests. It is asked of all regions
	// every two seconds, by who leads, who publishes what it sees, and with it what the
	// fleet's rows say; so it wants a Fleet. nil: nothing is seen.
	Door func(ctx context.Context, region fleet.Region) error
	// Publish sends the region's minutes to somewhere else, too. nil: nowhere.
	Publish func(ctx context.Context, region fleet.Region, minutes []state.Record[state.Minute]) error
	// StaleAfter gives the age of an instance's heartbeat that no longer counts, at each
	// look anew. nil: 15 s.
	StaleAfter func() time.Duration
	// Loops run while this controller leads.
	Loops []Runner
	// Lease is how long a lease lasts, and so how soon a standby takes over: within
	// 1.5 times that, and the store's time for two calls. Default 5 s.
	Lease time.Duration
	// Alarm is how far another region's rows may lag. Default 5 s.
	Alarm time.Duration
	// Admin serves GET /status and GET /metrics, on loopback. nil: nothing does.
	Admin net.Listener
	// Logger hears what is done and why. nil: nobody does.
	Logger *slog.Logger
	// Version of the configuration that this was made by; see [Controller.Configured].
	Version string
	// Now is the wall clock that loops are told the time by. nil: time.Now.
	Now func() time.Time
}

// Controller is the process. It is made by New and used once.
type Controller struct {
	config   Config
	self     string
	log      *slog.Logger
	registry *prometheus.Registry
	electors []*elector
	standing []func(context.Context) // what loops do while they stand by, each until the context ends

	configured atomic.Pointer[ConfigStatus] // never nil
}

// Defaults.
const (
	defaultLease = 5 * time.Second
	defaultAlarm = 5 * time.Second
)

func staleByDefault() time.Duration { return 15 * time.Second }

// New checks the configuration and builds the parts.
func New(config Config) (*Controller, error) {
	if err := config.Region.Validate(); err != nil {
		return nil, fmt.Errorf("controller: %w", err)
	}
	if !slices.Contains(config.Regions, config.Region) {
		return nil, fmt.Errorf("controller: region %s is none of the cluster's, %s", config.Region, config.Regions)
	}
	if config.Store == nil {
		return nil, errors.New("controller: no store")
	}
	if config.Door != nil && config.Fleet == nil {
		return nil, errors.New("controller: a door without a fleet: nothing could be said of what is behind")
	}
	if config.Logger == nil {
		config.Logger = slog.New(slog.DiscardHandler)
	}
	if config.Now == nil {
		config.Now = time.Now
	}
	if config.StaleAfter == nil {
		config.StaleAfter = staleByDefault
	}
	for setting, value := range map[*time.Duration]time.Duration{
		&config.Lease: defaultLease, &config.Alarm: defaultAlarm,
	} {
		if *setting == 0 {
			*setting = value
		}
	}
	c := &Controller{
		config: config, self: config.Name + "-" + rand.Text()[:8], registry: prometheus.NewRegistry(),
		log: config.Logger.With("region", config.Region),
	}
	c.Configured(config.Version, nil)
	c.registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	metric, err := newMetrics(c.registry, string(config.Region))
	if err != nil {
		return nil, fmt.Errorf("controller: %w", err)
	}
	loops := map[string][]Runner{RegionLease(config.Region): nil} // by lease
	for _, loop := range config.Loops {
		if err := loop.check(); err != nil {
			return nil, fmt.Errorf("controller: %w", err)
		}
		name := loop.lease()
		if name == "" {
			name = RegionLease(config.Region)
		}
		loops[name] = append(loops[name], loop)
	}
	for name, runners := range loops {
		e, err := c.elector(name, runners, metric)
		if err != nil {
			return nil, fmt.Errorf("controller: %w", err)
		}
		c.electors = append(c.electors, e)
	}
	return c, nil
}

// RegionLease is the lease of a region's leader.
func RegionLease(region fleet.Region) string { return "region/" + string(region) }

func (c *Controller) elector(name string, loops []Runner, metric *metrics) (*elector, error) {
	candidate, err := lease.New(lease.Config{Self: c.self, Length: c.config.Lease})
	if err != nil {
		return nil, err
	}
	log := c.log.With("lease", name)
	e := &elector{
		name: name, length: c.config.Lease, candidate: candidate, poked: make(chan struct{}, 1),
		leases: state.LeaseTable(c.config.Store), log: log, metric: metric,
	}
	as := Leader{Store: c.config.Store, Now: c.config.Now, Logger: log, metric: metric}
	var duties func(*term, *sync.WaitGroup)
	if name == RegionLease(c.config.Region) {
		duties = c.regionDuties(e, metric)
	}
	var runners []runner
	for _, loop := range loops {
		r := loop.begin()
		runners = append(runners, r)
		c.standing = append(c.standing, func(ctx context.Context) { r.stand(ctx, e.leading, as) })
	}
	e.lead = func(t *term) {
		var running sync.WaitGroup
		for _, r := range runners {
			running.Go(func() { r.lead(t, as) })
		}
		if duties != nil {
			duties(t, &running)
		}
		running.Wait()
	}
	return e, nil
}

// regionDuties are what a region's leader does besides loops.
func (c *Controller) regionDuties(e *elector, metric *metrics) func(*term, *sync.WaitGroup) {
	h := &heart{
		region: c.config.Region, self: c.self, alarm: c.config.Alarm, renewed: make(chan int64, 1),
		leases: state.LeaseTable(c.config.Store), beats: state.HeartbeatTable(c.config.Store), log: c.log, metric: metric,
	}
	for _, region := range c.config.Regions {
		if region != c.config.Region {
			h.others = append(h.others, region)
		}
	}
	e.renew = h.renew
	if c.config.Fleet == nil {
		return func(t *term, running *sync.WaitGroup) {
			running.Go(func() { h.run(t, func(fleet.Region, time.Duration) {}) })
		}
	}
	m := newMinutes(&c.config, c.log)
	w := newWatcher(&c.config, c.log)
	return func(t *term, running *sync.WaitGroup) {
		samples := make(chan lagSample, 16)
		running.Go(func() { m.run(t, samples) })
		if c.config.Door != nil {
			running.Go(func() { w.run(t) })
		}
		running.Go(func() {
			h.run(t, func(from fleet.Region, behind time.Duration) {
				w.lag(from, behind)
				select {
				case samples <- lagSample{from, behind}:
				default: // the fleet's store is slow; there is another sample soon
				}
			})
		})
	}
}

// Run leads whenever it can, until ctx ends; then it lets a standby have it.
func (c *Controller) Run(ctx context.Context) error {
	if c.config.Admin != nil {
		if addr, ok := c.config.Admin.Addr().(*net.TCPAddr); !ok || !addr.IP.IsLoopback() {
			return fmt.Errorf("controller: the admin listens without authentication and so on loopback only, not on %s", c.config.Admin.Addr())
		}
		server := &http.Server{Handler: c.admin(), ReadHeaderTimeout: 10 * time.Second}
		var serving sync.WaitGroup
		serving.Go(func() { _ = server.Serve(c.config.Admin) }) // until it is closed
		defer serving.Wait()
		defer func() { _ = server.Close() }()
	}
	c.log.InfoContext(ctx, "controlling", "name", c.self)
	var running sync.WaitGroup
	for _, e := range c.electors {
		running.Go(func() { e.run(ctx) })
	}
	for _, stand := range c.standing {
		running.Go(func() { stand(ctx) })
	}
	running.Wait()
	return nil
}

// Status is what GET /status shows.
type Status struct {
	Region fleet.Region  `json:"region"`
	Name   string        `json:"name"`
	Config ConfigStatus  `json:"config"`
	Leases []LeaseStatus `json:"leases"`
}

// ConfigStatus is the configuration that a controller goes by.
type ConfigStatus struct {
	Version string `json:"version"`           // in force
	Refused string `json:"refused,omitempty"` // why what there is now is not
}

// Configured tells the controller, for its status, which configuration is in force, and
// why a newer one is not; nil: there is none.
func (c *Controller) Configured(version string, refused error) {
	status := ConfigStatus{Version: version}
	if refused != nil {
		status.Refused = refused.Error()
	}
	c.configured.Store(&status)
}

// LeaseStatus is a lease as a controller sees it.
type LeaseStatus struct {
	Name    string `json:"name"`
	Holder  string `json:"holder"` // as far as it knows
	Leading bool   `json:"leading"`
	Token   int64  `json:"token,omitempty"` // that it leads with
}

func (c *Controller) status() Status {
	s := Status{Region: c.config.Region, Name: c.self, Config: *c.configured.Load()}
	for _, e := range c.electors {
		e.mu.Lock()
		token, _ := e.candidate.Held(time.Now())
		s.Leases = append(s.Leases, LeaseStatus{Name: e.name, Holder: e.candidate.Holder(), Leading: token != 0, Token: token})
		e.mu.Unlock()
	}
	slices.SortFunc(s.Leases, func(a, b LeaseStatus) int { return cmp.Compare(a.Name, b.Name) })
	return s
}

func (c *Controller) admin() http.Handler {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(c.registry, promhttp.HandlerOpts{}))
	mux.HandleFunc("GET /status", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(c.status()) // who asked has gone
	})
	return mux
}
