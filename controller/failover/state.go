package failover

import (
	"errors"
	"fmt"
	"maps"
	"time"

	"github.com/mrgc/mrgc/internal/fleet"
)

// Phase is where a region is in a failover.
type Phase string

// Phases.
const (
	Normal         Phase = "NORMAL"
	Degraded       Phase = "DEGRADED"
	FailoverActive Phase = "FAILOVER_ACTIVE"
	Recovering     Phase = "RECOVERING"
)

// State is all that is stored, as one item, with one conditional write.
type State struct {
	Regions map[fleet.Region]Region
	Lowered Lowered   // the last dial that was lowered
	Term    int64     // the leadership that stepped last
	Stepped time.Time // when
}

// Lowered is a dial that was lowered, and when.
type Lowered struct {
	Region fleet.Region
	At     time.Time
}

// Region is where one region is.
type Region struct {
	Phase  Phase
	Since  time.Time // when it got there
	Reason string    // why, for people
	Dial   int       // percent that the accelerator is to have
	Drain  bool      // its routers send GOAWAY and take no new connections
	Order  Order     // of an operator, while it holds

	// When it began to be seen so without interruption; zero: it is not.
	DownSince, PartialSince, UpSince, CalmSince time.Time
	// When its dial last moved in each direction by the machine's own decision: when
	// the accelerator had it, and until then (Moving) the present.
	Raised, Lowered time.Time
	Moving          bool
	Stage           time.Time // when the present stage of a recovery began
	Failed          int       // recoveries in a row that failed
}

// Initial is every region in NORMAL, at 100 %.
func Initial(config Config, now time.Time) State {
	s := State{Regions: map[fleet.Region]Region{}}
	for _, r := range config.Regions {
		s.Regions[r] = Region{Phase: Normal, Since: now, Reason: "first start", Dial: 100}
	}
	return s
}

// Dials are those that the accelerator is to have.
func (s State) Dials() map[fleet.Region]int {
	dials := make(map[fleet.Region]int, len(s.Regions))
	for name, r := range s.Regions {
		dials[name] = r.Dial
	}
	return dials
}

func (s State) clone() State {
	s.Regions = maps.Clone(s.Regions)
	return s
}

// Same says whether two states are alike in all that must outlive the leader: what
// differs else are timers, which a new leader begins anew. A driver stores a state
// only when it is not the same.
func (s State) Same(other State) bool {
	if len(s.Regions) != len(other.Regions) || s.Lowered != other.Lowered || s.Term != other.Term {
		return false
	}
	for name, a := range s.Regions {
		b, ok := other.Regions[name]
		a.DownSince, a.PartialSince, a.UpSince, a.CalmSince = b.DownSince, b.PartialSince, b.UpSince, b.CalmSince
		if !ok || a != b {
			return false
		}
	}
	return true
}

// Watched is a stored state as a new leader takes it over that has been watching: a
// standby steps a state of its own all the time, with Term 0, and does none of the
// actions, so that what it has seen for a while counts at once.
func (s State) Watched(own State, term int64) State {
	s = s.clone()
	for name, r := range s.Regions {
		seen := own.Regions[name]
		r.DownSince, r.PartialSince, r.UpSince, r.CalmSince = seen.DownSince, seen.PartialSince, seen.UpSince, seen.CalmSince
		s.Regions[name] = r
	}
	s.Term, s.Stepped = term, own.Stepped
	return s
}

// OrderKind is what an operator may order.
type OrderKind string

// Orders.
const (
	Hold    OrderKind = "hold"    // neither phase nor dial moves until Resume
	Drain   OrderKind = "drain"   // out at once and until Restore or Resume
	Restore OrderKind = "restore" // in again in stages, without waiting for Validate
	Resume  OrderKind = "resume"  // the machine decides again, from where the region is
)

// Order is an operator's. The zero value is none.
type Order struct {
	Kind OrderKind
	By   string // who
	Why  string
	At   time.Time
}

// ErrLast is returned for a drain that would leave no region at 100 %.
var ErrLast = errors.New("no other region is at 100 %")

// Obey applies an order. Orders are not bound by FlapWindow; that some region stays
// at 100 % binds them, too.
func Obey(s State, region fleet.Region, order Order) (State, error) {
	r, ok := s.Regions[region]
	if !ok {
		return s, fmt.Errorf("failover: %s %s: no such region", order.Kind, region)
	}
	s = s.clone()
	why := fmt.Sprintf("%s by %s: %s", order.Kind, order.By, order.Why)
	switch order.Kind {
	case Hold:
		r.Order, r.Reason = order, why
	case Drain:
		if s.othersFull(region) == 0 {
			return s, fmt.Errorf("failover: drain %s: %w; restore one first", region, ErrLast)
		}
		r.Order, r.Dial, r.Drain = order, 0, true
		r.enter(FailoverActive, order.At, why)
		s.Lowered = Lowered{region, order.At}
	case Restore:
		r.Order, r.Failed = Order{}, 0
		if r.Dial < 100 || r.Phase != Normal {
			r.enter(Recovering, order.At, why)
			r.Drain = false
		}
	case Resume:
		r.Order, r.Reason = Order{}, why
	default:
		return s, fmt.Errorf("failover: %s: order %q: want hold, drain, restore or resume", region, order.Kind)
	}
	s.Regions[region] = r
	return s, nil
}

// othersFull counts the other regions that are at 100 %.
func (s *State) othersFull(region fleet.Region) (n int) {
	for other, r := range s.Regions {
		if other != region && r.Dial == 100 {
			n++
		}
	}
	return n
}

func (r *Region) enter(p Phase, now time.Time, why string) {
	r.Phase, r.Since, r.Reason = p, now, why
	r.Stage = time.Time{}
}
