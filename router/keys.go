package router

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"

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
	asked, err := parseWanted(req.URL.Query())
	if err != nil {
		api.Errorf(http.StatusBadRequest, "invalid_request", "%v", err).Write(w)
		return
	}
	way := r.way(model, rules.Name).Within(func(region fleet.Region) bool { return rules.Regions.Allow(string(region)) })
	offer := routing.Offer{
		Model: model, N: asked.n,
		Regions: way.Regions,
		Detours: way.Detours,
		Split:   r.split(model),
		Taken:   map[string]int{},
	}
	candidates := r.picker.Candidates()
	selections := make([][]*fleet.Instance, max(1, asked.sets))
	for i := range selections {
		offer.Seed = rand.Uint64() //nolint:gosec // tenants must not herd; there is no secret in it
		selections[i] = routing.Candidates(offer, candidates)
		for _, in := range selections[i] {
			offer.Taken[in.ID]++
		}
	}
	answer := r.recipients.answer(selections, asked.known)
	if asked.sets == 0 {
		answer.Sets = nil
	}
	if len(answer.Recipients) == 0 {
		none := api.Errorf(http.StatusServiceUnavailable, "no_instance_ready", "no instance is ready for the model; try again")
		none.RetryAfter = fleet.RefreshInterval
		none.Write(w)
		return
	}
	writeJSON(w, http.StatusOK, answer)
}

// wanted is what a client asks the keys route for.
type wanted struct {
	n     int      // recipients in a selection
	sets  int      // selections; 0: one, which is not named
	known []string // key ids of the recipients that the client has
}

func parseWanted(query url.Values) (w wanted, err error) {
	number := func(name string, otherwise, least, most int) int {
		text := query.Get(name)
		if text == "" {
			return otherwise
		}
		n, atoi := strconv.Atoi(text)
		if atoi != nil || n < least || n > most {
			err = fmt.Errorf("%s is a number from %d to %d", name, least, most)
		}
		return n
	}
	w.n = number("n", api.Offered, 1, seal.MaxRecipients)
	w.sets = number("sets", 0, 1, api.MaxSets)
	if text := query.Get("known"); text != "" {
		w.known = strings.SplitN(text, ",", api.MaxKnown+1)
		if len(w.known) > api.MaxKnown {
			err = fmt.Errorf("known is at most %d key ids", api.MaxKnown)
		}
	}
	return w, err
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
