package failover

import (
	"fmt"
	"slices"
	"time"

	"github.com/mrgc/mrgc/internal/fleet"
)

// Config says how fast and how far. [Defaults] has the values that
// docs/failover.md explains; a zero value of a field is its default.
type Config struct {
	// Regions are all of them, 1 to 16. With fewer than three nobody can tell a region
	// that died from a path that did, and dials move by an operator's order only.
	Regions []fleet.Region

	Confirm        time.Duration // seen down by a quorum, without interruption, before a region is taken out
	ConfirmPartial time.Duration // seen with too little ready, likewise, before its dial is lowered to Partial
	Calm           time.Duration // nobody sees anything wrong, before DEGRADED ends
	Validate       time.Duration // seen well by a quorum before a recovery begins; doubles with each that failed
	MaxValidate    time.Duration // no longer than this
	Hold           time.Duration // seen well at each of Stages before the next
	Apart          time.Duration // between lowering the dials of two regions
	FlapWindow     time.Duration // a dial turns at most once in it
	Forgive        time.Duration // in NORMAL, after which failed recoveries are forgotten

	Partial int   // percent, of a region that has too little ready
	Stages  []int // percents of a recovery, rising to 100

	FreshFor time.Duration // a report is fresh for so long after its number rose
	MaxSkew  time.Duration // by which two clocks may differ
	MaxGap   time.Duration // between two steps; after a longer one nothing counts as uninterrupted
}

// Defaults are what docs/failover.md explains.
func Defaults(regions ...fleet.Region) Config {
	return Config{Regions: regions}.withDefaults()
}

func (c Config) withDefaults() Config {
	for _, field := range []struct {
		value   *time.Duration
		without time.Duration
	}{
		{&c.Confirm, 5 * time.Second},
		{&c.ConfirmPartial, time.Minute},
		{&c.Calm, time.Minute},
		{&c.Validate, 2 * time.Minute},
		{&c.MaxValidate, 30 * time.Minute},
		{&c.Hold, time.Minute},
		{&c.Apart, 30 * time.Second},
		{&c.FlapWindow, 10 * time.Minute},
		{&c.Forgive, time.Hour},
		{&c.FreshFor, 10 * time.Second},
		{&c.MaxSkew, 5 * time.Second},
		{&c.MaxGap, 5 * time.Second},
	} {
		if *field.value == 0 {
			*field.value = field.without
		}
	}
	if c.Partial == 0 {
		c.Partial = 50
	}
	if c.Stages == nil {
		c.Stages = []int{10, 25, 50, 100}
	}
	return c
}

// Check says what of a configuration cannot be; zero values are defaults.
func (c Config) Check() error {
	c = c.withDefaults()
	if len(c.Regions) < 1 || len(c.Regions) > 16 {
		return fmt.Errorf("failover: %d regions: want 1 to 16", len(c.Regions))
	}
	for i, r := range c.Regions {
		if err := r.Validate(); err != nil {
			return fmt.Errorf("failover: %w", err)
		}
		if slices.Contains(c.Regions[:i], r) {
			return fmt.Errorf("failover: region %s is listed twice", r)
		}
	}
	for _, d := range []time.Duration{
		c.Confirm, c.ConfirmPartial, c.Calm, c.Validate, c.MaxValidate, c.Hold, c.Apart, c.FlapWindow, c.Forgive, c.FreshFor, c.MaxSkew, c.MaxGap,
	} {
		if d < 0 {
			return fmt.Errorf("failover: %v: want no negative duration", d)
		}
	}
	if c.Partial < 1 || c.Partial > 100 {
		return fmt.Errorf("failover: partial dial of %d %%: want 1 to 100", c.Partial)
	}
	last := 0
	for _, stage := range c.Stages {
		if stage <= last || stage > 100 {
			return fmt.Errorf("failover: stages %v: want them rising within 1 to 100", c.Stages)
		}
		last = stage
	}
	if last != 100 {
		return fmt.Errorf("failover: stages %v: the last must be 100", c.Stages)
	}
	return nil
}

// quorum is a majority of all regions.
func (c *Config) quorum() int { return len(c.Regions)/2 + 1 }
