// Package decision remembers what a picker decided and by what, explains it, and
// decides again.
//
// A [Record] has all that [routing.Pick] was given and what it said, so that
// whoever has one can call it again: [Explain] says why each instance has its
// place, [Replay] what another policy would have done. A picker keeps its last
// records in a [Book]; [Write] makes a trace of them, one JSON object a line,
// and [NewReader] reads it.
//
// A record has no token and nothing of a prompt but its declared size. The opaque
// key of the conversation is in it where a split chooses a version by it.
package decision

import (
	"time"

	"github.com/mrgc/mrgc/internal/routing"
)

// Record is one decision.
type Record struct {
	At      time.Time
	EnvoyID string // Envoy's x-request-id; empty when it made none
	Tenant  string
	// Config is the version of the configuration that the picker went by, FleetAt
	// when the store was read that its view of the fleet is from.
	Config  string
	FleetAt time.Time

	// Request.ID is the id that the tenant knows (Mrgc-Request-Id).
	Request    routing.Request
	Candidates []routing.Candidate
	Decision   routing.Decision
	// Refusal is the error that the tenant was answered with; its zero value is
	// none.
	Refusal Refusal
	Outcome Outcome
}

// Refusal is which rule refused a request.
type Refusal struct {
	Code  string `json:"code"`            // of the OpenAI-shaped error
	Param string `json:"param,omitempty"` // what it is about
}

// Outcome is what Envoy's access log has said since, as far as it has.
type Outcome struct {
	Instance string        // where the last attempt went; "": nobody has said
	Attempts int           // that have begun
	End      End           // "" while the request is under way
	After    time.Duration // from the decision to the end
	Wait     time.Duration // for which Envoy held the request for the decision; 0: not known
}

// End is how a request ended. It is stable: programs may compare it.
type End string

// Ends.
const (
	EndServed  End = "served"  // an instance answered
	EndFailed  End = "failed"  // an instance failed it
	EndUnknown End = "unknown" // it ended in a way that says nothing of any instance
)

// picked says whether a request came as far as [routing.Pick].
func (r *Record) picked() bool { return r.Decision.Reason != "" }
