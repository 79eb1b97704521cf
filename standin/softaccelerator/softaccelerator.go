// Package softaccelerator stands in for AWS Global Accelerator on machines without an
// AWS account. It has one accelerator with one listener, and an endpoint group in each
// region:
//
//	service, err := softaccelerator.New(softaccelerator.Config{Groups: groups, Clients: clients, …})
//	go http.Serve(api, service)             // its API
//	err = service.Run(ctx)                  // its health checks, and what it forwards
//
// Its API is Global Accelerator's own protocol (JSON 1.1 over HTTP, Signature Version
// 4), so that aws-sdk-go-v2/service/globalaccelerator works unchanged: accelerators,
// listeners and endpoint groups are listed and described, and UpdateEndpointGroup
// changes a group's dial, endpoints and health check.
//
// What it forwards goes the way that Global Accelerator documents:
//
//   - A client's connection goes to the region that is nearest to the client. Here a
//     client is where the port is that it connects to ([Client]).
//   - A traffic dial is the share of new connections that a group keeps. Connections
//     that are there stay where they are, whatever becomes of dials and health.
//   - Endpoints are checked every 10 or 30 s; so many checks in a row change what is
//     thought of one. After it has recovered it takes some 30 s until it gets
//     connections again.
//   - A group without a healthy endpoint fails over to the nearest that has one, and
//     this ignores dials: a group at 0 % gets connections, too. When nobody is healthy,
//     connections go to the nearest region all the same.
//   - A change is described at once, and in effect when it has been deployed; until
//     then the accelerator is IN_PROGRESS.
//
// What it does otherwise: it accepts a connection before it has one to the endpoint,
// and resets it when there is none to be had; it knows no client affinity, no UDP, no
// IP addresses of its own and no limit for idle connections; load balancers are
// checked as the group says, and not as they say themselves.
//
// Nothing but `mrgc up`, benchmarks and tests may import this package.
package softaccelerator

import (
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"net"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/mrgc/mrgc/standin/sigv4"
)

// Account is the AWS account of the accelerator.
const Account = "111122223333"

// HomeRegion is where Global Accelerator's API is.
const HomeRegion = "us-west-2"

// Names of what is there.
const (
	AcceleratorARN = "arn:aws:globalaccelerator::" + Account + ":accelerator/1234abcd-abcd-1234-abcd-1234abcdef12"
	ListenerARN    = AcceleratorARN + "/listener/0123abcd"
)

// Config says what there is, and how fast it is.
type Config struct {
	// Groups are the endpoint groups, one for each region, one at least. At the start
	// every dial is at 100 %.
	Groups []Group
	// Clients are where connections come from.
	Clients []Client
	// Credentials of who may use the API.
	Credentials sigv4.Credentials

	// Second is how long a second of a health check's interval takes; less: everything
	// is checked faster. Default 1 s.
	Second time.Duration
	// Deploy is from a change until it is in effect. Default 5 s.
	Deploy time.Duration
	// Return is from an endpoint's first passed check after it was unhealthy until it
	// gets connections again, if it is healthy then. Default 30 s.
	Return time.Duration
	// Timeout is for how long an endpoint may say nothing, when it is connected to and
	// when it is checked. Default 6 s.
	Timeout time.Duration

	// Logger hears of changes and of endpoints' health. nil: nobody does.
	Logger *slog.Logger
	// Random gives numbers in [0, 1). nil: the runtime's own.
	Random func() float64
	// Now is the clock. nil: time.Now.
	Now func() time.Time
}

// Group is an endpoint group.
type Group struct {
	Region    string // AWS's name
	Endpoints []Endpoint
	Check     Check
}

// Endpoint is where connections go.
type Endpoint struct {
	ID      string // as the API names it: a load balancer's ARN
	Address string // host:port where it is on this machine
}

// Check is how a group's endpoints are checked. A zero value of a field is AWS's
// default.
type Check struct {
	Protocol        string // TCP (default), HTTP or HTTPS, whose certificate is not verified
	Port            int    // default: the endpoint's own
	Path            string // default "/"
	IntervalSeconds int    // 10 or 30 (default)
	Threshold       int    // 1 to 10, default 3
}

// Client is where connections come from.
type Client struct {
	// Nearest are all regions, by AWS's names, the nearest first.
	Nearest []string
	// Listener accepts the connections. The service closes it.
	Listener net.Listener
}

// Service is the stand-in. Its API is an [http.Handler]. It is safe for concurrent
// use.
type Service struct {
	config  Config
	log     *slog.Logger
	created time.Time
	address map[string]string // of endpoints, by id
	clients [][]int           // numbers of groups, the nearest first, of each client

	mu       sync.Mutex
	groups   []group   // guarded by mu
	pending  []change  // guarded by mu: not deployed yet, the oldest first
	modified time.Time // guarded by mu
}

// group is an endpoint group, by its number.
type group struct {
	region     string
	configured settings          // as it is described
	live       settings          // as it is in effect
	health     map[string]health // by endpoint
}

// settings of a group. Once made, they do not change.
type settings struct {
	dial      float64 // percent
	endpoints []target
	check     Check
}

type target struct {
	id     string
	weight int
}

// change is what will be in effect.
type change struct {
	at    time.Time
	group int
	to    settings
}

const (
	defaultWeight  = 128
	mostWeight     = 255
	mostThreshold  = 10
	defaultDeploy  = 5 * time.Second
	defaultReturn  = 30 * time.Second
	defaultTimeout = 6 * time.Second
)

// New checks the configuration.
func New(config Config) (*Service, error) {
	for setting, value := range map[*time.Duration]time.Duration{
		&config.Second: time.Second, &config.Deploy: defaultDeploy, &config.Return: defaultReturn, &config.Timeout: defaultTimeout,
	} {
		if *setting == 0 {
			*setting = value
		}
	}
	if config.Now == nil {
		config.Now = time.Now
	}
	if config.Random == nil {
		config.Random = rand.Float64
	}
	if config.Logger == nil {
		config.Logger = slog.New(slog.DiscardHandler)
	}
	if len(config.Groups) == 0 {
		return nil, errors.New("software accelerator: no endpoint group")
	}
	if config.Credentials.AccessKeyID == "" {
		return nil, errors.New("software accelerator: nobody has credentials for its API")
	}
	s := &Service{config: config, log: config.Logger, created: config.Now(), modified: config.Now(), address: map[string]string{}}
	for _, g := range config.Groups {
		if err := s.addGroup(g); err != nil {
			return nil, fmt.Errorf("software accelerator: %w", err)
		}
	}
	for _, c := range config.Clients {
		order, err := s.order(c.Nearest)
		if err != nil {
			return nil, fmt.Errorf("software accelerator: %w", err)
		}
		s.clients = append(s.clients, order)
	}
	return s, nil
}

func (s *Service) addGroup(g Group) error {
	if g.Region == "" || s.numberOf(g.Region) >= 0 {
		return fmt.Errorf("endpoint group in region %q: want one in each region", g.Region)
	}
	set := settings{dial: 100, check: g.Check.withDefaults()}
	if why := set.check.invalid(); why != "" {
		return fmt.Errorf("endpoint group in %s: %s", g.Region, why)
	}
	for _, e := range g.Endpoints {
		if _, _, err := net.SplitHostPort(e.Address); err != nil || e.ID == "" || s.address[e.ID] != "" {
			return fmt.Errorf("endpoint %q at %q: want an id of its own, and host:port", e.ID, e.Address)
		}
		s.address[e.ID] = e.Address
		set.endpoints = append(set.endpoints, target{id: e.ID, weight: defaultWeight})
	}
	s.groups = append(s.groups, group{region: g.Region, configured: set, live: set, health: map[string]health{}})
	return nil
}

func (s *Service) numberOf(region string) int {
	return slices.IndexFunc(s.groups, func(g group) bool { return g.region == region })
}

// order gives the numbers of all groups as regions are listed.
func (s *Service) order(nearest []string) (numbers []int, err error) {
	for _, region := range nearest {
		number := s.numberOf(region)
		if number < 0 || slices.Contains(numbers, number) {
			return nil, fmt.Errorf("regions nearest to a client %v: %s is none that has a group, or comes twice", nearest, region)
		}
		numbers = append(numbers, number)
	}
	if len(numbers) != len(s.groups) {
		return nil, fmt.Errorf("regions nearest to a client %v: want all that have a group", nearest)
	}
	return numbers, nil
}

func (c Check) withDefaults() Check {
	if c.Protocol == "" {
		c.Protocol = "TCP"
	}
	if c.Path == "" {
		c.Path = "/"
	}
	if c.IntervalSeconds == 0 {
		c.IntervalSeconds = 30
	}
	if c.Threshold == 0 {
		c.Threshold = 3
	}
	return c
}

// invalid says what AWS would not take; empty: nothing.
func (c Check) invalid() string {
	switch {
	case c.Protocol != "TCP" && c.Protocol != "HTTP" && c.Protocol != "HTTPS":
		return "health check protocol must be TCP, HTTP or HTTPS"
	case c.Port < 0 || c.Port > 65535:
		return "health check port must be within 1 and 65535"
	case !strings.HasPrefix(c.Path, "/") || len(c.Path) > 255:
		return "health check path must begin with / and have at most 255 characters"
	case c.IntervalSeconds != 10 && c.IntervalSeconds != 30:
		return "health check interval must be 10 or 30 seconds"
	case c.Threshold < 1 || c.Threshold > mostThreshold:
		return "threshold count must be within 1 and 10"
	}
	return ""
}

// settle puts in effect what has been deployed by now. It is called with mu held.
func (s *Service) settle() {
	now := s.config.Now()
	for len(s.pending) > 0 && !now.Before(s.pending[0].at) {
		c := s.pending[0]
		g := &s.groups[c.group]
		g.live, s.pending = c.to, s.pending[1:]
		maps.DeleteFunc(g.health, func(id string, _ health) bool { // one that comes again is new
			return !slices.ContainsFunc(g.live.endpoints, func(e target) bool { return e.id == id })
		})
		s.log.Info("in effect", "region", g.region, "dial_percent", c.to.dial)
	}
}

// effective gives the settings of a group that are in effect now.
func (s *Service) effective(number int) settings {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.settle()
	return s.groups[number].live
}

// note notes what a check has shown.
func (s *Service) note(number int, id string, passed bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	g := &s.groups[number]
	was, known := g.health[id]
	if !known {
		was.state = stateInitial
	}
	now := was.after(passed, g.live.check.Threshold, s.config.Return, s.config.Now())
	g.health[id] = now
	if now.state != was.state {
		s.log.Info("health of an endpoint", "region", g.region, "endpoint", id, "state", now.state)
	}
}

// choose gives the address for a new connection of a client; empty: there is none.
func (s *Service) choose(client int) string {
	byDial, byWeight := s.config.Random(), s.config.Random()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.settle()
	now := s.config.Now()
	var nearest []choice
	for _, number := range s.clients[client] {
		g := &s.groups[number]
		c := choice{dial: g.live.dial}
		for _, e := range g.live.endpoints {
			c.endpoints = append(c.endpoints, weighed{weight: e.weight, takes: g.health[e.id].takes(now)})
		}
		nearest = append(nearest, c)
	}
	number, endpoint, ok := route(nearest, byDial, byWeight)
	if !ok {
		return ""
	}
	return s.address[s.groups[s.clients[client][number]].live.endpoints[endpoint].id]
}
