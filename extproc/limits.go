package extproc

import (
	"net/http"
	"strings"
	"time"

	accesslogdatav3 "github.com/envoyproxy/go-control-plane/envoy/data/accesslog/v3"

	"github.com/mrgc/mrgc/internal/api"
	"github.com/mrgc/mrgc/internal/peers"
	"github.com/mrgc/mrgc/internal/quota"
	"github.com/mrgc/mrgc/internal/routing"
	"github.com/mrgc/mrgc/internal/size"
	"github.com/mrgc/mrgc/internal/tenant"
)

// limit holds a tenant to its limits, and to its share while nothing is free. What
// it took from the limits is to be given back if nobody can serve the request.
func (p *Picker) limit(req *request, rules *tenant.Tenant, pick routing.Request, candidates []routing.Candidate, now time.Time) *api.Error {
	if rules.TokensPerMinute > 0 && req.size == (size.Buckets{}) {
		return errInvalidHeader(api.HeaderSize) // what is not declared cannot be counted
	}
	taken := quota.Request{Tenant: req.tenant, Limits: rules.Limits, Tokens: req.size.Prompt + req.size.Output}
	verdict := p.limiter.Take(taken, now)
	if verdict.Reason == quota.ReasonNone {
		if verdict = p.share(req.tenant, rules.Share(), pick, candidates, now); verdict.Reason == quota.ReasonNone {
			req.taken = taken
			p.shared.noteUse(taken)
			return nil
		}
		p.limiter.GiveBack(taken, now)
	}
	p.metrics.refused(req.tenant, verdict.Reason)
	return errLimited(verdict, rules.Limits)
}

// settle has a request that has ended count for the tokens that it has used, in
// place of those that it declared, where the log says how many.
func (p *Picker) settle(taken quota.Request, e peers.Event) {
	if e.Used != peers.UsedUnknown {
		p.limiter.Settle(taken, e.Used, p.now())
		p.shared.noteUse(taken)
	}
}

// headerUsage is as Envoy writes it.
var headerUsage = strings.ToLower(api.HeaderUsage)

// usedBy is how many tokens a request has used, by its last entry: what its
// instance's enclave says, and nothing when that or the engine has not served it, or
// what came back was an error in clear. What its client has given up, or was cut
// midway, may have used anything.
func usedBy(entry *accesslogdatav3.HTTPAccessLogEntry) int {
	if used, err := size.Parse(entry.GetResponse().GetResponseTrailers()[headerUsage]); err == nil {
		return used.Prompt + used.Output
	}
	refused := entry.GetResponse().GetResponseCode().GetValue() >= http.StatusBadRequest
	if engineOutcome(entry) != "" || refused && !entry.GetCommonProperties().GetResponseFlags().GetDownstreamConnectionTermination() {
		return 0
	}
	return peers.UsedUnknown
}

// share refuses who has more than its share while nothing is free, by what this
// picker has in flight and what its peers say that they have.
func (p *Picker) share(name string, weight int, pick routing.Request, candidates []routing.Candidate, now time.Time) quota.Verdict {
	use := quota.Use{Share: weight, AllShares: p.recent.Ask(pick.Model, name, weight, now)}
	if use.Alone() {
		return quota.Verdict{}
	}
	use.Tokens, use.AllTokens = p.inFlight.Claimed(pick.Model, name)
	peersOwn, peersAll := p.shared.views.Claimed(pick.Model, name, now)
	use.Tokens, use.AllTokens = use.Tokens+peersOwn, use.AllTokens+peersAll
	s := routing.SaturationOf(pick, candidates)
	if !quota.Over(use, s.Overload) {
		return quota.Verdict{}
	}
	return quota.Verdict{Reason: quota.ReasonShare, RetryAfter: max(s.Clears, retryAfter)}
}

// claim is what a request takes. One that does not say counts as the largest that
// can be declared: hiding gains nothing.
func (r *request) claim() Claim {
	c := Claim{Model: r.model, Tenant: r.tenant, Weight: r.weight, Tokens: r.size.Prompt + r.size.Output}
	if c.Tokens == 0 {
		c.Tokens = 2 * size.Max
	}
	return c
}

func errLimited(v quota.Verdict, limits tenant.Limits) *api.Error {
	var err *api.Error
	switch v.Reason {
	case quota.ReasonTooLarge:
		err = api.Errorf(http.StatusRequestEntityTooLarge, codeTooLarge,
			"this request is for more tokens, of its prompt and the most that its answer may have, than the %d that this tenant may use in a minute: make it smaller, or lower max_tokens",
			limits.TokensPerMinute)
		err.Param = string(quota.ReasonTokens)
		return err
	case quota.ReasonRequests:
		err = api.Errorf(http.StatusTooManyRequests, codeLimited,
			"this tenant may send %d requests per second: try again when Retry-After says", limits.RequestsPerSecond)
	case quota.ReasonTokens:
		err = api.Errorf(http.StatusTooManyRequests, codeLimited,
			"this tenant may use %d tokens per minute, of prompts and the most that answers may have: try again when Retry-After says, or lower max_tokens",
			limits.TokensPerMinute)
	default:
		err = api.Errorf(http.StatusTooManyRequests, codeLimited,
			"every instance that could serve this request is busy, and this tenant has its share of them: try again when Retry-After says")
	}
	err.Param, err.RetryAfter = string(v.Reason), v.RetryAfter
	return err
}
