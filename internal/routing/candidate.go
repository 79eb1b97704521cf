package routing

import (
	"fmt"
	"slices"
	"time"

	"github.com/mrgc/mrgc/internal/fleet"
)

// Candidate is an instance that may be picked, and what the picker knows of it.
type Candidate struct {
	Instance *fleet.Instance
	Ready    bool // takes new requests, as fleet.Snapshot.Ready says
	// InFlight is how many requests the picker has sent there and not seen end,
	// InFlightTokens how many tokens of their prompts the instance had to read
	// anew: the sum of [UncachedTokens].
	InFlight, InFlightTokens int
	// SentRequests and SentTokens are the part of them that the picker has sent since
	// the report was made, so that the report does not have it.
	SentRequests, SentTokens int
	// Report is what the instance last said of its load.
	Report Report
	// SinceReady is how long ago the picker saw the instance become ready; 0 for
	// one that it has not seen otherwise. See [SlowStart].
	SinceReady time.Duration
	// Saturated is what [Candidate.IsSaturated] said when the picker asked last.
	Saturated bool
	// ErrorRate is the recent share of its requests that failed, from 0 to 1, as
	// [Outcomes.ErrorRate] says. See [FailingRate].
	ErrorRate float64
}

// Report is an instance's report of its load. The zero value is a missing one.
type Report struct {
	Load fleet.Load
	Age  Age
	// Since is how long ago it was made.
	Since time.Duration
	// UnreadTokens are the tokens of prompts that the engine had yet to read, and
	// ReadTokensPerSecond how fast it reads them; 0: not known.
	UnreadTokens        int
	ReadTokensPerSecond float64
	// RequestDuration is how long its requests last on average; 0: not known.
	RequestDuration time.Duration
}

// Age says what a report is still good for. No age keeps an instance from being
// picked: reports fail together, and a fleet that is not heard of still serves.
type Age uint8

// Ages of a report.
const (
	// AgeMissing: there is none, or one too old to mean anything. The number of
	// slots is that of the instance's last heartbeat, the load what the picker
	// itself has in flight there.
	AgeMissing Age = iota
	// AgeStale: older than a request takes. Slots and latency still hold; the
	// load is what the picker itself has in flight there.
	AgeStale
	// AgeFresh: it tells of requests that the picker knows nothing of, sent by
	// other pickers, of which some will have ended since. Of the picker's own it may
	// lack those sent since; others that it lacks have ended, and nobody has said so.
	AgeFresh
)

var ageNames = [...]string{"missing", "stale", "fresh"}

// String is the age's name, which ParseAge reads.
func (a Age) String() string {
	if int(a) < len(ageNames) {
		return ageNames[a]
	}
	return fmt.Sprintf("age(%d)", uint8(a))
}

// ParseAge reads an age's name.
func ParseAge(name string) (Age, error) {
	if i := slices.Index(ageNames[:], name); i >= 0 {
		return Age(i), nil
	}
	return 0, fmt.Errorf("age of a report %q: want fresh, stale or missing", name)
}

const (
	// SlowStart is how long an instance that has become ready is spared. Its load
	// counts for more than it is, by up to 10 times at first and evenly less, and
	// it becomes the home of conversations one after the other: an engine that
	// has just started is slower while it captures graphs and has an empty cache,
	// and would otherwise get everything, having nothing in flight.
	SlowStart = 10 * time.Second
	// FailingRate is the [Candidate.ErrorRate] from which an instance counts as
	// failing: it comes after all that do not fail. Below, its load counts for as
	// much more as it would have if it did not get rid of requests by failing.
	FailingRate = 0.5
	// ProbeShare is the share of requests that are sent to a failing instance
	// first, to see whether it still fails. Envoy takes those that do to another. At
	// twice as much, chance alone takes more than 1 % of some hundred requests there.
	ProbeShare = 1.0 / 256

	// UnknownPromptTokens is what a prompt counts whose size is not declared: the
	// median of chat requests in Azure's trace of 2023 (AzureLLMInferenceTrace).
	UnknownPromptTokens = 1024
	slowStartFloor      = 0.1  // share of its capacity that a new instance has at first
	lossFloor           = 0.05 // share that one has left which does nothing but fail
	maxReported         = 1 << 30
)

// UncachedTokens is how many tokens of a prompt an instance has to read anew. An
// undeclared size, 0, counts as [UnknownPromptTokens]. Of a conversation that
// returns to where its last request went, a fifth counts: llm-d keeps a request
// where at least 0.8 of its prompt is cached.
func UncachedTokens(prompt int, returns bool) int {
	if prompt <= 0 {
		prompt = UnknownPromptTokens
	}
	if returns {
		return prompt / 5
	}
	return prompt
}

// unread is how many tokens of prompts the engine has yet to read, when it reads
// so many per second. By a fresh report: what it had, less what it will have read
// since, and what it has been sent since. Without one: all that the picker has in
// flight there, of which a part has been read.
func (c *Candidate) unread(perSecond float64) float64 {
	if c.Report.Age != AgeFresh {
		return count(c.InFlightTokens)
	}
	read := max(c.Report.Since.Seconds(), 0) * perSecond
	return max(count(clamp(c.Report.UnreadTokens))-read, 0) + count(c.SentTokens)
}

// load is what the instance is doing now, as well as it can be told: by a fresh
// report, no more than it had and has been sent since, and no less than is left of
// what it had. A count that nobody takes back, such as that of a router which has
// died, or whose log has lost an end, would else keep an idle instance busy.
func (c *Candidate) load() fleet.Load {
	own := clamp(c.InFlight)
	l := c.Report.Load
	switch c.Report.Age {
	case AgeFresh:
		l.Running, l.Queued = clamp(l.Running), clamp(l.Queued)
		had := l.Running + l.Queued
		own = min(own, had+clamp(c.SentRequests))
		left := had - c.ended(had)
		l.Running = min(l.Running, left)
		l.Queued = left - l.Running
		own = max(own-left, 0)
	case AgeStale:
		l.Running, l.Queued = 0, 0
	default:
		l = fleet.Load{Slots: c.Instance.Load.Slots}
	}
	l.Slots = clamp(l.Slots)
	free := max(l.Slots-l.Running, 0)
	l.Running += min(own, free)
	l.Queued += max(own-free, 0)
	return l
}

// ended is how many of the requests that the report has will have ended since: they
// end one by one, in the time that each lasts over the slots (Little's law).
func (c *Candidate) ended(had int) int {
	lasts := c.Report.RequestDuration.Seconds()
	if lasts <= 0 {
		return 0 // nobody knows
	}
	busy := had
	if slots := clamp(c.Report.Load.Slots); slots > 0 {
		busy = min(busy, slots)
	}
	return int(min(max(c.Report.Since.Seconds(), 0)/lasts*float64(busy), float64(had)))
}

// share is how much of an instance's capacity to count on, from just above 0 to
// 1: less while it starts slowly, and as it fails.
func (c *Candidate) share() float64 {
	return c.ramp() * max(1-c.errorRate(), lossFloor)
}

// ramp goes from slowStartFloor to 1 in the time of the slow start.
func (c *Candidate) ramp() float64 {
	if c.SinceReady <= 0 || c.SinceReady >= SlowStart {
		return 1
	}
	return max(float64(c.SinceReady)/float64(SlowStart), slowStartFloor)
}

// errorRate is the error rate within its bounds; what is no number is no error.
func (c *Candidate) errorRate() float64 {
	if c.ErrorRate > 0 {
		return min(c.ErrorRate, 1)
	}
	return 0
}

func (c *Candidate) failing() bool { return c.errorRate() >= FailingRate }

// clamp keeps a reported number from overflowing when it is added to others.
func clamp(n int) int { return min(max(n, 0), maxReported) }
