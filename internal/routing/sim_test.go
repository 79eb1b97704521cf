package routing_test

import (
	"cmp"
	"container/heap"
	"fmt"
	"math/rand/v2"
	"slices"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"

	"github.com/mrgc/mrgc/internal/fleet"
	"github.com/mrgc/mrgc/internal/routing"
)

// The simulated engines. Prompts are read one after the other; what is decoded
// takes a slot and the same time for each token.
const (
	simSlots        = 16
	simCachedTokens = 60_000 // the least recently used conversations are dropped
	simOutput       = 200    // tokens, on average
	simFailureTakes = 2 * time.Millisecond
	simLogDelay     = 100 * time.Millisecond // until the picker learns how a request ended
)

// simulation is a picker and its instances in virtual time. Everything follows
// from the seed.
type simulation struct {
	policy routing.Policy
	rate   float64 // conversations begun per second
	length time.Duration
	hot    float64 // share of conversations that have one prefix in common
	fails  func(now time.Duration) bool

	random    *rand.Rand
	now       time.Duration
	events    eventHeap
	instances []*simInstance
	homes     map[string]string // by affinity
	sequence  uint64
	turns     []simTurn
}

// simInstance is an instance, and what the picker knows of it.
type simInstance struct {
	candidate routing.Candidate
	outcomes  routing.Outcomes
	fails     bool
	perPrompt time.Duration // of reading a token
	perOutput time.Duration // of making one

	running int
	queue   []func()
	reads   time.Duration // when it will have read all prompts so far
	cached  []simPrefix   // most recently used last
}

type simPrefix struct {
	affinity string
	tokens   int
}

// simTurn is one request, as it ended.
type simTurn struct {
	at       time.Duration
	first    string // where it was sent first
	followUp bool
	cached   bool          // most of the prompt was
	wait     time.Duration // until the first token
}

type event struct {
	at  time.Duration
	run func()
}

type eventHeap []event

func (h eventHeap) Len() int           { return len(h) }
func (h eventHeap) Less(i, j int) bool { return h[i].at < h[j].at }
func (h eventHeap) Swap(i, j int)      { h[i], h[j] = h[j], h[i] }
func (h *eventHeap) Push(e any)        { *h = append(*h, e.(event)) }
func (h *eventHeap) Pop() any {
	last := (*h)[len(*h)-1]
	*h = (*h)[:len(*h)-1]
	return last
}

func (s *simulation) after(d time.Duration, run func()) { heap.Push(&s.events, event{s.now + d, run}) }

// simulate runs eight instances: the seventh is half as fast, and the last is
// the one that fails.
func (s *simulation) simulate() {
	s.random = rand.New(rand.NewPCG(1, 2))
	for i := range 8 {
		in := &simInstance{
			candidate: candidate(fmt.Sprintf("i%d", i), "use1", slots(simSlots)),
			perPrompt: 100 * time.Microsecond, perOutput: 10 * time.Millisecond,
		}
		if i == 6 {
			in.perPrompt, in.perOutput = 2*in.perPrompt, 2*in.perOutput
		}
		in.fails = i == 7
		s.instances = append(s.instances, in)
	}
	s.homes = map[string]string{}
	s.after(0, s.arrive)
	for s.events.Len() > 0 {
		next := heap.Pop(&s.events).(event)
		s.now = next.at
		next.run()
	}
}

// conversation is a client's. What it does is drawn from a source of its own, so
// that every policy is asked the same.
type conversation struct {
	random   *rand.Rand
	affinity string
	kids     []string
	turns    int
}

func exponential(random *rand.Rand, mean float64) float64 { return random.ExpFloat64() * mean }

// arrive begins a conversation, and lets the next one arrive.
func (s *simulation) arrive() {
	if s.now > s.length {
		return
	}
	c := &conversation{random: rand.New(rand.NewPCG(s.random.Uint64(), 0))}
	s.after(time.Duration(exponential(s.random, 1/s.rate)*float64(time.Second)), s.arrive)

	c.affinity = fmt.Sprintf("%016x", c.random.Uint64())
	if c.random.Float64() < s.hot {
		c.affinity = "hot"
	}
	for _, in := range routing.Candidates(routing.Offer{
		Model: model, N: 3, Regions: []fleet.Region{"use1"}, Seed: c.random.Uint64(),
	}, s.candidates()) {
		c.kids = append(c.kids, in.KeyIDs...)
	}
	s.ask(c, int(300+exponential(c.random, 900)))
}

func (s *simulation) candidates() []routing.Candidate {
	all := make([]routing.Candidate, len(s.instances))
	for i, in := range s.instances {
		all[i] = in.candidate
		all[i].ErrorRate = in.outcomes.ErrorRate()
	}
	return all
}

// ask sends one request of a conversation, and after an answer and some thought
// perhaps the next.
func (s *simulation) ask(c *conversation, prompt int) {
	s.sequence++
	decision := routing.Pick(routing.Request{
		ID: fmt.Sprintf("%016x", c.random.Uint64()), Model: model, Recipients: c.kids, Regions: []fleet.Region{"use1"},
		Policy: s.policy, Home: s.homes[c.affinity], PromptTokens: prompt, Sequence: s.sequence,
	}, s.candidates())
	s.homes[c.affinity] = decision.Instances[0].ID
	c.turns++
	turn := simTurn{at: s.now, first: decision.Instances[0].ID, followUp: c.turns > 1}
	output := 1 + int(exponential(c.random, simOutput))
	more, thought := c.random.Float64() < 0.75, time.Duration(exponential(c.random, 3)*float64(time.Second))
	s.try(decision.Instances, turn, c.affinity, prompt, output, func() {
		if more {
			s.after(thought, func() { s.ask(c, prompt+output+100) })
		}
	})
}

// try sends a request to the first of the instances, and to the next if it
// fails, as Envoy does.
func (s *simulation) try(order []*fleet.Instance, turn simTurn, affinity string, prompt, output int, then func()) {
	i := slices.IndexFunc(s.instances, func(in *simInstance) bool { return in.candidate.Instance == order[0] })
	in := s.instances[i]
	tokens := routing.UncachedTokens(prompt, turn.followUp)
	in.candidate.InFlight++
	in.candidate.InFlightTokens += tokens
	ended := func(failed bool) {
		s.after(simLogDelay, func() {
			in.candidate.InFlight--
			in.candidate.InFlightTokens -= tokens
			in.outcomes = in.outcomes.Add(failed, time.Unix(0, int64(s.now)))
		})
	}
	if in.fails && s.fails(s.now) {
		s.after(simFailureTakes, func() {
			ended(true)
			if len(order) > 1 {
				s.try(order[1:], turn, affinity, prompt, output, then)
			}
		})
		return
	}
	in.serve(func() {
		uncached := max(prompt-in.take(affinity), 1)
		in.reads = max(in.reads, s.now) + time.Duration(uncached)*in.perPrompt
		turn.cached, turn.wait = uncached < prompt/2, in.reads-turn.at
		s.turns = append(s.turns, turn)
		s.after(in.reads-s.now+time.Duration(output)*in.perOutput, func() {
			in.keep(affinity, prompt+output)
			in.free()
			ended(false)
			then()
		})
	})
}

// serve begins when a slot is free.
func (in *simInstance) serve(begin func()) {
	if in.running == simSlots {
		in.queue = append(in.queue, begin)
		return
	}
	in.running++
	begin()
}

func (in *simInstance) free() {
	if len(in.queue) == 0 {
		in.running--
		return
	}
	next := in.queue[0]
	in.queue = in.queue[1:]
	next()
}

// take gives how many tokens of a prefix are cached.
func (in *simInstance) take(affinity string) int {
	for _, p := range in.cached {
		if p.affinity == affinity {
			return p.tokens
		}
	}
	return 0
}

func (in *simInstance) keep(affinity string, tokens int) {
	in.cached = slices.DeleteFunc(in.cached, func(p simPrefix) bool { return p.affinity == affinity })
	in.cached = append(in.cached, simPrefix{affinity, tokens})
	sum := 0
	for i := len(in.cached) - 1; i >= 0; i-- {
		if sum += in.cached[i].tokens; sum > simCachedTokens {
			in.cached = in.cached[i+1:]
			return
		}
	}
}

// share is how many of the turns in a time are of a kind.
func (s *simulation) share(from, to time.Duration, is func(simTurn) bool) float64 {
	all, some := 0, 0
	for _, t := range s.turns {
		if t.at >= from && t.at < to {
			all++
			if is(t) {
				some++
			}
		}
	}
	return float64(some) / float64(max(all, 1))
}

// hits is the share of follow-ups whose prompt was cached.
func (s *simulation) hits() float64 {
	return s.share(0, s.length, func(t simTurn) bool { return t.followUp && t.cached }) /
		s.share(0, s.length, func(t simTurn) bool { return t.followUp })
}

// wait is a quantile of the time to the first token.
func (s *simulation) wait(quantile float64) time.Duration {
	sorted := slices.SortedFunc(slices.Values(s.turns), func(a, b simTurn) int { return cmp.Compare(a.wait, b.wait) })
	return sorted[int(quantile*float64(len(sorted)-1))].wait
}

var _ = Describe("In a simulation", func() {
	const (
		length  = 100 * time.Second
		failing = 30 * time.Second // from here on
	)
	never := func(time.Duration) bool { return false }
	from := func(now time.Duration) bool { return now >= failing }
	isFirst := func(id string) func(simTurn) bool { return func(t simTurn) bool { return t.first == id } }
	run := func(s simulation) *simulation {
		s.rate, s.length = 9, length // about three quarters of what the instances can take
		s.simulate()
		GinkgoWriter.Printf("%-15s %5d requests, hits %.2f, TTFT p50 %v p99 %v max %v\n", s.policy, len(s.turns), s.hits(),
			s.wait(0.5).Round(time.Millisecond), s.wait(0.99).Round(time.Millisecond), s.wait(1).Round(time.Millisecond))
		return &s
	}

	It("gate-then-load keeps conversations where they are cached, and answers sooner for it", func() {
		gate, least := run(simulation{fails: never}), run(simulation{fails: never, policy: routing.PolicyLeastInFlight})
		Expect(gate.hits()).To(BeNumerically(">", 0.8))
		Expect(least.hits()).To(BeNumerically("<", 0.6))
		Expect(gate.wait(0.5)).To(BeNumerically("<", least.wait(0.5)))
		Expect(gate.wait(0.99)).To(BeNumerically("<", least.wait(0.99)))
	})

	DescribeTable("an instance that fails fast has no more than one request in a hundred two seconds later",
		func(policy routing.Policy) {
			s := run(simulation{fails: from, policy: policy})
			Expect(s.share(0, failing, isFirst("i7"))).To(BeNumerically(">", 0.06))
			Expect(s.share(failing+2*time.Second, length, isFirst("i7"))).To(BeNumerically("<=", 0.01))
		},
		Entry(nil, routing.PolicyGateThenLoad), Entry(nil, routing.PolicyScore), Entry(nil, routing.PolicyLeastInFlight),
		Entry(nil, routing.PolicyPowerOfTwo), Entry(nil, routing.PolicyRoundRobin),
	)

	It("an instance that has recovered is used again", func() {
		s := run(simulation{fails: func(now time.Duration) bool { return now >= 10*time.Second && now < 20*time.Second }})
		Expect(s.share(80*time.Second, length, isFirst("i7"))).To(BeNumerically(">", 0.05))
	})

	It("a home that is saturated is released, and nobody starves", func() {
		// A third of all conversations begin alike: far more than one instance can take.
		s := run(simulation{hot: 0.33, fails: never})
		Expect(s.wait(1)).To(BeNumerically("<", 3*time.Second))
		for _, in := range s.instances {
			Expect(s.share(0, length, isFirst(in.candidate.Instance.ID))).To(BeNumerically(">", 0.03), in.candidate.Instance.ID)
		}
	})

	It("nobody starves under any policy", func() {
		for _, policy := range policies {
			s := run(simulation{fails: never, policy: policy})
			for _, in := range s.instances {
				Expect(s.share(0, length, isFirst(in.candidate.Instance.ID))).To(BeNumerically(">", 0.03), "%s %s", policy, in.candidate.Instance.ID)
			}
		}
	})
})
