package router

import (
	"encoding/json"
	"io"
	"net/http"
	"strings"
	"time"

	"github.com/mrgc/mrgc/internal/api"
	"github.com/mrgc/mrgc/internal/fleet"
	"github.com/mrgc/mrgc/internal/identity"
)

// serveWash passes an operator's order of a full wash to the instance's parent, and the
// wash's id back. It wants JSON's content type, which a page of another site cannot send
// unasked.
func (r *Router) serveWash(w http.ResponseWriter, req *http.Request) {
	if req.Header.Get("Content-Type") != "application/json" {
		api.Errorf(http.StatusUnsupportedMediaType, "invalid_request", "want the content type application/json").Write(w)
		return
	}
	in := r.instance(req.PathValue("id"))
	if in == nil {
		api.Errorf(http.StatusNotFound, "not_found", "no instance %q is known here (mrgc status lists them)", req.PathValue("id")).Write(w)
		return
	}
	order, err := http.NewRequestWithContext(req.Context(), http.MethodPost, "https://"+in.Address+api.PathWash, nil)
	if err != nil {
		api.Errorf(http.StatusInternalServerError, "internal", "%v", err).Write(w)
		return
	}
	resp, err := r.recipients.client.Do(order)
	if err != nil {
		api.Errorf(http.StatusBadGateway, "instance_unreachable", "the instance's parent does not answer").Write(w)
		return
	}
	defer resp.Body.Close()
	if peer, _ := identity.Peer(resp.TLS); peer != parentOf(in) {
		api.Errorf(http.StatusBadGateway, "instance_unreachable", "%s answers at the instance's address", peer).Write(w)
		return
	}
	body, err := io.ReadAll(io.LimitReader(resp.Body, 4<<10))
	if err != nil || resp.StatusCode != http.StatusAccepted {
		api.ParseError(resp.StatusCode, body).Write(w)
		return
	}
	var ordered struct {
		Wash string `json:"wash"`
	}
	if json.Unmarshal(body, &ordered) != nil || !strings.HasPrefix(ordered.Wash, in.ID+"/") {
		api.Errorf(http.StatusBadGateway, "wash_not_known", "the instance's parent has taken the order, and does not say which wash it is").Write(w)
		return
	}
	writeJSON(w, http.StatusAccepted, map[string]any{"instance": in.ID, "wash": ordered.Wash, "ordered_at": time.Now().UTC()})
}

// instance is one of the fleet's, as last seen; nil: there is none.
func (r *Router) instance(id string) *fleet.Instance {
	if snapshot := r.view.Load(); snapshot != nil {
		for _, in := range snapshot.Instances {
			if in.ID == id {
				return in
			}
		}
	}
	return nil
}
