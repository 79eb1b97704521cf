package routing

import (
	"cmp"
	"slices"
	"strings"

	"github.com/mrgc/mrgc/internal/fleet"
)

// Request is what a pick knows of a request.
type Request struct {
	ID         string   // any string that differs between requests: spreads ties
	Model      string   // name of the model, aliases resolved
	Recipients []string // key ids in hex, as fleet.Instance.KeyIDs has them
	// Regions are those that may serve the request: the picker's own first, then
	// the ones to spill to, in order of preference. No other is used.
	Regions []fleet.Region
}

// Candidate is an instance that may be picked.
type Candidate struct {
	Instance *fleet.Instance
	Ready    bool // takes new requests, as fleet.Snapshot.Ready says
	InFlight int  // requests that the picker has sent there and not seen end
}

// Reason says why a [Decision] is what it is. It is stable: metrics and
// programs may compare it.
type Reason string

// Reasons. The first two come with instances, the others without.
const (
	// ReasonPicked: a recipient in the picker's own region serves.
	ReasonPicked Reason = "picked"
	// ReasonSpilled: none in the picker's own region is ready, one elsewhere is.
	ReasonSpilled Reason = "spilled"
	// ReasonRecipientsUnknown: no candidate holds any of the recipients' keys.
	ReasonRecipientsUnknown Reason = "recipients_unknown"
	// ReasonModelNotServed: those that hold a key do not serve the model.
	ReasonModelNotServed Reason = "model_not_served"
	// ReasonNoRecipientReady: those that hold a key and serve the model are not
	// ready, or are in regions that the request may not use.
	ReasonNoRecipientReady Reason = "no_recipient_ready"
)

// Decision is the outcome of a pick.
type Decision struct {
	// Instances are those to try, best first; empty when none can serve.
	Instances []*fleet.Instance
	Reason    Reason
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
// of one of its recipients, serve its model, are ready, and are in one of its
// regions.
//
// An instance of a preferred region comes before any of the next one. Within a
// region the policy is least in flight: fewest requests in flight first, then
// the highest [Score], then a hash of request and instance, so that requests
// which find several equally good instances spread over them evenly and two
// pickers with the same view do not send everything to the same one.
//
// Candidates come in any order, each instance at most once; whatever is no
// recipient has no influence.
func Pick(req Request, candidates []Candidate) Decision {
	var buf [8]ranked // few requests have more recipients: no allocation
	able := buf[:0]
	reason := ReasonRecipientsUnknown
	for _, c := range candidates {
		if !holdsAny(c.Instance, req.Recipients) {
			continue
		}
		if !slices.Contains(c.Instance.Models, req.Model) {
			reason = further(reason, ReasonModelNotServed)
			continue
		}
		reason = ReasonNoRecipientReady
		distance := slices.Index(req.Regions, c.Instance.Region)
		if !c.Ready || distance < 0 {
			continue
		}
		able = append(able, ranked{
			instance: c.Instance,
			distance: distance,
			inFlight: c.InFlight,
			score:    Score(c.Instance.Health, c.Instance.Load),
			tie:      affinity(req.ID, c.Instance.ID),
		})
	}
	if len(able) == 0 {
		return Decision{Reason: reason}
	}
	slices.SortFunc(able, ranked.compare)
	d := Decision{Instances: make([]*fleet.Instance, len(able)), Reason: ReasonPicked}
	for i, r := range able {
		d.Instances[i] = r.instance
	}
	if able[0].distance > 0 {
		d.Reason = ReasonSpilled
	}
	return d
}

// further keeps the reason of the candidate that came closest to being picked.
func further(have, next Reason) Reason {
	if have == ReasonNoRecipientReady {
		return have
	}
	return next
}

func holdsAny(in *fleet.Instance, recipients []string) bool {
	for _, kid := range in.KeyIDs {
		if slices.Contains(recipients, kid) {
			return true
		}
	}
	return false
}

// ranked is a candidate that can serve, with all that its place depends on.
type ranked struct {
	instance *fleet.Instance
	distance int // index of its region in the order of preference
	inFlight int
	score    int
	tie      uint64
}

// compare orders the better one first. It is total over distinct instances, so
// that the order of the input never shows.
func (r ranked) compare(o ranked) int {
	return cmp.Or(
		cmp.Compare(r.distance, o.distance),
		cmp.Compare(r.inFlight, o.inFlight),
		cmp.Compare(o.score, r.score),
		cmp.Compare(r.tie, o.tie),
		cmp.Compare(r.instance.ID, o.instance.ID),
	)
}

// affinity is the rendezvous hash of a request and an instance: for each
// request it puts the instances in an order of its own, and an instance that
// goes leaves the order of the others as it was. FNV-1a over both, then the
// finaliser of MurmurHash3, because FNV's high bits, which decide a comparison,
// hardly depend on the last bytes.
func affinity(requestID, instanceID string) uint64 {
	const offset, prime = 14695981039346656037, 1099511628211
	h := uint64(offset)
	for i := range len(requestID) {
		h = (h ^ uint64(requestID[i])) * prime
	}
	h *= prime // a zero byte: keeps "a"+"bc" and "ab"+"c" apart
	for i := range len(instanceID) {
		h = (h ^ uint64(instanceID[i])) * prime
	}
	h ^= h >> 33
	h *= 0xff51afd7ed558ccd
	h ^= h >> 33
	h *= 0xc4ceb9fe1a85ec53
	return h ^ h>>33
}
