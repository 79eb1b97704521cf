package routing

import (
	"math"
	"time"

	"github.com/mrgc/mrgc/internal/fleet"
)

// The score's terms, each from 0 to 1, and their weights, which add up to 100.
const (
	queueWeight   = 50.0
	latencyWeight = 30.0
	healthWeight  = 20.0
)

// The scales are fixed, not relative to the best and worst of the fleet: a
// relative scale makes a queue of 0 against 1 swing like 0 against 100.
const (
	// QueueFull is the depth, in requests running and queued for each slot, from
	// which the queue's term is 0: every slot is taken, and as many requests
	// again wait. An empty queue gives the whole term.
	QueueFull = 2.0
	// LatencyFull is the mean time to first byte from which the latency's term
	// is 0. No latency gives the whole term.
	LatencyFull = 2 * time.Second
)

// Score says how much an instance has to give: 50 points for a short queue, 30
// for low latency, 20 for health (10 for the enclave, 10 for the engine). It is
// between 0 and 100, higher is better, and never rises with load or falls with
// health.
//
// What is not known counts as follows. A latency of 0 is the best: an instance
// that has just started has served nothing that could be measured, and must be
// sent requests to get a latency; its queue limits how many. Slots of 0 count
// as one, so that an instance that hides its size gains nothing by it. Negative
// figures count as 0.
//
// A score is no judgement of readiness: an idle instance with a dead enclave
// has 90 points. Filter first.
func Score(h fleet.Health, l fleet.Load) int { return TermsOf(h, l).Score() }

// Terms are the points of which a score is made.
type Terms struct {
	Queue   float64 `json:"queue"`   // of 50
	Latency float64 `json:"latency"` // of 30
	Health  float64 `json:"health"`  // of 20
}

// TermsOf gives the points of an instance, as [Score] adds them up.
func TermsOf(h fleet.Health, l fleet.Load) Terms {
	return terms(h, l, count(l.Running)+count(l.Queued))
}

// Score is the sum.
func (t Terms) Score() int { return int(math.Round(t.Queue + t.Latency + t.Health)) }

// score is the score of an instance that has so many requests.
func score(h fleet.Health, l fleet.Load, requests float64) int { return terms(h, l, requests).Score() }

func terms(h fleet.Health, l fleet.Load, requests float64) Terms {
	depth := requests / max(count(l.Slots), 1)
	queue := 1 - min(depth/QueueFull, 1)
	latency := 1 - min(max(l.Latency.Seconds(), 0)/LatencyFull.Seconds(), 1)
	return Terms{queueWeight * queue, latencyWeight * latency, healthWeight * health(h)}
}

func health(h fleet.Health) float64 {
	var term float64
	if h.Enclave {
		term += 0.5
	}
	if h.Engine {
		term += 0.5
	}
	return term
}

// count makes a reported number usable: floats cannot overflow when added.
func count(n int) float64 { return float64(max(n, 0)) }
