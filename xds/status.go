package xds

import (
	"cmp"
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
	Synced   State = "SYNCED"   // it has acknowledged what is published
	Stale    State = "STALE"    // something is sent and unanswered, or about to be sent
	Rejected State = "REJECTED" // it has refused something that is still published
	NotSent  State = "NOT_SENT" // it was sent nothing
)

// EnvoyStatus is one connected Envoy.
type EnvoyStatus struct {
	Node      string
	Region    fleet.Region
	Connected time.Time
	Types     []TypeStatus // in the order in which they are sent; empty before the first request is answered
}

// TypeStatus is how far an Envoy is with one resource type.
type TypeStatus struct {
	Type      string    `json:"type"` // short: "Cluster"
	State     State     `json:"state"`
	Published string    `json:"published"`          // version of the set that it should have
	Sent      string    `json:"sent,omitempty"`     // version last sent
	Acked     string    `json:"acked,omitempty"`    // version last acknowledged
	NACK      string    `json:"nack,omitempty"`     // why it refused, in its words, while that holds
	SentAt    time.Time `json:"sent_at,omitzero"`   // when something was last sent
	AckedAt   time.Time `json:"acked_at,omitzero"`  // when the version last acknowledged became so
	NACKedAt  time.Time `json:"nacked_at,omitzero"` // when it refused
}

// Synced says whether every type is.
func (e EnvoyStatus) Synced() bool {
	return len(e.Types) > 0 && !slices.ContainsFunc(e.Types, func(t TypeStatus) bool { return t.State != Synced })
}

// status reads a session's state of each type. Times are filled in by record.
func (s *session) status(set resourceSet) []TypeStatus {
	var out []TypeStatus
	for _, typeURL := range sendOrder {
		t := TypeStatus{
			Type:      typeURL[strings.LastIndexByte(typeURL, '.')+1:],
			State:     NotSent,
			Published: set[typeURL].version,
		}
		if sub := s.types[typeURL]; sub != nil {
			t.Sent, t.Acked = sub.sent, sub.acked
			switch {
			case sub.rejected != nil:
				t.State, t.NACK = Rejected, sub.rejected.message
			case sub.sent == "":
			case sub.unanswered == nil && sub.acked == t.Published:
				t.State = Synced
			default:
				t.State = Stale
			}
		}
		out = append(out, t)
	}
	return out
}

// roster is who is connected. It is safe for concurrent use.
type roster struct {
	mu      sync.Mutex
	streams map[uint64]EnvoyStatus // guarded by mu: stream → its Envoy
	last    uint64                 // guarded by mu
}

func newRoster() *roster { return &roster{streams: map[uint64]EnvoyStatus{}} }

// join adds a stream and returns its number.
func (r *roster) join(node string, region fleet.Region, now time.Time) uint64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.last++
	r.streams[r.last] = EnvoyStatus{Node: node, Region: region, Connected: now}
	return r.last
}

func (r *roster) leave(stream uint64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.streams, stream)
}

// record replaces a stream's status, and dates what has changed in it.
func (r *roster) record(stream uint64, types []TypeStatus, now time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	envoy := r.streams[stream]
	for i := range types {
		var before TypeStatus
		if i < len(envoy.Types) {
			before = envoy.Types[i]
		}
		types[i].SentAt = dated(types[i].Sent, before.Sent, before.SentAt, now)
		types[i].AckedAt = dated(types[i].Acked, before.Acked, before.AckedAt, now)
		types[i].NACKedAt = dated(types[i].NACK, before.NACK, before.NACKedAt, now)
	}
	envoy.Types = types
	r.streams[stream] = envoy
}

func dated(value, before string, at, now time.Time) time.Time {
	switch value {
	case "":
		return time.Time{}
	case before:
		return at
	default:
		return now
	}
}

// list is everyone, by region and node; an Envoy whose old stream has not yet
// ended is there twice.
func (r *roster) list() []EnvoyStatus {
	r.mu.Lock()
	defer r.mu.Unlock()
	out := make([]EnvoyStatus, 0, len(r.streams))
	for _, envoy := range r.streams {
		envoy.Types = slices.Clone(envoy.Types)
		out = append(out, envoy)
	}
	slices.SortFunc(out, func(a, b EnvoyStatus) int {
		return cmp.Or(cmp.Compare(a.Region, b.Region), cmp.Compare(a.Node, b.Node), a.Connected.Compare(b.Connected))
	})
	return out
}
