package xds

import (
	"cmp"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/mrgc/mrgc/internal/fleet"
)

// State is how far an Envoy is with one type, in the words of istioctl
// proxy-status.
type State string

// The states of a type.
const (
	Synced   State = "SYNCED"   // it has accepted what is published
	Stale    State = "STALE"    // something is sent and unanswered, or about to be sent, or held back
	Rejected State = "REJECTED" // it has refused something that is still published
	NotSent  State = "NOT_SENT" // it was sent nothing
)

// EnvoyStatus is one connected Envoy.
type EnvoyStatus struct {
	Node      string
	Region    fleet.Region
	Connected time.Time
	Trying    bool         // it tries what the others do not have yet
	Types     []TypeStatus // in the order in which they are sent
}

// TypeStatus is how far an Envoy is with one resource type.
type TypeStatus struct {
	Type       string       `json:"type"` // short: "Cluster"
	State      State        `json:"state"`
	Reason     string       `json:"reason,omitempty"`     // why it is not SYNCED
	Published  string       `json:"published"`            // version of the set that it should have
	Sent       string       `json:"sent,omitempty"`       // version last sent
	Acked      string       `json:"acked,omitempty"`      // version last accepted as a whole
	Quarantine []Quarantine `json:"quarantine,omitempty"` // what it has refused and is not sent again
	SentAt     time.Time    `json:"sent_at,omitzero"`     // when something was last sent
	AckedAt    time.Time    `json:"acked_at,omitzero"`    // when the version last accepted became so
	RejectedAt time.Time    `json:"rejected_at,omitzero"` // when it last refused something that is still published
}

// Quarantine is a resource of which an Envoy has refused the published version.
type Quarantine struct {
	Name     string    `json:"name"`
	Version  string    `json:"version"`            // refused
	Accepted string    `json:"accepted,omitempty"` // that it has instead; none when empty
	Reason   string    `json:"reason"`             // the Envoy's words
	At       time.Time `json:"at"`
}

// Synced says whether every type is.
func (e EnvoyStatus) Synced() bool { return e.State() == Synced }

// State is the worst of the types'.
func (e EnvoyStatus) State() State {
	worst := Synced
	for _, t := range e.Types {
		if t.State == Rejected {
			return Rejected
		}
		if t.State != Synced {
			worst = Stale
		}
	}
	return worst
}

// Reason is why an Envoy is not SYNCED.
func (e EnvoyStatus) Reason() string {
	state := e.State()
	for _, t := range e.Types {
		if t.State == state && t.Reason != "" {
			return t.Type + ": " + t.Reason
		}
	}
	for _, t := range e.Types {
		if t.State == NotSent {
			return t.Type + ": not asked for yet"
		}
	}
	return ""
}

// status reads a session's state of each type. elsewhere is why an Envoy may not
// have what is published; "" when it may have it all.
func (s *session) status(published resourceSet, elsewhere string) []TypeStatus {
	var out []TypeStatus
	for _, typeURL := range sendOrder {
		t := TypeStatus{Type: shortType(typeURL), State: NotSent, Published: published[typeURL].version}
		if sub := s.types[typeURL]; sub != nil {
			sub.describe(&t, published[typeURL], elsewhere)
		}
		out = append(out, t)
	}
	return out
}

func shortType(typeURL string) string { return typeURL[strings.LastIndexByte(typeURL, '.')+1:] }

func (sub *subscription) describe(t *TypeStatus, published typeSet, elsewhere string) {
	t.Sent, t.Acked, t.SentAt, t.AckedAt = sub.sent, sub.acked, sub.sentAt, sub.ackedAt
	for _, v := range sub.quarantined(published) {
		why := sub.rejected[v]
		t.Quarantine = append(t.Quarantine, Quarantine{
			Name: v.name, Version: v.hash, Accepted: sub.accepted[v.name].version, Reason: why.message, At: why.at,
		})
		if !why.at.Before(t.RejectedAt) {
			t.Reason, t.RejectedAt = why.message, why.at
		}
	}
	switch {
	case len(t.Quarantine) > 0:
		t.State = Rejected
	case sub.unanswered != nil:
		t.State, t.Reason = Stale, "it has not answered yet"
	case sub.lacks(published):
		t.State, t.Reason = Stale, cmp.Or(elsewhere, "about to be sent, or waits for what it refers to")
	case sub.sent != "":
		t.State = Synced
	}
}

// resourceStatus is how far an Envoy is with one resource.
type resourceStatus struct {
	typeURL   string
	name      string
	state     State
	published string // version; "" when it should go
	accepted  accepted
	rejected  rejection // if the state is REJECTED
}

// resources reads a session's state of each resource that the Envoy has or asks
// for, by type and name.
func (s *session) resources(published resourceSet) []resourceStatus {
	var out []resourceStatus
	for _, typeURL := range sendOrder {
		sub := s.types[typeURL]
		if sub == nil {
			continue
		}
		names := slices.AppendSeq(slices.Collect(maps.Keys(published[typeURL].byName)), maps.Keys(sub.accepted))
		slices.Sort(names)
		for _, name := range slices.Compact(names) {
			if !sub.asksFor(name) {
				continue
			}
			r := resourceStatus{
				typeURL: typeURL, name: name, state: Stale,
				published: published[typeURL].byName[name].version, accepted: sub.accepted[name],
			}
			inFlight := sub.unanswered != nil && sub.unanswered.resources[name].version != ""
			switch {
			case sub.refuses(name, r.published):
				r.state, r.rejected = Rejected, sub.rejected[version{name, r.published}]
			case r.accepted.version == r.published && !inFlight:
				r.state = Synced
			case r.accepted.version == "" && !inFlight:
				r.state = NotSent
			}
			out = append(out, r)
		}
	}
	return out
}

// connection is a stream of an Envoy.
type connection struct {
	node      string
	region    fleet.Region
	connected time.Time

	mu      sync.Mutex
	session *session // guarded by mu; its stream alone changes it
}

// maxPast is how many Envoys that have gone a router remembers for what they
// rejected.
const maxPast = 256

// roster is who is connected, and what those that have gone had rejected. It is
// safe for concurrent use.
type roster struct {
	mu      sync.Mutex
	streams map[*connection]bool // guarded by mu
	past    []*connection        // guarded by mu: gone, the latest last
}

func newRoster() *roster { return &roster{streams: map[*connection]bool{}} }

// join adds a stream. An Envoy that has just started forgets what it rejected
// when it ran before: what was wrong may have been put right.
func (r *roster) join(node string, region fleet.Region, fresh bool, now time.Time) *connection {
	r.mu.Lock()
	defer r.mu.Unlock()
	c := &connection{node: node, region: region, connected: now}
	var past *session
	r.past = slices.DeleteFunc(r.past, func(old *connection) bool {
		same := old.node == node && old.region == region
		if same && !fresh {
			past = old.session
		}
		return same
	})
	c.session = newSession(past)
	r.streams[c] = true
	return c
}

func (r *roster) leave(c *connection) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.streams, c)
	for _, sub := range c.session.types {
		if len(sub.rejected) > 0 {
			r.past = append(r.past, c)
			break
		}
	}
	if len(r.past) > maxPast {
		r.past = slices.Delete(r.past, 0, len(r.past)-maxPast)
	}
}

// list is everyone, by region and node; an Envoy whose old stream has not yet
// ended is there twice.
func (r *roster) list() []*connection {
	r.mu.Lock()
	out := slices.Collect(maps.Keys(r.streams))
	r.mu.Unlock()
	slices.SortFunc(out, func(a, b *connection) int {
		return cmp.Or(cmp.Compare(a.region, b.region), cmp.Compare(a.node, b.node), a.connected.Compare(b.connected))
	})
	return out
}
