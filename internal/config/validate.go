package config

import (
	"fmt"
	"regexp"
	"slices"
	"time"

	"github.com/mrgc/mrgc/internal/fleet"
	"github.com/mrgc/mrgc/internal/routing"
)

var (
	tenantName = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$`)
	awsRegion  = regexp.MustCompile(`^[a-z]{2}(-[a-z]+)+-[0-9]+$`)
)

// validator checks what the values mean. It says nothing about a value that
// could not even be read.
type validator struct {
	places places
	broken brokenPaths
	faults []fault
}

// check notes a fault at path unless ok.
func (v *validator) check(ok bool, path, format string, args ...any) {
	if !ok && !v.broken.at(path) {
		v.faults = append(v.faults, fault{line: v.places.line(path), path: path, text: fmt.Sprintf(format, args...)})
	}
}

func (v *validator) checkErr(err error, path string) {
	v.check(err == nil, path, "%v", err)
}

func (v *validator) config(c *Config) {
	v.check(len(c.Regions) > 0, "regions", "want at least one region")
	v.check(len(c.Models) > 0, "models", "want at least one model")
	v.regions(c.Regions)
	regions := unique{}
	for i, region := range c.Regions {
		regions.add(string(region.Name), i)
	}
	v.models(c.Models, regions)
	v.tenants(c, regions)
	v.limits(c.Limits)
	v.check(between(c.Picker.MessageTimeout, time.Millisecond, time.Second), "picker.message_timeout",
		"%v: want 1ms to 1s", c.Picker.MessageTimeout)
	v.check(c.Fleet.HeartbeatInterval >= 100*time.Millisecond, "fleet.heartbeat_interval",
		"%v: want at least 100ms", c.Fleet.HeartbeatInterval)
	v.check(c.Fleet.StaleAfter > 2*c.Fleet.HeartbeatInterval, "fleet.stale_after",
		"%v: want more than twice heartbeat_interval (%v)", c.Fleet.StaleAfter, c.Fleet.HeartbeatInterval)
	v.check(c.Wash.EveryRequests >= 0, "wash.every_requests", "%d: want 0, for never, or more", c.Wash.EveryRequests)
	v.check(c.Wash.Every == 0 || c.Wash.Every >= time.Minute, "wash.every", "%v: want 0s, for never, or at least 1m", c.Wash.Every)
	v.check(!c.Wash.Strict || !c.Wash.RestartEngine, "wash.restart_engine", "true, and so is wash.strict: an engine is not restarted after every request")
	v.scaling(c)
	v.listeners(c.Listeners)
}

func (v *validator) regions(regions []Region) {
	names, awsNames := unique{}, unique{}
	for i, region := range regions {
		names.add(string(region.Name), i)
		awsNames.add(region.AWSRegion, i)
	}
	for i, region := range regions {
		path := fmt.Sprintf("regions[%d]", i)
		if v.required(region.Name != "", path+".name") {
			v.checkErr(region.Name.Validate(), path+".name")
			v.unique(names, string(region.Name), i, "regions", path+".name")
		}
		if v.required(region.AWSRegion != "", path+".aws_region") {
			v.check(awsRegion.MatchString(region.AWSRegion), path+".aws_region",
				"%q: want AWS's name of a region, such as us-east-1", region.AWSRegion)
			v.unique(awsNames, region.AWSRegion, i, "regions", path+".aws_region")
		}
		if v.places.has("%s.spill_to", path) {
			v.spillTo(names, region, path+".spill_to")
		}
		v.roundTrips(names, region, path+".round_trips")
	}
}

func (v *validator) spillTo(regions unique, region Region, path string) {
	for i, to := range region.SpillTo {
		_, known := regions[string(to)]
		item := fmt.Sprintf("%s[%d]", path, i)
		switch {
		case !known:
			v.check(false, item, "no region is named %q", to)
		case to == region.Name:
			v.check(false, item, "%q is the region itself", to)
		default:
			v.check(!slices.Contains(region.SpillTo[:i], to), item, "%q is listed twice", to)
		}
	}
}

func (v *validator) roundTrips(regions unique, region Region, path string) {
	to := unique{}
	for i, trip := range region.RoundTrips {
		item := fmt.Sprintf("%s[%d]", path, i)
		to.add(string(trip.To), i)
		if v.required(trip.To != "", item+".to") {
			_, known := regions[string(trip.To)]
			v.check(known, item+".to", "no region is named %q", trip.To)
			v.check(trip.To != region.Name, item+".to", "%q is the region itself", trip.To)
			v.unique(to, string(trip.To), i, path, item+".to")
		}
		v.check(trip.Time > 0 && trip.Time <= 10*time.Second, item+".time", "%v: want more than nothing, and at most 10s", trip.Time)
	}
}

func (v *validator) prefer(regions unique, list []Preference, path string) {
	names := unique{}
	for i, p := range list {
		item := fmt.Sprintf("%s[%d]", path, i)
		names.add(string(p.Region), i)
		if v.required(p.Region != "", item+".region") {
			_, known := regions[string(p.Region)]
			v.check(known, item+".region", "no region is named %q", p.Region)
			v.unique(names, string(p.Region), i, path, item+".region")
		}
		v.check(between(p.Handicap, 0, time.Minute), item+".handicap", "%v: want 0s to 1m", p.Handicap)
	}
}

func (v *validator) models(models []Model, regions unique) {
	names := unique{}
	for i, model := range models {
		path := fmt.Sprintf("models[%d]", i)
		names.add(model.Name, i)
		if v.required(model.Name != "", path+".name") {
			v.checkErr(fleet.ValidateModel(model.Name), path+".name")
			v.unique(names, model.Name, i, "models", path+".name")
		}
		v.prefer(regions, model.Prefer, path+".prefer")
		v.versions(model, path+".versions")
		v.check(!model.AutoRollback || len(model.Versions) > 0, path+".auto_rollback", "there are no versions to judge")
	}
}

func (v *validator) versions(model Model, path string) {
	names := unique{}
	before := len(v.faults)
	for i, version := range model.Versions {
		item := fmt.Sprintf("%s[%d]", path, i)
		names.add(version.Name, i)
		if v.required(version.Name != "", item+".name") {
			v.checkErr(fleet.ValidateVersion(version.Name), item+".name")
			v.unique(names, version.Name, i, path, item+".name")
		}
		v.check(between(version.Weight, 0, routing.SplitTotal), item+".weight", "%d: want 0 to %d", version.Weight, routing.SplitTotal)
		if v.broken.at(item + ".weight") {
			return // what the others add up to says nothing
		}
	}
	if len(v.faults) == before {
		split := model.split()
		v.checkErr(split.Validate(), path)
	}
}

func (v *validator) tenants(c *Config, regions unique) {
	names, models := unique{}, unique{}
	for i, model := range c.Models {
		models.add(model.Name, i)
	}
	for i, tenant := range c.Tenants {
		path := fmt.Sprintf("tenants[%d]", i)
		names.add(tenant.Name, i)
		if v.required(tenant.Name != "", path+".name") {
			v.check(tenantName.MatchString(tenant.Name), path+".name",
				"tenant %q: want 1 to 63 of a-z, 0-9 and '-', no '-' at either end", tenant.Name)
			v.unique(names, tenant.Name, i, "tenants", path+".name")
		}
		v.restriction(models, tenant.Models, "model", path+".models")
		v.restriction(regions, tenant.Regions, "region", path+".regions")
		v.prefer(regions, tenant.Prefer, path+".prefer")
		v.tenantLimits(&tenant, path)
	}
	v.orders(c)
}

// maxOrders is in how many orders tenants may prefer regions: as many as three regions
// have, and more. For each one every Envoy has clusters of its own, which check their
// instances' health and keep connections to them.
const maxOrders = 16

func (v *validator) orders(c *Config) {
	orders := map[string]bool{}
	for _, tenant := range c.Tenants {
		order := ""
		for _, p := range tenant.Prefer {
			order += string(p.Region) + " "
		}
		orders[order] = true
	}
	delete(orders, "")
	v.check(len(orders) <= maxOrders, "tenants", "regions are preferred in %d different orders: want at most %d", len(orders), maxOrders)
}

// restriction checks that what is still allowed exists: a name that is misspelt
// would take from a tenant more than was meant.
func (v *validator) restriction(known unique, names []string, what, path string) {
	for i, name := range names {
		item := fmt.Sprintf("%s[%d]", path, i)
		_, exists := known[name]
		v.check(exists, item, "no %s is named %q", what, name)
		v.check(!exists || !slices.Contains(names[:i], name), item, "%q is listed twice", name)
	}
}

// tenantLimits wants no 0, which would be no limit where one was meant.
func (v *validator) tenantLimits(t *Tenant, path string) {
	for _, limit := range []struct {
		name  string
		value int
	}{{"requests_per_second", t.RequestsPerSecond}, {"tokens_per_minute", t.TokensPerMinute}, {"weight", t.Weight}} {
		field := path + "." + limit.name
		v.check(limit.value > 0 || !v.places.has("%s", field), field, "%d: want at least 1", limit.value)
	}
}

func (v *validator) limits(l Limits) {
	v.check(l.RequestBodyBytes >= 1024, "limits.request_body_bytes", "%d: want at least 1024", l.RequestBodyBytes)
	v.check(l.ResponseIdleTimeout >= time.Second, "limits.response_idle_timeout",
		"%v: want at least 1s", l.ResponseIdleTimeout)
	v.check(l.ConcurrentRequestsPerInstance > 0, "limits.concurrent_requests_per_instance",
		"%d: want at least 1", l.ConcurrentRequestsPerInstance)
}

func (v *validator) listeners(l Listeners) {
	v.check(between(l.TenantPort, 1, 65535), "listeners.tenant_port", "%d: want 1 to 65535", l.TenantPort)
	v.check(between(l.HealthPort, 1, 65535), "listeners.health_port", "%d: want 1 to 65535", l.HealthPort)
	v.check(l.TenantPort != l.HealthPort, "listeners.health_port", "%d is tenant_port too", l.HealthPort)
}

// required notes what is missing. It is false also for what could not be read.
func (v *validator) required(present bool, path string) bool {
	v.check(present, path, "is required")
	return present && !v.broken.at(path)
}

// unique says at which index of a list each value is first.
type unique map[string]int

func (u unique) add(value string, i int) {
	if _, there := u[value]; !there {
		u[value] = i
	}
}

func (v *validator) unique(seen unique, value string, i int, list, path string) {
	first := seen[value]
	v.check(first == i, path, "%s[%d] has the same, %q", list, first, value)
}

func between[T int | time.Duration](value, low, high T) bool { return low <= value && value <= high }
