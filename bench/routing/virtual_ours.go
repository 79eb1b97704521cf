package main

import (
	"fmt"
	"slices"
	"time"

	"github.com/mrgc/mrgc/bench/rig"
	"github.com/mrgc/mrgc/bench/virtual"
	"github.com/mrgc/mrgc/engine/sim/batching"
	"github.com/mrgc/mrgc/internal/fleet"
	"github.com/mrgc/mrgc/internal/routing"
	"github.com/mrgc/mrgc/internal/size"
)

// virtualPicker is our picker, by package routing's own decisions, and the
// instances' parents.
type virtualPicker struct {
	policy     routing.Policy
	candidates []routing.Candidate // by engine
	parents    []virtualParent     // by engine
	requests   map[int]*virtualRequest
	homes      map[int]int // engine by conversation
	sequence   uint64
	offering   offering
	clients    []virtualClient
}

// offering is what clients are offered.
type offering struct {
	clients    int // that the conversations are divided among
	recipients int // in a set; 0: all there are
	sets       int // that a client is offered at once, for its requests to take in turn
}

type virtualParent struct {
	virtual.Parent
	sent []*virtualRequest // since the report before the last
}

type virtualRequest struct {
	engine, tokens int
	at             time.Duration
	prompt         *routing.Prompt
}

// virtualClient is what asks the keys route for recipients, for all its
// conversations, and keeps them for virtualRefresh as package client does.
type virtualClient struct {
	sets  [][]string // of key ids
	turn  int
	until time.Duration
}

const (
	virtualRefresh = 5 * time.Second
	// virtualTransit is how long a request or a report is on its way at most, as
	// package extproc has it.
	virtualTransit = 5 * time.Millisecond
)

func newVirtualPicker(engines int, o offering, policy routing.Policy) *virtualPicker {
	p := &virtualPicker{
		policy: policy, offering: o, parents: make([]virtualParent, engines), clients: make([]virtualClient, o.clients),
		requests: map[int]*virtualRequest{}, homes: map[int]int{},
	}
	for i := range engines {
		p.candidates = append(p.candidates, routing.Candidate{Ready: true, Instance: &fleet.Instance{
			ID: rig.InstanceID(i), Region: rig.Region, Zone: fmt.Sprintf("%s-az%d", rig.Region, i%2), Address: rig.InstanceID(i),
			Models: []string{rig.Model}, KeyIDs: []string{rig.KeyID(i)},
			Health: fleet.Health{Enclave: true, Engine: true}, Load: fleet.Load{Slots: profile().MaxSequences},
		}})
	}
	return p
}

func (p *virtualPicker) pick(now time.Duration, r *request, _ []batching.Token) int {
	p.sequence++
	p.look(now)
	declared := size.Round(r.promptTokens, r.outputTokens)
	pick := routing.Request{
		ID: fmt.Sprintf("%016x", p.sequence*0x9e3779b97f4a7c15), Model: rig.Model, Regions: []fleet.Region{rig.Region},
		Policy: p.policy, PromptTokens: declared.Prompt, Sequence: p.sequence, Recipients: p.recipients(now, r.conversation),
	}
	if home, ok := p.homes[r.conversation]; ok {
		pick.Home = rig.InstanceID(home)
	}
	d := routing.Pick(pick, p.candidates)
	engine := slices.IndexFunc(p.candidates, func(c routing.Candidate) bool { return c.Instance == d.Instances[0] })
	p.homes[r.conversation] = engine

	sent := &virtualRequest{engine: engine, tokens: routing.UncachedTokens(declared.Prompt, d.Gate == routing.GateHome), at: now}
	parent, c := &p.parents[engine], &p.candidates[engine]
	sent.prompt = parent.Meter.Begin(sent.tokens, virtual.Time(now))
	parent.sent = append(parent.sent, sent)
	p.requests[r.index] = sent
	c.InFlight++
	c.InFlightTokens += sent.tokens
	return engine
}

// look brings the candidates up to date.
func (p *virtualPicker) look(now time.Duration) {
	for i := range p.candidates {
		c, parent := &p.candidates[i], &p.parents[i]
		c.Report.Since, c.SentRequests, c.SentTokens = now-parent.At, 0, 0
		for _, sent := range parent.sent {
			if sent.at >= parent.At-virtualTransit {
				c.SentRequests++
				c.SentTokens += sent.tokens
			}
		}
	}
}

// recipients are those that the conversation's client seals to: the next set that it
// was offered, and who answered the conversation before.
func (p *virtualPicker) recipients(now time.Duration, conversation int) []string {
	c := &p.clients[conversation%len(p.clients)]
	if now >= c.until {
		c.sets, c.until = nil, now+virtualRefresh
		offer := routing.Offer{Model: rig.Model, N: p.offering.recipients, Regions: []fleet.Region{rig.Region}, Seed: p.sequence, Taken: map[string]int{}}
		if offer.N == 0 {
			offer.N = len(p.candidates)
		}
		for range p.offering.sets {
			var set []string
			for _, in := range routing.Candidates(offer, p.candidates) {
				set = append(set, in.KeyIDs...)
				offer.Taken[in.ID]++
			}
			c.sets = append(c.sets, set)
			offer.Seed = offer.Seed*0x9e3779b97f4a7c15 + 1
		}
	}
	c.turn++
	set := c.sets[c.turn%len(c.sets)]
	if home, ok := p.homes[conversation]; ok && !slices.Contains(set, rig.KeyID(home)) {
		return append(slices.Clone(set), rig.KeyID(home))
	}
	return set
}

func (p *virtualPicker) begun(now time.Duration, request int) {
	sent := p.requests[request]
	p.parents[sent.engine].Meter.First(sent.prompt, virtual.Time(now))
}

func (p *virtualPicker) ended(now time.Duration, request int) {
	sent := p.requests[request]
	p.parents[sent.engine].Meter.End(sent.prompt, virtual.Time(now))
}

func (p *virtualPicker) logged(_ time.Duration, request int) {
	sent := p.requests[request]
	c := &p.candidates[sent.engine]
	c.InFlight--
	c.InFlightTokens -= sent.tokens
}

func (p *virtualPicker) report(now time.Duration, engine int, s batching.Stats) {
	parent := &p.parents[engine]
	parent.sent = slices.DeleteFunc(parent.sent, func(r *virtualRequest) bool { return r.at < parent.At })
	parent.Tell(s, profile().MaxSequences, now)
	p.candidates[engine].Report = parent.Report
}
