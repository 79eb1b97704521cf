package canary

import (
	"errors"
	"fmt"
	"time"
)

// Config says what is judged. Every field without a default is required.
type Config struct {
	// Share of the requests that the canary is to get, above 0 and below 1: how many
	// requests one of its own is compared with. It need not be exact.
	Share float64
	// FalsePerDay bounds the probability of a verdict within a day against a canary
	// that is no worse; default 0.01.
	FalsePerDay float64
	// WarmUp is how long requests are passed over at first, so that conversations
	// that have moved fill their new caches; default 30 s, below 0 none.
	WarmUp time.Duration
}

// Signal is something by which versions are compared. It is stable: metrics and
// programs may compare it.
type Signal string

// Signals.
const (
	SignalErrors   Signal = "error_rate"
	SignalTTFT     Signal = "time_to_first_token"
	SignalPerToken Signal = "time_per_token"
)

// Signals are all of them.
var Signals = [...]Signal{SignalErrors, SignalTTFT, SignalPerToken}

// part of the probability of a false verdict that each signal has: they add up to
// 1, so that all together keep to it (Bonferroni). Time to first token, which
// varies most and needs most, has most.
var part = [...]float64{0.2, 0.6, 0.2}

// Observation is a request that has ended.
type Observation struct {
	Canary bool // else it was of the version that the canary is compared with
	Failed bool // by the instance's fault; times are not looked at then
	// Prompt is its size in tokens as declared, Output how many its answer had, as far as
	// they are known: those of one bucket of package size, or 0, are compared with each
	// other. PerToken need only be comparable within one bucket of Output.
	Prompt, Output int
	// TTFT is the time to its first token, PerToken that of each later one; 0: not
	// known.
	TTFT, PerToken time.Duration
}

// Verdict is what a judge thinks so far.
type Verdict struct {
	Worse  bool   // the canary is to be rolled back; it stays so
	Signal Signal // by which it is worse
	// Evidence against the canary by each of [Signals], from 0: verdicts are at 1. It
	// is the stake's logarithm in parts of what a verdict takes, and below 0 the
	// canary has rather been better, or there is little yet.
	Evidence [len(Signals)]float64
	// Compared counts the canary's requests that were compared.
	Compared int
}

// Judge judges one canary. It is not safe for concurrent use.
type Judge struct {
	config  Config
	block   int // requests in a block
	begun   time.Time
	day     time.Time // when the stakes were 1
	blocks  [len(Signals)]map[int]*block
	stakes  [len(Signals)]*stake
	own     Evidence
	verdict Verdict
}

// day is how long a stake lasts.
const day = 24 * time.Hour

// Defaults.
const (
	defaultFalsePerDay = 0.01
	defaultWarmUp      = 30 * time.Second
)

// Bounds of the requests in a block.
const (
	minBlock = 4
	maxBlock = 64
)

// New begins to judge a canary that has just been given its share.
func New(config Config, now time.Time) (*Judge, error) {
	if config.FalsePerDay == 0 {
		config.FalsePerDay = defaultFalsePerDay
	}
	if config.WarmUp == 0 {
		config.WarmUp = defaultWarmUp
	}
	switch {
	case !(config.Share > 0 && config.Share < 1):
		return nil, fmt.Errorf("canary: share %v: want more than 0 and less than 1", config.Share)
	case !(config.FalsePerDay > 0 && config.FalsePerDay < 1):
		return nil, errors.New("canary: false verdicts per day: want more than 0 and less than 1")
	}
	j := &Judge{config: config, begun: now, day: now, block: blockSize(config.Share)}
	for i := range Signals {
		j.blocks[i] = map[int]*block{}
	}
	j.restake(now)
	return j, nil
}

// blockSize is such that a block has one request of the rarer version on average,
// and few have none.
func blockSize(share float64) int {
	return int(min(max(1/min(share, 1-share), minBlock), maxBlock))
}

func (j *Judge) restake(now time.Time) {
	j.day = now
	for i := range Signals {
		j.stakes[i] = newStake()
	}
}

// newDay begins one if it is time to.
func (j *Judge) newDay(now time.Time) {
	if now.Sub(j.day) >= day {
		j.restake(now)
	}
}

// Observe takes note of a request. Times do not run backwards.
func (j *Judge) Observe(o Observation, now time.Time) Verdict {
	if j.verdict.Worse || now.Sub(j.begun) < j.config.WarmUp {
		return j.verdict
	}
	j.newDay(now)
	for i, signal := range Signals {
		value, bucket, known := o.measure(signal)
		if !known {
			continue
		}
		b := j.blocks[i][bucket]
		if b == nil {
			b = &block{}
			j.blocks[i][bucket] = b
		}
		if b.add(value, o.Canary) < j.block {
			continue
		}
		j.bet(i, b, now)
		b.clear()
	}
	return j.verdict
}

// bet wagers the stake of a signal on a block that is full.
func (j *Judge) bet(i int, b *block, now time.Time) {
	if len(b.canary) == 0 || len(b.other) == 0 {
		return // whatever it is, it says nothing
	}
	factors := b.timeFactors
	if Signals[i] == SignalErrors {
		factors = b.oddsFactors
		j.own.Compared += len(b.canary)
		j.verdict.Compared += len(b.canary)
	}
	paid := factors()
	j.own.add(i, paid)
	j.wager(i, paid, now)
}

// wager wagers the stake of a signal on what has paid so much.
func (j *Judge) wager(i int, factors [bets]float64, now time.Time) {
	s := j.stakes[i]
	s.release(now.Sub(j.day))
	s.win(factors)
	j.verdict.Evidence[i] = s.log() / j.needed(i)
	if j.verdict.Evidence[i] >= 1 && !j.verdict.Worse {
		j.verdict.Worse, j.verdict.Signal = true, Signals[i]
	}
}

// measure is what a request says about a signal, and among which it is compared.
func (o *Observation) measure(s Signal) (value float64, bucket int, known bool) {
	switch {
	case s == SignalErrors:
		if o.Failed {
			value = 1
		}
		return value, bucketOf(o.Prompt), true
	case o.Failed:
		return 0, 0, false
	case s == SignalTTFT:
		return o.TTFT.Seconds(), bucketOf(o.Prompt), o.TTFT > 0
	default:
		return o.PerToken.Seconds(), bucketOf(o.Prompt)<<8 | bucketOf(o.Output), o.PerToken > 0
	}
}
