package fleet

import "time"

// idleHeartbeats in a row without a request say that an instance has drained: when it
// sent the first, a router may not have known of the drain yet.
const idleHeartbeats = 2

// Drain sees an instance that drains until it has no requests. The zero value has seen
// nothing yet.
type Drain struct {
	heartbeat time.Time // the last that was seen
	idle      int       // heartbeats in a row, since the first that was seen, without a request
	requests  int       // in the last
}

// See takes the instance as it is now, maybe by a heartbeat that was seen before, and
// says whether it has drained.
func (d *Drain) See(in *Instance) (done bool) {
	switch {
	case d.heartbeat.IsZero():
		d.heartbeat = in.HeartbeatAt
	case in.HeartbeatAt.After(d.heartbeat):
		d.heartbeat, d.requests = in.HeartbeatAt, in.Load.Running+in.Load.Queued
		if d.idle++; d.requests > 0 {
			d.idle = 0
		}
	}
	return d.idle >= idleHeartbeats
}

// Requests that it had by its last heartbeat since the drain was seen.
func (d *Drain) Requests() int { return d.requests }
