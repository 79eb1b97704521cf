package parent

import (
	"math"
	"net/http"
	"strconv"
	"sync"
	"time"

	"github.com/mrgc/mrgc/internal/api"
	"github.com/mrgc/mrgc/internal/routing"
	"github.com/mrgc/mrgc/internal/size"
)

// load counts what the instance is working on.
type load struct {
	limit func() int    // how many may run at once, now
	woken chan struct{} // told when there is a request after there was none

	mu    sync.Mutex
	seen  counts        // guarded by mu
	meter routing.Meter // guarded by mu
}

// counts are what a load has counted.
type counts struct {
	running int           // requests under way
	tokens  int           // that they declare
	latency time.Duration // moving mean of the time to the first byte

	unread        int           // tokens of prompts whose answers have not begun
	readPerSecond float64       // tokens; 0: not known
	duration      time.Duration // moving mean of what a request takes; 0: not known

	ended  uint64 // requests since the start
	failed uint64 // of these, those that this instance failed to answer
}

// latencyWeight makes the mean follow the last ten requests or so.
const latencyWeight = 0.1

func newLoad(limit func() int) *load { return &load{limit: limit, woken: make(chan struct{}, 1)} }

// admitted is a request that counts as load.
type admitted struct {
	load   *load
	work   work
	prompt *routing.Prompt // nil: another instance's engine reads it
}

// begin admits a request unless the limit is reached. It says whether the
// instance's own engine is to read its prompt.
func (l *load) begin(w work, here bool, now time.Time) (admitted, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.seen.running >= l.limit() {
		return admitted{}, false
	}
	l.seen.running++
	l.seen.tokens += w.declared
	if l.seen.running == 1 {
		select {
		case l.woken <- struct{}{}:
		default: // nobody has looked since the last time
		}
	}
	a := admitted{load: l, work: w}
	if here {
		a.prompt = l.meter.Begin(w.uncached, now)
	}
	return a, true
}

// answers is when the first byte of its answer has come.
func (a admitted) answers(now time.Time, firstByte time.Duration) {
	l := a.load
	l.mu.Lock()
	defer l.mu.Unlock()
	if a.prompt != nil {
		l.meter.First(a.prompt, now)
	}
	if l.seen.latency == 0 {
		l.seen.latency = firstByte
		return
	}
	l.seen.latency += time.Duration(latencyWeight * float64(firstByte-l.seen.latency))
}

// end is when it is over, with an answer or without.
func (a admitted) end(now time.Time) {
	l := a.load
	l.mu.Lock()
	defer l.mu.Unlock()
	if a.prompt != nil {
		l.meter.End(a.prompt, now)
	}
	l.seen.running--
	l.seen.tokens -= a.work.declared
	l.seen.ended++
}

func (l *load) fail() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.seen.failed++
}

func (l *load) read() counts {
	l.mu.Lock()
	defer l.mu.Unlock()
	seen := l.seen
	seen.unread, seen.readPerSecond, seen.duration = l.meter.Unread(), l.meter.ReadTokensPerSecond(), l.meter.Duration()
	return seen
}

// work is what a request means for the engine, in tokens.
type work struct {
	declared int // prompt and maximum output; the enclave refuses one that lies
	uncached int // of the prompt, as far as the engine has to read it anew
}

// workOf reads it from a request's headers. What the picker expects to be cached
// it says; without a word of it, nothing is.
func workOf(h http.Header) work {
	declared, err := size.Parse(h.Get(api.HeaderSize))
	if err != nil {
		declared = size.Buckets{}
	}
	w := work{declared: declared.Prompt + declared.Output, uncached: declared.Prompt}
	if uncached, err := strconv.ParseUint(h.Get(api.HeaderUncached), 10, 31); err == nil {
		w.uncached = int(uncached)
	}
	return w
}

// rate turns a counter into events per second: a mean whose weights fall to 1/e
// in rateWindow.
type rate struct {
	value float64
	count uint64
	at    time.Time
}

const rateWindow = time.Second

// observe takes the counter's value at a time, and gives the rate.
func (r *rate) observe(count uint64, now time.Time) float64 {
	if r.at.IsZero() {
		r.count, r.at = count, now
		return 0
	}
	passed := now.Sub(r.at).Seconds()
	if passed <= 0 {
		return r.value
	}
	keep := math.Exp(-passed / rateWindow.Seconds())
	r.value = keep*r.value + (1-keep)*float64(count-r.count)/passed
	if r.value < 1e-3 {
		r.value = 0 // one request, long ago
	}
	r.count, r.at = count, now
	return r.value
}
