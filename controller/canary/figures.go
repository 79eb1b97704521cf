package canary

import (
	"maps"
	"math"
	"time"
)

// Figures are what a version's requests have been like since the weights of its
// model last changed. They add up.
type Figures struct {
	Requests int `json:"requests"`
	Failed   int `json:"failed"`
	// BySize has times by the bucket of the prompt's size in tokens; 0: not known.
	BySize map[int]Times `json:"by_size"`
}

// Times are sums of the logarithms of times in seconds, which one slow request in a
// thousand does not move, and how many there are of each.
type Times struct {
	TTFT        int     `json:"ttft"`
	LogTTFT     float64 `json:"log_ttft"`
	PerToken    int     `json:"per_token"`
	LogPerToken float64 `json:"log_per_token"`
}

func (f *Figures) add(o *Observation) {
	f.Requests++
	if o.Failed {
		f.Failed++
		return
	}
	if f.BySize == nil {
		f.BySize = map[int]Times{}
	}
	size := 0
	if bucket := bucketOf(o.Prompt); bucket > 0 {
		size = 1 << (bucket - 1)
	}
	times := f.BySize[size]
	if o.TTFT > 0 {
		times.TTFT++
		times.LogTTFT += math.Log(o.TTFT.Seconds())
	}
	if o.PerToken > 0 {
		times.PerToken++
		times.LogPerToken += math.Log(o.PerToken.Seconds())
	}
	f.BySize[size] = times
}

// Plus is both together.
func (f *Figures) Plus(o *Figures) *Figures {
	sum := &Figures{Requests: f.Requests + o.Requests, Failed: f.Failed + o.Failed, BySize: maps.Clone(f.BySize)}
	for size, times := range o.BySize {
		if sum.BySize == nil {
			sum.BySize = map[int]Times{}
		}
		t := sum.BySize[size]
		sum.BySize[size] = Times{t.TTFT + times.TTFT, t.LogTTFT + times.LogTTFT, t.PerToken + times.PerToken, t.LogPerToken + times.LogPerToken}
	}
	return sum
}

// Clone is a copy that shares nothing.
func (f *Figures) Clone() *Figures { return f.Plus(&Figures{}) }

// ErrorRate is the share that failed.
func (f *Figures) ErrorRate() float64 {
	if f.Requests == 0 {
		return 0
	}
	return float64(f.Failed) / float64(f.Requests)
}

// of is how many times of a signal there are, and the sum of their logarithms.
func (t *Times) of(s Signal) (n int, log float64) {
	if s == SignalTTFT {
		return t.TTFT, t.LogTTFT
	}
	return t.PerToken, t.LogPerToken
}

// Typical is the geometric mean of a signal's times, of all sizes; 0: there are none.
func (f *Figures) Typical(s Signal) time.Duration {
	n, sum := 0, 0.0
	for _, times := range f.BySize {
		count, log := times.of(s)
		n, sum = n+count, sum+log
	}
	if n == 0 {
		return 0
	}
	return time.Duration(math.Exp(sum/float64(n)) * float64(time.Second))
}

// Ratio is how many times as long a signal's times are as another version's, size by
// size: the geometric mean of the sizes' ratios, each with a weight in inverse
// proportion to its variance, if times vary as much in all. Not known without a size
// that both have had.
func (f *Figures) Ratio(s Signal, other *Figures) (ratio float64, known bool) {
	weights, sum := 0.0, 0.0
	for size, times := range f.BySize {
		theirs := other.BySize[size]
		n, log := times.of(s)
		m, otherLog := theirs.of(s)
		if n == 0 || m == 0 {
			continue
		}
		weight := float64(n) * float64(m) / float64(n+m)
		weights += weight
		sum += weight * (log/float64(n) - otherLog/float64(m))
	}
	if weights == 0 {
		return 0, false
	}
	return math.Exp(sum / weights), true
}
