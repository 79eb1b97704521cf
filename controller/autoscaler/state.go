package autoscaler

import (
	"maps"
	"slices"
	"time"

	"github.com/mrgc/mrgc/internal/fleet"
)

// Observation is what a step goes by.
type Observation struct {
	Term int64 // fencing token of the leadership under which this runs
	Load Load
	// Others are the loads of the other regions that take traffic, fresh or not; for
	// Reserve.
	Others map[fleet.Region]Load
	// Instances are those that EC2 lists with this region's tag, terminated ones aside,
	// with what the fleet's store says of each. Listed says that the list is whole, and
	// Known that the store could be read and its heartbeats are not all stale.
	Instances []Instance
	Listed    bool
	Known     bool
	Results   []Result // of launches since the last step
	Hand      int      // desired_capacity written by hand; 0: none
}

// Load is what a region's tenants ask for.
type Load struct {
	Fresh    bool    // of the last minute
	Requests float64 // per second
	// Models is what each model's requests take; for Learn.
	Models map[string]Usage
}

// Usage is what one model's requests take, and whether instances keep up.
type Usage struct {
	Tokens float64 // per second, in and out, that are asked for
	Served float64 // per second, that instances got done
	Late   float64 // share of its requests that missed the objective
}

// Instance is what is known of one.
type Instance struct {
	ID      string
	Intent  string // its tag; empty: it has none
	Zone    string
	Leaving bool // EC2 is shutting it down
	// Of the fleet's store. A parent registers minutes before its engine is ready.
	Registered bool
	Healthy    bool // heard of lately, and every part is well
	Draining   bool // marked so: takes no new requests, also after a restart
	Drained    bool // draining and nothing in flight
	Washed     bool // since it is drained
}

// Result is how a launch ended. A launch whose answer was lost has none.
type Result struct {
	Intent  string
	Attempt int
	// NoCapacity: EC2 has none in that zone, and launched nothing.
	NoCapacity bool
	Instance   string // what was launched; empty when nothing was
}

// State is all that is stored, as one item, with one conditional write.
type State struct {
	Born    time.Time // when there was no state yet: part of the intents' names
	Desired int
	Reason  string    // why, for people
	Changed time.Time // when Desired was last changed
	Next    int64     // number of the next intent

	Members []Member             // in order of their intents' numbers
	Zones   map[string]time.Time // without capacity until then
	Failed  int                  // times in a row that what was launched never came up
	Pause   time.Time            // no launch before: for that

	AboveSince, BelowSince time.Time           // load without interruption; zero: it is not
	Capacity               map[string]Capacity // by model; at most maxModels
	Forecast               Forecast
	Said                   Said

	Term    int64
	Stepped time.Time
}

// Said is which rules were on at the last step, and what they said, for people.
type Said struct {
	Learn, Reserve, Forecast bool

	Fresh    bool    // the load was known; else nothing below is
	Demand   float64 // requests/s, and where Learn is on of the size that the target means
	Ahead    float64 // Forecast: the most within Lead, margin included
	Reserved float64 // Reserve: what there has to be room for should another region be lost
	Needed   int     // instances for all of that, within the limits
}

// MemberPhase is where an instance is in its life.
type MemberPhase string

// Phases of members.
const (
	Launching MemberPhase = "launching" // asked for, not listed yet
	Booting   MemberPhase = "booting"
	Serving   MemberPhase = "serving" // has been ready
	Draining  MemberPhase = "draining"
	Washing   MemberPhase = "washing"
	Leaving   MemberPhase = "leaving" // to be terminated
)

// Member is an instance from before it is launched until it is gone.
type Member struct {
	Intent   string // "use1-1790000000-42": its name, unique for ever
	Attempt  int    // of launching it; a new one in another zone, or when nothing was launched
	Zone     string
	Instance string // once it is known
	Phase    MemberPhase
	Since    time.Time // when it got there
	Asked    time.Time // when its launch, or its drain, was last asked for
	Served   bool      // was healthy at some time
	Unready  time.Time // not healthy since; zero: it is
	Reason   string    // for people
}

// Token is the launch's client token: the same for every repetition of one attempt.
func (m *Member) Token() string { return token(m.Intent, m.Attempt) }

func (m *Member) enter(p MemberPhase, now time.Time, why string) {
	m.Phase, m.Since, m.Reason = p, now, why
}

// leaving says whether it is on its way out.
func (m *Member) leaving() bool {
	return m.Phase == Draining || m.Phase == Washing || m.Phase == Leaving
}

// Initial is a region that begins with its minimum.
func Initial(config Config, now time.Time) State {
	return State{Born: now, Desired: config.withDefaults().Min, Reason: "first start", Changed: now}
}

// Serving counts the instances that have been ready and are to stay: those that a
// region should have ready now, however many are on their way.
func (s *State) Serving() (n int) {
	for i := range s.Members {
		if s.Members[i].Phase == Serving {
			n++
		}
	}
	return n
}

func (s State) clone() State {
	s.Members = slices.Clone(s.Members)
	s.Zones = maps.Clone(s.Zones)
	if s.Zones == nil {
		s.Zones = map[string]time.Time{}
	}
	s.Capacity = maps.Clone(s.Capacity)
	if s.Capacity == nil {
		s.Capacity = map[string]Capacity{}
	}
	s.Forecast = s.Forecast.clone()
	return s
}

// ActionKind is what is to be done.
type ActionKind string

// Kinds of actions.
const (
	Launch    ActionKind = "launch"
	Drain     ActionKind = "drain"
	Wash      ActionKind = "wash"
	Terminate ActionKind = "terminate"
)

// Action is to be done after the state that it comes with was stored. All but Launch
// are idempotent, and repeated until they are seen to be done.
type Action struct {
	Kind     ActionKind
	Intent   string
	Instance string // of all but Launch
	Zone     string // of a Launch
	Attempt  int    // of a Launch; its Result has it, too
	Token    string // of a Launch
	Why      string
}
