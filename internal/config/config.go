// Package config is mrgc.yaml: its types, its strict reading, its checks.
//
//	cfg, err := config.Load("mrgc.yaml")
//	if err != nil { … } // every fault at once, a line "mrgc.yaml:12: models[0].name: …" each
//
// The field comments below are the reference of the file; mrgc.example.yaml, at
// the root of the repository, says the same for people who run a cluster. A
// field that is left out, or null, has its default. What has no default is
// required. Durations are written "50ms", "15s" or "1m30s"; sizes are in bytes.
//
// Reading is strict: an unknown field, a field given twice, a value of another
// kind, a second document, an anchor or an alias is an error, and a file with an
// error is refused as a whole. The package reads nothing but the file it is
// given, and knows no environment variables.
package config

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"time"

	"github.com/mrgc/mrgc/internal/fleet"
	"github.com/mrgc/mrgc/internal/routing"
	"github.com/mrgc/mrgc/internal/tenant"
)

// Config is a cluster's configuration. One that Load or Parse returned is valid
// and complete, and nobody writes to it.
type Config struct {
	// Regions of the cluster, at least one.
	Regions []Region `yaml:"regions"`
	// Models that the cluster serves, at least one.
	Models []Model `yaml:"models"`
	// Tenants that may do less than the signed list of tenants says.
	Tenants []Tenant `yaml:"tenants"`
	// TenantClientCA is a PEM file of the CAs whose certificates tenants may show in
	// place of an API key's edge token. Routers read it at their start, and again when
	// it changes. Default: none, and no certificate is asked for.
	TenantClientCA string `yaml:"tenant_client_ca"`

	Limits    Limits    `yaml:"limits"`
	Picker    Picker    `yaml:"picker"`
	Fleet     Fleet     `yaml:"fleet"`
	Wash      Wash      `yaml:"wash"`
	Scaling   Scaling   `yaml:"scaling"`
	Listeners Listeners `yaml:"listeners"`
}

// Version names the configuration by its content: two that say the same, in
// whatever words, have the same.
func (c *Config) Version() string {
	content, err := json.Marshal(c)
	if err != nil {
		panic(err) // a field that JSON cannot say, whatever its value
	}
	sum := sha256.Sum256(content)
	return hex.EncodeToString(sum[:6])
}

// Restrictions are what the configuration says of tenants.
func (c *Config) Restrictions() []tenant.Restriction {
	restrictions := make([]tenant.Restriction, len(c.Tenants))
	for i, t := range c.Tenants {
		restrictions[i] = tenant.Restriction{Name: t.Name, Blocked: t.Blocked, Models: t.Models, Regions: t.Regions, Limits: t.limits()}
	}
	return restrictions
}

// Policies are the models' routing policies, by name.
func (c *Config) Policies() map[string]routing.Policy {
	policies := make(map[string]routing.Policy, len(c.Models))
	for _, m := range c.Models {
		policies[m.Name] = m.Policy
	}
	return policies
}

// Splits are how the requests of models that have versions are divided, by name.
func (c *Config) Splits() map[string]routing.Split {
	splits := map[string]routing.Split{}
	for _, m := range c.Models {
		if s := m.split(); len(s) > 0 {
			splits[m.Name] = s
		}
	}
	return splits
}

func (m *Model) split() (s routing.Split) {
	for _, v := range m.Versions {
		s = append(s, routing.Version{Name: v.Name, Weight: v.Weight})
	}
	return s
}

// Region is one region of the cluster.
type Region struct {
	// Name in the cluster: 1 to 63 of a-z, 0-9 and '-', no '-' at either end.
	// Required, unique.
	Name fleet.Region `yaml:"name"`
	// AWSRegion is AWS's name of it, such as us-east-1. Required, unique.
	AWSRegion string `yaml:"aws_region"`
	// SpillTo lists the regions that take requests when this one has no healthy
	// instance, or no room, first choice first. Default: all others in the file's
	// order. An empty list: none.
	SpillTo []fleet.Region `yaml:"spill_to"`
	// SpillNearest takes the regions of SpillTo in the order of their round trips
	// instead, as soon as those are known. Default: whether SpillTo is left out.
	SpillNearest bool `yaml:"spill_nearest"`
	// RoundTrips are those to other regions, for as long as routers have measured
	// none. Default: not known, which counts as far.
	RoundTrips []RoundTrip `yaml:"round_trips"`
	// MinInstances and MaxInstances are the region's own. Default: scaling's.
	MinInstances int `yaml:"min_instances"`
	MaxInstances int `yaml:"max_instances"`
}

// RoundTrip is how far another region is.
type RoundTrip struct {
	// To is the other region's name. Required, unique within the region.
	To fleet.Region `yaml:"to"`
	// Time is how long a packet takes there and back, up to 10s. Required.
	Time time.Duration `yaml:"time"`
}

// RoundTripTimes are the region's round trips, by where they go.
func (r *Region) RoundTripTimes() map[fleet.Region]time.Duration {
	times := make(map[fleet.Region]time.Duration, len(r.RoundTrips))
	for _, trip := range r.RoundTrips {
		times[trip.To] = trip.Time
	}
	return times
}

// Preference is a region that is preferred to those after it.
type Preference struct {
	// Region is its name. Required, unique within the list.
	Region fleet.Region `yaml:"region"`
	// Handicap is how much later, at most, a request's first token is to come from
	// the regions before this one, while they have no room, rather than from here: what
	// a request costs here more than there, in waiting time. 0s to 1m, default 0s.
	Handicap time.Duration `yaml:"handicap"`
}

func preferences(list []Preference) (out []routing.Preference) {
	for _, p := range list {
		out = append(out, routing.Preference(p))
	}
	return out
}

// PreferencesByModel are those of models that have any, by name.
func (c *Config) PreferencesByModel() map[string][]routing.Preference {
	byModel := map[string][]routing.Preference{}
	for _, m := range c.Models {
		if len(m.Prefer) > 0 {
			byModel[m.Name] = preferences(m.Prefer)
		}
	}
	return byModel
}

// PreferencesByTenant are those of tenants that have any, by name.
func (c *Config) PreferencesByTenant() map[string][]routing.Preference {
	byTenant := map[string][]routing.Preference{}
	for _, t := range c.Tenants {
		if len(t.Prefer) > 0 {
			byTenant[t.Name] = preferences(t.Prefer)
		}
	}
	return byTenant
}

// Model is a model that the cluster serves.
type Model struct {
	// Name as tenants ask for it: 1 to 128 of A-Z, a-z, 0-9 and ._/:-.
	// Required, unique.
	Name string `yaml:"name"`
	// Policy is how its requests are ordered among instances: gate-then-load,
	// score, least-in-flight, power-of-two or round-robin, which
	// internal/routing explains. Default gate-then-load.
	Policy routing.Policy `yaml:"policy"`
	// Prefer lists regions where its requests are rather served than in those after
	// them, whichever region they come to; the others follow as if there were no list:
	// the region itself, and those that it spills to. Default: none.
	Prefer []Preference `yaml:"prefer"`
	// Versions divide its requests, at most 8. A version that is not listed, and an
	// instance that names none, gets no request. Default: none, and all instances
	// are alike.
	Versions []Version `yaml:"versions"`
	// AutoRollback has routers set the weight of a version to 0 that is judged worse
	// than the first listed one that has a weight. Only of a model with versions.
	// Default false: they say so, and leave it to the operator.
	AutoRollback bool `yaml:"auto_rollback"`
}

// Version is a version of a model, and its share of the model's requests.
type Version struct {
	// Name as instances register it: 1 to 128 of A-Z, a-z, 0-9 and ._+-. Required,
	// unique within the model.
	Name string `yaml:"name"`
	// Weight is its share per mille: 0 to 1000, of all versions together 1000. With 0
	// it gets no request, even if nothing else is ready. Default 0.
	Weight int `yaml:"weight"`
}

// Tenant restricts a tenant of the signed list (package tenant), which alone says
// who the tenants are. What is not said here is as it is signed.
type Tenant struct {
	// Name: 1 to 63 of a-z, 0-9 and '-', no '-' at either end. Required, unique.
	Name string `yaml:"name"`
	// Blocked tenants are served nothing. Default false.
	Blocked bool `yaml:"blocked"`
	// Models are those of the signed ones that it may still ask for; an empty
	// list: none. Default: all of them. Each is one that the cluster serves.
	Models []string `yaml:"models"`
	// Regions are those of the signed ones where its data may still be; an empty
	// list: none. Default: all of them. Each is one of the cluster's.
	Regions []string `yaml:"regions"`
	// Prefer is a list as models have it, which for this tenant's requests takes the
	// place of the model's. It lets nothing be where it may not be. All tenants' lists
	// together have at most 16 different orders of regions. Default: the model's.
	Prefer []Preference `yaml:"prefer"`
	// RequestsPerSecond, TokensPerMinute and Weight are the most that holds of the
	// signed ones ([tenant.Limits]): what is larger changes nothing. At least 1.
	// Default: what is signed.
	RequestsPerSecond int `yaml:"requests_per_second"`
	TokensPerMinute   int `yaml:"tokens_per_minute"`
	Weight            int `yaml:"weight"`
}

func (t *Tenant) limits() tenant.Limits {
	return tenant.Limits{RequestsPerSecond: t.RequestsPerSecond, TokensPerMinute: t.TokensPerMinute, Weight: t.Weight}
}

// Limits bound what one request or connection may use.
type Limits struct {
	// RequestBodyBytes is the largest body of a request. At least 1024,
	// default 8 MiB.
	RequestBodyBytes int `yaml:"request_body_bytes"`
	// ResponseIdleTimeout ends a request that has had no byte in either
	// direction for so long: the wait for the first token must fit. At least 1s,
	// default 5m.
	ResponseIdleTimeout time.Duration `yaml:"response_idle_timeout"`
	// ConcurrentRequestsPerInstance is how many requests an instance has at
	// once, running and waiting; what comes above goes to another instance, or
	// gets 503. At least 1, default 64.
	ConcurrentRequestsPerInstance int `yaml:"concurrent_requests_per_instance"`
}

// Picker is how Envoy asks where a request goes.
type Picker struct {
	// MessageTimeout is how long Envoy waits for the picker before it chooses by
	// weight. 1ms to 1s, default 50ms.
	MessageTimeout time.Duration `yaml:"message_timeout"`
}

// Fleet is how instances are watched.
type Fleet struct {
	// HeartbeatInterval is how often an instance reports. At least 100ms,
	// default 5s.
	HeartbeatInterval time.Duration `yaml:"heartbeat_interval"`
	// StaleAfter is how old a report may be before the instance gets no new
	// requests. More than twice HeartbeatInterval, so that one lost report costs
	// nothing. Default 15s.
	StaleAfter time.Duration `yaml:"stale_after"`
}

// Wash says when an instance is washed in full (docs/wash.md), where parents start
// the enclaves themselves. By default it is only when an operator orders it.
type Wash struct {
	// EveryRequests is after so many requests. Default 0: not for their number.
	EveryRequests int `yaml:"every_requests"`
	// Every is so long after the wash before began: 0s, or at least 1m. Default 0s: not
	// for its age.
	Every time.Duration `yaml:"every"`
	// OnTenantChange is after a request of another tenant than the one before it.
	// Default false.
	OnTenantChange bool `yaml:"on_tenant_change"`
	// Strict is after every request, while no other runs on the instance. Default false.
	Strict bool `yaml:"strict"`
	// RestartEngine has a full wash restart the engine, so that GPU memory is overwritten,
	// one instance of a region and model after the other: where no other is ready, a wash
	// waits. It takes engines that can be (mrgc engine run), and excludes Strict. Default
	// false: the engine only forgets.
	RestartEngine bool `yaml:"restart_engine"`
}

// Listeners are Envoy's ports, 1 to 65535, not the same.
type Listeners struct {
	// TenantPort takes tenants' requests over TLS. Default 443.
	TenantPort int `yaml:"tenant_port"`
	// HealthPort answers the load balancer's health checks and nothing else.
	// Default 8080.
	HealthPort int `yaml:"health_port"`
}

// defaults is the configuration of an empty file. Defaults that follow from
// other fields are set by complete.
func defaults() *Config {
	return &Config{
		Limits: Limits{
			RequestBodyBytes:              8 << 20,
			ResponseIdleTimeout:           5 * time.Minute,
			ConcurrentRequestsPerInstance: 64,
		},
		Picker:    Picker{MessageTimeout: 50 * time.Millisecond},
		Fleet:     Fleet{HeartbeatInterval: 5 * time.Second, StaleAfter: 15 * time.Second},
		Scaling:   Scaling{MinInstances: 2, MaxInstances: 20, TargetLow: 10, TargetHigh: 15, FirstTokenWithin: 2 * time.Second},
		Listeners: Listeners{TenantPort: 443, HealthPort: 8080},
	}
}

// complete sets the defaults that follow from other fields, where the file says
// nothing.
func (c *Config) complete(given places) {
	for i := range c.Regions {
		if !given.has("regions[%d].spill_nearest", i) {
			c.Regions[i].SpillNearest = !given.has("regions[%d].spill_to", i)
		}
		if !given.has("regions[%d].min_instances", i) {
			c.Regions[i].MinInstances = c.Scaling.MinInstances
		}
		if !given.has("regions[%d].max_instances", i) {
			c.Regions[i].MaxInstances = c.Scaling.MaxInstances
		}
		if given.has("regions[%d].spill_to", i) {
			continue
		}
		for j := range c.Regions {
			if j != i {
				c.Regions[i].SpillTo = append(c.Regions[i].SpillTo, c.Regions[j].Name)
			}
		}
	}
}
