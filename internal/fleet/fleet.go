// Package fleet is what the cluster knows about its instances: who they are,
// how they are, and the store that holds it.
//
// Instances write themselves into a [Store] (Register, Heartbeat, SetDraining,
// Deregister); routers read it as a sequence of immutable [Snapshot] values
// (Watch). Nothing on a request's path touches a store: a router serves from
// the last snapshot it saw, however old.
package fleet

import (
	"context"
	"errors"
	"time"
)

// Region is an AWS region's short name: use1, use2 or usw2.
type Region string

// AWS is AWS's name of the region, which its endpoints and the certificates of
// its security modules carry; empty for a region that MRGC does not run in.
func (r Region) AWS() string {
	switch r {
	case "use1":
		return "us-east-1"
	case "use2":
		return "us-east-2"
	case "usw2":
		return "us-west-2"
	default:
		return ""
	}
}

// Instance is a GPU instance as its parent service registers it.
// [Instance.Validate] says what each field may hold.
type Instance struct {
	ID      string // unique over all regions: "use1-0", "i-0abc…"
	Region  Region
	Zone    string // availability zone, "use1-az1"
	Address string // parent's address as IP:port, what Envoy dials
	Models  []string
	// Versions are those of Models, by name: 1 to 128 of A-Z, a-z, 0-9 and ._+-. A
	// model without is of no version that is known.
	Versions map[string]string
	// KeyIDs are the key ids (8 bytes in hex) of the sealed-request recipients
	// that the instance's enclave holds. They change with every enclave start.
	KeyIDs []string

	Draining bool // set by SetDraining: takes no new requests
	Health   Health
	Load     Load
	// Usage is what it has done for each of its models; nil: not known, as of a parent that
	// does not count it.
	Usage map[string]Usage

	RegisteredAt time.Time
	HeartbeatAt  time.Time // as [Hearing.Date] has it, of what a store has read
	Version      int64     // counts the writes to this instance
}

// Health is what the parent sees of its instance. The zero value is unhealthy.
type Health struct {
	Enclave bool   // answers, and its recipients' claims are valid
	Engine  bool   // answers, the model is loaded, and no GPU is lost
	Reason  string // what is wrong, for people, also with what does not make it unhealthy
}

// OK says whether every part is healthy.
func (h Health) OK() bool { return h.Enclave && h.Engine }

// Load is what an instance is doing.
type Load struct {
	Running int           // requests in the engine
	Queued  int           // requests that wait for a slot
	Slots   int           // requests that the engine runs at once; 0: not known
	Latency time.Duration // mean time to first byte over the last minute; 0: not known
	// Requests are those that the instance has had since its parent started. Two
	// heartbeats say how many it has a second.
	Requests int64
}

// Usage is what an instance's own enclave and engine were asked for of one model, and
// have done, since its parent started.
type Usage struct {
	Requests int64 // that came
	Ended    int64 // of these
	Late     int64 // of those that ended: whose answer began later than it should, or not at all by then
	// Tokens are those of so many answers, each's rounded up to powers of two (package size),
	// which is all that a parent learns of them. It tells of many answers at once, and so of
	// the last ones later.
	Answers, PromptTokens, OutputTokens int64
}

// Heartbeat is what an instance reports of itself.
type Heartbeat struct {
	ID     string
	Health Health
	Load   Load
	Usage  map[string]Usage // nil: not known
}

// ErrNotFound is returned for an instance that is not registered. A parent
// that gets it from Heartbeat registers again.
var ErrNotFound = errors.New("instance is not registered")

// RefreshInterval is how often Watch sends a snapshot when nothing changes.
const RefreshInterval = 5 * time.Second

// Store holds the fleet. Implementations are safe for concurrent use, also by
// several processes on the same data, and lose no update: two writers of
// different fields of one instance both take effect.
//
// Every method checks what it is given and returns an error that names the
// field before it writes anything.
type Store interface {
	// Register adds an instance or replaces its registration. RegisteredAt,
	// HeartbeatAt and Version are the store's to set; Draining is kept when the
	// instance exists already (a restart does not end a drain).
	Register(ctx context.Context, in Instance) error
	// Heartbeat updates health and load, and the time of the heartbeat.
	Heartbeat(ctx context.Context, hb Heartbeat) error
	// SetDraining starts or ends a drain.
	SetDraining(ctx context.Context, id string, draining bool) error
	// Deregister removes an instance; one that is not there is no error.
	Deregister(ctx context.Context, id string) error
	// Snapshot reads all instances, strongly consistent within a region. Heartbeats
	// are dated by this process's clock ([Hearing]), so an instance whose clock is
	// wrong is neither dead nor immortal.
	Snapshot(ctx context.Context) (*Snapshot, error)
	// Watch sends the present snapshot, then one after each change, and one
	// every [RefreshInterval] without a change, so that Snapshot.At advances as
	// long as the store can be read. Snapshots are coalesced: a slow reader gets
	// the newest, never an old one after a newer. It never blocks a writer.
	// While the store cannot be read it sends nothing and keeps trying; the
	// channel is closed when ctx ends or the store is closed, and only then.
	Watch(ctx context.Context) <-chan *Snapshot
	// Close ends every Watch and waits for it. Other methods return an error
	// afterwards; closing again does nothing.
	Close() error
}
