package router

import (
	"net/http"
	"slices"
	"strings"

	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/mrgc/mrgc/xds"
)

// adminHandler is the operator's: package xds's pages, the configuration that
// holds, the versions on trial, the instances' load and scores, the other routers,
// decisions, metrics, and a readiness that includes the recipients.
func (r *Router) adminHandler() http.Handler {
	mux := &indexed{ServeMux: http.NewServeMux()}
	xdsAdmin := r.xds.Admin()
	for _, page := range xds.AdminPages {
		if page != "/ready" { // which is this one's
			mux.Handle("GET "+page, xdsAdmin)
		}
	}
	mux.HandleFunc("GET /ready", func(w http.ResponseWriter, req *http.Request) {
		if missing := r.missingRecipients(); len(missing) > 0 {
			writeJSON(w, http.StatusServiceUnavailable, map[string]any{"ready": false, "reason": "no attestation documents yet from " + strings.Join(missing, ", ")})
			return
		}
		xdsAdmin.ServeHTTP(w, req)
	})
	mux.HandleFunc("GET /config", r.serveConfig)
	mux.HandleFunc("GET /canary", r.judges.serve)
	mux.HandleFunc("GET /load", r.loads.serveLoad)
	mux.HandleFunc("GET /peers", r.servePeers)
	mux.HandleFunc("GET /regions", r.serveRegions)
	mux.HandleFunc("GET /scores", r.serveScores)
	if r.inspector != nil {
		mux.HandleFunc("GET /releases", r.inspector.serve)
	}
	mux.HandleFunc("POST /instances/{id}/wash", r.serveWash)
	mux.HandleFunc("GET /decisions", r.serveTrace)
	mux.HandleFunc("GET /decisions/{id}", r.serveDecisions)
	mux.Handle("GET /metrics", promhttp.HandlerFor(r.metrics, promhttp.HandlerOpts{}))
	mux.ServeMux.HandleFunc("GET /{$}", func(w http.ResponseWriter, _ *http.Request) {
		writeJSON(w, http.StatusOK, map[string]any{"pages": slices.Sorted(slices.Values(mux.pages))})
	})
	return mux
}

// indexed is a mux that knows its pages: what answers GET, so that whoever is to read
// all of them finds those that are new, too.
type indexed struct {
	*http.ServeMux
	pages []string
}

// Handle adds a page.
func (m *indexed) Handle(pattern string, handler http.Handler) {
	if page, ok := strings.CutPrefix(pattern, "GET "); ok {
		m.pages = append(m.pages, page)
	}
	m.ServeMux.Handle(pattern, handler)
}

// HandleFunc adds a page.
func (m *indexed) HandleFunc(pattern string, handler func(http.ResponseWriter, *http.Request)) {
	m.Handle(pattern, http.HandlerFunc(handler))
}
