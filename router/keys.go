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
	if !r.authenticated(req) {
		unauthorized().Write(w)
		return
	}
	model := req.URL.Query().Get("model")
	if !slices.Contains(r.models(), model) {
		api.Errorf(http.StatusNotFound, "model_not_found", "the model does not exist or is not served here; %s lists those that are", api.PathModels).Write(w)
		return
	}
	n, ok := wanted(req)
	if !ok {
		api.Errorf(http.StatusBadRequest, "invalid_request", "n is how many recipients to list, 1 to %d", seal.MaxRecipients).Write(w)
		return
	}
	var answer api.Recipients
	offer := routing.Offer{
		Model: model, N: n,
		Regions: append([]fleet.Region{r.config.Region}, r.config.SpillTo...),
		Split:   r.split(model),
		Seed:    rand.Uint64(), //nolint:gosec // tenants must not herd; there is no secret in it
	}
	for _, in := range routing.Candidates(offer, r.picker.Candidates()) {
		for _, kid := range in.KeyIDs {
			if recipient, ok := r.recipients.get(kid); ok {
				answer.Recipients = append(answer.Recipients, recipient)
				break // the newest: an older key is for requests that are on their way
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
