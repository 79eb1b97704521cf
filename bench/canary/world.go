package main

import (
	"math"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/mrgc/mrgc/bench/result"
	"github.com/mrgc/mrgc/controller/canary"
	"github.com/mrgc/mrgc/internal/size"
)

// world is traffic before two versions, in virtual time.
type world struct {
	share, rate float64
	spread      float64       // standard deviation of a time's logarithm, for one length of prompt
	errors      float64       // share of all requests that fail
	onset       time.Duration // from when the canary is worse
	ttft        float64       // times as long at the canary
	perToken    float64       // likewise
	fails       float64       // share of the canary's requests that fail beside errors

	slowest float64 // minutes until all but 5 % of the verdicts
}

// healthy is a canary that is like the other version.
func healthy() world {
	return world{share: 0.05, rate: 20, spread: 0.4, errors: 0.002, ttft: 1, perToken: 1}
}

// judge plays the world until there is a verdict or time is over, and says when.
func (w *world) judge(seed uint64, length time.Duration) (worse bool, at time.Duration, err error) {
	random := rand.New(rand.NewPCG(seed, 1)) //nolint:gosec // a simulation is no secret
	epoch := time.Unix(0, 0)
	judge, err := canary.New(canary.Config{Share: w.share}, epoch)
	if err != nil {
		return false, 0, err
	}
	for now := time.Duration(0); now < length; now += time.Duration(random.ExpFloat64() / w.rate * float64(time.Second)) {
		if judge.Observe(w.request(random, now), epoch.Add(now)).Worse {
			return true, now, nil
		}
	}
	return false, length, nil
}

func (w *world) request(random *rand.Rand, now time.Duration) canary.Observation {
	o := canary.Observation{
		Canary: random.Float64() < w.share,
		Prompt: int(1024 * math.Exp(random.NormFloat64())),
		Output: int(200 * math.Exp(random.NormFloat64()/2)),
		Failed: random.Float64() < w.errors,
	}
	// The load comes and goes within ten minutes, and with the day.
	tide := 1 + 0.2*math.Sin(2*math.Pi*now.Minutes()/10) + 0.3*math.Sin(2*math.Pi*now.Hours()/24)
	ttft := tide * (0.05 + float64(o.Prompt)/20_000) * math.Exp(w.spread*random.NormFloat64())
	perToken := tide * 0.02 * math.Exp(0.2*random.NormFloat64())
	if o.Canary && now >= w.onset {
		ttft, perToken = ttft*w.ttft, perToken*w.perToken
		o.Failed = o.Failed || random.Float64() < w.fails
	}
	// How many tokens there were is known by powers of two alone.
	known := size.Round(0, o.Output).Output
	o.TTFT, o.PerToken = time.Duration(ttft*1e9), time.Duration(perToken*1e9*float64(o.Output)/float64(known))
	return o
}

// find is the share of runs with a verdict before the deadline, and the minutes
// from when the canary is worse until then.
func (w *world) find(runs int) (inTime float64, spread result.Spread, err error) {
	var minutes []float64
	for seed := range uint64(runs) {
		_, at, err := w.judge(seed, w.onset+time.Hour)
		if err != nil {
			return 0, spread, err
		}
		took := at - w.onset
		minutes = append(minutes, took.Minutes())
		if took >= 0 && took <= deadline {
			inTime += 1 / float64(runs)
		}
	}
	slices.Sort(minutes)
	w.slowest = minutes[min(int(0.95*float64(len(minutes))), len(minutes)-1)]
	return inTime, result.SpreadOf(minutes), nil
}

// wrong is the share of days with a verdict.
func (w world) wrong(days int) (share float64, err error) {
	for seed := range uint64(days) {
		worse, _, err := w.judge(1_000_000+seed, 24*time.Hour)
		if err != nil {
			return 0, err
		}
		if worse {
			share += 1 / float64(days)
		}
	}
	return share, nil
}
