package xds

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	csdsv3 "github.com/envoyproxy/go-control-plane/envoy/service/status/v3"
	"google.golang.org/grpc"

	"github.com/mrgc/mrgc/internal/fleet"
	"github.com/mrgc/mrgc/internal/routing"
	"github.com/mrgc/mrgc/internal/tenant"
)

// Server serves Envoys their configuration. Its methods are safe for
// concurrent use.
type Server struct {
	config  Config // as it began; input has the present settings
	feed    *feed
	stages  map[fleet.Region]*lockedStage
	roster  *roster
	metrics *metrics
	// rendered is of the last build, so that the next one makes what has changed
	// and no more; of New, then of Run.
	rendered map[fleet.Region]rendered
	// under are the settings of which rendered and admissions are; likewise.
	under *Config
	// admissions are those of the last list of tenants; New's, and then Run's.
	admissions map[fleet.Region]admission

	mu    sync.Mutex
	input input // guarded by mu
	// lastError is why the newest input is not, or not wholly, published.
	lastError error // guarded by mu

	wake     chan struct{} // holds one: input has changed
	rescored chan struct{} // holds one: scores have
}

// input is what a publication is made from.
type input struct {
	config   *Config // complete, never written to
	snapshot *fleet.Snapshot
	tenants  *tenant.Set
	splits   map[string]routing.Split  // by model
	orders   map[string][]fleet.Region // likewise, of the server's own region
	cert     certificate
	clients  clientCA
}

// New checks a configuration, down to the resources that it makes of an empty
// fleet.
func New(config Config) (*Server, error) {
	if err := config.check(); err != nil {
		return nil, err
	}
	config = config.withDefaults()
	s := &Server{
		config:     config,
		feed:       &feed{next: make(chan struct{})},
		stages:     map[fleet.Region]*lockedStage{},
		roster:     newRoster(),
		rendered:   map[fleet.Region]rendered{},
		admissions: map[fleet.Region]admission{},
		wake:       make(chan struct{}, 1), rescored: make(chan struct{}, 1),
	}
	for region := range config.served() {
		s.stages[region] = &lockedStage{stage: newStage(config.TrialTimeout)}
	}
	var err error
	if s.metrics, err = newMetrics(config.Metrics, s); err != nil {
		return nil, fmt.Errorf("xds metrics: %w", err)
	}
	s.input.config = &config
	if _, err := s.build(input{config: &config, snapshot: fleet.NewSnapshot(time.Time{}, nil), tenants: &tenant.Set{}, cert: certificate{chain: []byte("-"), key: []byte("-")}}, &publication{}, false, time.Time{}); err != nil {
		return nil, fmt.Errorf("xds config: %w", err)
	}
	return s, nil
}

// Register adds the aggregated discovery service to a gRPC server.
func (s *Server) Register(g *grpc.Server) {
	discoveryv3.RegisterAggregatedDiscoveryServiceServer(g, &ads{server: s})
}

// RegisterStatus adds the client status discovery service to a gRPC server. Like
// Admin it has no access control: serve it on loopback alone.
func (s *Server) RegisterStatus(g *grpc.Server) {
	csdsv3.RegisterClientStatusDiscoveryServiceServer(g, &csds{server: s})
}

// Update hands over a new view of the fleet. It does not block, and keeps the
// newest alone.
func (s *Server) Update(snapshot *fleet.Snapshot) {
	s.mu.Lock()
	s.input.snapshot = snapshot
	s.mu.Unlock()
	poke(s.wake)
}

// SetSettings hands over what is to hold from now on. It does not block. Settings
// that could not be published are an error, and those before stay.
//
// Another MessageTimeout or ResponseIdleTimeout is another listener: connections
// are drained, and end with Envoy's drain time at the latest.
func (s *Server) SetSettings(settings Settings) error {
	config, err := s.config.with(settings)
	if err != nil {
		return err
	}
	s.mu.Lock()
	s.input.config = &config
	s.mu.Unlock()
	poke(s.wake)
	return nil
}

// SetTenants hands over who the tenants are and what each may reach. It does not
// block, and keeps the newest alone.
func (s *Server) SetTenants(tenants *tenant.Set) {
	s.mu.Lock()
	s.input.tenants = tenants
	s.mu.Unlock()
	poke(s.wake)
}

// SetTenantCertificate sets the certificate chain (leaf first) and key, in PEM,
// that tenants see. It copies them. A pair that does not fit together is an
// error, and the one before stays.
func (s *Server) SetTenantCertificate(certPEM, keyPEM []byte) error {
	cert, err := newCertificate(certPEM, keyPEM)
	if err != nil {
		return err
	}
	s.mu.Lock()
	s.input.cert = cert
	s.mu.Unlock()
	poke(s.wake)
	return nil
}

// SetTenantClientCA sets the CAs, in PEM, whose certificates tenants may show. It
// copies them. What is not valid is an error, and those before stay. The first ones
// are for before Run: they change the listener, which closes its connections.
func (s *Server) SetTenantClientCA(caPEM []byte) error {
	clients, err := newClientCA(caPEM)
	if err != nil {
		return err
	}
	s.mu.Lock()
	s.input.clients = clients
	s.mu.Unlock()
	poke(s.wake)
	return nil
}

// Rescored says that Config.Weight gives an instance another score than before.
// It does not block.
func (s *Server) Rescored() { poke(s.rescored) }

func poke(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default: // a wake-up is waiting already, and will see this input
	}
}

// Run publishes what Update, SetTenants and SetTenantCertificate hand over, until ctx ends.
// It must run once. Envoys stay connected after it has returned; stopping the
// gRPC server ends their streams.
//
// The loop owns the publication; these things can happen:
//
//   - the input changes: it is published at once when the last publication is
//     MinPushInterval ago, else the timer is set,
//   - scores change: the same with WeightInterval, since weights were last
//     looked at,
//   - endpoints that were kept for a while leave: the timer is set,
//   - the timer fires: the newest input is published,
//   - the ticker fires: an Envoy that does not answer tries no longer,
//   - ctx ends.
func (s *Server) Run(ctx context.Context) error {
	var p pace
	timer := time.NewTimer(0)
	defer timer.Stop()
	<-timer.C
	ticker := time.NewTicker(max(s.config.TrialTimeout/4, time.Millisecond))
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-s.wake:
			p.news, p.scores = true, true // heartbeats tell of load, too
		case <-s.rescored:
			p.scores = true
		case <-timer.C:
		case <-ticker.C:
			for region := range s.stages {
				s.step(region, func(st *stage) { st.tick(time.Now()) })
			}
			continue
		}
		now := time.Now()
		publish, weigh, wait := p.due(s.config, now)
		if publish {
			published, leave := s.publish(weigh, now)
			if published {
				p.published = now
			}
			p.looked(weigh, now)
			p.leave = leave
			_, _, wait = p.due(s.config, now)
		}
		if timer.Stop(); wait > 0 {
			timer.Reset(wait)
		}
	}
}

// publish makes resources of the newest input and says whether there was
// anything new in them, and when endpoints leave that are still in them; zero: none
// does. Unless it shall weigh them anew, instances keep the weights that they have.
func (s *Server) publish(weigh bool, now time.Time) (published bool, leave time.Time) {
	in := s.newest()
	if in.snapshot == nil || in.tenants == nil || in.cert.isZero() {
		return false, time.Time{}
	}
	before, _ := s.feed.get()
	if before == nil {
		before = &publication{}
	}
	fresh, err := s.build(in, before, weigh, now)
	s.note(err)
	if fresh == nil {
		return false, time.Time{}
	}
	changed := false
	for region, set := range fresh.sets {
		fresh.sets[region] = set.after(before.sets[region])
		changed = changed || !fresh.sets[region].equal(before.sets[region])
	}
	if changed {
		s.offer(fresh)
		s.config.Logger.Debug("published", "instances", len(in.snapshot.Instances))
	}
	return changed, fresh.leave()
}

// offer publishes: each region's Envoys get it one after the other, see stage.
func (s *Server) offer(fresh *publication) {
	for region, set := range fresh.sets {
		st := s.stages[region]
		st.mu.Lock()
		st.publish(set, time.Now())
		st.mu.Unlock()
	}
	s.feed.set(fresh)
}

func (s *Server) newest() input {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.input
}

// build renders every region's resources, after those of before. A publication of nil
// means that they are not valid; an error beside one names instances that were left out.
func (s *Server) build(in input, before *publication, weigh bool, now time.Time) (*publication, error) {
	out := &publication{sets: map[fleet.Region]resourceSet{}, clusters: map[fleet.Region][]clusterPlan{}, weights: map[string]uint32{}}
	if s.under != in.config {
		clear(s.rendered)
		clear(s.admissions)
		s.under = in.config
	}
	usable, leftOut := dialable(in.snapshot.Ready(in.config.StaleAfter))
	for i := range usable {
		in := &usable[i]
		if in.weight = before.weights[in.ID]; in.weight == 0 || weigh {
			in.weight = weightAfter(in.weight, s.config.Weight(in.Instance))
		}
		out.weights[in.ID] = in.weight
	}
	for region, regions := range in.config.served() {
		if s.admissions[region].of != in.tenants {
			made, err := newAdmission(*in.config, region, regions, in.tenants)
			if err != nil {
				return nil, err
			}
			s.admissions[region] = made
		}
		orders := in.orders
		if region != s.config.Region {
			orders = nil
		}
		p := newPlan(*in.config, region, regions, orders, usable, s.admissions[region], in.cert)
		p.clients = in.clients
		p.split(in.splits, usable, before.clusters[region], now)
		fresh, err := render(p, s.rendered[region])
		if err != nil {
			return nil, err
		}
		s.rendered[region] = fresh
		out.sets[region], out.clusters[region] = fresh.set, p.clusters
	}
	return out, leftOut
}

// note remembers why an input is not wholly published, and logs it once.
func (s *Server) note(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err != nil && (s.lastError == nil || s.lastError.Error() != err.Error()) {
		s.config.Logger.Error("the fleet is not published as it is", "error", err)
	}
	s.lastError = err
}

// Ready is nil once there is something for Envoys to have.
func (s *Server) Ready() error {
	if current, _ := s.feed.get(); current != nil {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.input.snapshot == nil:
		return errors.New("the fleet has not been read yet")
	case s.input.tenants == nil:
		return errors.New("there is no list of tenants yet")
	case s.input.cert.isZero():
		return errors.New("there is no tenant certificate yet")
	case s.lastError != nil:
		return fmt.Errorf("nothing is published: %w", s.lastError)
	default:
		return errors.New("nothing is published yet")
	}
}

// Acked says whether at least one Envoy of a region is connected, and every
// one that is has acknowledged all that is published.
func (s *Server) Acked(region fleet.Region) bool {
	connected := false
	for _, envoy := range s.Envoys() {
		if envoy.Region != region {
			continue
		}
		if !envoy.Synced() {
			return false
		}
		connected = true
	}
	return connected
}

// Envoys lists the Envoys that are connected, by region and node.
func (s *Server) Envoys() []EnvoyStatus {
	envoys := []EnvoyStatus{}
	for _, c := range s.roster.list() {
		published, trying, elsewhere := s.stages[c.region].show(c.node)
		c.mu.Lock()
		envoys = append(envoys, EnvoyStatus{
			Node: c.node, Region: c.region, Connected: c.connected, Trying: trying, Types: c.session.status(published, elsewhere),
		})
		c.mu.Unlock()
	}
	return envoys
}

// publication is what all regions' Envoys should have. It is immutable.
type publication struct {
	sets     map[fleet.Region]resourceSet
	clusters map[fleet.Region][]clusterPlan // what the sets were rendered from
	weights  map[string]uint32              // by instance
}

// leave is when the first of its endpoints leave that are still in it; zero: none does.
func (p *publication) leave() (first time.Time) {
	for _, clusters := range p.clusters {
		for _, c := range clusters {
			if !c.until.IsZero() && (first.IsZero() || c.until.Before(first)) {
				first = c.until
			}
		}
	}
	return first
}

// feed is the current publication and the news that Envoys should have something
// else. It is safe for concurrent use.
type feed struct {
	mu      sync.Mutex
	current *publication  // guarded by mu; nil before the first
	next    chan struct{} // guarded by mu; closed at the next wake
}

// get returns the current publication and a channel that is closed at the next
// wake.
func (f *feed) get() (*publication, <-chan struct{}) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.current, f.next
}

func (f *feed) set(p *publication) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.current = p
	f.wakeLocked()
}

// wake tells everyone that what an Envoy should have may have changed.
func (f *feed) wake() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.wakeLocked()
}

func (f *feed) wakeLocked() {
	close(f.next)
	f.next = make(chan struct{})
}
