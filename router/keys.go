package router

import (
	"cmp"
	"encoding/json"
	"math/rand/v2"
	"net/http"
	"slices"

	"github.com/mrgc/mrgc/internal/api"
	"github.com/mrgc/mrgc/internal/fleet"
)

// Candidates per answer of the keys route: local instances to choose among, and
// one in another region for when the local ones have gone. What one side lacks
// the other makes up for. It is how many a client seals to by default.
const (
	allCandidates    = 3
	remoteCandidates = 1
)

// candidates lists the instances that the picker would send a request to now,
// best first: local ones by requests in flight, then remote ones in the order
// of spill. Those that are alike stay in the order of ready.
func candidates(ready []*fleet.Instance, model string, local fleet.Region, spill []fleet.Region, inFlight func(id string) int) []*fleet.Instance {
	var here, away []*fleet.Instance
	for _, in := range ready {
		switch {
		case !slices.Contains(in.Models, model):
		case in.Region == local:
			here = append(here, in)
		case slices.Contains(spill, in.Region):
			away = append(away, in)
		}
	}
	byLoad := func(a, b *fleet.Instance) int { return cmp.Compare(inFlight(a.ID), inFlight(b.ID)) }
	slices.SortStableFunc(here, byLoad)
	slices.SortStableFunc(away, func(a, b *fleet.Instance) int {
		return cmp.Or(cmp.Compare(slices.Index(spill, a.Region), slices.Index(spill, b.Region)), byLoad(a, b))
	})
	here = here[:min(len(here), allCandidates-min(len(away), remoteCandidates))]
	return append(here, away[:min(len(away), allCandidates-len(here))]...)
}

// serveKeys answers [api.PathKeys].
func (r *Router) serveKeys(w http.ResponseWriter, req *http.Request) {
	if !r.authenticated(req) {
		unauthorized().Write(w)
		return
	}
	model := req.URL.Query().Get("model")
	if !slices.Contains(r.models(), model) {
		api.Errorf(http.StatusNotFound, "model_not_found", "the model does not exist or is not served here; %s lists those that are", api.PathModels).Write(w)
		return
	}
	var answer api.Recipients
	if snapshot := r.view.Load(); snapshot != nil {
		ready := snapshot.Ready(r.config.StaleAfter)
		// Tenants who ask an idle cluster must not all seal to the same instances.
		rand.Shuffle(len(ready), func(i, j int) { ready[i], ready[j] = ready[j], ready[i] }) //nolint:gosec // no secret
		for _, in := range candidates(ready, model, r.config.Region, r.config.SpillTo, r.picker.InFlight) {
			for _, kid := range in.KeyIDs {
				if recipient, ok := r.recipients.get(kid); ok {
					answer.Recipients = append(answer.Recipients, recipient)
					break // the newest: an older key is for requests that are on their way
				}
			}
		}
	}
	if len(answer.Recipients) == 0 {
		none := api.Errorf(http.StatusServiceUnavailable, "no_instance_ready", "no instance is ready for the model; try again")
		none.RetryAfter = fleet.RefreshInterval
		none.Write(w)
		return
	}
	writeJSON(w, http.StatusOK, answer)
}

// serveModels answers [api.PathModels].
func (r *Router) serveModels(w http.ResponseWriter, req *http.Request) {
	if !r.authenticated(req) {
		unauthorized().Write(w)
		return
	}
	answer := api.Models{Object: "list", Data: []api.Model{}}
	for _, name := range r.models() {
		answer.Data = append(answer.Data, api.Model{ID: name, Object: "model", Created: r.started.Unix(), OwnedBy: "mrgc"})
	}
	writeJSON(w, http.StatusOK, answer)
}

// authenticated checks the tenant's edge token.
func (r *Router) authenticated(req *http.Request) bool {
	return r.config.EdgeTokens.HoldsBearer(req.Header.Values(api.HeaderTenant), req.Header.Values("Authorization"))
}

func unauthorized() *api.Error {
	return api.Errorf(http.StatusUnauthorized, "invalid_api_key", "the API key is not one of this cluster's")
}

func writeJSON(w http.ResponseWriter, status int, value any) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(value) // a client that has gone cannot be told
}
