package decision

import (
	"slices"
	"strings"
	"time"

	"github.com/mrgc/mrgc/internal/routing"
)

// Replay decides records again. Each one is decided by what was known then:
// where a policy would have sent requests elsewhere, later ones would have found
// the instances otherwise, and that is not in it.
type Replay struct {
	policy   *routing.Policy // nil: each record's own
	sequence map[string]uint64
	result   Result
	before   []time.Duration
	after    []time.Duration
}

// Result is what a replay has found.
type Result struct {
	Policy    string `json:"policy"`    // "recorded": each record's own
	Decisions int    `json:"decisions"` // that were decided again
	Skipped   int    `json:"skipped"`   // refused before anything was decided
	// Same are the decisions that the recorded policy was asked for again, and
	// Differing those of them that came out otherwise. There must be none: see
	// FirstDiffering.
	Same           int    `json:"same_policy"`
	Differing      int    `json:"same_policy_differing"`
	FirstDiffering string `json:"first_differing,omitempty"` // a request's id
	Elsewhere      int    `json:"elsewhere"`                 // have another instance first
	// Instances has how many requests each has first, in order of ID.
	Instances []Count `json:"instances"`
	// FirstToken is the predicted time to the first token at the first instance,
	// over all decisions that have one.
	FirstToken struct {
		Recorded Spread `json:"recorded"`
		Replayed Spread `json:"replayed"`
	} `json:"predicted_first_token"`
}

// Count is an instance's requests.
type Count struct {
	Instance string `json:"instance"`
	Recorded int    `json:"recorded"`
	Replayed int    `json:"replayed"`
}

// Spread is of durations, in seconds.
type Spread struct {
	Mean float64 `json:"mean_seconds"`
	P50  float64 `json:"p50_seconds"`
	P99  float64 `json:"p99_seconds"`
}

// NewReplay prepares one under a policy; nil is each record's own.
func NewReplay(policy *routing.Policy) *Replay {
	r := &Replay{policy: policy, sequence: map[string]uint64{}}
	r.result.Policy = "recorded"
	if policy != nil {
		r.result.Policy = policy.String()
	}
	return r
}

// Add decides a record again.
func (r *Replay) Add(record Record) {
	if !record.picked() {
		r.result.Skipped++
		return
	}
	r.result.Decisions++
	request := record.Request
	if r.policy != nil && *r.policy != request.Policy {
		request.Policy = *r.policy
		r.sequence[request.Model]++ // as a picker counts, which had no need to
		request.Sequence = r.sequence[request.Model]
	}
	decision, places := routing.Explain(request, record.Candidates)
	if request.Policy == record.Request.Policy {
		r.result.Same++
		if !equal(decision, record.Decision) {
			if r.result.Differing++; r.result.Differing == 1 {
				r.result.FirstDiffering = record.Request.ID
			}
		}
	}
	was, is := first(record.Decision), first(decision)
	if was != is {
		r.result.Elsewhere++
	}
	r.count(was, func(c *Count) { c.Recorded++ })
	r.count(is, func(c *Count) { c.Replayed++ })
	for _, p := range places {
		if p.Rule != routing.RuleNone {
			continue
		}
		if p.Instance.ID == was {
			r.before = append(r.before, p.FirstToken)
		}
		if p.Instance.ID == is {
			r.after = append(r.after, p.FirstToken)
		}
	}
}

// Result gives what has been found so far.
func (r *Replay) Result() Result {
	result := r.result
	result.Instances = slices.Clone(r.result.Instances)
	result.FirstToken.Recorded, result.FirstToken.Replayed = spreadOf(r.before), spreadOf(r.after)
	return result
}

func (r *Replay) count(instance string, add func(*Count)) {
	if instance == "" {
		return
	}
	i, found := slices.BinarySearchFunc(r.result.Instances, instance, func(c Count, id string) int { return strings.Compare(c.Instance, id) })
	if !found {
		r.result.Instances = slices.Insert(r.result.Instances, i, Count{Instance: instance})
	}
	add(&r.result.Instances[i])
}

func equal(a, b routing.Decision) bool {
	return a.Reason == b.Reason && a.Gate == b.Gate && slices.Equal(idsOf(a), idsOf(b))
}

// first is the instance that a decision tries first; "" when none can serve.
func first(d routing.Decision) string {
	if len(d.Instances) == 0 {
		return ""
	}
	return d.Instances[0].ID
}

func spreadOf(all []time.Duration) Spread {
	if len(all) == 0 {
		return Spread{}
	}
	sorted := slices.Sorted(slices.Values(all))
	var sum float64
	for _, d := range sorted {
		sum += d.Seconds()
	}
	at := func(q float64) float64 { return sorted[int(q*float64(len(sorted)-1))].Seconds() }
	return Spread{Mean: sum / float64(len(sorted)), P50: at(0.5), P99: at(0.99)}
}
