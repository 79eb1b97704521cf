package operator

import (
	"context"
	"errors"
	"slices"
	"strings"

	"github.com/mrgc/mrgc/controller/canary"
)

// TrialStatus is a version on trial, as all routers that were asked see it.
type TrialStatus struct {
	Model    string             `json:"model"`
	Version  string             `json:"version"`
	Present  string             `json:"present"` // which it is compared with
	AgeSec   float64            `json:"age_seconds"`
	Auto     bool               `json:"auto_rollback"`
	Verdict  string             `json:"verdict"` // worse, or no worse
	Signal   canary.Signal      `json:"signal,omitempty"`
	Evidence map[string]float64 `json:"evidence"` // of the router that has most against it
	Compared int                `json:"compared"` // by that router
	// Requests, Failed and Ratios are of both versions' requests that any of the
	// routers has seen: times as long as the present version's, size by size.
	Requests        int                `json:"requests"`
	Failed          int                `json:"failed"`
	PresentRequests int                `json:"present_requests"`
	PresentFailed   int                `json:"present_failed"`
	Ratios          map[string]float64 `json:"ratios"`
	Routers         int                `json:"routers"` // that have it on trial
}

// trialPage is a trial on a router's page /canary.
type trialPage struct {
	TrialStatus
	Versions map[string]*canary.Figures `json:"versions"`
}

// Trials asks the routers for the versions on trial. Of one that does not answer the
// error says so, beside what the others say.
func (a *Admins) Trials(ctx context.Context) (all []TrialStatus, err error) {
	type both struct{ is, was *canary.Figures }
	var pooled []trialPage
	figures := map[string]*both{}
	for _, admin := range a.urls {
		var page struct {
			Trials []trialPage `json:"trials"`
		}
		if _, askErr := a.get(ctx, admin, "/canary", &page); askErr != nil {
			err = errors.Join(err, askErr)
			continue
		}
		for _, t := range page.Trials {
			is, was := t.Versions[t.Version], t.Versions[t.Present]
			if is == nil || was == nil {
				continue
			}
			key := t.Model + "\n" + t.Version
			at := slices.IndexFunc(pooled, func(p trialPage) bool { return p.Model == t.Model && p.Version == t.Version })
			if at < 0 {
				at, pooled = len(pooled), append(pooled, t)
				figures[key] = &both{&canary.Figures{}, &canary.Figures{}}
				pooled[at].Routers = 0
			}
			sum := figures[key]
			sum.is, sum.was = sum.is.Plus(is), sum.was.Plus(was)
			routers := pooled[at].Routers + 1
			if worst(t.Evidence) > worst(pooled[at].Evidence) {
				pooled[at] = t
			}
			pooled[at].Routers = routers
		}
	}
	for _, t := range pooled {
		s, sum := t.TrialStatus, figures[t.Model+"\n"+t.Version]
		s.Requests, s.Failed, s.PresentRequests, s.PresentFailed = sum.is.Requests, sum.is.Failed, sum.was.Requests, sum.was.Failed
		s.Ratios = map[string]float64{}
		for _, signal := range []canary.Signal{canary.SignalTTFT, canary.SignalPerToken} {
			if ratio, known := sum.is.Ratio(signal, sum.was); known {
				s.Ratios[string(signal)] = ratio
			}
		}
		all = append(all, s)
	}
	slices.SortFunc(all, func(a, b TrialStatus) int { return strings.Compare(a.Model+"\n"+a.Version, b.Model+"\n"+b.Version) })
	return all, err
}

func worst(evidence map[string]float64) float64 {
	most := -1e9
	for _, e := range evidence {
		most = max(most, e)
	}
	return most
}
