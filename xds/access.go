package xds

import (
	"crypto/sha256"
	_ "embed" // authenticate.lua
	"encoding/hex"
	"fmt"
	"slices"
	"strings"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	luav3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/lua/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/mrgc/mrgc/internal/api"
	"github.com/mrgc/mrgc/internal/fleet"
	"github.com/mrgc/mrgc/internal/tenant"
)

// access is what some tenants may reach from one region's Envoys; they share
// routes and clusters.
type access struct {
	name    string
	models  []string       // served and allowed
	regions []fleet.Region // allowed, in order of priority; none: not from here
	prefer  []fleet.Region // of those, the ones that come first; none: as it is for the model
}

// accessElsewhere is that of tenants whose data may not be in this region: its
// Envoys forward nothing of theirs.
const accessElsewhere = "elsewhere"

// newAccess is what a tenant may reach, and where it is rather served. Equal rules have
// equal names.
func newAccess(t *tenant.Tenant, models []string, regions, prefer []fleet.Region) access {
	if !t.Regions.Allow(string(regions[0])) {
		return access{name: accessElsewhere}
	}
	a := access{}
	for _, r := range regions {
		if t.Regions.Allow(string(r)) {
			a.regions = append(a.regions, r)
		}
	}
	for _, m := range models {
		if t.Models.Allow(m) {
			a.models = append(a.models, m)
		}
	}
	if len(a.regions) > 1 {
		for _, r := range prefer {
			if slices.Contains(a.regions, r) {
				a.prefer = append(a.prefer, r)
			}
		}
	}
	a.name = regionNames(a.regions, "_") + preferred(a.prefer)
	if len(a.models) < len(models) {
		sum := sha256.Sum256([]byte(strings.Join(a.models, "\n")))
		a.name += "/" + hex.EncodeToString(sum[:6])
	}
	return a
}

// accesses gives those of all tenants, by name, and who has which: the context
// of authenticate.lua.
func accesses(tenants []*tenant.Tenant, models []string, regions []fleet.Region, prefer map[string][]fleet.Region) (all []access, callers map[string]*structpb.Value) {
	byName := map[string]access{}
	callers = map[string]*structpb.Value{}
	for _, t := range tenants {
		a := newAccess(t, models, regions, prefer[t.Name])
		byName[a.name] = a
		for _, digest := range t.EdgeTokens {
			callers[digest.String()] = structpb.NewStringValue(a.name + " " + t.Name)
		}
		for _, san := range t.SANs {
			callers[string(san)] = structpb.NewStringValue(a.name + " " + t.Name)
		}
	}
	for _, a := range byName {
		if a.name != accessElsewhere {
			all = append(all, a)
		}
	}
	slices.SortFunc(all, func(a, b access) int { return strings.Compare(a.name, b.name) })
	return all, callers
}

// admission is what a list of tenants comes to for one region's Envoys. It is made
// once for each list and not for each publication: it does not depend on the
// fleet, and the routes of 10,000 tenants take a tenth of a second.
type admission struct {
	of       *tenant.Set
	accesses []access
	routes   resource
}

func newAdmission(config Config, region fleet.Region, regions []fleet.Region, of *tenant.Set) (admission, error) {
	a := admission{of: of}
	var callers map[string]*structpb.Value
	a.accesses, callers = accesses(of.Active(), config.Models, regions, config.Prefer)
	r := &renderer{}
	a.routes = r.resource(routeConfiguration(r, plan{config: config, region: region, accesses: a.accesses}, callers))
	if r.err != nil {
		return admission{}, fmt.Errorf("render %s: %w", region, r.err)
	}
	return a, nil
}

// preferred is what preferred regions add to a name; nothing for none.
func preferred(regions []fleet.Region) string {
	if len(regions) == 0 {
		return ""
	}
	return "+" + regionNames(regions, "_")
}

// regionNames joins them in their order.
func regionNames(regions []fleet.Region, separator string) string {
	names := make([]string, len(regions))
	for i, r := range regions {
		names[i] = string(r)
	}
	return strings.Join(names, separator)
}

const (
	luaFilter = "envoy.filters.http.lua"
	// accessNamespace and accessKey are where authenticate.lua leaves its answer.
	accessNamespace = "mrgc"
	accessKey       = "access"
)

//go:embed authenticate.lua
var authenticateLua string

// authenticator tells the tenant before anything else looks at a request. Of
// Envoy's own filters none compares digests of bearer tokens: api_key_auth would
// have every tenant's token in its configuration.
func authenticator() *luav3.Lua {
	return &luav3.Lua{DefaultSourceCode: inline([]byte(authenticateLua))}
}

// knownTenants is what authenticator compares with. It is the routes' and not
// the listener's, whose change would close connections.
func knownTenants(callers map[string]*structpb.Value) *luav3.LuaPerRoute {
	return &luav3.LuaPerRoute{FilterContext: &structpb.Struct{Fields: callers}}
}

// hasAccess matches requests of tenants with that access.
func hasAccess(name string) *matcherv3.MetadataMatcher {
	return accessMatcher(&matcherv3.ValueMatcher{MatchPattern: &matcherv3.ValueMatcher_StringMatch{
		StringMatch: &matcherv3.StringMatcher{MatchPattern: &matcherv3.StringMatcher_Exact{Exact: name}},
	}})
}

// isTenant matches requests of any tenant.
func isTenant() *matcherv3.MetadataMatcher {
	return accessMatcher(&matcherv3.ValueMatcher{MatchPattern: &matcherv3.ValueMatcher_PresentMatch{PresentMatch: true}})
}

func accessMatcher(value *matcherv3.ValueMatcher) *matcherv3.MetadataMatcher {
	return &matcherv3.MetadataMatcher{
		Filter: accessNamespace,
		Path: []*matcherv3.MetadataMatcher_PathSegment{{
			Segment: &matcherv3.MetadataMatcher_PathSegment_Key{Key: accessKey},
		}},
		Value: value,
	}
}

// allowedRegions tells an instance where a request's data may be.
func allowedRegions(a access) *corev3.HeaderValueOption {
	return setHeader(api.HeaderAllowedRegions, regionNames(a.regions, ","))
}
