package xds

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc"

	"github.com/mrgc/mrgc/internal/fleet"
	"github.com/mrgc/mrgc/internal/routing"
)

// Server serves Envoys their configuration. Its methods are safe for
// concurrent use.
type Server struct {
	config Config
	served map[fleet.Region][]fleet.Region // region → those it may use, in order
	feed   *feed
	roster *roster

	mu    sync.Mutex
	input input // guarded by mu
	// lastError is why the newest input is not, or not wholly, published.
	lastError error // guarded by mu

	wake     chan struct{} // holds one: input has changed
	rescored chan struct{} // holds one: scores have
}

// input is what a publication is made from.
type input struct {
	snapshot *fleet.Snapshot
	splits   map[string]routing.Split // by model
	cert     certificate
}

// New checks a configuration, down to the resources that it makes of an empty
// fleet.
func New(config Config) (*Server, error) {
	if err := config.check(); err != nil {
		return nil, err
	}
	config = config.withDefaults()
	s := &Server{
		config: config,
		served: config.served(),
		feed:   &feed{next: make(chan struct{})},
		roster: newRoster(),
		wake:   make(chan struct{}, 1), rescored: make(chan struct{}, 1),
	}
	if _, err := s.build(input{snapshot: fleet.NewSnapshot(time.Time{}, nil), cert: certificate{chain: []byte("-"), key: []byte("-")}}, nil, false); err != nil {
		return nil, fmt.Errorf("xds config: %w", err)
	}
	return s, nil
}

// Register adds the aggregated discovery service to a gRPC server.
func (s *Server) Register(g *grpc.Server) {
	discoveryv3.RegisterAggregatedDiscoveryServiceServer(g, &ads{server: s})
}

// Update hands over a new view of the fleet. It does not block, and keeps the
// newest alone.
func (s *Server) Update(snapshot *fleet.Snapshot) {
	s.mu.Lock()
	s.input.snapshot = snapshot
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

// Rescored says that Config.Weight gives an instance another score than before.
// It does not block.
func (s *Server) Rescored() { poke(s.rescored) }

func poke(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default: // a wake-up is waiting already, and will see this input
	}
}

// Run publishes what Update and SetTenantCertificate hand over, until ctx ends.
// It must run once. Envoys stay connected after it has returned; stopping the
// gRPC server ends their streams.
//
// The loop owns the publication; these things can happen:
//
//   - the input changes: it is published at once when the last publication is
//     MinPushInterval ago, else the timer is set,
//   - scores change: the same with WeightInterval, since weights were last
//     looked at,
//   - the timer fires: the newest input is published,
//   - ctx ends.
func (s *Server) Run(ctx context.Context) error {
	var p pace
	timer := time.NewTimer(0)
	defer timer.Stop()
	<-timer.C
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-s.wake:
			p.news, p.scores = true, true // heartbeats tell of load, too
		case <-s.rescored:
			p.scores = true
		case <-timer.C:
		}
		now := time.Now()
		publish, weigh, wait := p.due(s.config, now)
		if publish {
			if s.publish(weigh) {
				p.published = now
			}
			p.looked(weigh, now)
			_, _, wait = p.due(s.config, now)
		}
		if timer.Stop(); wait > 0 {
			timer.Reset(wait)
		}
	}
}

// publish makes resources of the newest input and says whether there was
// anything new in them. Unless it shall weigh them anew, instances keep the
// weights that they have.
func (s *Server) publish(weigh bool) bool {
	in := s.newest()
	if in.snapshot == nil || in.cert.isZero() {
		return false
	}
	before, _ := s.feed.get()
	if before == nil {
		before = &publication{}
	}
	fresh, err := s.build(in, before.weights, weigh)
	s.note(err)
	if fresh == nil {
		return false
	}
	changed := false
	for region, set := range fresh.sets {
		fresh.sets[region] = set.after(before.sets[region])
		changed = changed || !fresh.sets[region].equal(before.sets[region])
	}
	if !changed {
		return false
	}
	s.feed.set(fresh)
	s.config.Logger.Debug("published", "instances", len(in.snapshot.Instances))
	return true
}

func (s *Server) newest() input {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.input
}

// build renders every region's resources. A publication of nil means that they
// are not valid; an error beside one names instances that were left out. The
// weights are those that instances have had.
func (s *Server) build(in input, weights map[string]uint32, weigh bool) (*publication, error) {
	out := &publication{sets: map[fleet.Region]resourceSet{}, clusters: map[fleet.Region][]clusterPlan{}, weights: map[string]uint32{}}
	usable, leftOut := dialable(in.snapshot.Ready(s.config.StaleAfter))
	for i := range usable {
		in := &usable[i]
		if in.weight = weights[in.ID]; in.weight == 0 || weigh {
			in.weight = weightAfter(in.weight, s.config.Weight(in.Instance))
		}
		out.weights[in.ID] = in.weight
	}
	for region, allowed := range s.served {
		p := newPlan(s.config, region, allowed, usable, in.cert)
		p.split(in.splits, usable)
		set, err := render(p)
		if err != nil {
			return nil, err
		}
		out.sets[region], out.clusters[region] = set, p.clusters
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
	current, _ := s.feed.get()
	envoys := s.roster.list()
	for i, envoy := range envoys {
		envoys[i].Types = envoy.against(current.set(envoy.Region))
	}
	return envoys
}

// against compares a status with what is published now, which its stream may
// not have seen yet.
func (e EnvoyStatus) against(set resourceSet) []TypeStatus {
	for i, typeURL := range sendOrder {
		if i < len(e.Types) && e.Types[i].Published != set[typeURL].version {
			e.Types[i].Published = set[typeURL].version
			if e.Types[i].State == Synced {
				e.Types[i].State = Stale
			}
		}
	}
	return e.Types
}

// publication is what all regions' Envoys should have. It is immutable.
type publication struct {
	sets     map[fleet.Region]resourceSet
	clusters map[fleet.Region][]clusterPlan // what the sets were rendered from
	weights  map[string]uint32              // by instance
}

// set is one region's part; nil before the first publication.
func (p *publication) set(region fleet.Region) resourceSet {
	if p == nil {
		return nil
	}
	return p.sets[region]
}

// feed is the current publication and the news of the next. It is safe for
// concurrent use.
type feed struct {
	mu      sync.Mutex
	current *publication  // guarded by mu; nil before the first
	next    chan struct{} // guarded by mu; closed when current is replaced
}

// get returns the current publication and a channel that is closed when there
// is another.
func (f *feed) get() (*publication, <-chan struct{}) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.current, f.next
}

func (f *feed) set(p *publication) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.current = p
	close(f.next)
	f.next = make(chan struct{})
}
