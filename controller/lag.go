package controller

import (
	"time"

	"github.com/mrgc/mrgc/internal/fleet"
)

// lags is how far other regions' rows lag in the tables that are replicated
// asynchronously, by this process's clock alone. It is pure.
//
// A region's leader renews its lease in a table that is the same everywhere at
// once, and then says which version that made in its heartbeat, which is
// replicated. From when a version is first seen in the lease until it is seen in
// the heartbeat, the heartbeat was on its way; no clock of the other region's is
// needed. What is measured is too long by as much as goes by between two looks.
type lags map[fleet.Region]*lag

type lag struct {
	marks  []mark // versions of the lease that no heartbeat has shown yet, oldest first
	newest mark
	last   time.Duration // of the newest version that a heartbeat has shown
	known  bool          // last is
}

// mark is a version of a lease.
type mark struct {
	version, token int64
	seenAt         time.Time
}

const (
	// mostMarks is how many are kept: the oldest says how long it takes already, the
	// newest are enough to go on with.
	mostMarks = 16
	// silence is how long a region's lease may stay as it is until nothing is known:
	// it has no leader, and sends no heartbeats.
	silence = 30 * time.Second
)

func (l lags) of(region fleet.Region) *lag {
	if l[region] == nil {
		l[region] = &lag{}
	}
	return l[region]
}

// leased tells which version a region's lease has, and its holder's token.
func (l lags) leased(region fleet.Region, version, token int64, now time.Time) {
	g := l.of(region)
	switch {
	case version == g.newest.version:
		return
	case version < g.newest.version: // somebody has removed the lease: versions begin anew
		*g = lag{}
	case token != g.newest.token:
		g.marks = nil // what the last holder had to send, it may not have sent
	}
	g.newest = mark{version, token, now}
	if len(g.marks) == mostMarks {
		g.marks = g.marks[:mostMarks-1]
	}
	g.marks = append(g.marks, g.newest)
}

// heard tells which version a region's heartbeat says.
func (l lags) heard(region fleet.Region, version int64, now time.Time) {
	g := l.of(region)
	for len(g.marks) > 0 && g.marks[0].version <= version {
		g.last, g.known = now.Sub(g.marks[0].seenAt), true
		g.marks = g.marks[1:]
	}
}

// behind is how far a region's rows lag; false: it is not known.
func (l lags) behind(region fleet.Region, now time.Time) (time.Duration, bool) {
	g := l.of(region)
	behind, known := g.last, g.known
	if len(g.marks) > 1 { // of the newest, the heartbeat may not have been sent
		behind, known = max(behind, now.Sub(g.marks[0].seenAt)), true
	}
	if now.Sub(g.newest.seenAt) > silence {
		return 0, false
	}
	return behind, known
}
