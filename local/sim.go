package local

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/mrgc/mrgc/engine/sim/batching"
)

// SimOptions are what a person can choose of the engine simulators.
type SimOptions struct {
	Profile  string // hardware to imitate, of batching.Profiles or the part of a name before its first dash; default: none, answers come at once
	Slots    int    // requests that an engine runs at once; default: the profile's, or 4
	KVBlocks int    // of 16 tokens; default: the profile's
	// Slow and Fail are, by instance, how many times as long its engine takes
	// and the share of requests that it fails at once.
	Slow, Fail map[string]string
}

const (
	simSlots = 4 // of an engine without a profile
	// admitted is how many requests parent and enclave let in at once: the
	// default of mrgc.yaml's limits.concurrent_requests_per_instance.
	admitted = 64
)

// completeSim checks what was chosen of the simulators, once regions, instances
// and engine are known.
func (o *Options) completeSim() error {
	s := &o.Sim
	if o.Engine != EngineSim || o.EngineURL != "" {
		if s.Profile != "" || s.Slots != 0 || s.KVBlocks != 0 || len(s.Slow) > 0 || len(s.Fail) > 0 {
			return fmt.Errorf("the flags --sim-… have a meaning with --engine %s alone", EngineSim)
		}
		return nil
	}
	if s.Slots < 0 || s.KVBlocks < 0 {
		return fmt.Errorf("--sim-slots %d, --sim-kv-blocks %d: want at least 1, or leave them out", s.Slots, s.KVBlocks)
	}
	slots := simSlots
	if s.Profile != "" {
		profile, err := batching.Named(s.Profile)
		if err != nil {
			return fmt.Errorf("--sim-profile: %w", err)
		}
		s.Profile, slots = profile.Name, profile.MaxSequences
	} else if s.KVBlocks > 0 {
		return fmt.Errorf("--sim-kv-blocks needs --sim-profile: without one an engine has no KV cache")
	}
	s.Slots = min(cmp.Or(s.Slots, slots), admitted)
	for _, faults := range []struct {
		flag string
		by   map[string]string
		max  float64
	}{{"--sim-slow", s.Slow, 1000}, {"--sim-fail", s.Fail, 1}} {
		for _, id := range slices.Sorted(maps.Keys(faults.by)) {
			if !o.hasInstance(id) {
				return fmt.Errorf("%s %s: there is no such instance; they are called REGION-NUMBER, like %s-0", faults.flag, id, o.Regions[0])
			}
			if v, err := strconv.ParseFloat(faults.by[id], 64); err != nil || !(v > 0 && v <= faults.max) {
				return fmt.Errorf("%s %s=%s: want a number above 0 and at most %g", faults.flag, id, faults.by[id], faults.max)
			}
		}
	}
	return nil
}

func (o *Options) hasInstance(id string) bool {
	region, number, _ := strings.Cut(id, "-")
	n, err := strconv.Atoi(number)
	return err == nil && n >= 0 && n < o.Instances && instanceID(region, n) == id && slices.Contains(o.Regions, region)
}

func instanceID(region string, number int) string {
	return fmt.Sprintf("%s-%d", region, number)
}

// arguments are the simulator's, for the engine of an instance.
func (s *SimOptions) arguments(instance string) []string {
	args := []string{"--slots", strconv.Itoa(s.Slots)}
	if s.Profile != "" {
		args = append(args, "--profile", s.Profile)
	}
	if s.KVBlocks > 0 {
		args = append(args, "--kv-blocks", strconv.Itoa(s.KVBlocks))
	}
	if factor, ok := s.Slow[instance]; ok {
		args = append(args, "--slowness", factor)
	}
	if share, ok := s.Fail[instance]; ok {
		args = append(args, "--fail-share", share)
	}
	return args
}
