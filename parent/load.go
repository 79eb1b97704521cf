package parent

import (
	"cmp"
	"math"
	"net/http"
	"strconv"
	"sync"
	"time"

	"github.com/mrgc/mrgc/internal/api"
	"github.com/mrgc/mrgc/internal/fleet"
	"github.com/mrgc/mrgc/internal/routing"
	"github.com/mrgc/mrgc/internal/size"
)

// load counts what the instance is working on.
type load struct {
	limit func() int    // how many may run at once, now
	woken chan struct{} // told when there is a request after there was none

	late func() time.Duration // after which an answer that has not begun is late, now

	mu    sync.Mutex
	seen  counts           // guarded by mu
	meter routing.Meter    // guarded by mu
	used  map[string]*used // guarded by mu; of the instance's models, by its own engine
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

func newLoad(limit func() int, late func() time.Duration, models []string) *load {
	l := &load{limit: limit, late: late, woken: make(chan struct{}, 1), used: map[string]*used{}}
	for _, model := range models {
		l.used[model] = &used{}
	}
	return l
}

// admitted is a request that counts as load.
type admitted struct {
	load   *load
	work   work
	prompt *routing.Prompt // nil: another instance's engine reads it
	used   *used           // guarded by load.mu; nil: it counts as none of this engine's
	began  time.Time
	first  time.Duration // until its answer began; 0: it has not
}

// begin admits a request unless the limit is reached. It says whether the
// instance's own engine is to read its prompt.
func (l *load) begin(w work, here bool, now time.Time) (*admitted, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.seen.running >= l.limit() {
		return nil, false
	}
	l.seen.running++
	l.seen.tokens += w.declared
	if l.seen.running == 1 {
		select {
		case l.woken <- struct{}{}:
		default: // nobody has looked since the last time
		}
	}
	a := &admitted{load: l, work: w, began: now}
	if here {
		a.prompt = l.meter.Begin(w.uncached, now)
		if a.used = l.used[w.model]; a.used != nil {
			a.used.Requests++
		}
	}
	return a, true
}

// answers is when the first byte of its answer has come.
func (a *admitted) answers(now time.Time) {
	l, firstByte := a.load, now.Sub(a.began)
	l.mu.Lock()
	defer l.mu.Unlock()
	a.first = firstByte
	if a.prompt != nil {
		l.meter.First(a.prompt, now)
	}
	if l.seen.latency == 0 {
		l.seen.latency = firstByte
		return
	}
	l.seen.latency += time.Duration(latencyWeight * float64(firstByte-l.seen.latency))
}

// has takes what its answer has used, of this engine.
func (a *admitted) has(tokens size.Buckets) {
	a.load.mu.Lock()
	defer a.load.mu.Unlock()
	if a.used != nil {
		a.used.PromptTokens += int64(tokens.Prompt)
		a.used.OutputTokens += int64(tokens.Output)
		a.used.Answers++
	}
}

// end is when it is over, with an answer or without.
func (a *admitted) end(now time.Time) {
	l := a.load
	l.mu.Lock()
	defer l.mu.Unlock()
	if a.used != nil {
		a.used.Ended++
		if waited := cmp.Or(a.first, now.Sub(a.began)); waited > l.late() {
			a.used.Late++
		}
	}
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

// used is what has been used of a model.
type used struct {
	fleet.Usage
	told fleet.Usage // in the fleet
}

// usageBatch is how many answers' tokens are told in the fleet at once, at least, so that
// nobody who reads of them there learns a single one's.
const usageBatch = 16

// usage is what has been used of the instance's models, as far as it is told.
func (l *load) usage() map[string]fleet.Usage {
	l.mu.Lock()
	defer l.mu.Unlock()
	of := make(map[string]fleet.Usage, len(l.used))
	for model, u := range l.used {
		before := u.told
		u.told = u.Usage
		if u.Answers-before.Answers < usageBatch {
			u.told.Answers, u.told.PromptTokens, u.told.OutputTokens = before.Answers, before.PromptTokens, before.OutputTokens
		}
		of[model] = u.told
	}
	return of
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
	model    string // as it is asked for
	declared int    // prompt and maximum output; the enclave refuses one that lies
	uncached int    // of the prompt, as far as the engine has to read it anew
}

// workOf reads it from a request's headers. What the picker expects to be cached
// it says; without a word of it, nothing is.
func workOf(h http.Header) work {
	declared, err := size.Parse(h.Get(api.HeaderSize))
	if err != nil {
		declared = size.Buckets{}
	}
	w := work{model: h.Get(api.HeaderModel), declared: declared.Prompt + declared.Output, uncached: declared.Prompt}
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
