package router

import (
	"maps"
	"net/http"
	"slices"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/mrgc/mrgc/internal/fleet"
	"github.com/mrgc/mrgc/internal/peers"
)

// peerEntry is an address of a peer on the admin's page /peers.
type peerEntry struct {
	Address  string  `json:"address"`
	State    string  `json:"state"` // connected, not heard, this router
	Epoch    string  `json:"epoch,omitempty"`
	AgeSec   float64 `json:"age_seconds,omitempty"` // of its view
	Expired  bool    `json:"expired"`               // the view counts nothing
	InFlight int     `json:"in_flight"`             // that it had when it was last heard
}

// entries lists every address that is followed, and what was heard there.
func (e *exchange) entries() []peerEntry {
	states, heard := e.states(), map[string]peers.Peer{} // in this order: who is not heard is believed no more
	for _, p := range e.picker.Peers() {
		heard[p.Address] = p
	}
	page := []peerEntry{}
	for _, address := range slices.Sorted(maps.Keys(states)) {
		entry := peerEntry{Address: address, State: states[address]}
		if p, ok := heard[address]; ok {
			entry.Epoch, entry.AgeSec, entry.Expired, entry.InFlight = p.Epoch.String(), p.Age.Seconds(), p.Expired, p.Requests
		}
		page = append(page, entry)
	}
	return page
}

// abroadEntry is an address of another region's routers, on the same page.
type abroadEntry struct {
	Region  string `json:"region"`
	Address string `json:"address"`
	State   string `json:"state"` // connected, not heard
}

func (r *Router) servePeers(w http.ResponseWriter, _ *http.Request) {
	abroad := []abroadEntry{}
	for _, e := range r.abroad {
		states := e.states()
		for _, address := range slices.Sorted(maps.Keys(states)) {
			abroad = append(abroad, abroadEntry{Region: e.want.Region, Address: address, State: states[address]})
		}
	}
	writeJSON(w, http.StatusOK, map[string]any{"peers": r.peers.entries(), "abroad": abroad})
}

// peerMetrics are read when they are collected.
type peerMetrics struct {
	exchange       *exchange
	connected, age *prometheus.Desc
}

func registerPeerMetrics(reg prometheus.Registerer, region fleet.Region, e *exchange) error {
	return prometheus.WrapRegistererWith(prometheus.Labels{"region": string(region)}, reg).Register(&peerMetrics{
		exchange:  e,
		connected: prometheus.NewDesc("mrgc_peers_connected", "Other routers of the region that this one hears.", nil, nil),
		age:       prometheus.NewDesc("mrgc_peer_view_age_seconds", "Time since another router was last heard; from 1 s its requests in flight do not count.", []string{"peer"}, nil),
	})
}

func (m *peerMetrics) Describe(ch chan<- *prometheus.Desc) {
	ch <- m.connected
	ch <- m.age
}

func (m *peerMetrics) Collect(ch chan<- prometheus.Metric) {
	connected := 0
	for _, p := range m.exchange.entries() {
		if p.State == peerConnected {
			connected++
		}
		if p.Epoch != "" {
			ch <- prometheus.MustNewConstMetric(m.age, prometheus.GaugeValue, p.AgeSec, p.Address)
		}
	}
	ch <- prometheus.MustNewConstMetric(m.connected, prometheus.GaugeValue, float64(connected))
}
