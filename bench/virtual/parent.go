package virtual

import (
	"time"

	"github.com/mrgc/mrgc/engine/sim/batching"
	"github.com/mrgc/mrgc/internal/fleet"
	"github.com/mrgc/mrgc/internal/routing"
)

// What the real thing takes its time for.
const (
	ReportEvery = 100 * time.Millisecond // as parents do that have something to do
	LogDelay    = 60 * time.Millisecond  // until a picker learns of a request's end: Envoy gathers log entries for 100 ms
)

// Parent is an instance's, as far as it measures and reports.
type Parent struct {
	Meter  routing.Meter
	Report routing.Report
	At     time.Duration // when it reported
}

// Tell has it report what its engine does, of so many slots.
func (p *Parent) Tell(s batching.Stats, slots int, now time.Duration) {
	p.At, p.Report = now, routing.Report{
		Age: routing.AgeFresh, Load: fleet.Load{Running: s.Running, Queued: s.Waiting, Slots: slots},
		UnreadTokens: p.Meter.Unread(), ReadTokensPerSecond: p.Meter.ReadTokensPerSecond(), RequestDuration: p.Meter.Duration(),
	}
}
