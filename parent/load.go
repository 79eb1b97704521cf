package parent

import (
	"math"
	"net/http"
	"sync"
	"time"

	"github.com/mrgc/mrgc/internal/api"
	"github.com/mrgc/mrgc/internal/size"
)

// load counts what the instance is working on.
type load struct {
	limit int
	woken chan struct{} // told when there is a request after there was none

	mu   sync.Mutex
	seen counts // guarded by mu
}

// counts are what a load has counted.
type counts struct {
	running int           // requests under way
	tokens  int           // that they declare
	latency time.Duration // moving mean of the time to the first byte

	ended  uint64 // requests since the start
	failed uint64 // of these, those that this instance failed to answer
}

// latencyWeight makes the mean follow the last ten requests or so.
const latencyWeight = 0.1

func newLoad(limit int) *load { return &load{limit: limit, woken: make(chan struct{}, 1)} }

// begin admits a request unless the limit is reached.
func (l *load) begin(tokens int) (done func(), ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.seen.running >= l.limit {
		return nil, false
	}
	l.seen.running++
	l.seen.tokens += tokens
	if l.seen.running == 1 {
		select {
		case l.woken <- struct{}{}:
		default: // nobody has looked since the last time
		}
	}
	return func() { l.end(tokens) }, true
}

func (l *load) end(tokens int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.seen.running--
	l.seen.tokens -= tokens
	l.seen.ended++
}

func (l *load) fail() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.seen.failed++
}

func (l *load) observe(firstByte time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.seen.latency == 0 {
		l.seen.latency = firstByte
		return
	}
	l.seen.latency += time.Duration(latencyWeight * float64(firstByte-l.seen.latency))
}

func (l *load) read() counts {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.seen
}

// declaredTokens is how many tokens a request is said to take: prompt and
// maximum output. The enclave refuses one that lies.
func declaredTokens(h http.Header) int {
	declared, err := size.Parse(h.Get(api.HeaderSize))
	if err != nil {
		return 0
	}
	return declared.Prompt + declared.Output
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
