package decision

import (
	"errors"
	"fmt"
	"slices"

	"github.com/mrgc/mrgc/internal/fleet"
	"github.com/mrgc/mrgc/internal/routing"
)

// record checks a line and reads it.
func (l *line) record() (Record, error) {
	if l.Version != formatVersion {
		return Record{}, fmt.Errorf("is of format %d, this mrgc reads %d", l.Version, formatVersion)
	}
	policy, err := routing.ParsePolicy(l.Request.Policy)
	if err != nil {
		return Record{}, err
	}
	if err := l.check(); err != nil {
		return Record{}, err
	}
	r := Record{
		At: l.At, EnvoyID: l.EnvoyID, Tenant: l.Tenant, Config: l.Config, FleetAt: l.FleetAt,
		Request: routing.Request{
			ID: l.Request.ID, Model: l.Request.Model, Recipients: l.Request.Recipients, Regions: l.Request.Regions, Detours: l.Request.Detours,
			Conversation: l.Request.Conversation, Policy: policy, Home: l.Request.Home, PromptTokens: l.Request.PromptTokens, Sequence: l.Request.Sequence,
		},
		Decision: routing.Decision{Reason: l.Decision.Reason, Gate: l.Decision.Gate, Version: l.Decision.Version},
	}
	for _, v := range l.Request.Split {
		r.Request.Split = append(r.Request.Split, routing.Version(v))
	}
	byID := map[string]*fleet.Instance{}
	for i := range l.Candidates {
		c, err := l.Candidates[i].candidate()
		if err != nil {
			return Record{}, fmt.Errorf("candidates[%d]: %w", i, err)
		}
		if byID[c.Instance.ID] != nil {
			return Record{}, fmt.Errorf("candidates[%d]: %q is there twice", i, c.Instance.ID)
		}
		byID[c.Instance.ID] = c.Instance
		r.Candidates = append(r.Candidates, c)
	}
	for _, id := range l.Decision.Order {
		if byID[id] == nil {
			return Record{}, fmt.Errorf("decision.order: %q is not among the candidates, or there twice", id)
		}
		r.Decision.Instances = append(r.Decision.Instances, byID[id])
		delete(byID, id)
	}
	if l.Refusal != nil {
		r.Refusal = *l.Refusal
	}
	if l.Outcome != nil {
		r.Outcome = Outcome(*l.Outcome)
	}
	return r, nil
}

// check keeps a line to its limits.
func (l *line) check() error {
	texts := []string{
		l.EnvoyID, l.Tenant, l.Config, l.Request.ID, l.Request.Model, l.Request.Home, l.Request.Conversation, l.Decision.Version,
		string(l.Decision.Reason), string(l.Decision.Gate),
	}
	texts = append(texts, l.Request.Recipients...)
	for _, region := range l.Request.Regions {
		texts = append(texts, string(region))
	}
	for _, v := range l.Request.Split {
		texts = append(texts, v.Name)
	}
	if l.Refusal != nil {
		texts = append(texts, l.Refusal.Code, l.Refusal.Param)
	}
	if l.Outcome != nil {
		texts = append(texts, l.Outcome.Instance, string(l.Outcome.End))
	}
	if err := checkTexts(texts); err != nil {
		return err
	}
	switch {
	case len(l.Request.Recipients) > maxCandidates:
		return fmt.Errorf("request.recipients: %d, at most %d", len(l.Request.Recipients), maxCandidates)
	case len(l.Request.Regions) > maxRegions:
		return fmt.Errorf("request.regions: %d, at most %d", len(l.Request.Regions), maxRegions)
	case len(l.Request.Detours) > maxRegions:
		return fmt.Errorf("request.detours_ns: %d, at most %d", len(l.Request.Detours), maxRegions)
	case len(l.Request.Split) > maxVersions:
		return fmt.Errorf("request.split: %d, at most %d", len(l.Request.Split), maxVersions)
	case len(l.Candidates) > maxCandidates:
		return fmt.Errorf("candidates: %d, at most %d", len(l.Candidates), maxCandidates)
	case l.Decision.Reason == "" && l.Refusal == nil:
		return errors.New("has neither decision.reason nor refusal")
	}
	return nil
}

func checkTexts(texts []string) error {
	for _, text := range texts {
		if len(text) > maxTextBytes {
			return fmt.Errorf("a text of %d bytes, at most %d", len(text), maxTextBytes)
		}
	}
	return nil
}

func (o *lineOption) candidate() (routing.Candidate, error) {
	in := &o.Instance
	switch {
	case in.ID == "":
		return routing.Candidate{}, errors.New("instance.id is empty")
	case len(in.Models) > maxNames || len(in.Versions) > maxNames || len(in.Keys) > maxNames:
		return routing.Candidate{}, fmt.Errorf("%d models, %d versions and %d keys, at most %d each", len(in.Models), len(in.Versions), len(in.Keys), maxNames)
	}
	texts := slices.Concat([]string{in.ID, string(in.Region), in.Zone, in.Reason}, in.Models, in.Keys)
	for model, version := range in.Versions {
		texts = append(texts, model, version)
	}
	if err := checkTexts(texts); err != nil {
		return routing.Candidate{}, err
	}
	age, err := routing.ParseAge(o.Report.Age)
	if err != nil {
		return routing.Candidate{}, err
	}
	return routing.Candidate{
		Instance: &fleet.Instance{
			ID: in.ID, Region: in.Region, Zone: in.Zone, Models: in.Models, Versions: in.Versions, KeyIDs: in.Keys, Draining: in.Draining,
			Health:      fleet.Health{Enclave: in.Enclave, Engine: in.Engine, Reason: in.Reason},
			HeartbeatAt: in.HeartbeatAt, Load: fleet.Load(in.Load),
		},
		Ready: o.Ready, SinceReady: o.SinceReady,
		InFlight: o.InFlight, InFlightTokens: o.InFlightTokens, SentRequests: o.SentRequests, SentTokens: o.SentTokens, Saturated: o.Saturated, ErrorRate: o.ErrorRate,
		Report: routing.Report{
			Load: fleet.Load(o.Report.Load), Age: age, Since: o.Report.Since, UnreadTokens: o.Report.UnreadTokens,
			ReadTokensPerSecond: o.Report.ReadRate, RequestDuration: o.Report.Duration,
		},
	}, nil
}
