package peers_test

import (
	"slices"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	"pgregory.net/rapid"

	"github.com/mrgc/mrgc/internal/peers"
)

func start() time.Time { return time.Date(2026, 9, 1, 12, 0, 0, 0, time.UTC) }

// message is one of an epoch that began then, with so many requests on "a".
func message(began int64, sequence uint64, requests int) *peers.Message {
	m := &peers.Message{Epoch: peers.Epoch{Began: began}, Sequence: sequence}
	if requests > 0 {
		m.InFlight = []peers.Count{{Instance: "a", Requests: requests, Tokens: 10 * requests}}
	}
	return m
}

var _ = Describe("Views", func() {
	var v peers.Views
	BeforeEach(func() { v = peers.Views{} })
	on := func(now time.Time) int { return v.On("a", now, now).Requests }

	It("adds routers up", func() {
		Expect(v.Put("1", message(1, 1, 2), start())).To(BeTrue())
		Expect(v.Put("2", message(2, 1, 3), start())).To(BeTrue())
		Expect(v.On("a", start(), start())).To(Equal(peers.Work{Requests: 5, Tokens: 50}))
		Expect(v.On("b", start(), start())).To(BeZero())
	})

	It("adds up what tenants have of a model", func() {
		claims := func(m *peers.Message, of ...peers.Claim) *peers.Message { m.Claims = of; return m }
		v.Put("1", claims(message(1, 1, 0), peers.Claim{Model: "m", Tenant: "acme", Tokens: 1}, peers.Claim{Model: "n", Tenant: "acme", Tokens: 2}), start())
		v.Put("2", claims(message(2, 1, 0), peers.Claim{Model: "m", Tenant: "acme", Tokens: 4}, peers.Claim{Model: "m", Tenant: "umbra", Tokens: 8}), start().Add(time.Millisecond))
		claimed := func(model, tenant string, now time.Time) []int {
			own, all := v.Claimed(model, tenant, now)
			return []int{own, all}
		}
		Expect(claimed("m", "acme", start())).To(Equal([]int{5, 13}))
		Expect(claimed("m", "umbra", start())).To(Equal([]int{8, 13}))
		Expect(claimed("n", "umbra", start())).To(Equal([]int{0, 2}))
		Expect(claimed("m", "acme", start().Add(peers.ViewFor))).To(Equal([]int{4, 12}), "who was not heard for a second counts nothing")
	})

	It("takes for reported what a router had sent before the instance's report", func() {
		m := message(1, 1, 2)
		m.InFlight[0].SentRequests, m.InFlight[0].SentTokens = 1, 10
		v.Put("1", m, start())
		Expect(v.On("a", start().Add(-1), start())).To(Equal(peers.Work{Requests: 2, Tokens: 20, SentRequests: 1, SentTokens: 10}))
		Expect(v.On("a", start().Add(1), start().Add(2))).To(Equal(peers.Work{Requests: 2, Tokens: 20}))
	})

	It("believes a router for a second", func() {
		v.Put("1", message(1, 1, 2), start())
		Expect(on(start().Add(peers.ViewFor - 1))).To(Equal(2))
		Expect(on(start().Add(peers.ViewFor))).To(BeZero())
		v.Put("1", message(1, 2, 2), start().Add(time.Minute))
		Expect(on(start().Add(time.Minute))).To(Equal(2))
	})

	It("no longer believes a router whose way has broken off, until it is heard again", func() {
		m := message(1, 1, 2)
		m.Claims = []peers.Claim{{Model: "m", Tenant: "acme", Tokens: 1}}
		v.Put("1", m, start())
		v.Put("2", message(2, 1, 3), start())
		v.Lose("1")
		v.Lose("3") // nobody was there
		Expect(on(start())).To(Equal(3))
		own, all := v.Claimed("m", "acme", start())
		Expect([]int{own, all}).To(Equal([]int{0, 0}))
		Expect(v.All(start())[0].Expired).To(BeTrue())
		Expect(v.Put("1", message(1, 1, 2), start())).To(BeFalse(), "it is remembered what was heard")
		Expect(on(start())).To(Equal(3))
		Expect(v.Put("1", message(1, 2, 2), start())).To(BeTrue())
		Expect(on(start())).To(Equal(5))
	})

	It("never takes what is older than what it has, even when that has expired", func() {
		v.Put("1", message(1, 5, 2), start())
		for _, sequence := range []uint64{5, 4, 0} {
			Expect(v.Put("1", message(1, sequence, 9), start())).To(BeFalse())
			Expect(v.Put("1", message(1, sequence, 9), start().Add(time.Minute))).To(BeFalse())
		}
		Expect(on(start())).To(Equal(2))
		Expect(on(start().Add(time.Minute))).To(BeZero())
	})

	It("replaces a router that was restarted", func() {
		v.Put("1", message(1, 500, 2), start())
		v.Put("1", message(2, 1, 1), start())
		Expect(on(start())).To(Equal(1))
		Expect(v.Put("1", message(1, 501, 2), start())).To(BeFalse()) // still on its way
		Expect(on(start())).To(Equal(1))
	})

	It("hears a router whose clock was set back, once its past has expired", func() {
		v.Put("1", message(2, 1, 2), start())
		Expect(v.Put("1", message(1, 1, 1), start())).To(BeFalse())
		Expect(v.Put("1", message(1, 2, 1), start().Add(peers.ViewFor))).To(BeTrue())
		Expect(on(start().Add(peers.ViewFor))).To(Equal(1))
	})

	It("counts a router once that has two addresses, as long as it has one", func() {
		v.Put("1", message(1, 1, 2), start())
		v.Put("2", message(1, 2, 3), start())
		Expect(on(start())).To(Equal(3))
		Expect(v.All(start())).To(HaveLen(2))
		v.Forget("1")
		Expect(on(start())).To(Equal(3))
		v.Forget("2")
		Expect(on(start())).To(BeZero())
		Expect(v.All(start())).To(BeEmpty())
	})

	It("forgets only who was there", func() {
		v.Forget("1")
		v.Put("1", message(1, 1, 2), start())
		v.Put("2", message(2, 1, 3), start())
		v.Forget("1")
		Expect(on(start())).To(Equal(3))
	})

	It("shows whom it has heard, and when", func() {
		v.Put("2", message(2, 1, 3), start())
		v.Put("1", message(1, 1, 2), start().Add(time.Second))
		Expect(v.All(start().Add(time.Second))).To(Equal([]peers.Peer{
			{Address: "1", Epoch: peers.Epoch{Began: 1}, Requests: 2},
			{Address: "2", Epoch: peers.Epoch{Began: 2}, Age: time.Second, Expired: true, Requests: 3},
		}))
	})

	// The plain model keeps every message that was delivered. What is believed of
	// a router is its newest one by restart and sequence, from when that came first,
	// for a second. Not modelled is what comes from before a restart when what came
	// after it has expired: it may be a clock that was set back.
	It("never drifts from a plain list of what was delivered", func() {
		rapid.Check(GinkgoT(), func(t *rapid.T) {
			type delivery struct {
				router int
				m      *peers.Message
				at     time.Time
			}
			var views peers.Views
			now := start()
			routers := []string{"1", "2", "3"}
			epochs, sequence := []int64{1, 1, 1}, []uint64{0, 0, 0}
			var onTheWay, delivered []delivery
			clone := func(d delivery) *peers.Message { m := *d.m; return &m }
			newer := func(a, b *peers.Message) bool {
				return a.Epoch.Began > b.Epoch.Began || a.Epoch == b.Epoch && a.Sequence > b.Sequence
			}
			deliver := func(d delivery) {
				d.at = now
				views.Put(routers[d.router], clone(d), now)
				delivered = append(delivered, d)
			}
			newest := func(router int) (best *delivery) {
				for i := range delivered {
					if d := &delivered[i]; d.router == router && (best == nil || newer(d.m, best.m)) {
						best = d
					}
				}
				return best
			}
			believed := func(d *delivery) bool { return d != nil && now.Sub(d.at) < peers.ViewFor }
			router := rapid.IntRange(0, len(routers)-1)
			t.Repeat(map[string]func(*rapid.T){
				"speak": func(t *rapid.T) {
					r := router.Draw(t, "router")
					sequence[r]++
					m := message(epochs[r], sequence[r], rapid.IntRange(0, 3).Draw(t, "requests"))
					m.Epoch.ID = uint64(r)
					onTheWay = append(onTheWay, delivery{router: r, m: m})
				},
				"arrive, whichever": func(t *rapid.T) {
					if len(onTheWay) == 0 {
						t.Skip("nothing is on its way")
					}
					i := rapid.IntRange(0, len(onTheWay)-1).Draw(t, "which")
					d := onTheWay[i]
					if best := newest(d.router); best != nil && d.m.Epoch.Began < best.m.Epoch.Began && !believed(best) {
						t.Skip("not modelled")
					}
					deliver(d)
					if !rapid.Bool().Draw(t, "and again later") {
						onTheWay = slices.Delete(onTheWay, i, i+1)
					}
				},
				"get lost": func(t *rapid.T) {
					if len(onTheWay) == 0 {
						t.Skip("nothing is on its way")
					}
					i := rapid.IntRange(0, len(onTheWay)-1).Draw(t, "which")
					onTheWay = slices.Delete(onTheWay, i, i+1)
				},
				"restart": func(t *rapid.T) {
					r := router.Draw(t, "router")
					epochs[r], sequence[r] = epochs[r]+1, 0
				},
				"wait": func(t *rapid.T) {
					now = now.Add(time.Duration(rapid.IntRange(1, 700).Draw(t, "ms")) * time.Millisecond)
				},
				"": func(t *rapid.T) {
					want := 0
					for r := range routers {
						if best := newest(r); believed(best) && len(best.m.InFlight) > 0 {
							want += best.m.InFlight[0].Requests
						}
					}
					if got := views.On("a", now, now).Requests; got != want {
						t.Fatalf("%d requests, want %d", got, want)
					}
				},
			})
		})
	})
})
