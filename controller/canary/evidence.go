package canary

import (
	"math"
	"time"
)

// Evidence is what requests have come to: for each of [Signals] and each bet, the
// logarithm of what a stake on it would have become, and how many of the canary's
// requests were compared. It adds up: that of requests which one router has seen and
// of those which another has is, added, that of all of them. So routers that tell
// each other what theirs has come to, and not what they have seen, judge as one that
// sees everything; but for the requests of a block, which are one router's.
type Evidence struct {
	Log      [len(Signals)][bets]float64
	Compared int
}

// minus is what has been added since another.
func (e Evidence) minus(before Evidence) Evidence {
	e.Compared -= before.Compared
	for i := range e.Log {
		for k := range e.Log[i] {
			e.Log[i][k] -= before.Log[i][k]
		}
	}
	return e
}

// maxLog is more than any evidence comes to: beyond it is no number, or a lie.
const maxLog = 1e9

// Valid says whether it can be evidence.
func (e *Evidence) Valid() bool {
	for i := range e.Log {
		for _, log := range e.Log[i] {
			if !(math.Abs(log) <= maxLog) {
				return false
			}
		}
	}
	return e.Compared >= 0
}

func (e *Evidence) add(signal int, factors [bets]float64) {
	for k, f := range factors {
		e.Log[signal][k] += math.Log(f)
	}
}

// Own is what the requests that it has observed have come to.
func (j *Judge) Own() Evidence { return j.own }

// Absorb takes note of requests that were observed elsewhere, by what they have come
// to. Times do not run backwards.
func (j *Judge) Absorb(e Evidence, now time.Time) Verdict {
	if j.verdict.Worse {
		return j.verdict
	}
	j.newDay(now)
	j.verdict.Compared += e.Compared
	for i := range Signals {
		var factors [bets]float64
		for k, log := range e.Log[i] {
			factors[k] = math.Exp(log)
		}
		j.wager(i, factors, now)
	}
	return j.verdict
}
