package batching_test

import (
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	"pgregory.net/rapid"

	"github.com/mrgc/mrgc/engine/sim/batching"
)

// history is what was asked of a machine and what came of it.
type history struct {
	profile   batching.Profile
	machine   *batching.Machine
	asked     map[batching.ID]asked
	order     []batching.ID // of arrival
	cancelled map[batching.ID]bool
	events    []batching.Event
}

type asked struct {
	at      time.Duration
	request batching.Request
}

func drawProfile(t *rapid.T) batching.Profile {
	p := small()
	p.MaxSequences = rapid.IntRange(1, 6).Draw(t, "slots")
	p.MaxBatchedTokens = rapid.IntRange(1, 80).Draw(t, "budget")
	p.KVBlocks = rapid.IntRange(3, 20).Draw(t, "blocks")
	p.Arrival = time.Duration(rapid.IntRange(0, 2).Draw(t, "arrival")) * p.Step
	return p
}

// drawRequest gives a request that fits. Few tokens, so that prefixes repeat.
func drawRequest(t *rapid.T, p batching.Profile) batching.Request {
	draw := func(name string, most int) []batching.Token {
		n := rapid.IntRange(1, most).Draw(t, name)
		tokens := make([]batching.Token, n)
		start := rapid.IntRange(0, 2).Draw(t, name+" text")
		for i := range tokens {
			tokens[i] = batching.Token(start)
			if i%batching.BlockTokens == 0 && i > 0 {
				start = rapid.IntRange(start, start+1).Draw(t, name+" turn")
			}
		}
		return tokens
	}
	half := p.CapacityTokens() / 2
	return batching.Request{Prompt: draw("prompt", half), Output: draw("output", min(half, 40)), Salt: rapid.SampledFrom([]string{"", "a", "b"}).Draw(t, "salt")}
}

// live draws a machine's life up to its end: what comes, what leaves, and when
// somebody looks. It is over when the machine has nothing left to do.
func live(t *rapid.T, leave bool, each func(h *history)) *history {
	h := &history{profile: drawProfile(t), asked: map[batching.ID]asked{}, cancelled: map[batching.ID]bool{}}
	h.machine = machine(h.profile)
	now := time.Duration(0)
	for range rapid.IntRange(1, 30).Draw(t, "acts") {
		now += time.Duration(rapid.IntRange(0, 40).Draw(t, "later")) * time.Millisecond
		h.events = append(h.events, h.machine.Advance(now)...)
		if act := rapid.IntRange(0, 4).Draw(t, "act"); act > 0 || len(h.order) == 0 || !leave {
			r := drawRequest(t, h.profile)
			id := add(h.machine, now, r)
			h.asked[id] = asked{now, r}
			h.order = append(h.order, id)
		} else {
			id := rapid.SampledFrom(h.order).Draw(t, "leaves")
			h.machine.Cancel(id)
			h.cancelled[id] = true
		}
		each(h)
	}
	for at, ok := h.machine.Next(); ok; at, ok = h.machine.Next() {
		h.events = append(h.events, h.machine.Advance(at)...)
		each(h)
	}
	return h
}

var _ = Describe("Whatever is asked of it, a machine", func() {
	nothing := func(*history) {}

	It("never holds more than it has, and loses none of it", func() {
		rapid.Check(GinkgoT(), func(t *rapid.T) {
			h := live(t, true, func(h *history) {
				s := h.machine.Stats()
				Expect(s.UsedBlocks).To(And(BeNumerically(">=", 0), BeNumerically("<=", h.profile.KVBlocks)))
				Expect(s.Running).To(BeNumerically("<=", h.profile.MaxSequences))
				if s.Running == 0 {
					Expect(s.UsedBlocks).To(BeZero())
				} else {
					Expect(s.UsedBlocks).To(BeNumerically(">", 0))
				}
			})
			Expect(h.machine.Stats()).To(And(HaveField("Running", 0), HaveField("Waiting", 0), HaveField("UsedBlocks", 0)))
			// All blocks can be had at once.
			add(h.machine, 0, batching.Request{Prompt: text(1, h.profile.CapacityTokens()-1), Output: text(1, 1)})
			Expect(run(h.machine)).To(HaveLen(1))
		})
	})

	It("says each token once, in order, and nothing to who has left", func() {
		rapid.Check(GinkgoT(), func(t *rapid.T) {
			h := live(t, true, nothing)
			said := map[batching.ID]int{}
			prompts := 0
			for _, e := range h.events {
				Expect(e.Index).To(Equal(said[e.ID]))
				if e.Index == 0 {
					prompts += len(h.asked[e.ID].request.Prompt)
				}
				said[e.ID]++
				Expect(e.Last).To(Equal(said[e.ID] == len(h.asked[e.ID].request.Output)))
			}
			for id, a := range h.asked {
				if !h.cancelled[id] {
					Expect(said[id]).To(Equal(len(a.request.Output)))
				}
			}
			Expect(h.machine.Stats()).To(And(HaveField("GeneratedTokens", BeEquivalentTo(len(h.events))), HaveField("PromptTokens", BeEquivalentTo(prompts))))
		})
	})

	It("gives first tokens in order of arrival, and none before its time", func() {
		rapid.Check(GinkgoT(), func(t *rapid.T) {
			h := live(t, true, nothing)
			var before time.Duration
			var last batching.ID
			for _, e := range h.events {
				Expect(e.At).To(BeNumerically(">=", before))
				before = e.At
				if e.Index == 0 {
					Expect(e.ID).To(BeNumerically(">", last))
					last = e.ID
					Expect(e.At).To(BeNumerically(">=", h.asked[e.ID].at+h.profile.Arrival+h.profile.Step))
				}
			}
		})
	})

	It("finds only what came before, under the same salt", func() {
		rapid.Check(GinkgoT(), func(t *rapid.T) {
			h := live(t, true, nothing)
			for _, e := range h.events {
				Expect(e.Cached % batching.BlockTokens).To(BeZero())
				Expect(e.Cached).To(BeNumerically("<=", h.mostCached(e.ID)))
			}
		})
	})

	It("does the same whether it is looked at often or not", func() {
		rapid.Check(GinkgoT(), func(t *rapid.T) {
			h := live(t, false, nothing)
			other := machine(h.profile)
			var events []batching.Event
			for _, id := range h.order {
				a := h.asked[id]
				for at, ok := other.Next(); ok && at < a.at; at, ok = other.Next() {
					events = append(events, other.Advance(at)...)
					events = append(events, other.Advance(at+(a.at-at)/2)...)
				}
				events = append(events, other.Advance(a.at)...)
				add(other, a.at, a.request)
			}
			Expect(append(events, run(other)...)).To(Equal(h.events))
		})
	})
})

// mostCached is the longest beginning that a request shares with one that came
// before it.
func (h *history) mostCached(id batching.ID) int {
	prompt, most := h.asked[id].request.Prompt, 0
	for _, earlier := range h.order {
		r := h.asked[earlier].request
		if earlier >= id || r.Salt != h.asked[id].request.Salt {
			continue
		}
		all := append(append([]batching.Token{}, r.Prompt...), r.Output...)
		n := 0
		for n < len(prompt)-1 && n < len(all) && prompt[n] == all[n] {
			n++
		}
		most = max(most, n)
	}
	return most
}
