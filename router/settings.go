package router

import (
	"errors"
	"fmt"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/mrgc/mrgc/extproc"
	"github.com/mrgc/mrgc/internal/fleet"
	"github.com/mrgc/mrgc/internal/routing"
	"github.com/mrgc/mrgc/internal/tenant"
	"github.com/mrgc/mrgc/xds"
)

// Settings are what mrgc.yaml says to a router, and may change while it runs.
type Settings struct {
	SpillTo []fleet.Region // other regions in order of preference
	// SpillNearest has them in the order of their round trips instead, as far as those
	// are known.
	SpillNearest bool
	// RoundTrips are those to other regions, for as long as none is measured.
	RoundTrips map[fleet.Region]time.Duration
	// PreferByModel and PreferByTenant are where requests are rather served, by name;
	// what is preferred for a tenant comes before what is for a model.
	PreferByModel, PreferByTenant map[string][]routing.Preference

	Models []string
	// Restrictions are what is to hold of tenants beside the signed list of them,
	// which can only be less.
	Restrictions []tenant.Restriction
	Policies     map[string]routing.Policy // of the models that have another than the default
	// Splits divide models' requests between their versions, by model: in the picker,
	// among the recipients that clients are offered, and in the weights that Envoy
	// balances by without a picker. A model without is not divided.
	Splits map[string]routing.Split
	// AutoRollback are the models of which a version that is judged worse is rolled
	// back; others' are said to be worse. FalsePerDay is how many false verdicts a day
	// may cost each version on trial, on average; default as in package
	// controller/canary.
	AutoRollback map[string]bool
	FalsePerDay  float64
	StaleAfter   time.Duration // age of a heartbeat that no longer counts

	MessageTimeout      time.Duration // for which Envoy waits for the picker; default as in package xds, as of the next two
	ResponseIdleTimeout time.Duration
	MaxBodyBytes        int64

	// Version names the configuration that these are of.
	Version string
}

// xds are those for Envoys, of the router's own region.
func (s *Settings) xds(own fleet.Region) xds.Settings {
	prefer := map[string][]fleet.Region{}
	for tenant, preferences := range s.PreferByTenant {
		for _, p := range preferences {
			prefer[tenant] = append(prefer[tenant], p.Region)
		}
		if len(s.PreferByModel) == 0 && slices.Equal(prefer[tenant], []fleet.Region{own}) {
			delete(prefer, tenant) // it comes first as it is
		}
	}
	return xds.Settings{
		SpillTo: map[fleet.Region][]fleet.Region{own: s.SpillTo}, Prefer: prefer, Models: s.Models, StaleAfter: s.StaleAfter,
		MessageTimeout: s.MessageTimeout, ResponseIdleTimeout: s.ResponseIdleTimeout, MaxBodyBytes: s.MaxBodyBytes,
	}
}

func (s *Settings) picker() extproc.Settings {
	return extproc.Settings{SpillTo: s.SpillTo, StaleAfter: s.StaleAfter, Policies: s.Policies, ConfigVersion: s.Version}
}

// split is how a model's requests are divided now.
func (r *Router) split(model string) routing.Split { return r.settings.Load().Splits[model] }

// SetSettings has these hold from now on, for every request that comes, in the
// picker at once and in Envoys within a publication. It does not block for them,
// may be called at any time, and keeps what it is given, which must not change.
// Settings that are not valid are an error, and those before stay.
func (r *Router) SetSettings(s Settings) error {
	r.applying.Lock()
	defer r.applying.Unlock()
	picker := s.picker()
	if err := picker.Validate(r.config.Region); err != nil { // so that it takes them below
		return fmt.Errorf("router: %w", err)
	}
	if err := r.xds.SetSettings(s.xds(r.config.Region)); err != nil {
		return fmt.Errorf("router: %w", err)
	}
	if err := errors.Join(r.picker.SetSettings(picker), r.judges.set(&s, time.Now())); err != nil {
		return fmt.Errorf("router: %w", err)
	}
	r.settings.Store(&s)
	r.xds.SetSplits(s.Splits)
	r.updateWays()
	r.showTenants()
	r.versions.took(s.Version, time.Now())
	return nil
}

// Refused notes, for people, that there is a newer configuration that does not hold,
// and why.
func (r *Router) Refused(why error) { r.versions.refuse(why, time.Now()) }

// Confirmed notes that there is none: what was refused is gone.
func (r *Router) Confirmed() { r.versions.confirm() }

// versions is which configuration a router runs.
type versions struct {
	mu      sync.Mutex
	page    configPage // guarded by mu
	since   time.Time  // guarded by mu
	refused time.Time  // guarded by mu; zero: the newest holds
}

// configPage is the admin's page /config.
type configPage struct {
	Version       string  `json:"version"` // of the content, as decision records have it
	SinceSec      float64 `json:"age_seconds"`
	Refused       string  `json:"refused,omitempty"` // why what is newer does not hold; absent: there is nothing newer
	RefusedAgeSec float64 `json:"refused_age_seconds,omitempty"`
}

func (v *versions) took(version string, now time.Time) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.page, v.since, v.refused = configPage{Version: version}, now, time.Time{}
}

func (v *versions) confirm() {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.page.Refused, v.refused = "", time.Time{}
}

func (v *versions) refuse(why error, now time.Time) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.page.Refused, v.refused = why.Error(), now
}

func (v *versions) now(now time.Time) configPage {
	v.mu.Lock()
	defer v.mu.Unlock()
	page := v.page
	page.SinceSec = now.Sub(v.since).Seconds()
	if !v.refused.IsZero() {
		page.RefusedAgeSec = now.Sub(v.refused).Seconds()
	}
	return page
}

func (r *Router) serveConfig(w http.ResponseWriter, _ *http.Request) {
	writeJSON(w, http.StatusOK, r.versions.now(time.Now()))
}

// configMetrics are read when they are collected.
type configMetrics struct {
	versions      *versions
	info, refused *prometheus.Desc
}

func registerConfigMetrics(reg prometheus.Registerer, region fleet.Region, v *versions) error {
	return prometheus.WrapRegistererWith(prometheus.Labels{"region": string(region)}, reg).Register(&configMetrics{
		versions: v,
		info:     prometheus.NewDesc("mrgc_config_info", "1, by the version of mrgc.yaml's content that the router goes by.", []string{"version"}, nil),
		refused:  prometheus.NewDesc("mrgc_config_refused", "1 while the file says something that the router does not take: /config has the reason.", nil, nil),
	})
}

func (m *configMetrics) Describe(ch chan<- *prometheus.Desc) {
	ch <- m.info
	ch <- m.refused
}

func (m *configMetrics) Collect(ch chan<- prometheus.Metric) {
	page := m.versions.now(time.Now())
	refused := 0.0
	if page.Refused != "" {
		refused = 1
	}
	ch <- prometheus.MustNewConstMetric(m.info, prometheus.GaugeValue, 1, page.Version)
	ch <- prometheus.MustNewConstMetric(m.refused, prometheus.GaugeValue, refused)
}
