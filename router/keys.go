package router

import (
	"encoding/json"
	"math/rand/v2"
	"net/http"
	"slices"
	"strconv"

	"github.com/mrgc/mrgc/internal/api"
	"github.com/mrgc/mrgc/internal/fleet"
	"github.com/mrgc/mrgc/internal/routing"
	"github.com/mrgc/mrgc/internal/seal"
)

// serveKeys answers [api.PathKeys].
func (r *Router) serveKeys(w http.ResponseWriter, req *http.Request) {
	rules, refused := r.admit(req)
	if refused != nil {
		refused.Write(w)
		return
	}
	model := req.URL.Query().Get("model")
	if !slices.Contains(r.models(), model) || !rules.Models.Allow(model) {
		api.Errorf(http.StatusNotFound, "model_not_found", "the model is not served here, or not to this tenant; %s lists those that are", api.PathModels).Write(w)
		return
	}
	if !rules.Regions.Allow(string(r.config.Region)) {
		api.Errorf(http.StatusForbidden, api.CodeRegionNotAllowed,
			"this tenant's data may not be in region %s: use the endpoint of a region that is allowed to it", r.config.Region).Write(w)
		return
	}
	n, ok := wanted(req)
	if !ok {
		api.Errorf(http.StatusBadRequest, "invalid_request", "n is how many recipients to list, 1 to %d", seal.MaxRecipients).Write(w)
		return
	}
	way := r.way(model, rules.Name).Within(func(region fleet.Region) bool { return rules.Regions.Allow(string(region)) })
	var answer api.Recipients
	offer := routing.Offer{
		Model: model, N: n,
		Regions: way.Regions,
		Detours: way.Detours,
		Split:   r.split(model),
		Seed:    rand.Uint64(), //nolint:gosec // tenants must not herd; there is no secret in it
	}
	answer.Recipients = r.recipients.offered(routing.Candidates(offer, r.picker.Candidates()))
	if len(answer.Recipients) == 0 {
		none := api.Errorf(http.StatusServiceUnavailable, "no_instance_ready", "no instance is ready for the model; try again")
		none.RetryAfter = fleet.RefreshInterval
		none.Write(w)
		return
	}
	writeJSON(w, http.StatusOK, answer)
}

// wanted is how many recipients a client asks for.
func wanted(req *http.Request) (n int, ok bool) {
	text := req.URL.Query().Get("n")
	if text == "" {
		return api.Offered, true
	}
	n, err := strconv.Atoi(text)
	return n, err == nil && n >= 1 && n <= seal.MaxRecipients
}

// serveModels answers [api.PathModels].
func (r *Router) serveModels(w http.ResponseWriter, req *http.Request) {
	rules, refused := r.admit(req)
	if refused != nil {
		refused.Write(w)
		return
	}
	answer := api.Models{Object: "list", Data: []api.Model{}}
	for _, name := range r.models() {
		if !rules.Models.Allow(name) {
			continue
		}
		answer.Data = append(answer.Data, api.Model{
			ID: name, Object: "model", Created: r.started.Unix(), OwnedBy: "mrgc",
			Metadata: api.ModelMetadata{Modes: r.modes(name, rules)},
		})
	}
	writeJSON(w, http.StatusOK, answer)
}

func writeJSON(w http.ResponseWriter, status int, value any) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(value) // a client that has gone cannot be told
}
