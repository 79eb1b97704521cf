package router

import (
	"slices"

	"github.com/mrgc/mrgc/internal/fleet"
	"github.com/mrgc/mrgc/internal/tenant"
)

// modeOf is the mode of isolation that an instance's newest recipient claims;
// empty: not known. It is for people and for tenants to see beforehand: whoever
// demands a mode verifies the claims.
func (c *collector) modeOf(in *fleet.Instance) string {
	for _, kid := range in.KeyIDs {
		if h, ok := c.get(kid); ok && h.mode != "" {
			return h.mode
		}
	}
	return ""
}

// modes are those in which a model is served to a tenant now, each once, in order.
func (r *Router) modes(model string, rules *tenant.Tenant) []string {
	modes := []string{}
	for _, c := range r.picker.Candidates() {
		in := c.Instance
		if !c.Ready || !slices.Contains(in.Models, model) || !rules.Regions.Allow(string(in.Region)) {
			continue
		}
		if mode := r.recipients.modeOf(in); mode != "" && !slices.Contains(modes, mode) {
			modes = append(modes, mode)
		}
	}
	slices.Sort(modes)
	return modes
}
