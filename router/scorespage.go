package router

import (
	"net/http"

	"github.com/mrgc/mrgc/internal/fleet"
	"github.com/mrgc/mrgc/internal/routing"
)

// scoreEntry is an instance on the admin's page /scores: its score and what it
// is made of, and what the picker knows of it.
type scoreEntry struct {
	Instance       string        `json:"instance"`
	Region         fleet.Region  `json:"region"`
	Score          int           `json:"score"` // from 0 to 100
	Terms          routing.Terms `json:"terms"`
	Of             string        `json:"of"` // what it is of: report or heartbeat
	InFlight       int           `json:"in_flight"`
	InFlightTokens int           `json:"in_flight_tokens"`
	Report         string        `json:"report"` // fresh, stale or missing
	ReportAgeSec   float64       `json:"report_age_seconds,omitempty"`
	ErrorRate      float64       `json:"error_rate"`
	SinceReadySec  float64       `json:"since_ready_seconds,omitempty"` // none: since before the router started
	Mode           string        `json:"mode,omitempty"`                // of isolation, as its enclave claims; none: not known yet
}

// serveScores shows every instance as the picker sees it now.
func (r *Router) serveScores(w http.ResponseWriter, _ *http.Request) {
	page := []scoreEntry{}
	for _, c := range r.picker.Candidates() {
		load, of := r.scored(c.Instance)
		terms := routing.TermsOf(c.Instance.Health, load)
		page = append(page, scoreEntry{
			Instance: c.Instance.ID, Region: c.Instance.Region, Score: terms.Score(), Terms: terms, Of: of,
			InFlight: c.InFlight, InFlightTokens: c.InFlightTokens,
			Report: c.Report.Age.String(), ReportAgeSec: c.Report.Since.Seconds(),
			ErrorRate: c.ErrorRate, SinceReadySec: c.SinceReady.Seconds(),
			Mode: r.recipients.modeOf(c.Instance),
		})
	}
	writeJSON(w, http.StatusOK, map[string]any{"region": r.config.Region, "instances": page})
}
