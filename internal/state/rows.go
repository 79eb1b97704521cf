package state

import (
	"encoding/json"
	"fmt"
	"regexp"
	"time"

	"github.com/mrgc/mrgc/internal/fleet"
	"github.com/mrgc/mrgc/internal/lease"
	"github.com/mrgc/mrgc/internal/state/schema"
)

// How long rows are kept after they were written.
const (
	KeepWashes     = 400 * 24 * time.Hour // a year's audit, and a month to make it
	KeepMinutes    = 15 * 24 * time.Hour
	KeepHeartbeats = 24 * time.Hour // they are written over every few seconds
)

// LeaseTable is the leases, in routing_state under [LeaseKey].
func LeaseTable(store Store) Table[lease.Record] {
	return NewTable[lease.Record](store, schema.RoutingState, 0)
}

// LeaseKey is where a lease lies.
func LeaseKey(name string) Key { return Key{Partition: "lease/" + name} }

// Journal is what a control loop's row says of what it did. The loop writes it in
// the same write as what it decided.
type Journal struct {
	DecidedAt time.Time `json:"decided_at"` // when the row was last decided on
	// Pending are actions that are decided and not known to be done.
	Pending []Action `json:"pending"`
	// Done are the last ones, the newest at the end.
	Done []Action `json:"done"`
}

// Action is something that a control loop decided to do.
type Action struct {
	// ID is the action's own, the same whenever it is tried again: what executes it
	// does it once by that.
	ID        string          `json:"id"`
	What      string          `json:"what"`   // for people
	Reason    string          `json:"reason"` // why, for people
	DecidedAt time.Time       `json:"decided_at"`
	Tries     int             `json:"tries"`
	EndedAt   time.Time       `json:"ended_at"` // zero while it is pending
	Error     string          `json:"error"`    // of the last try; of one that ended, why it was given up
	Call      json.RawMessage `json:"call"`     // what to do, in the loop's own form
}

// Failover is what a region is in.
type Failover string

// Failovers.
const (
	Normal         Failover = "NORMAL"
	Degraded       Failover = "DEGRADED"
	FailoverActive Failover = "FAILOVER_ACTIVE"
	Recovering     Failover = "RECOVERING"
)

// RoutingOf is the row in routing_state, under [RoutingKey], that says which
// regions tenants are sent to. It is one row for all of them, so that what must
// hold of all together, such as that one stays open, is stored in one write. What
// the decision remembers besides is an M.
type RoutingOf[M any] struct {
	Regions map[fleet.Region]RegionRouting `json:"regions"`
	Memory  M                              `json:"memory"`
	Journal Journal                        `json:"journal"`
}

// Routing is the row for whoever does not decide.
type Routing = RoutingOf[json.RawMessage]

// RegionRouting is where one region is.
type RegionRouting struct {
	State  Failover  `json:"failover_state"`
	Dial   int       `json:"dial_percent"` // that the accelerator's traffic dial is to have, 0 to 100
	Drain  bool      `json:"drain"`        // its front doors send connections away
	Since  time.Time `json:"since"`        // when State began
	Reason string    `json:"reason"`       // why it is in State, for people
	Epoch  int64     `json:"epoch"`        // counts the changes of State
	Hold   string    `json:"hold"`         // who stops the controller from moving it, and why; empty: nobody
}

// RoutingKey is where Routing lies.
var RoutingKey = Key{Partition: "failover"}

// ViewKey is where lies what a region's controller sees of all regions, in
// routing_state: a report of package controller/failover.
func ViewKey(region fleet.Region) Key { return Key{Partition: "view/" + string(region)} }

// Validate checks what was read.
func (r RoutingOf[M]) Validate() error {
	for region, is := range r.Regions {
		switch is.State {
		case Normal, Degraded, FailoverActive, Recovering:
		default:
			return fmt.Errorf("regions: %s: failover_state %q: want NORMAL, DEGRADED, FAILOVER_ACTIVE or RECOVERING", region, is.State)
		}
		if is.Dial < 0 || is.Dial > 100 {
			return fmt.Errorf("regions: %s: dial_percent %d: want 0 to 100", region, is.Dial)
		}
	}
	return nil
}

// RoutingTable is the failover states.
func RoutingTable(store Store) Table[Routing] {
	return NewTable[Routing](store, schema.RoutingState, 0)
}

// AutoscalingOf is a region's row in autoscaling_state, under the region's name.
// The capacities are written by hand, too, without counting in the row's version.
// What the decision remembers besides is an M.
type AutoscalingOf[M any] struct {
	DesiredCapacity int       `json:"desired_capacity"` // instances
	Min             int       `json:"min_capacity"`     // 0: what the configuration says
	Max             int       `json:"max_capacity"`     // 0: what the configuration says
	CooldownUntil   time.Time `json:"cooldown_until"`
	LastAction      string    `json:"last_action"` // for people
	LastReason      string    `json:"last_reason"`
	LastActionAt    time.Time `json:"last_action_at"`
	Memory          M         `json:"memory"`
	Journal         Journal   `json:"journal"`
}

// Autoscaling is the row for whoever does not decide.
type Autoscaling = AutoscalingOf[json.RawMessage]

// ByHand are the fields of AutoscalingOf that people write.
var ByHand = []string{"desired_capacity", "min_capacity", "max_capacity"}

// Validate checks what was read.
func (a AutoscalingOf[M]) Validate() error {
	if a.Min < 0 || a.Max < 0 || a.Max < a.Min && a.Max != 0 {
		return fmt.Errorf("min_capacity %d, max_capacity %d: want 0 <= min <= max, or 0 for what the configuration says", a.Min, a.Max)
	}
	if a.DesiredCapacity < 0 {
		return fmt.Errorf("desired_capacity %d is negative", a.DesiredCapacity)
	}
	return nil
}

// AutoscalingTable is the regions' capacities.
func AutoscalingTable(store Store) Table[Autoscaling] {
	return NewTable[Autoscaling](store, schema.AutoscalingState, 0)
}

// Wash is a row in cleanup_validation: one full wash of one instance.
type Wash struct {
	Region    fleet.Region `json:"region"`
	Trigger   string       `json:"trigger"` // "requests", "interval", "tenant", "strict", "operator" or "terminate"
	StartedAt time.Time    `json:"started_at"`
	Steps     []WashStep   `json:"steps"` // in order
	Passed    bool         `json:"passed"`
	Reason    string       `json:"reason"` // why it has not passed, or waits, for people
	// Open says of one that has not ended where it is: WashWaiting or WashUnderWay. Empty:
	// it has ended.
	Open string `json:"open"`
}

// Where a wash is that has not ended. Those that restart no engine are written when they
// end, and are never seen so.
const (
	WashWaiting  = "waiting" // due since StartedAt, and may not begin yet
	WashUnderWay = "under_way"
)

// WashStep is a step of a wash.
type WashStep struct {
	Name     string        `json:"name"`
	Duration time.Duration `json:"duration_ns"`
	Passed   bool          `json:"passed"`
	Detail   string        `json:"detail"` // what was checked and found; never what was washed away
}

// Validate checks a wash. One that has passed has all steps of its kind, or it is
// [ErrNotWhole].
func (w Wash) Validate() error {
	if err := w.Region.Validate(); err != nil {
		return err
	}
	switch w.Trigger {
	case "requests", "interval", "tenant", "strict", "operator", "terminate":
	default:
		return fmt.Errorf("trigger %q: want requests, interval, tenant, strict, operator or terminate", w.Trigger)
	}
	switch w.Open {
	case "", WashWaiting, WashUnderWay:
	default:
		return fmt.Errorf("open %q: want waiting, under_way or nothing", w.Open)
	}
	if w.Passed && w.Open != "" {
		return fmt.Errorf("a wash that is %s cannot have passed", w.Open)
	}
	for _, step := range w.Steps {
		if step.Name == "" || step.Duration < 0 {
			return fmt.Errorf("step %q of %s: want a name, and a duration that is not negative", step.Name, step.Duration)
		}
	}
	if w.Passed {
		return w.whole()
	}
	return nil
}

// EndedAt is when its last step ended.
func (w Wash) EndedAt() time.Time {
	at := w.StartedAt
	for _, step := range w.Steps {
		at = at.Add(step.Duration)
	}
	return at
}

// WashTable is the washes.
func WashTable(store Store) Table[Wash] {
	return NewTable[Wash](store, schema.CleanupValidation, KeepWashes)
}

// WashKey is where a wash lies: an instance's washes in order of time. Two that
// begin in the same microsecond on one instance would be one.
func WashKey(instance string, startedAt time.Time) Key {
	return Key{Partition: instance, Sort: startedAt.UTC().Format("2006-01-02T15:04:05.000000Z")}
}

// WashesOf asks for the washes of a region, the newest first.
func WashesOf(region fleet.Region, limit int) Query {
	return Query{Index: schema.CleanupValidation.Indexes[0].Name, Partition: string(region), Newest: true, Limit: limit}
}

// Heartbeat is the row in metrics that a region's leading controller writes over
// every few seconds. Its way to another region is how far the tables that are
// replicated asynchronously lag.
type Heartbeat struct {
	// Beat is the version of the region's lease, just before.
	Beat       int64     `json:"beat"`
	Controller string    `json:"controller"` // which one leads
	At         time.Time `json:"sent_at"`    // by its clock; for people
	// Lag is how far the other regions' rows lag in this one, in seconds.
	Lag map[fleet.Region]float64 `json:"lag_seconds"`
}

// Validate checks what was read.
func (h Heartbeat) Validate() error {
	if h.Beat < 1 {
		return fmt.Errorf("beat %d: want 1 or more", h.Beat)
	}
	return nil
}

// HeartbeatTable is the heartbeats.
func HeartbeatTable(store Store) Table[Heartbeat] {
	return NewTable[Heartbeat](store, schema.Metrics, KeepHeartbeats)
}

// HeartbeatKey is where a region's heartbeat lies.
func HeartbeatKey(region fleet.Region) Key {
	return Key{Partition: "heartbeat/" + string(region), Sort: "latest"}
}

// Minute is a row in metrics: what a region did in a minute, by its leading
// controller. Counts are means of the samples.
type Minute struct {
	Samples   int     `json:"samples"` // of the minute; of a leader that changed within it there are few
	Instances float64 `json:"instances"`
	Ready     float64 `json:"instances_ready"`
	Draining  float64 `json:"instances_draining"`
	Running   float64 `json:"requests_running"`
	Queued    float64 `json:"requests_queued"`
	Slots     float64 `json:"slots"`
	// Lag is the worst lag of each other region's rows, in seconds.
	Lag map[fleet.Region]float64 `json:"lag_seconds"`
}

// Validate checks what was read.
func (m Minute) Validate() error {
	if m.Samples < 1 {
		return fmt.Errorf("samples %d: want 1 or more", m.Samples)
	}
	return nil
}

// MinuteTable is the minutes.
func MinuteTable(store Store) Table[Minute] {
	return NewTable[Minute](store, schema.Metrics, KeepMinutes)
}

const minuteForm = "2006-01-02T15:04Z"

// MinuteKey is where a region's minute lies.
func MinuteKey(region fleet.Region, at time.Time) Key {
	return Key{Partition: "minute/" + string(region), Sort: at.UTC().Format(minuteForm)}
}

// MinuteAt is when the minute of a key begins.
func MinuteAt(key Key) (time.Time, error) {
	at, err := time.Parse(minuteForm, key.Sort)
	if err != nil {
		return at, fmt.Errorf("minute %s: %w", key, err)
	}
	return at, nil
}

// MinutesOf asks for a region's minutes from a time on.
func MinutesOf(region fleet.Region, from time.Time) Query {
	return Query{Partition: "minute/" + string(region), From: from.UTC().Format(minuteForm)}
}

var leaseName = regexp.MustCompile(`^[a-z0-9][a-z0-9/-]{0,62}$`)

// CheckLeaseName checks the name of a lease.
func CheckLeaseName(name string) error {
	if !leaseName.MatchString(name) {
		return fmt.Errorf("lease %q: want 1 to 63 of a-z, 0-9, '-' and '/', the first a letter or digit", name)
	}
	return nil
}
