package parent

import "time"

// Rate is rate.
type Rate struct{ rate }

// Observe is observe.
func (r *Rate) Observe(count uint64, now time.Time) float64 { return r.observe(count, now) }
