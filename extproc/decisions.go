package extproc

import (
	"strings"
	"time"

	"github.com/mrgc/mrgc/internal/api"
	"github.com/mrgc/mrgc/internal/decision"
	"github.com/mrgc/mrgc/internal/peers"
	"github.com/mrgc/mrgc/internal/routing"
)

// Decisions are the picker's last ones.
func (p *Picker) Decisions() *decision.Book { return &p.book }

// noteDecision records what was picked for a request, or why nothing could be.
func (p *Picker) noteDecision(req *request, pick *routing.Request, candidates []routing.Candidate, picked routing.Decision,
	refusal *api.Error, ix *index, config string, now time.Time,
) {
	req.decided = true
	record := decision.Record{
		At: now, EnvoyID: shortID(req.envoyID), Tenant: req.tenant, Config: config, FleetAt: ix.snapshot.At,
		Request: *pick, Decision: picked,
	}
	if len(pick.Split) == 0 {
		record.Request.Conversation = "" // nothing is chosen by it
	}
	if refusal != nil {
		record.Refusal = decision.Refusal{Code: refusal.Code, Param: refusal.Param}
	}
	p.book.Add(&record, candidates)
}

// noteRefusal records a request that was refused before anything could be
// decided, with as much of what it says as is well formed: it may be a
// stranger's.
func (p *Picker) noteRefusal(req *request, refusal *api.Error, now time.Time) {
	if req.decided {
		return
	}
	record := decision.Record{
		At: now, EnvoyID: shortID(req.envoyID), Config: p.settings.Load().version,
		Refusal: decision.Refusal{Code: refusal.Code, Param: strings.Clone(refusal.Param)},
	}
	if isHex(req.id, requestIDDigits) {
		record.Request.ID = req.id
	}
	if isName(req.tenant) {
		record.Tenant = req.tenant
	}
	if isName(req.model) {
		record.Request.Model = req.model
	}
	p.book.Refuse(&record)
}

// maxEnvoyIDBytes is more than Envoy's own ids have, which are UUIDs.
const maxEnvoyIDBytes = 64

// shortID keeps an id that a client has made up from taking much memory.
func shortID(envoyID string) string {
	if len(envoyID) > maxEnvoyIDBytes {
		return ""
	}
	return envoyID
}

// noteEvent adds what became of a request to its record.
func (p *Picker) noteEvent(e peers.Event) {
	now := p.now()
	p.book.Update(e.Request, func(at time.Time, o *decision.Outcome) {
		if e.Instance != "" {
			o.Instance = e.Instance
		}
		switch e.Kind {
		case peers.Moved:
			o.Attempts++
			return
		case peers.Served:
			o.End = decision.EndServed
		case peers.Failed:
			o.End = decision.EndFailed
		default:
			o.End = decision.EndUnknown
		}
		o.After = now.Sub(at)
	})
}

// noteWait adds for how long Envoy has held a request for its decision.
func (p *Picker) noteWait(envoyID string, seconds float64) {
	p.book.Update(envoyID, func(_ time.Time, o *decision.Outcome) {
		o.Wait = time.Duration(seconds * float64(time.Second))
	})
}
