package autoscaler

import (
	"fmt"
	"time"

	"github.com/mrgc/mrgc/internal/fleet"
)

// Config is one region's. A zero value of a field is its default, which
// docs/scaling.md explains.
type Config struct {
	Region fleet.Region
	Zones  []string // availability zones that instances may be launched in, in order of preference

	Min, Max   int     // instances; default 2 and 20
	TargetLow  float64 // requests/s of an instance, default 10
	TargetHigh float64 // default 15: what an instance still serves in time

	UpAfter   time.Duration // above TargetHigh before more are launched; default 2 min
	DownAfter time.Duration // below half of the target before some are drained; default 10 min
	Cooldown  time.Duration // between two changes of the number; default 5 min

	BootTimeout    time.Duration // launched and not ready for longer: never came up; default 15 min
	UnreadyTimeout time.Duration // not ready any more for longer: dead; default 10 min
	Settle         time.Duration // until a launch without an answer is repeated, and until what was launched must be listed; default 2 min
	ZonePause      time.Duration // a zone without capacity is left alone; default 5 min
	MaxGap         time.Duration // between two steps; after a longer one nothing counts as uninterrupted; default 1 min

	Learn, Reserve, Forecast bool

	// Of a forecast only: how far ahead it looks, which is how long an instance takes to
	// be ready, default 5 min; and how long less is needed before instances are drained,
	// default 30 min.
	Lead, Release time.Duration
}

func (c Config) withDefaults() Config {
	if c.Min == 0 {
		c.Min = 2
	}
	if c.Max == 0 {
		c.Max = 20
	}
	if c.TargetLow == 0 {
		c.TargetLow = 10
	}
	if c.TargetHigh == 0 {
		c.TargetHigh = 15
	}
	for _, field := range []struct {
		value   *time.Duration
		without time.Duration
	}{
		{&c.UpAfter, 2 * time.Minute},
		{&c.DownAfter, 10 * time.Minute},
		{&c.Cooldown, 5 * time.Minute},
		{&c.BootTimeout, 15 * time.Minute},
		{&c.UnreadyTimeout, 10 * time.Minute},
		{&c.Settle, 2 * time.Minute},
		{&c.ZonePause, 5 * time.Minute},
		{&c.MaxGap, time.Minute},
		{&c.Lead, 5 * time.Minute},
		{&c.Release, 30 * time.Minute},
	} {
		if *field.value == 0 {
			*field.value = field.without
		}
	}
	return c
}

// Defaulted is the configuration with the defaults filled in.
func (c Config) Defaulted() Config { return c.withDefaults() }

// MostInstances of a region can be stored in one item of DynamoDB's, of 400 KB, when all
// of them are drained at once.
const MostInstances = 250

// Check says what of a configuration cannot be.
func (c Config) Check() error {
	c = c.withDefaults()
	if err := c.Region.Validate(); err != nil {
		return fmt.Errorf("autoscaler: %w", err)
	}
	switch {
	case len(c.Zones) == 0:
		return fmt.Errorf("autoscaler: %s: no zones to launch in", c.Region)
	case c.Min < 1 || c.Max < c.Min || c.Max > MostInstances:
		return fmt.Errorf("autoscaler: %s: %d to %d instances: want 1 ≤ min ≤ max ≤ %d", c.Region, c.Min, c.Max, MostInstances)
	case !(c.TargetLow > 0 && c.TargetLow <= c.TargetHigh):
		return fmt.Errorf("autoscaler: %s: target of %v to %v requests/s: want 0 < low ≤ high", c.Region, c.TargetLow, c.TargetHigh)
	}
	for _, d := range []time.Duration{
		c.UpAfter, c.DownAfter, c.Cooldown, c.BootTimeout, c.UnreadyTimeout, c.Settle, c.ZonePause, c.MaxGap, c.Lead, c.Release,
	} {
		if d < 0 {
			return fmt.Errorf("autoscaler: %s: %v: want no negative duration", c.Region, d)
		}
	}
	return nil
}

// target is what the number is sized for: the middle of the band.
func (c *Config) target() float64 { return (c.TargetLow + c.TargetHigh) / 2 }

func (c *Config) clamp(n int) int { return min(max(n, c.Min), c.Max) }
