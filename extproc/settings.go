package extproc

import (
	"fmt"
	"slices"
	"sync/atomic"
	"time"

	"github.com/mrgc/mrgc/internal/fleet"
	"github.com/mrgc/mrgc/internal/routing"
)

// Settings are what may change while a picker runs.
type Settings struct {
	// SpillTo lists the regions that take over when no local recipient is ready,
	// in order of preference. Instances of any other region are never picked.
	SpillTo []fleet.Region
	// StaleAfter is the age of a heartbeat from which its instance is not ready;
	// see fleet.Snapshot.Ready.
	StaleAfter time.Duration
	// Policies are those of the models that have another than the default,
	// [routing.PolicyGateThenLoad].
	Policies map[string]routing.Policy
	// ConfigVersion names the configuration that these are of, in decision records.
	ConfigVersion string
}

// Validate checks the settings of a picker in a region.
func (s *Settings) Validate(own fleet.Region) error {
	if s.StaleAfter <= 0 {
		return fmt.Errorf("config: StaleAfter is %v, must be positive", s.StaleAfter)
	}
	for i, region := range s.SpillTo {
		if region == "" || region == own || slices.Contains(s.SpillTo[:i], region) {
			return fmt.Errorf("config: SpillTo[%d] is %q: must be another region, named once", i, region)
		}
	}
	for model, policy := range s.Policies {
		if _, err := routing.ParsePolicy(policy.String()); err != nil {
			return fmt.Errorf("config: Policies[%q]: %w", model, err)
		}
	}
	return nil
}

// SetSettings has every pick from now on go by these. It does not block. Those that
// are not valid are an error, and those before stay.
func (p *Picker) SetSettings(s Settings) error {
	if err := s.Validate(p.region); err != nil {
		return fmt.Errorf("extproc: %w", err)
	}
	for {
		before := p.settings.Load()
		if p.settings.CompareAndSwap(before, newSettings(p.region, &s, before)) {
			return nil
		}
	}
}

// settings are Settings as picks use them; never written to.
type settings struct {
	way        routing.Way // of every request, where the picker is given no other
	staleAfter time.Duration
	models     map[string]*modelState // those with a policy of their own
	version    string
}

// modelState is what picks of one model's requests need.
type modelState struct {
	policy   routing.Policy
	requests *atomic.Uint64 // picked so far, whatever the policy
}

// newSettings goes on counting where those before do, which may be nil.
func newSettings(own fleet.Region, s *Settings, before *settings) *settings {
	out := &settings{
		way: routing.Way{Regions: append([]fleet.Region{own}, s.SpillTo...)}, staleAfter: s.StaleAfter,
		models: make(map[string]*modelState, len(s.Policies)), version: s.ConfigVersion,
	}
	for model, policy := range s.Policies {
		state := &modelState{policy: policy, requests: new(atomic.Uint64)}
		if before != nil && before.models[model] != nil {
			state.requests = before.models[model].requests
		}
		out.models[model] = state
	}
	return out
}
