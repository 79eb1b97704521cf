package canary_test

import (
	"math"
	"math/rand/v2"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"

	"github.com/mrgc/mrgc/controller/canary"
)

var epoch = time.Unix(1_790_000_000, 0)

// world is traffic before two versions, in virtual time.
type world struct {
	share, rate float64
	spread      float64 // standard deviation of a time's logarithm, for one size of prompt
	errors      float64
	onset       time.Duration // from when the canary is worse
	ttft        float64       // times as long at the canary
	perToken    float64       // likewise
	canaryFails float64       // share of its requests, beside errors
}

func healthy() world {
	return world{share: 0.05, rate: 20, spread: 0.4, errors: 0.002, ttft: 1, perToken: 1}
}

// judge plays the world until there is a verdict or time is over, and says when
// that was.
func (w world) judge(seed uint64, length time.Duration) (canary.Verdict, time.Duration) {
	random := rand.New(rand.NewPCG(seed, 1))
	judge, err := canary.New(canary.Config{Share: w.share}, epoch)
	Expect(err).NotTo(HaveOccurred())
	verdict := canary.Verdict{}
	for now := time.Duration(0); now < length; now += time.Duration(random.ExpFloat64() / w.rate * float64(time.Second)) {
		if verdict = judge.Observe(w.request(random, now), epoch.Add(now)); verdict.Worse {
			return verdict, now
		}
	}
	return verdict, length
}

func (w world) request(random *rand.Rand, now time.Duration) canary.Observation {
	o := canary.Observation{
		Canary: random.Float64() < w.share,
		Prompt: int(1024 * math.Exp(random.NormFloat64())),
		Output: int(200 * math.Exp(random.NormFloat64()/2)),
		Failed: random.Float64() < w.errors,
	}
	// A fifth slower and faster in the course of ten minutes, and slower by the
	// length of the prompt.
	tide := 1 + 0.2*math.Sin(2*math.Pi*now.Minutes()/10)
	ttft := tide * (0.05 + float64(o.Prompt)/20_000) * math.Exp(w.spread*random.NormFloat64())
	perToken := tide * 0.02 * math.Exp(0.2*random.NormFloat64())
	if o.Canary && now >= w.onset {
		ttft, perToken = ttft*w.ttft, perToken*w.perToken
		o.Failed = o.Failed || random.Float64() < w.canaryFails
	}
	o.TTFT, o.PerToken = time.Duration(ttft*1e9), time.Duration(perToken*1e9)
	return o
}

// caught is the share of runs that end in time with a verdict by the signal.
func (w world) caught(runs int, within time.Duration, by canary.Signal) float64 {
	n := 0
	for seed := range uint64(runs) {
		verdict, at := w.judge(seed, w.onset+within)
		if verdict.Worse && verdict.Signal == by && at >= w.onset {
			n++
		}
	}
	return float64(n) / float64(runs)
}

var _ = Describe("A canary", func() {
	DescribeTable("that is worse is found out",
		func(change func(*world), within time.Duration, by canary.Signal) {
			w := healthy()
			change(&w)
			Expect(w.caught(200, within, by)).To(BeNumerically(">=", 0.95))
		},
		Entry("first tokens 20 % later", func(w *world) { w.ttft = 1.2 }, 5*time.Minute, canary.SignalTTFT),
		Entry("twice as late", func(w *world) { w.ttft = 2 }, 90*time.Second, canary.SignalTTFT),
		Entry("20 % later, at half the traffic", func(w *world) { w.ttft, w.share = 1.2, 0.5 }, 2*time.Minute, canary.SignalTTFT),
		Entry("20 % later, at most of the traffic", func(w *world) { w.ttft, w.share = 1.2, 0.95 }, 5*time.Minute, canary.SignalTTFT),
		Entry("tokens 20 % slower", func(w *world) { w.perToken = 1.2 }, 5*time.Minute, canary.SignalPerToken),
		Entry("every request fails", func(w *world) { w.canaryFails = 1 }, 75*time.Second, canary.SignalErrors),
		Entry("5 % fail", func(w *world) { w.canaryFails = 0.05 }, 5*time.Minute, canary.SignalErrors),
		Entry("first tokens 20 % later after two hours", func(w *world) { w.ttft, w.onset = 1.2, 2*time.Hour }, 10*time.Minute, canary.SignalTTFT),
	)

	DescribeTable("that is no worse is left alone",
		func(change func(*world)) {
			w := healthy()
			w.rate = 1
			change(&w)
			const days = 40
			worse := 0
			for seed := range uint64(days) {
				if verdict, _ := w.judge(1000+seed, 24*time.Hour); verdict.Worse {
					worse++
				}
			}
			// At most 1 % of days may be: of 40, three or more once in 130 times.
			Expect(worse).To(BeNumerically("<", 3))
		},
		Entry("alike", func(*world) {}),
		Entry("alike, with times all over the place", func(w *world) { w.spread = 2 }),
		Entry("better", func(w *world) { w.ttft, w.perToken = 0.8, 0.8 }),
		Entry("many failures on both sides", func(w *world) { w.errors = 0.2 }),
		Entry("at half the traffic", func(w *world) { w.share = 0.5 }),
	)

	It("does not depend on the scale of times", func() {
		a, b := healthy(), healthy()
		a.ttft, b.ttft = 1.5, 1.5
		judgeOf := func(scale time.Duration) (out []canary.Verdict) {
			random := rand.New(rand.NewPCG(7, 7))
			judge, err := canary.New(canary.Config{Share: 0.05}, epoch)
			Expect(err).NotTo(HaveOccurred())
			for i := range 5000 {
				o := a.request(random, 0)
				o.TTFT, o.PerToken = o.TTFT*scale, o.PerToken*scale
				out = append(out, judge.Observe(o, epoch.Add(time.Duration(i)*50*time.Millisecond)))
			}
			return out
		}
		Expect(judgeOf(10)).To(Equal(judgeOf(1)))
	})

	It("is compared by size: longer prompts are not its fault", func() {
		judge, err := canary.New(canary.Config{Share: 0.5, WarmUp: -1}, epoch)
		Expect(err).NotTo(HaveOccurred())
		random := rand.New(rand.NewPCG(3, 3))
		verdict := canary.Verdict{}
		for i := range 20_000 {
			prompt := 256
			isCanary := random.IntN(2) == 0
			if isCanary && random.IntN(4) > 0 || !isCanary && random.IntN(4) == 0 {
				prompt = 8192
			}
			ttft := time.Duration(float64(prompt) * (1 + random.Float64()) * float64(time.Millisecond))
			verdict = judge.Observe(canary.Observation{Canary: isCanary, Prompt: prompt, TTFT: ttft}, epoch.Add(time.Duration(i)*time.Second/20))
		}
		Expect(verdict.Worse).To(BeFalse())
		Expect(verdict.Compared).To(BeNumerically(">", 5000))
	})

	It("is warmed up first, and judged for good", func() {
		judge, err := canary.New(canary.Config{Share: 0.5}, epoch)
		Expect(err).NotTo(HaveOccurred())
		see := func(n int, at time.Duration, worse bool) (v canary.Verdict) {
			for i := range n {
				v = judge.Observe(canary.Observation{Canary: i%2 == 0, Failed: i%2 == 0 && worse}, epoch.Add(at))
			}
			return v
		}
		Expect(see(1000, 29*time.Second, true)).To(Equal(canary.Verdict{}))
		Expect(see(1000, 30*time.Second, true)).To(And(HaveField("Worse", true), HaveField("Signal", canary.SignalErrors)))
		Expect(see(100_000, time.Hour, false).Worse).To(BeTrue())
	})

	DescribeTable("needs a sensible configuration", func(c canary.Config, text string) {
		_, err := canary.New(c, epoch)
		Expect(err).To(MatchError(ContainSubstring(text)))
	},
		Entry("no share", canary.Config{}, "share 0"),
		Entry("all", canary.Config{Share: 1}, "share 1"),
		Entry("no number", canary.Config{Share: math.NaN()}, "share NaN"),
		Entry("always wrong", canary.Config{Share: 0.5, FalsePerDay: 1}, "false verdicts per day"),
	)
})
