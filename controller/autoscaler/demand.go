package autoscaler

import (
	"fmt"
	"maps"
	"math"
	"slices"
	"time"
)

// Capacity is what one instance can serve of one model.
type Capacity struct {
	Tokens float64 // per second, in and out
}

// How an estimate follows the evidence, each minute.
const (
	lateTooMany = 0.01
	proved      = 0.3   // so far towards what was served
	lower       = 0.02  // down by so much, when it allows what is late
	raise       = 0.001 // up by so much while it holds, lest one bad hour makes instances look small for ever
	busy        = 0.8   // part of the estimate from which being in time says something
)

// learn takes the evidence of one model: so many tokens/s were asked of each instance
// and so many served, and such a share of the requests was late. What was served in
// time can be served. While requests are late, what is served is all that can be; but
// when no more was asked for than is served, and than the estimate allows, it cannot.
func (c Capacity) learn(asked, served, late float64, dt time.Duration) Capacity {
	minutes := min(dt.Minutes(), 1)
	switch {
	case late > lateTooMany && asked <= c.Tokens && served <= asked:
		c.Tokens -= minutes * (lower*c.Tokens + proved*(c.Tokens-served))
	case late > lateTooMany, served > c.Tokens:
		c.Tokens += minutes * proved * (served - c.Tokens)
	case served > busy*c.Tokens:
		c.Tokens += minutes * raise * c.Tokens
	}
	return c
}

// maxModels bounds what is learned, which is stored. With more models requests count as
// requests.
const maxModels = 64

// models are in order, so that sums are the same each time.
func (l *Load) models() []string { return slices.Sorted(maps.Keys(l.Models)) }

// late is the share of all requests that are late, by what they take; below 0: not
// known.
func (l *Load) late() float64 {
	late, total := 0.0, 0.0
	for _, model := range l.models() {
		late += l.Models[model].Tokens * l.Models[model].Late
		total += l.Models[model].Tokens
	}
	if total <= 0 {
		return -1
	}
	return late / total
}

// demand is a load in requests/s of the size that the target means: as many as would
// keep instances as busy.
func (c *Config) demand(s *State, l Load) float64 {
	if !c.Learn || len(l.Models) == 0 {
		return l.Requests
	}
	units := 0.0
	for _, model := range l.models() {
		tokens, capacity := l.Models[model].Tokens, s.Capacity[model].Tokens
		switch {
		case tokens == 0:
		case capacity <= 0:
			return l.Requests
		default:
			units += tokens / capacity
		}
	}
	return units * c.TargetHigh
}

// learn updates what instances are known to serve. Models share instances in
// proportion to what they take, so each is judged by its own part of them.
func (s *State) learn(c *Config, l Load, serving int, dt time.Duration) {
	if !c.Learn || serving == 0 || dt <= 0 {
		return
	}
	total := 0.0
	for _, model := range l.models() {
		total += l.Models[model].Tokens
	}
	if total <= 0 || l.Requests <= 0 {
		return
	}
	if len(s.Capacity) >= maxModels { // those that nobody serves any more make room
		maps.DeleteFunc(s.Capacity, func(model string, _ Capacity) bool { _, there := l.Models[model]; return !there })
	}
	units, known := 0.0, true
	for _, model := range l.models() {
		if s.Capacity[model].Tokens == 0 { // until there is evidence, a request is a request
			if len(s.Capacity) >= maxModels {
				return
			}
			s.Capacity[model] = Capacity{Tokens: c.TargetHigh * total / l.Requests}
			known = false
		}
		units += l.Models[model].Tokens / s.Capacity[model].Tokens
	}
	if !known || units <= 0 {
		return
	}
	for model, usage := range l.Models {
		if usage.Tokens > 0 && usage.Served > 0 {
			instances := usage.Tokens / s.Capacity[model].Tokens / units * float64(serving) // its part of their time
			s.Capacity[model] = s.Capacity[model].learn(usage.Tokens/instances, usage.Served/instances, usage.Late, dt)
		}
	}
}

// need is a number of instances, and what it is for.
type need struct {
	n   int
	why string
}

// sized is how many a demand takes at so many requests/s each.
func sized(demand, each float64) int { return int(math.Ceil(demand/each - 1e-9)) }

// reserve is the demand while whichever other region is lost whose share is largest;
// the regions that are left divide it equally.
func (c *Config) reserve(s *State, o *Observation, demand float64) float64 {
	if !c.Reserve {
		return demand
	}
	largest := 0.0
	for _, other := range o.Others {
		if other.Fresh {
			largest = max(largest, c.demand(s, other))
		}
	}
	return demand + largest/float64(max(len(o.Others), 1))
}

// knows says whether every load is known that a reserve is for. While one is not,
// nothing of it is given up: its region may be about to be lost.
func (c *Config) knows(o *Observation) bool {
	if c.Reserve {
		for _, other := range o.Others {
			if !other.Fresh {
				return false
			}
		}
	}
	return true
}

// decide changes the number that is wanted, if it is to change.
func (s *State) decide(c *Config, o *Observation, serving int, dt time.Duration, interrupted bool, now time.Time) {
	s.Said = Said{Learn: c.Learn, Reserve: c.Reserve, Forecast: c.Forecast}
	if o.Hand > 0 {
		s.AboveSince, s.BelowSince = time.Time{}, time.Time{}
		why := fmt.Sprintf("%d by hand", o.Hand)
		if c.clamp(o.Hand) != o.Hand {
			why += fmt.Sprintf(", within %d to %d", c.Min, c.Max)
		}
		s.want(c.clamp(o.Hand), why, now)
		return
	}
	if n := c.clamp(s.Desired); n != s.Desired {
		s.want(n, fmt.Sprintf("%d is not within %d to %d", s.Desired, c.Min, c.Max), now)
	}
	if !o.Load.Fresh || serving == 0 {
		s.AboveSince, s.BelowSince = time.Time{}, time.Time{}
		return
	}
	demand := c.demand(s, o.Load)
	s.Said.Fresh, s.Said.Demand = true, demand
	if c.Forecast {
		s.foresee(c, o, demand, serving, dt, interrupted, now)
		return
	}
	s.plain(c, o, demand, serving, interrupted, now)
}

// plain follows the plain rules. What is reserved for is measured against what an
// instance can serve, and the rest against the middle of the band.
func (s *State) plain(c *Config, o *Observation, demand float64, serving int, interrupted bool, now time.Time) {
	withReserve := c.reserve(s, o, demand)
	s.Said.Reserved = withReserve
	busiest := max(demand, withReserve) / float64(serving)
	since(&s.AboveSince, busiest > c.TargetHigh, interrupted, now)
	since(&s.BelowSince, demand/float64(serving) < c.target()/2 && busiest < c.TargetHigh/2, interrupted, now)
	wanted := need{sized(demand, c.target()), fmt.Sprintf("%.1f requests/s", demand)}
	if n := sized(withReserve, c.TargetHigh); n > wanted.n {
		wanted = need{n, fmt.Sprintf("%.1f requests/s should another region be lost", withReserve)}
	}
	n := c.clamp(wanted.n)
	s.Said.Needed = n
	switch {
	case now.Sub(s.Changed) < c.Cooldown && now.After(s.Changed):
	case lasted(s.AboveSince, c.UpAfter, now) && n > s.Desired:
		s.want(n, fmt.Sprintf("up: %s, above %g for each instance since %v", wanted.why, c.TargetHigh, c.UpAfter), now)
	case lasted(s.BelowSince, c.DownAfter, now) && n < s.Desired && c.knows(o):
		s.want(n, fmt.Sprintf("down: %s, below %g for each instance since %v", wanted.why, c.target()/2, c.DownAfter), now)
	}
}

// foresee follows the forecast: up at once, for what is needed by the time that a
// launch takes; down when less was and will be needed for Release.
func (s *State) foresee(c *Config, o *Observation, demand float64, serving int, dt time.Duration, interrupted bool, now time.Time) {
	late := o.Load.late()
	if late >= 0 && (interrupted || serving < s.Desired && now.Sub(s.Changed) > 2*c.Lead) {
		late = goal // it is not the forecast's fault that they are not there: nothing is learned
	}
	s.Forecast.note(demand, late, dt, now, c.Lead)
	ahead := s.Forecast.ahead(demand, now, c.Lead)
	wanted := need{sized(ahead, c.TargetHigh), fmt.Sprintf("%.1f requests/s now, up to %.1f within %v", demand, ahead, c.Lead)}
	withReserve := c.reserve(s, o, ahead)
	if withReserve > ahead {
		wanted = need{sized(withReserve, c.TargetHigh), wanted.why + fmt.Sprintf(", %.1f should another region be lost", withReserve)}
	}
	n := c.clamp(wanted.n)
	s.Said.Ahead, s.Said.Reserved, s.Said.Needed = ahead, withReserve, n
	since(&s.BelowSince, n < s.Desired && c.knows(o), interrupted, now)
	s.Forecast.peak(n, s.BelowSince.Equal(now))
	switch {
	case n > s.Desired:
		s.want(n, "up: "+wanted.why, now)
	case lasted(s.BelowSince, c.Release, now):
		s.want(c.clamp(s.Forecast.Peak), "down: "+wanted.why, now)
		s.BelowSince = time.Time{}
	}
}

// want sets the number; only a change counts as one.
func (s *State) want(n int, why string, now time.Time) {
	if n != s.Desired {
		s.Changed = now
	}
	s.Desired, s.Reason = n, why
}

// since notes when something began to be so without interruption.
func since(at *time.Time, is, interrupted bool, now time.Time) {
	switch {
	case !is:
		*at = time.Time{}
	case at.IsZero() || interrupted:
		*at = now
	}
}

// lasted says whether what began then has lasted for so long.
func lasted(since time.Time, d time.Duration, now time.Time) bool {
	return !since.IsZero() && now.Sub(since) >= d
}
