package router

import (
	"context"
	"net"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus/promhttp"
	"google.golang.org/grpc"
)

// serveAdmin serves the operator: pages, and on the same port, over HTTP/2
// without TLS, the client status discovery service for tools that speak xDS.
func (r *Router) serveAdmin(ctx context.Context, l net.Listener) error {
	statuses := grpc.NewServer()
	r.xds.RegisterStatus(statuses)
	defer statuses.Stop()
	pages := r.adminHandler()
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	protocols.SetUnencryptedHTTP2(true)
	return serveUntil(ctx, &http.Server{
		ReadHeaderTimeout: 10 * time.Second, Protocols: protocols,
		Handler: http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
			if req.ProtoMajor == 2 && strings.HasPrefix(req.Header.Get("Content-Type"), "application/grpc") {
				statuses.ServeHTTP(w, req)
				return
			}
			pages.ServeHTTP(w, req)
		}),
	}, l, false)
}

// adminHandler is the operator's: the pages, an index of them, and what can be ordered.
func (r *Router) adminHandler() http.Handler {
	mux := http.NewServeMux()
	index := map[string]string{}
	for _, page := range r.adminPages() {
		index[page.path] = page.shows
		mux.Handle("GET "+page.path, page.handler)
	}
	mux.HandleFunc("GET /{$}", func(w http.ResponseWriter, _ *http.Request) {
		writeJSON(w, http.StatusOK, map[string]any{"pages": index})
	})
	mux.HandleFunc("POST /instances/{id}/wash", r.serveWash)
	return mux
}

// adminPage is a page that is read, and changes nothing.
type adminPage struct {
	path, shows string
	handler     http.Handler
}

// adminPages are package xds's and the router's own; ready includes the recipients.
func (r *Router) adminPages() []adminPage {
	ofXDS := r.xds.Admin()
	pages := []adminPage{
		{"/ready", "200 when there is something for Envoys to have, and documents of all ready instances; else 503 and why", r.readiness(ofXDS)},
		{"/fleet", "every instance as the store has it, and whether it is ready", ofXDS},
		{"/weights", "endpoints as published: region, cluster, priority", ofXDS},
		{"/envoys", "each connected Envoy: what it was sent and has accepted", ofXDS},
		{"/config", "which mrgc.yaml holds, since when, and why a newer one does not", http.HandlerFunc(r.serveConfig)},
		{"/canary", "versions on trial, and what is held against them", http.HandlerFunc(r.judges.serve)},
		{"/load", "the load that instances report", http.HandlerFunc(r.loads.serveLoad)},
		{"/peers", "other routers, and what each has in flight", http.HandlerFunc(r.servePeers)},
		{"/regions", "where requests go when this region has no room", http.HandlerFunc(r.serveRegions)},
		{"/scores", "each instance's score and its terms", http.HandlerFunc(r.serveScores)},
		{"/decisions", "the last decisions, to be replayed", http.HandlerFunc(r.serveTrace)},
		{"/decisions/{id}", "why a request went where it went", http.HandlerFunc(r.serveDecisions)},
		{"/metrics", "for Prometheus", promhttp.HandlerFor(r.metrics, promhttp.HandlerOpts{})},
	}
	if r.inspector != nil {
		pages = append(pages, adminPage{"/releases", "which release each enclave runs", http.HandlerFunc(r.inspector.serve)})
	}
	return pages
}

// readiness is package xds's, when no recipients are missing.
func (r *Router) readiness(ofXDS http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		if missing := r.missingRecipients(); len(missing) > 0 {
			writeJSON(w, http.StatusServiceUnavailable, map[string]any{"ready": false, "reason": "no attestation documents yet from " + strings.Join(missing, ", ")})
			return
		}
		ofXDS.ServeHTTP(w, req)
	})
}

// missingRecipients lists the ready instances whose documents are not there yet.
func (r *Router) missingRecipients() []string {
	var missing []string
	if snapshot := r.view.Load(); snapshot != nil {
		for _, in := range snapshot.Ready(r.settings.Load().StaleAfter) {
			if !slices.ContainsFunc(in.KeyIDs, func(kid string) bool { h, ok := r.recipients.get(kid); return ok && !h.shared }) {
				missing = append(missing, in.ID)
			}
		}
	}
	return missing
}
