package routing

import (
	"cmp"
	"slices"
	"strings"
	"time"

	"github.com/mrgc/mrgc/internal/fleet"
)

// Request is what a pick knows of a request.
type Request struct {
	ID         string   // any string that differs between requests: what is random is drawn from it
	Model      string   // name of the model, aliases resolved
	Recipients []string // key ids in hex, as fleet.Instance.KeyIDs has them
	// Regions are those that may serve the request: the picker's own first, then
	// the ones to spill to, in order of preference. No other is used.
	Regions []fleet.Region
	// Detours are how much later a first token is worth having from each of Regions
	// than from the picker's side: the round trip there, and what the operator would
	// rather wait than pay there. Without any, no request leaves a region because that
	// is saturated; of regions beyond the last see [UnknownDetour].
	Detours []time.Duration

	// Split is the model's, and Conversation what its version is chosen by; the ID if
	// that is empty.
	Split        Split
	Conversation string

	Policy Policy // the model's
	// Home is the ID of the instance that the conversation's last request went to;
	// empty when that is not known. Only [PolicyGateThenLoad] reads it.
	Home string
	// PromptTokens is the size of the prompt as the client declares it, in tokens
	// and rounded; 0 when it does not. It weighs a request against others and
	// admits nothing.
	PromptTokens int
	// Sequence counts a model's requests. Only [PolicyRoundRobin] reads it.
	Sequence uint64
}

// Reason says why a [Decision] is what it is. It is stable: metrics and
// programs may compare it.
type Reason string

// Reasons. The first four come with instances, the others without.
const (
	// ReasonPicked: a recipient in the first of the request's regions serves, which
	// is the picker's own unless another is preferred.
	ReasonPicked Reason = "picked"
	// ReasonSpilled: none in that region is ready or does not fail, one elsewhere is.
	ReasonSpilled Reason = "spilled"
	// ReasonOverflow: all in that region are saturated, and one elsewhere gives the
	// first token sooner, the way there included.
	ReasonOverflow Reason = "overflow"
	// ReasonOtherVersion: no recipient of the version that the split chose is ready
	// or does not fail, one of another version is, in whatever region.
	ReasonOtherVersion Reason = "other_version"
	// ReasonRecipientsUnknown: no candidate holds any of the recipients' keys.
	ReasonRecipientsUnknown Reason = "recipients_unknown"
	// ReasonModelNotServed: those that hold a key do not serve the model.
	ReasonModelNotServed Reason = "model_not_served"
	// ReasonNoRecipientReady: those that hold a key and serve the model are not
	// ready, or are in regions that the request may not use.
	ReasonNoRecipientReady Reason = "no_recipient_ready"
	// ReasonVersionWithdrawn: what is ready is of versions that get no requests;
	// the client is to ask for other recipients.
	ReasonVersionWithdrawn Reason = "version_withdrawn"
)

// Gate says what became of a request's home. It is stable like [Reason].
type Gate string

// Gates.
const (
	GateNone     Gate = ""         // the request has no home, or the policy none
	GateHome     Gate = "home"     // the home is first
	GateReleased Gate = "released" // the home is saturated, failing or gone, and another first
)

// Decision is the outcome of a pick.
type Decision struct {
	// Instances are those to try, best first; empty when none can serve.
	Instances []*fleet.Instance
	Reason    Reason
	Gate      Gate
	// Version is that of the first of them; empty without a split.
	Version string
}

// Destination lists the instances' addresses in the form of the Gateway API
// inference extension's endpoint picker protocol 1.0.0: "ip:port,ip:port", in
// order of preference.
func (d Decision) Destination() string {
	if len(d.Instances) == 1 {
		return d.Instances[0].Address
	}
	var b strings.Builder
	for i, in := range d.Instances {
		if i == 0 {
			b.Grow(len(d.Instances) * (len(in.Address) + 1))
		} else {
			b.WriteByte(',')
		}
		b.WriteString(in.Address)
	}
	return b.String()
}

// Pick orders the candidates that can serve a request: those that hold a key
// of one of its recipients, serve its model in a version that gets requests, are
// ready, and are in one of its regions.
//
// Those that fail come last, unless all do; of a small share of the requests,
// [ProbeShare], a failing one is the first. Then instances of the version that the
// split chooses come before those of others, which are for retries and for when
// there is none. Then an instance of a preferred region comes before any of the
// next one, unless the first region is saturated and another better though it is
// further away ([OverflowMargin]). Among the first of a region the
// request's policy decides; what follows is in the order of load, for retries.
// Where several are equally good, a hash of request and instance spreads
// requests over them evenly, and two pickers with the same view do not send
// everything to the same one.
//
// Candidates come in any order, each instance at most once; whatever is no
// recipient has no influence.
func Pick(req Request, candidates []Candidate) Decision {
	var buf [8]ranked // few requests have more recipients: no allocation
	able, reason := req.able(buf[:0], candidates)
	if len(able) == 0 {
		return Decision{Reason: reason}
	}
	d := Decision{Reason: ReasonPicked, Gate: req.order(able, candidates)}
	d.Instances = make([]*fleet.Instance, len(able))
	for i := range able {
		d.Instances[i] = able[i].instance
	}
	switch {
	case able[0].version > 0:
		d.Reason = ReasonOtherVersion
	case able[0].turn == beforeAll:
		d.Reason = ReasonOverflow
	case able[0].distance > 0:
		d.Reason = ReasonSpilled
	}
	if len(req.Split) > 0 {
		d.Version = able[0].instance.Versions[req.Model]
	}
	return d
}

// order puts those that can serve in the order in which to try them.
func (req *Request) order(able []ranked, candidates []Candidate) Gate {
	req.weigh(able, candidates)
	demote(able, ProbeShare)
	slices.SortFunc(able, ranked.compare)
	req.overflow(able, candidates)
	return req.apply(foremost(able))
}

// able appends the candidates that can serve the request to dst. Without any,
// the reason is that of the candidate that came closest.
func (req *Request) able(dst []ranked, candidates []Candidate) ([]ranked, Reason) {
	reason := ReasonRecipientsUnknown
	var buf [maxVersions]string
	order := buf[:0]
	if len(req.Split) > 0 {
		order = req.Split.order(order, hashOf(cmp.Or(req.Conversation, req.ID)))
	}
	for i := range candidates {
		rule, distance, version := req.rule(&candidates[i], order)
		switch {
		case rule == RuleNone:
			dst = append(dst, ranked{at: i, instance: candidates[i].Instance, distance: distance, turn: distance, version: version})
		case rule == RuleVersion:
			reason = ReasonVersionWithdrawn
		case (rule == RuleReady || rule == RuleRegion) && reason != ReasonVersionWithdrawn:
			reason = ReasonNoRecipientReady
		case rule == RuleModel && reason == ReasonRecipientsUnknown:
			reason = ReasonModelNotServed
		}
	}
	return dst, reason
}

// rule says what keeps a candidate from serving the request, and where its
// region stands in the order of preference, and its version in the split's.
func (req *Request) rule(c *Candidate, order []string) (_ Rule, distance, version int) {
	switch {
	case !holdsAny(c.Instance, req.Recipients):
		return RuleKey, -1, -1
	case !slices.Contains(c.Instance.Models, req.Model):
		return RuleModel, -1, -1
	case !c.Ready:
		return RuleReady, -1, -1
	}
	if distance = slices.Index(req.Regions, c.Instance.Region); distance < 0 {
		return RuleRegion, -1, -1
	}
	if version = req.Split.rank(order, c.Instance, req.Model); version < 0 {
		return RuleVersion, -1, -1
	}
	return RuleNone, distance, version
}

func holdsAny(in *fleet.Instance, recipients []string) bool {
	for _, kid := range in.KeyIDs {
		if slices.Contains(recipients, kid) {
			return true
		}
	}
	return false
}

// foremost are the instances among which the policy decides: those of the version,
// as near and in as good a standing as the first that is no probe.
func foremost(sorted []ranked) []ranked {
	from := 0
	for from < len(sorted)-1 && sorted[from].standing == probed {
		from++
	}
	to := from + 1
	for to < len(sorted) && sorted[to].alike(&sorted[from]) {
		to++
	}
	return sorted[from:to]
}

func (r *ranked) alike(o *ranked) bool {
	return r.standing == o.standing && r.version == o.version && r.turn == o.turn
}

// apply moves the policy's choice among the foremost, which are in the order of
// load, to their head.
func (req *Request) apply(foremost []ranked) Gate {
	switch {
	case len(foremost) == 0:
	case req.Policy == PolicyPowerOfTwo:
		toFront(foremost, betterOfTwo(foremost))
	case req.Policy == PolicyRoundRobin:
		rotate(foremost, req.Sequence)
	case req.Policy == PolicyGateThenLoad && req.Home != "":
		home := slices.IndexFunc(foremost, func(r ranked) bool { return r.instance.ID == req.Home })
		if home < 0 {
			return GateReleased
		}
		if !saturated(foremost, home) {
			toFront(foremost, home)
		}
		if foremost[0].instance.ID != req.Home {
			return GateReleased
		}
		return GateHome
	}
	return GateNone
}

// toFront moves one to the head and keeps the order of the others.
func toFront(rs []ranked, i int) {
	first := rs[i]
	copy(rs[1:i+1], rs[:i])
	rs[0] = first
}
