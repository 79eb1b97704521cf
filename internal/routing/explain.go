package routing

import (
	"cmp"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/mrgc/mrgc/internal/fleet"
)

// Rule says what keeps a candidate from serving a request. It is stable like
// [Reason].
type Rule string

// Rules, in the order in which they are looked at: the first that holds is the
// candidate's.
const (
	RuleNone    Rule = ""                     // it may serve
	RuleKey     Rule = "no_recipient_key"     // it holds no key of the recipients'
	RuleModel   Rule = "model_not_served"     // it does not serve the model
	RuleReady   Rule = "not_ready"            // it takes no new requests
	RuleRegion  Rule = "region_not_permitted" // the request may not go to its region
	RuleVersion Rule = "version_withdrawn"    // its version of the model gets no requests
)

// Criterion says by what one instance comes after another. It is stable like
// [Reason].
type Criterion string

// Criteria, the first that tells two instances apart.
const (
	CriterionNone     Criterion = ""         // it is first, or cannot serve
	CriterionStanding Criterion = "standing" // it fails and the other does not, or the other is probed
	CriterionVersion  Criterion = "version"  // the split prefers the other's version for this request
	CriterionRegion   Criterion = "region"   // the other's region is preferred
	CriterionOverflow Criterion = "overflow" // its region is preferred, but saturated, and the other's sooner in spite of the way there
	CriterionGate     Criterion = "gate"     // the other is the conversation's home, and not saturated
	CriterionDraw     Criterion = "draw"     // the other was drawn, or its turn has come
	CriterionMeasure  Criterion = "measure"  // the policy's measure is worse
	CriterionScore    Criterion = "score"    // the measures are equal, and the score is lower
	CriterionHash     Criterion = "hash"     // both are equally good
)

// Place is what became of one candidate, and why.
type Place struct {
	Instance *fleet.Instance
	Rule     Rule
	After    Criterion // by what it comes after the one before it

	// The rest is of those that may serve.

	Standing string  // sound, failing, or probed: it fails, and is tried first to see whether it still does
	Requests float64 // in the engine and waiting, as well as it can be told
	Slots    float64 // 0: not known
	Share    float64 // of its capacity that is counted on
	// FirstToken is the prediction of when this request's first token would come:
	// at the conversation's home with most of its prompt cached. It is there
	// under every policy.
	FirstToken time.Duration
	Score      int
	Measure    float64 // the policy's; less is better. In seconds under [PolicyGateThenLoad], as if nothing were cached
}

// Explain decides as [Pick] does, and says of every candidate what became of
// it: those that may serve in the order of the decision, then the others.
func Explain(req Request, candidates []Candidate) (Decision, []Place) {
	decision := Pick(req, candidates)
	able, _ := req.able(nil, candidates)
	if len(able) > 0 {
		req.order(able, candidates)
	}
	standIn := slowest(able, candidates)
	places := make([]Place, 0, len(candidates))
	for i := range able {
		r, c := &able[i], &candidates[able[i].at]
		place := Place{
			Instance: r.instance, Standing: r.standing.String(),
			Requests: r.requests, Slots: r.slots, Share: r.share,
			FirstToken: seconds(c.firstToken(UncachedTokens(req.PromptTokens, r.instance.ID == req.Home), r, standIn)),
			Score:      score(c.Instance.Health, c.load(), r.requests),
			Measure:    r.key,
		}
		if i > 0 {
			place.After = req.after(able[i-1], *r)
		}
		places = append(places, place)
	}
	order := req.Split.order(nil, hashOf(cmp.Or(req.Conversation, req.ID)))
	for i := range candidates {
		if rule, _, _ := req.rule(&candidates[i], order); rule != RuleNone {
			places = append(places, Place{Instance: candidates[i].Instance, Rule: rule})
		}
	}
	slices.SortStableFunc(places[len(able):], func(a, b Place) int { return strings.Compare(a.Instance.ID, b.Instance.ID) })
	return decision, places
}

// after says by what one comes after another.
func (req *Request) after(before, r ranked) Criterion {
	switch {
	case before.standing != r.standing:
		return CriterionStanding
	case before.version != r.version:
		return CriterionVersion
	case before.turn == beforeAll && r.turn != beforeAll:
		return CriterionOverflow
	case before.distance != r.distance:
		return CriterionRegion
	case req.Policy == PolicyRoundRobin:
		return CriterionDraw
	case before.compare(r) > 0 && req.Policy == PolicyGateThenLoad:
		return CriterionGate
	case before.compare(r) > 0:
		return CriterionDraw
	case before.key != r.key:
		return CriterionMeasure
	case before.score != r.score:
		return CriterionScore
	default:
		return CriterionHash
	}
}

// String is the standing for people and programs.
func (s standing) String() string { return [...]string{"probed", "sound", "failing"}[s] }

// seconds makes a prediction a duration; one that is out of all bounds is the
// longest.
func seconds(s float64) time.Duration {
	if ns := s * float64(time.Second); ns < math.MaxInt64 {
		return time.Duration(ns)
	}
	return math.MaxInt64
}
