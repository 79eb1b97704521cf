package operator

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net/url"
	"strings"

	"github.com/mrgc/mrgc/internal/decision"
	"github.com/mrgc/mrgc/internal/routing"
)

// Explanation is what one router says of a request.
type Explanation struct {
	Admin     string               `json:"admin"`
	Region    string               `json:"region"`
	Decisions []decision.Explained `json:"decisions"`
}

// Explain asks every router for a request by either of its ids. Routers that do
// not answer are errors of their own only when no other knows the request.
func (a *Admins) Explain(ctx context.Context, id string) ([]Explanation, error) {
	var found []Explanation
	var failed []error
	for _, admin := range a.urls {
		var page struct {
			Explanation
			Kept      int     `json:"kept"`
			OldestSec float64 `json:"oldest_age_seconds"`
		}
		_, err := a.get(ctx, admin, "/decisions/"+url.PathEscape(id), &page)
		switch {
		case err != nil:
			failed = append(failed, err)
		case len(page.Decisions) == 0:
			failed = append(failed, fmt.Errorf("%s (%s) has its last %d decisions, of the last %s", admin, page.Region, page.Kept, age(page.OldestSec)))
		default:
			page.Admin = admin
			found = append(found, page.Explanation)
		}
	}
	if len(found) > 0 {
		return found, nil
	}
	return nil, fmt.Errorf("no decision over request %q is known: it is older than what the routers keep, was sent through another router "+
		"(--admin, repeat), or by weight while no router answered:\n%w", clean(id), errors.Join(failed...))
}

// PrintExplanations writes them for people, one after the other.
func PrintExplanations(w io.Writer, found []Explanation) error {
	between := ""
	for i := range found {
		for j := range found[i].Decisions {
			fmt.Fprint(w, between)
			if err := found[i].print(w, &found[i].Decisions[j]); err != nil {
				return err
			}
			between = "\n"
		}
	}
	return nil
}

func (e *Explanation) print(w io.Writer, d *decision.Explained) error {
	r := &d.Record
	t := newTable(w)
	t.row("request", fmt.Sprintf("%s of %s for %s, %s ago", cmp.Or(r.Request.ID, "(no id)"), cmp.Or(r.Tenant, "(nobody)"), cmp.Or(r.Request.Model, "(no model)"), age(d.AgeSec)))
	t.row("router", fmt.Sprintf("%s %s, config %s, fleet as of %s before", e.Region, e.Admin, cmp.Or(r.Config, "?"), age(r.At.Sub(r.FleetAt).Seconds())))
	t.row("decision", decided(d))
	if r.Refusal != nil {
		t.row("refused", strings.TrimSpace(r.Refusal.Code+" "+r.Refusal.Param))
	}
	t.row("outcome", outcome(d))
	if len(d.Places) == 0 {
		return t.Flush()
	}
	asked := fmt.Sprintf("policy %s, regions %s", r.Request.Policy, join(r.Request.Regions))
	if r.Request.PromptTokens > 0 {
		asked += fmt.Sprintf(", prompt of up to %d tokens", r.Request.PromptTokens)
	}
	if r.Request.Home != "" {
		asked += ", home " + r.Request.Home
	}
	t.row("by", asked)
	if err := t.Flush(); err != nil {
		return err
	}
	fmt.Fprintln(w)
	t = newTable(w)
	t.row("#", "INSTANCE", "REGION", "FIRST TOKEN", "SCORE", "REQUESTS/SLOTS", "REPORT", "ERRORS", "WHY")
	for i := range d.Places {
		p := &d.Places[i]
		if p.Rank == 0 {
			t.row("-", p.Instance, p.Region, "", "", "", report(p.Report, p.ReportAgeSec), percent(p.ErrorRate), excluded(p))
			continue
		}
		first := age(p.FirstTokenSec)
		if p.Home {
			first += " (home)"
		}
		t.row(fmt.Sprint(p.Rank), p.Instance, p.Region, first, fmt.Sprint(p.Score), fmt.Sprintf("%.0f/%.0f", p.Requests, p.Slots),
			report(p.Report, p.ReportAgeSec), percent(p.ErrorRate), placed(d, i))
	}
	return t.Flush()
}

func decided(d *decision.Explained) string {
	r := &d.Record
	if r.Decision.Reason == "" {
		return "refused before an instance was looked for"
	}
	text := string(r.Decision.Reason)
	if len(r.Decision.Order) > 0 {
		text += " " + r.Decision.Order[0]
	}
	switch r.Decision.Gate {
	case routing.GateHome:
		text += ": the conversation's home"
	case routing.GateReleased:
		text += ": the conversation's home was saturated, failing or gone"
	case routing.GateNone:
	}
	return text
}

func outcome(d *decision.Explained) string {
	o := d.Record.Outcome
	if o == nil {
		if d.Record.Refusal != nil {
			return "answered by Envoy in the instances' stead"
		}
		return "nothing heard yet"
	}
	text := "under way"
	if o.End != "" {
		text = fmt.Sprintf("%s after %s", o.End, age(o.After.Seconds()))
	}
	if o.Instance != "" {
		text += " at " + o.Instance
	}
	if o.Attempts > 1 {
		text += fmt.Sprintf(", attempt %d", o.Attempts)
	}
	if o.Wait > 0 {
		text += fmt.Sprintf("; Envoy waited %s for the decision", age(o.Wait.Seconds()))
	}
	return text
}

// placed says in words why one that may serve has its place.
func placed(d *decision.Explained, i int) string {
	p := &d.Places[i]
	if i == 0 {
		return "first"
	}
	before := &d.Places[i-1]
	switch p.After {
	case routing.CriterionStanding:
		if before.Standing == "probed" {
			return before.Instance + " fails, and is tried first to see whether it still does"
		}
		return "fails"
	case routing.CriterionVersion:
		return "of another version of the model"
	case routing.CriterionRegion:
		return "further away"
	case routing.CriterionOverflow:
		return "nearer or preferred, but without room"
	case routing.CriterionGate:
		return before.Instance + " is the conversation's home"
	case routing.CriterionDraw:
		return before.Instance + " was drawn, or its turn had come"
	case routing.CriterionMeasure:
		return worse(d.Record.Request.Policy, p, before)
	case routing.CriterionScore:
		return fmt.Sprintf("score lower by %d", before.Score-p.Score)
	case routing.CriterionHash:
		return "equally good; the request's hash decides"
	case routing.CriterionNone:
	}
	return string(p.After) // of a newer router
}

// worse says by how much the policy's measure is.
func worse(policy string, p, before *decision.Place) string {
	by := p.Measure - before.Measure
	switch policy {
	case routing.PolicyGateThenLoad.String():
		return fmt.Sprintf("first token predicted %s later, nothing cached", age(by))
	case routing.PolicyScore.String():
		return fmt.Sprintf("score lower by %.0f with this request", by)
	default:
		return fmt.Sprintf("%.1f more requests in flight", by)
	}
}

// excluded says in words what keeps an instance from serving.
func excluded(p *decision.Place) string {
	switch p.Rule {
	case routing.RuleKey:
		return "holds no key that the request is sealed to"
	case routing.RuleModel:
		return "does not serve the model"
	case routing.RuleRegion:
		return "the request may not go to its region"
	case routing.RuleVersion:
		return "its version of the model gets no requests"
	case routing.RuleReady:
		switch {
		case p.Draining:
			return "not ready: draining"
		case p.Unhealthy != "":
			return "not ready: " + p.Unhealthy
		default:
			return fmt.Sprintf("not ready: last heard of %s before", age(p.HeartbeatSec))
		}
	case routing.RuleNone:
	}
	return string(p.Rule) // of a newer router
}

func join[T ~string](all []T) string {
	var texts []string
	for _, one := range all {
		texts = append(texts, string(one))
	}
	return strings.Join(texts, ", ")
}
