package extproc_test

import (
	"fmt"
	"maps"
	"sync"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	"pgregory.net/rapid"

	"github.com/mrgc/mrgc/extproc"
	"github.com/mrgc/mrgc/internal/quota"
)

var _ = Describe("InFlight", func() {
	const timeout = 10 * time.Second

	It("moves a request that is added again", func() {
		f := extproc.NewInFlight(timeout)
		f.Add("r", "a", extproc.Flight{Tokens: 5}, epoch())
		f.Add("r", "b", extproc.Flight{Tokens: 7}, epoch())
		Expect(f.All()).To(Equal(map[string]extproc.Work{"b": {Requests: 1, Tokens: 7}}))
	})

	It("does not count a request that has no id", func() {
		f := extproc.NewInFlight(timeout)
		f.Add("", "a", extproc.Flight{Tokens: 5}, epoch())
		Expect(f.On("a")).To(BeZero())
	})

	It("does not count a request that has ended before it was added, and remembers no more of those than may be", func() {
		f := extproc.NewInFlight(timeout)
		f.Done("overtaken")
		f.Add("overtaken", "a", extproc.Flight{Tokens: 5}, epoch())
		Expect(f.On("a")).To(BeZero())
		f.Done("long ago")
		for i := range 1024 {
			f.Done(fmt.Sprint(i))
		}
		f.Add("long ago", "a", extproc.Flight{Tokens: 5}, epoch())
		f.Add("1023", "a", extproc.Flight{Tokens: 5}, epoch())
		Expect(f.On("a")).To(Equal(extproc.Work{Requests: 1, Tokens: 5}))
	})

	It("forgets after a while what may have ended unheard, and nothing that came later", func() {
		f := extproc.NewInFlight(time.Hour)
		at := epoch()
		f.Add("lost", "a", extproc.Flight{Tokens: 5}, at)
		f.Doubt(at)
		f.Add("later", "a", extproc.Flight{Tokens: 2}, at.Add(time.Millisecond))
		f.Expire(at.Add(extproc.DoubtedFor - time.Millisecond))
		Expect(f.On("a").Requests).To(Equal(2))
		f.Expire(at.Add(extproc.DoubtedFor))
		Expect(f.On("a")).To(Equal(extproc.Work{Requests: 1, Tokens: 2}))
		f.Expire(at.Add(2 * extproc.DoubtedFor))
		Expect(f.On("a").Requests).To(Equal(1), "the doubt is over")
	})

	It("forgets what has expired when something is added", func() {
		f := extproc.NewInFlight(timeout)
		f.Add("old", "a", extproc.Flight{Tokens: 5}, epoch())
		f.Add("new", "a", extproc.Flight{Tokens: 7}, epoch().Add(timeout+1))
		Expect(f.On("a")).To(Equal(extproc.Work{Requests: 1, Tokens: 7}))
		f.Done("old")
		Expect(f.On("a")).To(Equal(extproc.Work{Requests: 1, Tokens: 7}))
	})

	It("never drifts from a plain list of requests", func() {
		rapid.Check(GinkgoT(), func(t *rapid.T) {
			f, now := extproc.NewInFlight(timeout), epoch()
			type flight struct {
				instance string
				tokens   int
				claim    extproc.Claim
				start    time.Time
			}
			twin, early := map[string]flight{}, map[string]bool{}
			expire := func() {
				maps.DeleteFunc(twin, func(_ string, r flight) bool { return now.Sub(r.start) > timeout })
			}
			// Few names, so that requests are added and ended twice.
			request := rapid.SampledFrom([]string{"1", "2", "3", "4", "5", "6"})
			instance := rapid.SampledFrom([]string{"a", "b", "c"})
			models, tenants := []string{"m", "n"}, []string{"x", "y"}
			t.Repeat(map[string]func(*rapid.T){
				"add": func(t *rapid.T) {
					id, in := request.Draw(t, "request"), instance.Draw(t, "instance")
					tokens := rapid.IntRange(0, 3).Draw(t, "tokens")
					claim := extproc.Claim{
						Model: rapid.SampledFrom(models).Draw(t, "model"), Tenant: rapid.SampledFrom(tenants).Draw(t, "tenant"),
						Tokens: rapid.IntRange(0, 3).Draw(t, "claim"),
					}
					f.Add(id, in, extproc.Flight{Tokens: tokens, Claim: claim, Taken: quota.Request{Tokens: tokens}}, now)
					expire()
					if early[id] {
						delete(early, id)
						return
					}
					twin[id] = flight{in, tokens, claim, now}
				},
				"move": func(t *rapid.T) {
					id, in := request.Draw(t, "request"), instance.Draw(t, "instance")
					r, ok := twin[id]
					if from := f.Move(id, in); from != r.instance {
						t.Fatalf("moved from %q, want %q", from, r.instance)
					}
					if ok {
						r.instance = in
						twin[id] = r
					}
				},
				"done": func(t *rapid.T) {
					id := request.Draw(t, "request")
					at, taken := f.Done(id)
					if at != twin[id].instance || taken.Tokens != twin[id].tokens {
						t.Fatalf("ended at %q with %d tokens, want %q with %d", at, taken.Tokens, twin[id].instance, twin[id].tokens)
					}
					if _, was := twin[id]; !was {
						early[id] = true
					}
					delete(twin, id)
				},
				"wait": func(t *rapid.T) {
					now = now.Add(time.Duration(rapid.IntRange(0, 6).Draw(t, "seconds")) * time.Second)
				},
				"expire": func(*rapid.T) {
					f.Expire(now)
					expire()
				},
				"": func(t *rapid.T) {
					want := map[string]extproc.Work{}
					for _, r := range twin {
						want[r.instance] = extproc.Work{Requests: want[r.instance].Requests + 1, Tokens: want[r.instance].Tokens + r.tokens}
					}
					if got := f.All(); !maps.Equal(got, want) {
						t.Fatalf("%v, want %v", got, want)
					}
					for _, in := range []string{"a", "b", "c"} {
						if f.On(in) != want[in] {
							t.Fatalf("%s has %v, want %v", in, f.On(in), want[in])
						}
						since, sent := now.Add(-3*time.Second), [2]int{}
						for _, r := range twin {
							if r.instance == in && !r.start.Before(since) {
								sent[0]++
								sent[1] += r.tokens
							}
						}
						if requests, tokens := f.SentSince(in, since); [2]int{requests, tokens} != sent {
							t.Fatalf("%s has been sent %d requests and %d tokens of late, want %v", in, requests, tokens, sent)
						}
					}
					for _, model := range models {
						for _, tenant := range tenants {
							wantOwn, wantAll := 0, 0
							for _, r := range twin {
								if r.claim.Model == model {
									wantAll += r.claim.Tokens
									if r.claim.Tenant == tenant {
										wantOwn += r.claim.Tokens
									}
								}
							}
							if own, all := f.Claimed(model, tenant); own != wantOwn || all != wantAll {
								t.Fatalf("%s has %d of %d tokens of %s, want %d of %d", tenant, own, all, model, wantOwn, wantAll)
							}
						}
					}
				},
			})
		})
	})

	It("ends at zero after many goroutines", func() {
		f := extproc.NewInFlight(timeout)
		var all sync.WaitGroup
		for worker := range 8 {
			all.Go(func() {
				for i := range 500 {
					id := fmt.Sprintf("%d-%d", worker, i)
					f.Add(id, fmt.Sprintf("in-%d", i%3), extproc.Flight{Tokens: i, Claim: extproc.Claim{Model: "m", Tenant: "x", Tokens: i}}, epoch())
					f.On("in-0")
					f.Expire(epoch())
					f.Done(id)
					f.Done(fmt.Sprintf("%d-%d", (worker+1)%8, i)) // another's, perhaps not there
				}
			})
		}
		all.Wait()
		Expect(f.All()).To(BeEmpty())
		own, everybodys := f.Claimed("m", "x")
		Expect([]int{own, everybodys}).To(Equal([]int{0, 0}))
	})
})
