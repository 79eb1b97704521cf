package decision

import (
	"time"

	"github.com/mrgc/mrgc/internal/routing"
)

// Explained is a decision with its reasons, as the router's admin shows it and
// `mrgc explain` prints it.
type Explained struct {
	Record line `json:"record"` // as in a trace
	// AgeSec is how long ago it was decided.
	AgeSec float64 `json:"age_seconds"`
	// Places says of every candidate what became of it: those that may serve, best
	// first, then the others.
	Places []Place `json:"places"`
	// RunnerUp is the second of those that may serve; empty when there is none.
	RunnerUp string `json:"runner_up,omitempty"`
	// RunnerUpAfter is by what it is not the first.
	RunnerUpAfter routing.Criterion `json:"runner_up_after,omitempty"`
}

// Place is what became of one candidate, and what the picker knew of it.
type Place struct {
	Instance string            `json:"instance"`
	Region   string            `json:"region"`
	Rank     int               `json:"rank,omitempty"`  // 1 is first; none: it may not serve
	Rule     routing.Rule      `json:"rule,omitempty"`  // why not
	After    routing.Criterion `json:"after,omitempty"` // by what it comes after the one before
	Home     bool              `json:"home,omitempty"`  // the conversation's last request went there

	Standing      string  `json:"standing,omitempty"` // sound, failing or probed
	FirstTokenSec float64 `json:"first_token_seconds"`
	Measure       float64 `json:"measure"` // the policy's, less is better
	Score         int     `json:"score"`
	Requests      float64 `json:"requests"`
	Slots         float64 `json:"slots"`
	CapacityShare float64 `json:"capacity_share"`

	ErrorRate    float64 `json:"error_rate"`
	Report       string  `json:"report"`                       // fresh, stale or missing
	ReportAgeSec float64 `json:"report_age_seconds,omitempty"` // when it was decided
	HeartbeatSec float64 `json:"heartbeat_age_seconds"`        // likewise
	Draining     bool    `json:"draining,omitempty"`
	Unhealthy    string  `json:"unhealthy,omitempty"` // what is
}

// Explain gives the reasons of a decision.
func Explain(r Record, now time.Time) Explained {
	e := Explained{Record: lineOf(&r), AgeSec: now.Sub(r.At).Seconds(), Places: []Place{}}
	if !r.picked() {
		return e
	}
	byID := make(map[string]*routing.Candidate, len(r.Candidates))
	for i := range r.Candidates {
		byID[r.Candidates[i].Instance.ID] = &r.Candidates[i]
	}
	_, places := routing.Explain(r.Request, r.Candidates)
	for i, p := range places {
		in, c := p.Instance, byID[p.Instance.ID]
		place := Place{
			Instance: in.ID, Region: string(in.Region), Rule: p.Rule, After: p.After,
			Home:     in.ID == r.Request.Home,
			Standing: p.Standing, FirstTokenSec: p.FirstToken.Seconds(), Measure: p.Measure, Score: p.Score,
			Requests: p.Requests, Slots: p.Slots, CapacityShare: p.Share,
			ErrorRate: finite(c.ErrorRate), Report: c.Report.Age.String(), ReportAgeSec: c.Report.Since.Seconds(),
			HeartbeatSec: r.At.Sub(in.HeartbeatAt).Seconds(), Draining: in.Draining, Unhealthy: unhealthy(c),
		}
		if p.Rule == routing.RuleNone {
			place.Rank = i + 1
		}
		if place.Rank == 2 {
			e.RunnerUp, e.RunnerUpAfter = in.ID, p.After
		}
		e.Places = append(e.Places, place)
	}
	return e
}

// unhealthy says in a word or two what is the matter with an instance.
func unhealthy(c *routing.Candidate) string {
	h := c.Instance.Health
	switch {
	case h.OK():
		return ""
	case h.Reason != "":
		return h.Reason
	case !h.Enclave:
		return "enclave"
	default:
		return "engine"
	}
}
