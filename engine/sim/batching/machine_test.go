package batching_test

import (
	"slices"
	"strings"
	"testing"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"

	"github.com/mrgc/mrgc/engine/sim/batching"
)

func TestBatching(t *testing.T) {
	RegisterFailHandler(Fail)
	RunSpecs(t, "engine/sim/batching")
}

// small is a profile whose times can be added up by hand.
func small() batching.Profile {
	return batching.Profile{
		Arrival:          5 * time.Millisecond,
		Step:             10 * time.Millisecond,
		PrefillToken:     100 * time.Microsecond,
		DecodeSequence:   time.Millisecond,
		ContextToken:     time.Microsecond,
		MaxSequences:     4,
		MaxBatchedTokens: 64,
		KVBlocks:         64,
	}
}

func machine(p batching.Profile) *batching.Machine {
	GinkgoHelper()
	m, err := batching.New(p)
	Expect(err).NotTo(HaveOccurred())
	return m
}

func add(m *batching.Machine, now time.Duration, r batching.Request) batching.ID {
	GinkgoHelper()
	id, err := m.Add(now, r)
	Expect(err).NotTo(HaveOccurred())
	return id
}

// run lets the machine do all it has to.
func run(m *batching.Machine) []batching.Event {
	var all []batching.Event
	for at, ok := m.Next(); ok; at, ok = m.Next() {
		all = append(all, m.Advance(at)...)
	}
	return all
}

// text is n tokens, other ones for another kind.
func text(kind, n int) []batching.Token {
	tokens := make([]batching.Token, n)
	for i := range tokens {
		tokens[i] = batching.Token(kind<<16 + i)
	}
	return tokens
}

func times(events []batching.Event, id batching.ID) (at []time.Duration) {
	for _, e := range events {
		if e.ID == id {
			at = append(at, e.At)
		}
	}
	return at
}

// cached runs a request alone and says how much of its prompt was in the cache.
func cached(m *batching.Machine, now time.Duration, r batching.Request) int {
	GinkgoHelper()
	add(m, now, r)
	events := run(m)
	Expect(events).To(HaveLen(len(r.Output)))
	return events[0].Cached
}

const us = time.Microsecond

var _ = Describe("A machine", func() {
	It("prefills in pieces and then decodes", func() {
		m := machine(small())
		id := add(m, 0, batching.Request{Prompt: text(1, 100), Output: text(2, 3)})
		Expect(m.Stats()).To(Equal(batching.Stats{Waiting: 1, AllBlocks: 64}))
		events := run(m)
		Expect(times(events, id)).To(Equal([]time.Duration{
			35000 * us, // 5 ms, 10 ms + 64 tokens, 10 ms + 36 tokens
			46101 * us, // 10 ms + 1 sequence with 101 tokens
			57203 * us,
		}))
		Expect(events[2]).To(Equal(batching.Event{ID: id, At: 57203 * us, Index: 2, Last: true}))
		Expect(m.Stats()).To(Equal(batching.Stats{AllBlocks: 64, Steps: 4, PromptTokens: 100, GeneratedTokens: 3, QueriedTokens: 100}))
	})

	It("decodes some while it prefills others, and takes longer for it", func() {
		m := machine(small())
		first := add(m, 0, batching.Request{Prompt: text(1, 1), Output: text(2, 4)})
		second := add(m, 6*time.Millisecond, batching.Request{Prompt: text(3, 80), Output: text(4, 1)})
		events := run(m)
		Expect(times(events, first)).To(Equal([]time.Duration{
			15100 * us,
			32402 * us, // 10 ms + 1 sequence with 2 tokens + 63 tokens of the other's prompt
			45105 * us, // … and with 3, beside the 17 that are left
			56109 * us,
		}))
		Expect(times(events, second)).To(Equal([]time.Duration{45105 * us}))
	})

	It("runs no more than it has slots, in order of arrival", func() {
		p := small()
		p.MaxSequences = 1
		m := machine(p)
		first := add(m, 0, batching.Request{Prompt: text(1, 1), Output: text(1, 2)})
		second := add(m, 0, batching.Request{Prompt: text(1, 1), Output: text(1, 2)})
		m.Advance(10 * time.Millisecond)
		Expect(m.Stats()).To(And(HaveField("Running", 1), HaveField("Waiting", 1), HaveField("UsedBlocks", 1)))
		events := run(m)
		Expect(times(events, second)[0]).To(BeNumerically(">", times(events, first)[1]))
	})

	It("lets nobody overtake what waits for blocks", func() {
		p := small()
		p.KVBlocks, p.MaxBatchedTokens = 4, 1000
		m := machine(p)
		add(m, 0, batching.Request{Prompt: text(1, 30), Output: text(1, 5)}) // 2 blocks, then 3
		large := add(m, 0, batching.Request{Prompt: text(2, 48), Output: text(2, 1)})
		tiny := add(m, 0, batching.Request{Prompt: text(3, 1), Output: text(3, 1)})
		events := run(m)
		Expect(times(events, tiny)[0]).To(BeNumerically(">=", times(events, large)[0]))
		Expect(m.Stats().Preemptions).To(BeZero())
	})

	It("takes the blocks of the last when it has none, who starts over", func() {
		p := small()
		p.KVBlocks, p.MaxBatchedTokens = 4, 1000
		m := machine(p)
		first := add(m, 0, batching.Request{Prompt: text(1, 20), Output: text(1, 30)})
		second := add(m, 0, batching.Request{Prompt: text(2, 20), Output: text(2, 30)})
		events := run(m)
		Expect(times(events, first)).To(HaveLen(30))
		Expect(times(events, second)).To(HaveLen(30))
		Expect(m.Stats()).To(And(HaveField("Preemptions", BeNumerically(">", 0)), HaveField("UsedBlocks", 0),
			HaveField("GeneratedTokens", BeEquivalentTo(60)), HaveField("QueriedTokens", BeEquivalentTo(40))))
		Expect(times(events, second)[29]).To(BeNumerically(">", times(events, first)[29]))
	})

	It("forgets what is cancelled, and lets the next one in", func() {
		p := small()
		p.MaxSequences = 1
		m := machine(p)
		gone := add(m, 0, batching.Request{Prompt: text(1, 50), Output: text(1, 9)})
		waits := add(m, 0, batching.Request{Prompt: text(2, 50), Output: text(2, 9)})
		next := add(m, 0, batching.Request{Prompt: text(3, 10), Output: text(3, 1)})
		m.Advance(6 * time.Millisecond)
		m.Cancel(gone)
		m.Cancel(waits)
		m.Cancel(waits)
		Expect(m.Stats()).To(And(HaveField("Running", 0), HaveField("Waiting", 1), HaveField("UsedBlocks", 0)))
		// The step that was under way ends at 20 ms.
		Expect(run(m)).To(Equal([]batching.Event{{ID: next, At: 31 * time.Millisecond, Last: true}}))
	})

	It("waits for work", func() {
		m := machine(small())
		_, ok := m.Next()
		Expect(ok).To(BeFalse())
		Expect(m.Advance(time.Hour)).To(BeEmpty())
		id := add(m, time.Second, batching.Request{Prompt: text(1, 10), Output: text(1, 1)}) // its time does not run back
		Expect(times(run(m), id)).To(Equal([]time.Duration{time.Hour + 16*time.Millisecond}))
	})

	It("can be slowed down", func() {
		m := machine(small())
		m.Slow(3)
		slow := add(m, 0, batching.Request{Prompt: text(1, 10), Output: text(1, 1)})
		Expect(times(run(m), slow)).To(Equal([]time.Duration{38 * time.Millisecond}))
		m.Slow(0)
		add(m, 38*time.Millisecond, batching.Request{Prompt: text(2, 10), Output: text(1, 1)})
		Expect(run(m)[0].At).To(Equal(54 * time.Millisecond))
	})

	DescribeTable("refuses", func(prompt, output int, reason string) {
		_, err := machine(small()).Add(0, batching.Request{Prompt: text(1, prompt), Output: text(1, output)})
		Expect(err).To(MatchError(ContainSubstring(reason)))
	},
		Entry("no prompt", 0, 1, "0 tokens of prompt"),
		Entry("no output", 1, 0, "0 of output"),
		Entry("what never fits", 1000, 25, "1025 tokens: the engine has room for 1024"),
	)

	It("takes what just fits", func() {
		m := machine(small())
		add(m, 0, batching.Request{Prompt: text(1, 1000), Output: text(1, 24)})
		Expect(run(m)).To(HaveLen(24))
	})
})

var _ = Describe("The prefix cache", func() {
	request := batching.Request{Prompt: text(1, 100), Output: text(2, 60), Salt: "a"}

	It("finds whole blocks of what came before, but for the last token", func() {
		m := machine(small())
		Expect(cached(m, 0, request)).To(Equal(0))
		Expect(cached(m, 0, request)).To(Equal(96))
		request := request
		request.Prompt = request.Prompt[:96]
		Expect(cached(m, 0, request)).To(Equal(80), "the first answer needs a token to be computed")
		Expect(m.Stats()).To(And(HaveField("QueriedTokens", BeEquivalentTo(296)), HaveField("HitTokens", BeEquivalentTo(176))))
	})

	It("makes the first token faster", func() {
		m := machine(small())
		id := add(m, 0, request)
		cold := times(run(m), id)[0]
		later := time.Second
		id = add(m, later, request)
		Expect(cold - (times(run(m), id)[0] - later)).To(Equal(10*time.Millisecond + 96*100*us)) // a step less, too
	})

	It("finds answers when a conversation goes on", func() {
		m := machine(small())
		cached(m, 0, request)
		next := request
		next.Prompt = slices.Concat(request.Prompt, request.Output, text(3, 10))
		// 160 tokens are known; keys and values of the last are never computed.
		Expect(cached(m, 0, next)).To(Equal(144))
	})

	It("finds what another is computing", func() {
		m := machine(small())
		add(m, 0, request)
		id := add(m, 0, request)
		for _, e := range run(m) {
			if e.ID == id {
				Expect(e.Cached).To(Equal(96))
			}
		}
	})

	It("finds nothing under another salt, or behind another beginning", func() {
		m := machine(small())
		cached(m, 0, request)
		other := request
		other.Salt = "b"
		Expect(cached(m, 0, other)).To(Equal(0))
		other.Salt, other.Prompt = "a", slices.Concat(text(9, 16), request.Prompt[16:])
		Expect(cached(m, 0, other)).To(Equal(0))
	})

	It("loses what was not used for the longest time", func() {
		p := small()
		p.KVBlocks = 12
		m := machine(p)
		prompt := func(kind int) batching.Request {
			return batching.Request{Prompt: text(kind, 65), Output: text(kind, 1)} // 4 blocks and the fifth
		}
		cached(m, 0, prompt(1))
		cached(m, 0, prompt(2))
		cached(m, 0, prompt(1))
		Expect(cached(m, 0, prompt(3))).To(Equal(0)) // 2's blocks make room
		Expect(cached(m, 0, prompt(1))).To(Equal(64))
		Expect(cached(m, 0, prompt(2))).To(BeNumerically("<", 64))
	})

	It("can be emptied", func() {
		m := machine(small())
		cached(m, 0, request)
		Expect(m.ResetCache(false)).To(BeTrue())
		Expect(cached(m, 0, request)).To(Equal(0))
		Expect(cached(m, 0, request)).To(Equal(96))
	})

	It("is emptied while requests run only where they may be preempted, and they end as they would have", func() {
		m := machine(small())
		cached(m, 0, request)
		id := add(m, 0, request)
		for m.Stats().Running == 0 {
			at, more := m.Next()
			Expect(more).To(BeTrue())
			m.Advance(at)
		}
		Expect(m.ResetCache(false)).To(BeFalse())
		Expect(m.Stats()).To(And(HaveField("Running", 1), HaveField("Preemptions", BeZero())))
		Expect(m.ResetCache(true)).To(BeTrue())
		Expect(m.Stats()).To(And(HaveField("Running", 0), HaveField("Waiting", 1), HaveField("UsedBlocks", 0), HaveField("Preemptions", BeNumerically("==", 1))))
		Expect(times(run(m), id)).To(HaveLen(len(request.Output)))
		Expect(m.Stats()).To(And(HaveField("Running", 0), HaveField("Waiting", 0), HaveField("UsedBlocks", 0)))
	})
})

var _ = Describe("The profiles", func() {
	It("are known by their names, and by their hardware", func() {
		for _, p := range batching.Profiles() {
			Expect(p.Check()).To(Succeed())
			Expect(batching.Named(p.Name)).To(Equal(p))
			hardware, _, _ := strings.Cut(p.Name, "-")
			Expect(batching.Named(hardware)).To(Equal(p))
		}
		_, err := batching.Named("tpu")
		Expect(err).To(MatchError(`profile "tpu": there are h100-llama-8b and a100-llama-8b`))
	})

	// prefill is the time to the first token of a prompt alone.
	prefill := func(p batching.Profile, tokens int) time.Duration {
		m := machine(p)
		id := add(m, 0, batching.Request{Prompt: text(1, tokens), Output: text(1, 1)})
		return times(run(m), id)[0]
	}
	// decode is the time of a step with that many sequences of that many tokens.
	decode := func(p batching.Profile, sequences, tokens int) time.Duration {
		m := machine(p)
		var id batching.ID
		for i := range sequences {
			id = add(m, 0, batching.Request{Prompt: text(i, tokens), Output: text(i, 200)})
		}
		at := times(run(m), id)
		return at[100] - at[99]
	}

	DescribeTable("agree with what was published",
		func(got func() time.Duration, published time.Duration, share float64) {
			Expect(got()).To(BeNumerically("~", published, float64(published)*share))
		},
		Entry("H100, llm-d: 6.958 ms + 0.042 ms a sequence, 1", func() time.Duration { return decode(batching.H100(), 1, 400) }, 7000*us, 0.1),
		Entry("H100, llm-d, 64", func() time.Duration { return decode(batching.H100(), 64, 400) }, 9646*us, 0.1),
		Entry("H100, llm-d, 256", func() time.Duration { return decode(batching.H100(), 256, 400) }, 17710*us, 0.1),
		Entry("A100, NVIDIA: 500 tokens of prompt", func() time.Duration { return prefill(batching.A100(), 500) }, 48300*us, 0.02),
	)

	DescribeTable("are refused", func(breakIt func(*batching.Profile), reason string) {
		p := small()
		breakIt(&p)
		_, err := batching.New(p)
		Expect(err).To(MatchError(ContainSubstring(reason)))
	},
		Entry("without the time of a step", func(p *batching.Profile) { p.Step = 0 }, "more than no time"),
		Entry("with a negative arrival", func(p *batching.Profile) { p.Arrival = -1 }, "negative"),
		Entry("with a negative prefill", func(p *batching.Profile) { p.PrefillToken = -1 }, "negative"),
		Entry("with a negative decode", func(p *batching.Profile) { p.DecodeSequence = -1 }, "negative"),
		Entry("with a negative context", func(p *batching.Profile) { p.ContextToken = -1 }, "negative"),
		Entry("without slots", func(p *batching.Profile) { p.MaxSequences = 0 }, "at least one sequence"),
		Entry("without a budget", func(p *batching.Profile) { p.MaxBatchedTokens = 0 }, "at least one sequence"),
		Entry("without a cache", func(p *batching.Profile) { p.KVBlocks = 0 }, "at least one sequence"),
	)
})

// BenchmarkStep is a step of an engine with many sequences, which decode.
func BenchmarkStep(b *testing.B) {
	p := batching.H100()
	p.KVBlocks = 1 << 20
	m, err := batching.New(p)
	if err != nil {
		b.Fatal(err)
	}
	const sequences = 256
	output := text(1, 1<<15)
	b.ReportAllocs()
	for b.Loop() {
		at, ok := m.Next()
		if !ok {
			b.StopTimer()
			for i := range sequences {
				if _, err := m.Add(0, batching.Request{Prompt: text(i, 500), Output: output}); err != nil {
					b.Fatal(err)
				}
			}
			at, _ = m.Next()
			b.StartTimer()
		}
		m.Advance(at)
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(max(1, m.Stats().GeneratedTokens)), "ns/token")
}
