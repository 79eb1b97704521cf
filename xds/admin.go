package xds

import (
	"encoding/json"
	"net/http"
	"time"

	"github.com/mrgc/mrgc/internal/fleet"
)

// AdminPages are the pages of [Server.Admin].
var AdminPages = []string{"/fleet", "/weights", "/envoys", "/ready"}

// Admin shows, as JSON, what the server sees and what it has said:
//
//	GET /fleet     the newest snapshot: every instance, and whether it is ready
//	GET /weights   region → cluster → priority → endpoints, as published
//	GET /envoys    each connected Envoy: what it was sent and has acknowledged
//	GET /ready     200 once there is something for Envoys to have, else 503
//
// It has no access control: serve it on loopback alone. It shows no
// certificate and no key.
func (s *Server) Admin() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /fleet", func(w http.ResponseWriter, _ *http.Request) { writeJSON(w, http.StatusOK, s.fleetPage()) })
	mux.HandleFunc("GET /weights", func(w http.ResponseWriter, _ *http.Request) { writeJSON(w, http.StatusOK, s.weightsPage()) })
	mux.HandleFunc("GET /envoys", func(w http.ResponseWriter, _ *http.Request) { writeJSON(w, http.StatusOK, s.envoysPage(time.Now())) })
	mux.HandleFunc("GET /ready", func(w http.ResponseWriter, _ *http.Request) {
		if err := s.Ready(); err != nil {
			writeJSON(w, http.StatusServiceUnavailable, readyPage{Reason: err.Error()})
			return
		}
		writeJSON(w, http.StatusOK, readyPage{Ready: true})
	})
	return mux
}

type readyPage struct {
	Ready  bool   `json:"ready"`
	Reason string `json:"reason,omitempty"`
}

type fleetPage struct {
	At        time.Time       `json:"at,omitzero"`     // when the store was read
	Error     string          `json:"error,omitempty"` // why not all of it is published
	Instances []instanceEntry `json:"instances"`
}

type instanceEntry struct {
	ID              string            `json:"id"`
	Region          fleet.Region      `json:"region"`
	Zone            string            `json:"zone,omitempty"`
	Address         string            `json:"address"`
	Models          []string          `json:"models"`
	Versions        map[string]string `json:"versions,omitempty"` // of the models that are known, by name
	Keys            []string          `json:"keys"`
	Ready           bool              `json:"ready"` // takes new requests
	Draining        bool              `json:"draining"`
	EnclaveHealthy  bool              `json:"enclave_healthy"`
	EngineHealthy   bool              `json:"engine_healthy"`
	Reason          string            `json:"reason,omitempty"`
	HeartbeatAgeSec float64           `json:"heartbeat_age_seconds"` // when the store was read
	Running         int               `json:"running"`
	Queued          int               `json:"queued"`
	Slots           int               `json:"slots"`
	LatencySec      float64           `json:"latency_seconds"`
	Score           uint32            `json:"score"`            // now, from 0 to 100
	Weight          uint32            `json:"weight,omitempty"` // that Envoy was sent; none: the instance is not among the endpoints
}

func (s *Server) fleetPage() fleetPage {
	s.mu.Lock()
	snapshot, staleAfter, lastError := s.input.snapshot, s.input.config.StaleAfter, s.lastError
	s.mu.Unlock()
	page := fleetPage{Instances: []instanceEntry{}}
	if lastError != nil {
		page.Error = lastError.Error()
	}
	if snapshot == nil {
		return page
	}
	page.At = snapshot.At
	published := map[string]uint32{}
	if current, _ := s.feed.get(); current != nil {
		published = current.weights
	}
	ready := map[string]bool{}
	for _, in := range snapshot.Ready(staleAfter) {
		ready[in.ID] = true
	}
	for _, in := range snapshot.Instances {
		page.Instances = append(page.Instances, instanceEntry{
			ID: in.ID, Region: in.Region, Zone: in.Zone, Address: in.Address, Models: in.Models, Versions: in.Versions, Keys: in.KeyIDs,
			Ready: ready[in.ID], Draining: in.Draining,
			EnclaveHealthy: in.Health.Enclave, EngineHealthy: in.Health.Engine, Reason: in.Health.Reason,
			HeartbeatAgeSec: snapshot.At.Sub(in.HeartbeatAt).Seconds(),
			Running:         in.Load.Running, Queued: in.Load.Queued, Slots: in.Load.Slots,
			LatencySec: in.Load.Latency.Seconds(),
			Score:      s.config.Weight(in), Weight: published[in.ID],
		})
	}
	return page
}

type priorityEntry struct {
	Priority  int             `json:"priority"`
	Endpoints []endpointEntry `json:"endpoints"`
}

type endpointEntry struct {
	Instance string       `json:"instance"`
	Address  string       `json:"address"`
	Region   fleet.Region `json:"region"`
	Zone     string       `json:"zone,omitempty"`
	Weight   uint32       `json:"weight"`
}

func (s *Server) weightsPage() map[fleet.Region]map[string][]priorityEntry {
	page := map[fleet.Region]map[string][]priorityEntry{}
	current, _ := s.feed.get()
	if current == nil {
		return page
	}
	for region, clusters := range current.clusters {
		page[region] = map[string][]priorityEntry{}
		for _, c := range clusters {
			for priority, endpoints := range c.endpoints {
				entry := priorityEntry{Priority: priority, Endpoints: []endpointEntry{}}
				for _, e := range endpoints {
					entry.Endpoints = append(entry.Endpoints, endpointEntry{
						Instance: e.id, Address: e.address.String(), Region: e.region, Zone: e.zone, Weight: e.weight,
					})
				}
				page[region][c.name] = append(page[region][c.name], entry)
			}
		}
	}
	return page
}

type envoysPage struct {
	Published bool         `json:"published"` // there is something for Envoys to have
	Envoys    []envoyEntry `json:"envoys"`
}

type envoyEntry struct {
	Node         string       `json:"node"`
	Region       fleet.Region `json:"region"`
	State        State        `json:"state"`            // the worst of the types'
	Reason       string       `json:"reason,omitempty"` // why it is not SYNCED
	Synced       bool         `json:"synced"`           // every type is
	Trying       bool         `json:"trying"`           // it tries what the others do not have yet
	ConnectedSec float64      `json:"connected_seconds"`
	Types        []typeEntry  `json:"types"`
}

type typeEntry struct {
	TypeStatus
	SentAgeSec     float64 `json:"sent_age_seconds,omitempty"`
	AckedAgeSec    float64 `json:"acked_age_seconds,omitempty"`
	RejectedAgeSec float64 `json:"rejected_age_seconds,omitempty"`
}

func (s *Server) envoysPage(now time.Time) envoysPage {
	age := func(at time.Time) float64 {
		if at.IsZero() {
			return 0
		}
		return now.Sub(at).Seconds()
	}
	page := envoysPage{Published: s.Ready() == nil, Envoys: []envoyEntry{}}
	for _, envoy := range s.Envoys() {
		entry := envoyEntry{
			Node: envoy.Node, Region: envoy.Region, State: envoy.State(), Reason: envoy.Reason(), Synced: envoy.Synced(),
			Trying: envoy.Trying, ConnectedSec: age(envoy.Connected),
		}
		for _, t := range envoy.Types {
			entry.Types = append(entry.Types, typeEntry{
				TypeStatus: t, SentAgeSec: age(t.SentAt), AckedAgeSec: age(t.AckedAt), RejectedAgeSec: age(t.RejectedAt),
			})
		}
		page.Envoys = append(page.Envoys, entry)
	}
	return page
}

func writeJSON(w http.ResponseWriter, status int, page any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	encoder := json.NewEncoder(w)
	encoder.SetIndent("", "  ")
	_ = encoder.Encode(page) // a reader that has gone cannot be told
}
