package xds

import (
	"cmp"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/mrgc/mrgc/internal/fleet"
)

// Config is what a Server needs to know besides the fleet.
type Config struct {
	// Region is the router's own region. Required. Its Envoys are always
	// served.
	Region fleet.Region
	// SpillTo lists, for each region whose Envoys are served, the regions that
	// take its traffic when none of its own instances can, in order. A region
	// without an entry (but Region) is not served.
	SpillTo map[fleet.Region][]fleet.Region
	// Prefer lists, by tenant, regions that serve its requests rather than those that
	// come later, and than the others, while no picker answers: it takes the place of
	// the model's order. Every other list is clusters of its own. Default: as it is
	// for the model.
	Prefer map[string][]fleet.Region
	// Models are the models that may be asked for; each becomes a cluster, with
	// or without instances. Required.
	Models []string

	// TenantAddress and HealthAddress are what Envoy listens on: :443 and :8080
	// in production. Required.
	TenantAddress netip.AddrPort
	HealthAddress netip.AddrPort

	// MessageTimeout is how long a request waits for the picker before the
	// weights decide; default 50 ms.
	MessageTimeout time.Duration
	// ResponseIdleTimeout is how long a request may be silent in both
	// directions before Envoy ends it: the queue of a busy instance and a long
	// prompt, both before the first token, must fit; default 5 min.
	ResponseIdleTimeout time.Duration
	// MaxBodyBytes is the largest request: one that announces more gets a 413,
	// and Envoy keeps that much of a request to be able to send it again;
	// default 16 MiB.
	MaxBodyBytes int64
	// StaleAfter is the age of a heartbeat beyond which an instance leaves the
	// endpoints (see fleet.Snapshot.Ready); default 10 s.
	StaleAfter time.Duration
	// Weight scores an instance from 0 to 100, higher is better; nil scores all
	// alike. It must be quick and safe for concurrent use. Scores are looked at
	// after each Update and Rescored.
	Weight func(*fleet.Instance) uint32
	// MinPushInterval is the least time between two publications; default
	// 100 ms.
	MinPushInterval time.Duration
	// WeightInterval is the least time between two changes of an instance's
	// weight, each of which makes Envoy rebuild its load balancer; default 1 s.
	WeightInterval time.Duration
	// TrialTimeout is how long the Envoy that tries a change first may take to
	// answer before another one tries; default 5 s.
	TrialTimeout time.Duration

	// Names are the static objects of Envoy's bootstrap.
	Names Names
	// Logger may be nil.
	Logger *slog.Logger
	// Metrics may be nil.
	Metrics prometheus.Registerer
}

// Names are the static clusters and secrets of Envoy's bootstrap that
// resources refer to. An empty name takes its default.
type Names struct {
	Router     string // routers' gRPC port; default "router"
	RouterHTTP string // routers' HTTPS port; default "router-http"
	Identity   string // Envoy's own certificate; default "identity"
	Trust      string // the parts' CA; default "trust"
}

func (c Config) withDefaults() Config {
	c.MessageTimeout = cmp.Or(c.MessageTimeout, 50*time.Millisecond)
	c.ResponseIdleTimeout = cmp.Or(c.ResponseIdleTimeout, 5*time.Minute)
	c.MaxBodyBytes = cmp.Or(c.MaxBodyBytes, 16<<20)
	c.StaleAfter = cmp.Or(c.StaleAfter, 10*time.Second)
	c.MinPushInterval = cmp.Or(c.MinPushInterval, 100*time.Millisecond)
	c.WeightInterval = cmp.Or(c.WeightInterval, time.Second)
	c.TrialTimeout = cmp.Or(c.TrialTimeout, 5*time.Second)
	c.Names = Names{
		Router:     cmp.Or(c.Names.Router, "router"),
		RouterHTTP: cmp.Or(c.Names.RouterHTTP, "router-http"),
		Identity:   cmp.Or(c.Names.Identity, "identity"),
		Trust:      cmp.Or(c.Names.Trust, "trust"),
	}
	if c.Weight == nil {
		c.Weight = func(*fleet.Instance) uint32 { return maxWeight }
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	c.Models = slices.Clone(c.Models)
	slices.Sort(c.Models)
	c.Models = slices.Compact(c.Models)
	return c
}

func (c Config) check() error {
	switch {
	case c.Region == "":
		return errors.New("xds config: Region is empty")
	case len(c.Models) == 0:
		return errors.New("xds config: Models is empty; name at least one model")
	case slices.Contains(c.Models, ""):
		return errors.New("xds config: Models has an empty name")
	case !c.TenantAddress.IsValid():
		return errors.New("xds config: TenantAddress is not set")
	case !c.HealthAddress.IsValid():
		return errors.New("xds config: HealthAddress is not set")
	case c.MessageTimeout < 0, c.ResponseIdleTimeout < 0, c.StaleAfter < 0, c.MinPushInterval < 0, c.WeightInterval < 0, c.TrialTimeout < 0, c.MaxBodyBytes < 0:
		return errors.New("xds config: a duration or MaxBodyBytes is negative")
	}
	for region, spill := range c.SpillTo {
		if slices.Contains(spill, region) {
			return fmt.Errorf("xds config: SpillTo of %s names %s itself", region, region)
		}
	}
	return nil
}

// Settings are what may change of a Config while a server runs. Zero values have
// the same defaults.
type Settings struct {
	SpillTo             map[fleet.Region][]fleet.Region // of the same regions as before
	Prefer              map[string][]fleet.Region
	Models              []string
	MessageTimeout      time.Duration
	ResponseIdleTimeout time.Duration
	MaxBodyBytes        int64
	StaleAfter          time.Duration
}

// with is a configuration with other settings.
func (c Config) with(s Settings) (Config, error) {
	before := c.served()
	c.SpillTo, c.Prefer, c.Models = s.SpillTo, s.Prefer, s.Models
	c.MessageTimeout, c.ResponseIdleTimeout = s.MessageTimeout, s.ResponseIdleTimeout
	c.MaxBodyBytes, c.StaleAfter = s.MaxBodyBytes, s.StaleAfter
	if err := c.check(); err != nil {
		return c, err
	}
	now := c.served()
	for region := range now {
		if _, was := before[region]; !was {
			return c, fmt.Errorf("xds config: Envoys of region %s are not served since the start", region)
		}
	}
	if len(now) != len(before) {
		return c, errors.New("xds config: a region whose Envoys are served has no entry in SpillTo any more")
	}
	return c.withDefaults(), nil
}

// served lists the regions whose Envoys are served, each with the regions it
// may use in order of priority, its own first.
func (c Config) served() map[fleet.Region][]fleet.Region {
	out := map[fleet.Region][]fleet.Region{c.Region: {c.Region}}
	for region, spill := range c.SpillTo {
		out[region] = append([]fleet.Region{region}, spill...)
	}
	return out
}
