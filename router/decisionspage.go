package router

import (
	"fmt"
	"net/http"
	"strconv"
	"time"

	"github.com/mrgc/mrgc/internal/decision"
)

// defaultTrace is how many decisions a trace has that nobody has asked for more.
const defaultTrace = 100

// decisionsPage is the admin's page /decisions/{id}.
type decisionsPage struct {
	Region    string               `json:"region"`
	Error     string               `json:"error,omitempty"`
	Kept      int                  `json:"kept"`                         // decisions that the router remembers
	OldestSec float64              `json:"oldest_age_seconds,omitempty"` // age of the oldest of them
	Decisions []decision.Explained `json:"decisions"`                    // of this request, the newest first
}

// serveDecisions explains a request by either of its ids.
func (r *Router) serveDecisions(w http.ResponseWriter, req *http.Request) {
	now := time.Now()
	page := decisionsPage{Region: string(r.config.Region), Decisions: []decision.Explained{}}
	oldest, kept := r.picker.Decisions().Oldest()
	if page.Kept = kept; kept > 0 {
		page.OldestSec = now.Sub(oldest).Seconds()
	}
	for _, record := range r.picker.Decisions().Find(req.PathValue("id")) {
		page.Decisions = append(page.Decisions, decision.Explain(record, now))
	}
	status := http.StatusOK
	if len(page.Decisions) == 0 {
		status = http.StatusNotFound
		page.Error = fmt.Sprintf("this router has no decision over that request among its last %d, the oldest of which is %.0f s old; "+
			"ask the region's other routers", page.Kept, page.OldestSec)
	}
	writeJSON(w, status, page)
}

// serveTrace gives the last decisions as a trace.
func (r *Router) serveTrace(w http.ResponseWriter, req *http.Request) {
	n := defaultTrace
	if text := req.URL.Query().Get("last"); text != "" {
		var err error
		if n, err = strconv.Atoi(text); err != nil || n < 1 || n > decision.Kept {
			writeJSON(w, http.StatusBadRequest, map[string]string{"error": fmt.Sprintf("last is how many decisions to give, 1 to %d", decision.Kept)})
			return
		}
	}
	w.Header().Set("Content-Type", "application/jsonl")
	w.Header().Set("Cache-Control", "no-store")
	_ = decision.Write(w, r.picker.Decisions().Last(n)...) // a reader that has gone cannot be told
}
