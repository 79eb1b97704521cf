package quota_test

import (
	"fmt"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	"pgregory.net/rapid"

	"github.com/mrgc/mrgc/internal/quota"
	"github.com/mrgc/mrgc/internal/tenant"
)

func epoch() time.Time { return time.Date(2026, 11, 1, 12, 0, 0, 0, time.UTC) }

// admission is a request that was admitted.
type admission struct {
	at      time.Time
	request quota.Request
}

// replayed is a limiter that has seen what was admitted, and nothing else.
func replayed(history []admission) *quota.Limiter {
	l := quota.NewLimiter()
	for _, a := range history {
		if l.Take(a.request, a.at).Reason != quota.ReasonNone {
			panic("what was admitted is refused without what was refused")
		}
	}
	return l
}

// steps are between two requests: mostly short, as a burst's are.
var steps = rapid.Custom(func(t *rapid.T) time.Duration {
	most := rapid.SampledFrom([]time.Duration{0, 10 * time.Millisecond, time.Second, 10 * time.Second, 2 * time.Minute}).Draw(t, "scale")
	return time.Duration(rapid.Int64Range(0, int64(most)).Draw(t, "step"))
})

// plain is a token bucket as a textbook has it, for limits that divide a second
// and a minute into whole nanoseconds. Its unit is a request, or a token, for one
// nanosecond.
type plain struct {
	limit, period, level int64
	at                   time.Time
}

func newPlain(limit int, period time.Duration) *plain {
	return &plain{limit: int64(limit), period: int64(period), level: int64(limit) * int64(period), at: epoch()}
}

func (b *plain) has(units int, now time.Time) bool {
	b.give(0, now)
	return b.limit == 0 || units == 0 || b.level >= int64(units)*b.period
}

func (b *plain) take(units int) {
	if b.limit > 0 {
		b.level -= int64(units) * b.period
	}
}

// give puts units back, or takes them whether they are there or not.
func (b *plain) give(units int, now time.Time) {
	b.level = min(b.level+int64(now.Sub(b.at))*b.limit, b.limit*b.period)
	b.at = now
	if b.limit > 0 {
		b.level = min(b.level+int64(units)*b.period, b.limit*b.period)
	}
}

var _ = Describe("A limiter", func() {
	It("admits what a plain token bucket does, with what was not used put back", func() {
		rapid.Check(GinkgoT(), func(t *rapid.T) {
			limits := tenant.Limits{
				RequestsPerSecond: rapid.SampledFrom([]int{0, 1, 2, 5, 10}).Draw(t, "requests per second"),
				TokensPerMinute:   rapid.SampledFrom([]int{0, 600, 6000}).Draw(t, "tokens per minute"),
			}
			l, now := quota.NewLimiter(), epoch()
			requests, tokens := newPlain(limits.RequestsPerSecond, time.Second), newPlain(limits.TokensPerMinute, time.Minute)
			var running []quota.Request
			for range rapid.IntRange(1, 60).Draw(t, "requests") {
				now = now.Add(steps.Draw(t, "wait"))
				r := quota.Request{Tenant: "acme", Limits: limits, Tokens: rapid.IntRange(0, 600).Draw(t, "tokens")}
				hasRequests, hasTokens := requests.has(1, now), tokens.has(r.Tokens, now)
				got := l.Take(r, now)
				if want := hasRequests && hasTokens; (got.Reason == quota.ReasonNone) != want {
					t.Fatalf("%d tokens at %v: %+v, admitted by the plain one: %t", r.Tokens, now.Sub(epoch()), got, want)
				}
				if got.Reason == quota.ReasonNone {
					requests.take(1)
					tokens.take(r.Tokens)
					running = append(running, r)
				}
				if len(running) > 0 && rapid.Bool().Draw(t, "one ends") {
					now = now.Add(steps.Draw(t, "until then"))
					used := rapid.IntRange(0, 1200).Draw(t, "used")
					l.Settle(running[0], used, now)
					tokens.give(running[0].Tokens-used, now)
					running = running[1:]
				}
				if got.Reason == quota.ReasonRequests && hasRequests || got.Reason == quota.ReasonTokens && hasTokens {
					t.Fatalf("%+v, of which there is enough", got)
				}
			}
		})
	})

	It("never exceeds a rate, says when to come again, and counts nothing that it refuses", func() {
		rapid.Check(GinkgoT(), func(t *rapid.T) {
			limits := tenant.Limits{
				RequestsPerSecond: rapid.IntRange(0, 7).Draw(t, "requests per second"),
				TokensPerMinute:   rapid.SampledFrom([]int{0, 1000, 7777, 1_000_000_000}).Draw(t, "tokens per minute"),
			}
			l, now := quota.NewLimiter(), epoch()
			var history []admission
			for range rapid.IntRange(1, 60).Draw(t, "requests") {
				now = now.Add(steps.Draw(t, "wait"))
				r := quota.Request{Tenant: "acme", Limits: limits, Tokens: rapid.IntRange(0, 1000).Draw(t, "tokens")}
				verdict := l.Take(r, now)
				switch {
				case verdict.Reason != quota.ReasonNone:
					again := now.Add(verdict.RetryAfter)
					if early := replayed(history).Take(r, again.Add(-1)); early.Reason == quota.ReasonNone {
						t.Fatalf("%+v, but is admitted before", verdict)
					}
					if due := replayed(history).Take(r, again); due.Reason != quota.ReasonNone {
						t.Fatalf("%+v, and then %+v", verdict, due)
					}
				case rapid.IntRange(0, 4).Draw(t, "nobody serves it") == 0:
					l.GiveBack(r, now)
				default:
					history = append(history, admission{now, r})
				}
			}
			for i := range history {
				all := 0
				for j := i; j < len(history); j++ {
					all += history[j].request.Tokens
					seconds := history[j].at.Sub(history[i].at).Seconds()
					if n := float64(limits.RequestsPerSecond); n > 0 && float64(j-i+1) > n*seconds+n+1e-6 {
						t.Fatalf("%d requests within %.3f s", j-i+1, seconds)
					}
					if n := float64(limits.TokensPerMinute); n > 0 && float64(all) > n/60*seconds+n+1e-3 {
						t.Fatalf("%d tokens within %.3f s", all, seconds)
					}
				}
			}
		})
	})

	It("says which limit a tenant has to wait for the longest, and for how long", func() {
		l := quota.NewLimiter()
		r := quota.Request{Tenant: "acme", Limits: tenant.Limits{RequestsPerSecond: 2, TokensPerMinute: 600}, Tokens: 300}
		Expect(l.Take(r, epoch())).To(BeZero())
		Expect(l.Take(r, epoch())).To(BeZero())
		Expect(l.Take(r, epoch())).To(Equal(quota.Verdict{Reason: quota.ReasonTokens, RetryAfter: 30 * time.Second}))
		r.Tokens = 1
		Expect(l.Take(r, epoch())).To(Equal(quota.Verdict{Reason: quota.ReasonRequests, RetryAfter: 500 * time.Millisecond}))
		r.Tokens = 601
		Expect(l.Take(r, epoch().Add(time.Hour))).To(Equal(quota.Verdict{Reason: quota.ReasonTooLarge}))
		r.Tenant, r.Tokens = "umbra", 600
		Expect(l.Take(r, epoch())).To(BeZero(), "another tenant's limits are its own")
	})

	It("counts of a request that has ended what it has used, and is owed what was more", func() {
		l := quota.NewLimiter()
		r := quota.Request{Tenant: "acme", Limits: tenant.Limits{TokensPerMinute: 600}, Tokens: 600}
		Expect(l.Take(r, epoch())).To(BeZero())
		Expect(l.Take(r, epoch()).RetryAfter).To(Equal(time.Minute))
		l.Settle(r, 100, epoch())
		Expect(l.Take(r, epoch()).RetryAfter).To(Equal(10 * time.Second))
		r.Tokens = 500
		Expect(l.Take(r, epoch())).To(BeZero())
		l.Settle(r, 1100, epoch())
		r.Tokens = 60
		Expect(l.Take(r, epoch()).RetryAfter).To(Equal(66 * time.Second))
	})

	It("is never owed more than a day", func() {
		l := quota.NewLimiter()
		r := quota.Request{Tenant: "acme", Limits: tenant.Limits{TokensPerMinute: 1}}
		for range 1000 {
			l.Settle(r, 2<<20, epoch())
		}
		r.Tokens = 1
		Expect(l.Take(r, epoch())).To(Equal(quota.Verdict{Reason: quota.ReasonTokens, RetryAfter: 24 * time.Hour}))
	})

	It("does not overflow at the largest of everything", func() {
		l := quota.NewLimiter()
		r := quota.Request{Tenant: "acme", Limits: tenant.Limits{TokensPerMinute: 2 << 20}, Tokens: 2 << 20}
		Expect(l.Take(r, epoch())).To(BeZero())
		Expect(l.Take(r, epoch())).To(Equal(quota.Verdict{Reason: quota.ReasonTokens, RetryAfter: time.Minute}))
	})

	It("keeps nothing of those who have not asked for long", func() {
		l := quota.NewLimiter()
		for i := range 10_000 {
			r := quota.Request{Tenant: fmt.Sprint(i), Limits: tenant.Limits{RequestsPerSecond: 1}}
			Expect(l.Take(r, epoch().Add(time.Duration(i)*100*time.Millisecond))).To(BeZero())
			Expect(l.Held()).To(BeNumerically("<=", 64))
		}
		l.Take(quota.Request{Tenant: "who has no limit"}, epoch())
		Expect(l.Held()).To(BeNumerically("<=", 64))
	})
})
