package config

import (
	"errors"
	"fmt"
	"strconv"

	"github.com/mrgc/mrgc/internal/fleet"
)

// Change checks whether what runs in a region under one configuration can go by
// another without being started again. Its error names every field that it cannot;
// then nothing of the other is to be used, so that parts do not end up with a mixture
// that nobody has written.
//
// What can change: all of models, tenants, limits, picker, fleet, wash and scaling, and of
// regions which there are, where each spills to, how far they are, and how many instances
// they have.
func (c *Config) Change(to *Config, region fleet.Region) error {
	var faults []error
	refuse := func(field string, from, to any) {
		faults = append(faults, fmt.Errorf("%s: %v cannot become %v while this runs: put it back, or start the region's routers, controllers and instances again", field, from, to))
	}
	is, becomes := c.Region(region), to.Region(region)
	switch {
	case is == nil:
		faults = append(faults, fmt.Errorf("regions: there is no %q", region))
	case becomes == nil:
		faults = append(faults, fmt.Errorf("regions: %q, where this runs, is gone: put it back, or stop the region first", region))
	case is.AWSRegion != becomes.AWSRegion:
		refuse(fmt.Sprintf("aws_region of %s", region), is.AWSRegion, becomes.AWSRegion)
	}
	if c.Listeners.TenantPort != to.Listeners.TenantPort {
		refuse("listeners.tenant_port", c.Listeners.TenantPort, to.Listeners.TenantPort)
	}
	if c.Listeners.HealthPort != to.Listeners.HealthPort {
		refuse("listeners.health_port", c.Listeners.HealthPort, to.Listeners.HealthPort)
	}
	if c.TenantClientCA != to.TenantClientCA {
		refuse("tenant_client_ca", strconv.Quote(c.TenantClientCA), strconv.Quote(to.TenantClientCA))
	}
	return errors.Join(faults...)
}

// ChangeEverywhere is [Config.Change] for what watches all regions from one, as
// controllers do: which regions there are, and what AWS calls them, stays, too.
func (c *Config) ChangeEverywhere(to *Config, region fleet.Region) error {
	faults := []error{c.Change(to, region)}
	is, becomes := c.awsNames(), to.awsNames()
	for i := range c.Regions {
		name := c.Regions[i].Name
		switch aws, there := becomes[name]; {
		case name == region: // Change says it
		case !there:
			faults = append(faults, fmt.Errorf("regions: %q is gone: put it back, or start all regions' controllers again, with flags that do not name it", name))
		case aws != is[name]:
			faults = append(faults, fmt.Errorf("aws_region of %s: %s cannot become %s while controllers run: put it back, or start them again", name, is[name], aws))
		}
	}
	for i := range to.Regions {
		if name := to.Regions[i].Name; is[name] == "" {
			faults = append(faults, fmt.Errorf("regions: %q is new: take it out, or start all regions' controllers again, with flags that name it", name))
		}
	}
	return errors.Join(faults...)
}

func (c *Config) awsNames() map[fleet.Region]string {
	names := map[fleet.Region]string{}
	for i := range c.Regions {
		names[c.Regions[i].Name] = c.Regions[i].AWSRegion
	}
	return names
}

// Region gives a region by its name; nil if there is none.
func (c *Config) Region(name fleet.Region) *Region {
	for i := range c.Regions {
		if c.Regions[i].Name == name {
			return &c.Regions[i]
		}
	}
	return nil
}
