package quota

import (
	"sync"
	"time"

	"github.com/mrgc/mrgc/internal/tenant"
)

// What a tenant may save up while it asks for nothing: requests of one second,
// and tokens of one minute.
const (
	requestBurst = time.Second
	tokenBurst   = time.Minute
)

// maxDebt is for how long a tenant has to pay off at most what has used more than it
// declared: so long that only a limit of next to nothing gets there.
const maxDebt = 24 * time.Hour

// Reason is why a tenant has to wait. It is stable: metrics and errors have it.
type Reason string

// Reasons.
const (
	ReasonNone     Reason = ""                    // it has not
	ReasonRequests Reason = "requests_per_second" // more requests than its limit
	ReasonTokens   Reason = "tokens_per_minute"   //nolint:gosec // more tokens than its limit: a name, no credential
	ReasonTooLarge Reason = "request_too_large"   // more tokens than a minute's: waiting does not help
	ReasonShare    Reason = "share"               // nothing is free, and it has its share
)

// Verdict is what is said to a request.
type Verdict struct {
	Reason Reason // none: the request is admitted
	// RetryAfter is in what time the same request would be admitted.
	RetryAfter time.Duration
}

// Request is what is asked of a [Limiter].
type Request struct {
	Tenant string
	Limits tenant.Limits
	// Tokens are those of the prompt and the most that the answer may have: up to
	// 2 Mi, which is as much as can be declared.
	Tokens int
}

// Limiter holds tenants to their limits, each by two token buckets. It is safe for
// concurrent use. It keeps something of those tenants only that have asked for so
// much lately that it still counts.
type Limiter struct {
	mu    sync.Mutex
	debts map[string]debt // guarded by mu: by tenant
	sweep int             // guarded by mu: how many debts there are when those paid off are dropped
	own   counts          // guarded by mu: what this limiter has let through, for others
	heard hearers         // guarded by mu: what others have
}

// debt is a tenant's two buckets. Each is kept as the time at which it is full
// again (the generic cell rate algorithm of ATM, ITU-T I.371): what is admitted
// moves that on by as long as it takes to fill up again, and may do so while it is
// no further away than the bucket is deep. It is exact but for fractions of a
// nanosecond, and needs no clock.
type debt struct{ requests, tokens time.Time }

// minSweep spares small maps.
const minSweep = 64

// NewLimiter makes a limiter that has seen nobody ask.
func NewLimiter() *Limiter {
	return &Limiter{debts: map[string]debt{}, sweep: minSweep, own: newCounts(), heard: hearers{}}
}

// Take admits a request and counts it, or refuses it.
func (l *Limiter) Take(r Request, now time.Time) Verdict {
	if r.tooLarge() {
		return Verdict{Reason: ReasonTooLarge}
	}
	requests, tokens := r.costs()
	if requests == 0 && tokens == 0 {
		return Verdict{}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	d := l.debts[r.Tenant]
	forRequests, forTokens := wait(d.requests, requests, requestBurst, now), wait(d.tokens, tokens, tokenBurst, now)
	switch {
	case forRequests > 0 && forRequests >= forTokens:
		return Verdict{ReasonRequests, forRequests}
	case forTokens > 0:
		return Verdict{ReasonTokens, forTokens}
	}
	l.count(r.Tenant, requests, tokens, now)
	return Verdict{}
}

// GiveBack takes back that a request was admitted, which nobody could serve.
func (l *Limiter) GiveBack(r Request, now time.Time) {
	requests, tokens := r.costs()
	l.mu.Lock()
	defer l.mu.Unlock()
	l.count(r.Tenant, -requests, -tokens, now)
}

// Settle has an admitted request that has ended count for the tokens that it has
// used, in place of those that it was to use at most: what is left is given back,
// and what is more, by an answer that had no end, is to be paid off.
func (l *Limiter) Settle(r Request, used int, now time.Time) {
	_, before := r.costs()
	r.Tokens = used
	_, after := r.costs()
	l.mu.Lock()
	defer l.mu.Unlock()
	l.count(r.Tenant, 0, after-before, now)
}

// count takes that much from a tenant's buckets, or puts it back, on this limiter's
// own account.
func (l *Limiter) count(tenant string, requests, tokens time.Duration, now time.Time) {
	if requests != 0 || tokens != 0 {
		l.charge(tenant, requests, tokens, now, now)
		l.own.add(tenant, requests, tokens, now)
	}
}

// charge takes that much from a tenant's buckets, as at a time that is not after now,
// or puts it back; what does not fit in is lost.
func (l *Limiter) charge(tenant string, requests, tokens time.Duration, at, now time.Time) {
	if requests == 0 && tokens == 0 {
		return
	}
	l.forget(now)
	d := l.debts[tenant]
	l.debts[tenant] = debt{requests: moved(d.requests, requests, at, now), tokens: moved(d.tokens, tokens, at, now)}
}

func moved(full time.Time, by time.Duration, at, now time.Time) time.Time {
	full = later(full, at).Add(by)
	if last := now.Add(maxDebt); by > 0 && full.After(last) {
		return last
	}
	return full
}

// forget drops what is paid off, which is as if it were not there: each time that
// there is twice as much as was left the last time.
func (l *Limiter) forget(now time.Time) {
	if len(l.debts) < l.sweep {
		return
	}
	for name, d := range l.debts {
		if !d.requests.After(now) && !d.tokens.After(now) {
			delete(l.debts, name)
		}
	}
	l.sweep = max(2*len(l.debts), minSweep)
}

// tooLarge says whether a request is for more tokens than a minute has.
func (r *Request) tooLarge() bool {
	return r.Limits.TokensPerMinute > 0 && r.Tokens > r.Limits.TokensPerMinute
}

// costs are for how long a request uses up its tenant's limits; 0 where there is
// none. Fractions of a nanosecond are left out, so that a burst of exactly what may
// be saved up passes; of the limits that there may be that is less than a
// thousandth.
func (r *Request) costs() (requests, tokens time.Duration) {
	return cost(1, r.Limits.RequestsPerSecond, time.Second), cost(r.Tokens, r.Limits.TokensPerMinute, time.Minute)
}

func cost(units, limit int, per time.Duration) time.Duration {
	if limit <= 0 {
		return 0
	}
	return time.Duration(units) * per / time.Duration(limit)
}

// wait is how long a bucket has to fill until what costs so much can be taken.
func wait(full time.Time, cost, burst time.Duration, now time.Time) time.Duration {
	if cost == 0 {
		return 0
	}
	return max(later(full, now).Sub(now)+cost-burst, 0)
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}
