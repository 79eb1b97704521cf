package config

import (
	"fmt"
	"time"
)

// Scaling is how many instances a region has (docs/scaling.md), where a controller
// launches them. Capacities that are written into autoscaling_state beat it.
type Scaling struct {
	// MinInstances and MaxInstances of each region that does not say otherwise. 1 to 250,
	// the least not above the most. Default 2 and 20.
	MinInstances int `yaml:"min_instances"`
	MaxInstances int `yaml:"max_instances"`
	// TargetLow and TargetHigh are the requests per second of a ready instance that are
	// aimed at: more of them are launched above TargetHigh, which an instance still
	// serves in time, and the number is sized for the middle. 1 to 10000, the low one not
	// above the high one. Default 10 and 15.
	TargetLow  int `yaml:"target_low_requests_per_second"`
	TargetHigh int `yaml:"target_high_requests_per_second"`
	// FirstTokenWithin is when a request's answer has to begin, counted from when its
	// instance has it; one that begins later is late. 10ms to 5m, default 2s.
	FirstTokenWithin time.Duration `yaml:"first_token_within"`
	// Learn weighs requests by what their model's tokens take. Default false.
	Learn bool `yaml:"learn"`
	// Reserve keeps room for the region's share of any other region. Default false.
	Reserve bool `yaml:"reserve"`
	// Forecast launches before the rise, by the days before. Default false.
	Forecast bool `yaml:"forecast"`
}

// mostInstances of a region: their members of its row in autoscaling_state, all being
// drained at once, fit into an item of DynamoDB's (400 KB).
const mostInstances = 250

func (v *validator) scaling(c *Config) {
	s := c.Scaling
	v.instances(s.MinInstances, s.MaxInstances, "scaling")
	for i, region := range c.Regions {
		path := fmt.Sprintf("regions[%d]", i)
		if v.places.has("%s.min_instances", path) || v.places.has("%s.max_instances", path) {
			v.instances(region.MinInstances, region.MaxInstances, path)
		}
	}
	v.check(between(s.TargetLow, 1, 10_000), "scaling.target_low_requests_per_second", "%d: want 1 to 10000", s.TargetLow)
	v.check(between(s.TargetHigh, s.TargetLow, 10_000), "scaling.target_high_requests_per_second",
		"%d: want target_low_requests_per_second (%d) to 10000", s.TargetHigh, s.TargetLow)
	v.check(between(s.FirstTokenWithin, 10*time.Millisecond, 5*time.Minute), "scaling.first_token_within",
		"%v: want 10ms to 5m", s.FirstTokenWithin)
}

func (v *validator) instances(least, most int, path string) {
	v.check(between(least, 1, mostInstances), path+".min_instances", "%d: want 1 to %d", least, mostInstances)
	v.check(between(most, least, mostInstances), path+".max_instances", "%d: want min_instances (%d) to %d", most, least, mostInstances)
}
