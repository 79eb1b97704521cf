package parent

import "time"

// Rate is rate.
type Rate struct{ rate }

// Observe is observe.
func (r *Rate) Observe(count uint64, now time.Time) float64 { return r.observe(count, now) }

// Failed is how many requests the instance has failed.
func (p *Parent) Failed() uint64 { return p.load.read().failed }
