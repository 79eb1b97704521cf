// Package testclock is the time of tests: it stands still until it is moved.
//
//	clock := testclock.At(time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC))
//	subject := New(Config{Now: clock.Now})
//	clock.Advance(time.Minute)
package testclock

import (
	"sync"
	"time"
)

// Clock is safe for concurrent use. Start it with [At].
type Clock struct {
	mu  sync.Mutex
	now time.Time // guarded by mu
}

// At makes a clock that says t.
func At(t time.Time) *Clock { return &Clock{now: t} }

// Now is what the clock says.
func (c *Clock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

// Advance moves the clock, and gives what it says then.
func (c *Clock) Advance(by time.Duration) time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = c.now.Add(by)
	return c.now
}
