package quota_test

import (
	"fmt"
	"slices"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	"pgregory.net/rapid"

	"github.com/mrgc/mrgc/internal/peers"
	"github.com/mrgc/mrgc/internal/quota"
	"github.com/mrgc/mrgc/internal/tenant"
)

// routers are limiters that hear each other over streams: messages arrive in their
// order, or the stream breaks and begins anew.
type routers struct {
	limiters []*quota.Limiter
	epochs   []peers.Epoch
	sequence []uint64
	told     map[[2]int]*quota.Told
}

func newRouters(n int) *routers {
	r := &routers{told: map[[2]int]*quota.Told{}}
	for i := range n {
		r.limiters = append(r.limiters, quota.NewLimiter())
		r.epochs = append(r.epochs, peers.Epoch{Began: 1, ID: uint64(i)})
		r.sequence = append(r.sequence, 0)
	}
	return r
}

// says is the next message of one limiter for another.
func (r *routers) says(from, to int, now time.Time) *peers.Message {
	stream := [2]int{from, to}
	if r.told[stream] == nil {
		r.told[stream] = &quota.Told{}
	}
	r.sequence[from]++
	m := &peers.Message{Epoch: r.epochs[from], Sequence: r.sequence[from]}
	m.Uses, m.Begun = r.limiters[from].Tell(r.told[stream], now)
	return m
}

// tell has one limiter hear another at once.
func (r *routers) tell(from, to int, now time.Time) { r.limiters[to].Learn(r.says(from, to, now), now) }

// hangUp breaks the stream from one limiter to another.
func (r *routers) hangUp(from, to int) { delete(r.told, [2]int{from, to}) }

// restart has a limiter begin anew, as its process does.
func (r *routers) restart(i int) {
	r.limiters[i], r.sequence[i] = quota.NewLimiter(), 0
	r.epochs[i].Began++
	for stream := range r.told {
		if stream[0] == i || stream[1] == i {
			delete(r.told, stream)
		}
	}
}

// tellAll has everybody hear everybody.
func (r *routers) tellAll(now time.Time) {
	for from := range r.limiters {
		for to := range r.limiters {
			if from != to {
				r.tell(from, to, now)
			}
		}
	}
}

// wait is how long a tenant has to wait for a request at a limiter, which does not
// count it.
func (r *routers) wait(at int, request quota.Request, now time.Time) time.Duration {
	verdict := r.limiters[at].Take(request, now)
	if verdict.Reason == quota.ReasonNone {
		r.limiters[at].GiveBack(request, now)
	}
	return verdict.RetryAfter
}

var _ = Describe("Limiters that hear each other", func() {
	const limit = 600 // tokens per minute
	request := func(tokens int) quota.Request {
		return quota.Request{Tenant: "acme", Limits: tenant.Limits{TokensPerMinute: limit}, Tokens: tokens}
	}

	It("let a limit through once, wherever it is asked for", func() {
		r, now := newRouters(3), epoch()
		r.tellAll(now)
		for i, l := range r.limiters {
			Expect(l.Take(request(200), now)).To(BeZero(), "a third of it at each")
			for range i { // whatever is told twice counts once
				r.tellAll(now)
			}
		}
		r.tellAll(now)
		for _, l := range r.limiters {
			Expect(l.Take(request(100), now)).To(Equal(quota.Verdict{Reason: quota.ReasonTokens, RetryAfter: 10 * time.Second}))
		}
		By("all of it at one of them")
		now = now.Add(time.Minute)
		r.tellAll(now)
		r.tellAll(now.Add(time.Second))
		Expect(r.limiters[1].Take(request(600), now.Add(time.Second))).To(BeZero())
	})

	It("are requests' as well", func() {
		r, now := newRouters(2), epoch()
		r.tellAll(now)
		ask := quota.Request{Tenant: "acme", Limits: tenant.Limits{RequestsPerSecond: 2}}
		Expect(r.limiters[0].Take(ask, now)).To(BeZero())
		r.tellAll(now)
		Expect(r.limiters[1].Take(ask, now)).To(BeZero())
		Expect(r.limiters[1].Take(ask, now)).To(Equal(quota.Verdict{Reason: quota.ReasonRequests, RetryAfter: 500 * time.Millisecond}))
	})

	It("give back everywhere what was not used, and have everywhere paid off what was more", func() {
		r, now := newRouters(2), epoch()
		r.tellAll(now)
		Expect(r.limiters[0].Take(request(600), now)).To(BeZero())
		r.tellAll(now)
		r.limiters[0].Settle(request(600), 100, now)
		r.tellAll(now)
		Expect(r.limiters[1].Take(request(500), now)).To(BeZero())
		r.tellAll(now)
		r.limiters[1].Settle(request(500), 800, now)
		r.tellAll(now)
		Expect(r.wait(0, request(60), now)).To(Equal(36 * time.Second))
		Expect(r.wait(1, request(60), now)).To(Equal(36 * time.Second))
	})

	It("are owed what all of them have let through before they heard of each other, and no more than that", func() {
		r, now := newRouters(3), epoch()
		r.tellAll(now)
		for _, l := range r.limiters {
			Expect(l.Take(request(600), now)).To(BeZero(), "nobody has told it")
		}
		r.tellAll(now)
		for i := range r.limiters {
			Expect(r.wait(i, request(600), now)).To(Equal(3 * time.Minute))
		}
	})

	It("go each by what it has let through itself while they are parted, and owe nothing for it afterwards", func() {
		r, now := newRouters(2), epoch()
		r.tellAll(now)
		for range 60 {
			now = now.Add(time.Minute)
			for _, l := range r.limiters {
				Expect(l.Take(request(600), now)).To(BeZero())
			}
		}
		r.hangUp(0, 1)
		r.hangUp(1, 0)
		r.tellAll(now)
		for i := range r.limiters {
			Expect(r.wait(i, request(600), now)).To(Equal(time.Minute), "for its own")
		}
		By("what comes from then on")
		now = now.Add(time.Second)
		r.tellAll(now)
		Expect(r.limiters[0].Take(request(10), now)).To(BeZero())
		r.tellAll(now)
		Expect(r.wait(1, request(600), now)).To(Equal(time.Minute))
	})

	It("hear what is given back after they were parted", func() {
		r, now := newRouters(2), epoch()
		r.tellAll(now)
		Expect(r.limiters[0].Take(request(600), now)).To(BeZero())
		r.tellAll(now)
		now = now.Add(quota.HeardFor)
		r.limiters[0].Settle(request(600), 100, now)
		r.tellAll(now)
		Expect(r.wait(1, request(600), now)).To(Equal(10*time.Second - quota.HeardFor))
	})

	It("miss nothing by a stream that breaks and begins anew", func() {
		r, now := newRouters(2), epoch()
		r.tellAll(now)
		Expect(r.limiters[0].Take(request(100), now)).To(BeZero())
		r.tellAll(now)
		r.hangUp(0, 1)
		now = now.Add(quota.HeardFor - 1)
		Expect(r.limiters[0].Take(request(300), now)).To(BeZero())
		r.tellAll(now)
		Expect(r.wait(1, request(600), now)).To(Equal(37*time.Second + 1))
	})

	It("begin with what comes from then on when one is new, or has started anew", func() {
		r, now := newRouters(2), epoch()
		Expect(r.limiters[0].Take(request(600), now)).To(BeZero())
		r.tellAll(now)
		Expect(r.wait(1, request(600), now)).To(BeZero(), "what was before it was heard")
		r.restart(0)
		r.tellAll(now)
		Expect(r.limiters[0].Take(request(600), now)).To(BeZero())
		r.tellAll(now)
		Expect(r.wait(1, request(600), now)).To(Equal(time.Minute))
	})

	It("tell of more tenants than fit into a message by the next ones", func() {
		r, now := newRouters(2), epoch()
		r.tellAll(now)
		all := 2*peers.MaxUses + 10
		asks := func(i int) quota.Request {
			return quota.Request{Tenant: fmt.Sprintf("t-%d", i), Limits: tenant.Limits{TokensPerMinute: 60}, Tokens: 60}
		}
		for i := range all {
			Expect(r.limiters[0].Take(asks(i), now)).To(BeZero())
		}
		for range 3 {
			r.tell(0, 1, now)
		}
		for i := range all {
			Expect(r.wait(1, asks(i), now)).To(Equal(time.Minute))
		}
		Expect(r.says(0, 1, now).Uses).To(BeEmpty())
	})

	It("keep nothing of those who have not asked for long, or are not heard any more", func() {
		r, now := newRouters(2), epoch()
		for i := range 2000 {
			now = now.Add(100 * time.Millisecond)
			ask := quota.Request{Tenant: fmt.Sprint(i), Limits: tenant.Limits{RequestsPerSecond: 1}}
			Expect(r.limiters[0].Take(ask, now)).To(BeZero())
			if i%100 == 0 {
				r.restart(1)
			}
			r.tellAll(now)
			for _, l := range r.limiters {
				Expect(l.Held()).To(BeNumerically("<=", 130)) // twice as many as can have asked within 6 s
			}
		}
	})

	// play has anything happen to limiters: messages arrive at once, once or twice, or
	// get lost with their stream, for so short a time that nothing is missed or longer;
	// limiters start anew. What asking is, is the test's.
	play := func(t *rapid.T, r *routers, now *time.Time, more map[string]func(*rapid.T)) {
		at := rapid.IntRange(0, len(r.limiters)-1)
		actions := map[string]func(*rapid.T){
			"tell": func(t *rapid.T) {
				from, to := at.Draw(t, "from"), at.Draw(t, "to")
				if from != to {
					m := r.says(from, to, *now)
					for range rapid.IntRange(1, 2).Draw(t, "times") {
						r.limiters[to].Learn(m, *now)
					}
				}
			},
			"get lost": func(t *rapid.T) {
				from, to := at.Draw(t, "from"), at.Draw(t, "to")
				r.says(from, to, *now)
				r.hangUp(from, to)
			},
			"restart": func(t *rapid.T) { r.restart(at.Draw(t, "at")) },
			"wait":    func(t *rapid.T) { *now = now.Add(steps.Draw(t, "time")) },
		}
		for name, action := range more {
			actions[name] = action
		}
		t.Repeat(actions)
	}

	// The model is one bucket for all, that sees everything at once.
	It("never have a tenant wait that would not have to if one of them got all requests", func() {
		rapid.Check(GinkgoT(), func(t *rapid.T) {
			r, now := newRouters(rapid.IntRange(2, 4).Draw(t, "routers")), epoch()
			one := newPlain(limit, time.Minute)
			play(t, r, &now, map[string]func(*rapid.T){"ask": func(t *rapid.T) {
				of := request(rapid.IntRange(1, limit).Draw(t, "tokens"))
				has := one.has(of.Tokens, now)
				verdict := r.limiters[rapid.IntRange(0, len(r.limiters)-1).Draw(t, "at")].Take(of, now)
				switch {
				case verdict.Reason == quota.ReasonNone:
					one.take(of.Tokens)
				case has:
					t.Fatalf("%d tokens: %+v", of.Tokens, verdict)
				}
			}})
		})
	})

	It("are owed no more, when all has ended, than what was used", func() {
		rapid.Check(GinkgoT(), func(t *rapid.T) {
			r, now := newRouters(rapid.IntRange(2, 4).Draw(t, "routers")), epoch()
			type run struct {
				at int
				of quota.Request
			}
			var running []run
			taken, most := make([]int, len(r.limiters)), 0 // by whom it was let through; of what was used
			ends := func(t *rapid.T) {
				if len(running) == 0 {
					t.Skip("nothing is running")
				}
				ended, used := running[0], rapid.IntRange(0, 2*limit).Draw(t, "used")
				running, most = running[1:], most+used
				r.limiters[ended.at].Settle(ended.of, used, now)
			}
			play(t, r, &now, map[string]func(*rapid.T){
				"ask": func(t *rapid.T) {
					at, of := rapid.IntRange(0, len(r.limiters)-1).Draw(t, "at"), request(rapid.IntRange(1, limit).Draw(t, "tokens"))
					if r.limiters[at].Take(of, now).Reason == quota.ReasonNone {
						running, taken[at] = append(running, run{at, of}), taken[at]+of.Tokens
					}
				},
				"end": ends,
				"restart": func(t *rapid.T) {
					at := rapid.IntRange(0, len(r.limiters)-1).Draw(t, "at")
					r.restart(at)
					most, taken[at] = most+taken[at], 0 // nobody else may have heard of what was given back
					running = slices.DeleteFunc(running, func(lost run) bool { return lost.at == at })
				},
			})
			for len(running) > 0 {
				ends(t)
			}
			r.tellAll(now)
			for i := range r.limiters {
				if owed := r.wait(i, request(limit), now); owed > time.Duration(most)*time.Minute/limit {
					t.Fatalf("a tenant has to wait %v for its limit, after %d tokens", owed, most)
				}
			}
		})
	})

	It("let through, within any time, what is allowed and what each has saved up before it heard, and no more", func() {
		rapid.Check(GinkgoT(), func(t *rapid.T) {
			n := rapid.IntRange(1, 4).Draw(t, "routers")
			every := time.Duration(rapid.IntRange(1, int(quota.HeardFor/time.Millisecond)-1).Draw(t, "ms between messages")) * time.Millisecond
			r, now := newRouters(n), epoch()
			var history []admission
			r.tellAll(now)
			heard := now
			for range rapid.IntRange(1, 80).Draw(t, "requests") {
				for next := now.Add(steps.Draw(t, "wait")); ; {
					if heard = heard.Add(every); heard.After(next) {
						heard, now = heard.Add(-every), next
						break
					}
					r.tellAll(heard)
				}
				of := request(rapid.IntRange(1, limit).Draw(t, "tokens"))
				if r.limiters[rapid.IntRange(0, n-1).Draw(t, "at")].Take(of, now).Reason == quota.ReasonNone {
					history = append(history, admission{now, of})
				}
			}
			for i := range history {
				all := 0
				for j := i; j < len(history); j++ {
					all += history[j].request.Tokens
					minutes := history[j].at.Sub(history[i].at).Minutes()
					if most := limit * (float64(n) + minutes + float64(n)*every.Minutes()); float64(all) > most+1e-3 {
						t.Fatalf("%d tokens within %.3f minutes, at most %.3f", all, minutes, most)
					}
				}
			}
		})
	})
})
