package router

import (
	"net/http"
	"time"

	"github.com/mrgc/mrgc/controller/canary"
)

// trialEntry is a version on trial on the admin's page /canary.
type trialEntry struct {
	Model    string             `json:"model"`
	Version  string             `json:"version"`
	Present  string             `json:"present"`
	Weights  map[string]int     `json:"weights_per_mille"`
	SinceSec float64            `json:"age_seconds"` // of these weights
	Auto     bool               `json:"auto_rollback"`
	Verdict  string             `json:"verdict"`          // no worse, or worse
	Signal   canary.Signal      `json:"signal,omitempty"` // by which
	Evidence map[string]float64 `json:"evidence"`         // by signal: worse from 1
	Compared int                `json:"compared"`         // requests of the version, by all routers that are heard
	Own      int                `json:"compared_here"`    // of these, by this router
	Ratios   map[string]float64 `json:"ratios"`           // by signal: times as long as the present one, size by size, here
	// Versions has both, of what this router has seen.
	Versions map[string]*canary.Figures `json:"versions"`
}

// Verdicts on the admin's page.
const (
	verdictWorse   = "worse"
	verdictNoWorse = "no worse"
)

func (j *judges) serve(w http.ResponseWriter, _ *http.Request) {
	now, page := time.Now(), []trialEntry{}
	for _, t := range j.all() {
		page = append(page, j.entryOf(t, now))
	}
	j.mu.Lock()
	done := append([]rolledBack{}, j.done...)
	j.mu.Unlock()
	writeJSON(w, http.StatusOK, map[string]any{"region": j.region, "trials": page, "rolled_back": done})
}

func (j *judges) entryOf(t canary.Trial, now time.Time) trialEntry {
	j.mu.Lock()
	auto := j.auto[t.Model]
	j.mu.Unlock()
	entry := trialEntry{
		Model: t.Model, Version: t.Canary, Present: t.Present, Weights: map[string]int{}, SinceSec: now.Sub(t.Since).Seconds(),
		Auto: auto, Verdict: verdictNoWorse, Evidence: map[string]float64{}, Compared: t.Verdict.Compared, Own: t.Own,
		Ratios: map[string]float64{}, Versions: t.Versions,
	}
	if t.Verdict.Worse {
		entry.Verdict, entry.Signal = verdictWorse, t.Verdict.Signal
	}
	for _, v := range t.Split {
		entry.Weights[v.Name] = v.Weight
	}
	for i, signal := range canary.Signals {
		entry.Evidence[string(signal)] = max(t.Verdict.Evidence[i], -1000) // JSON knows no infinity
		if ratio, known := t.Versions[t.Canary].Ratio(signal, t.Versions[t.Present]); known && signal != canary.SignalErrors {
			entry.Ratios[string(signal)] = ratio
		}
	}
	return entry
}
