package canary_test

import (
	"math"
	"math/rand/v2"
	"strings"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	"pgregory.net/rapid"

	"github.com/mrgc/mrgc/controller/canary"
	"github.com/mrgc/mrgc/internal/routing"
)

func halves(of ...string) map[string]routing.Split {
	split := routing.Split{}
	for _, name := range of {
		split = append(split, routing.Version{Name: name, Weight: routing.SplitTotal / len(of)})
	}
	return map[string]routing.Split{"m": split}
}

func trialsOf(splits map[string]routing.Split) *canary.Trials {
	GinkgoHelper()
	t := canary.NewTrials(-1)
	Expect(t.Set(splits, 0.01, epoch)).To(Succeed())
	return t
}

var _ = Describe("Trials", func() {
	names := func(t *canary.Trials) (all []string) {
		for _, trial := range t.All() {
			all = append(all, trial.Canary+" against "+trial.Present)
		}
		return all
	}
	split := func(weights ...int) map[string]routing.Split {
		s := routing.Split{}
		for i, w := range weights {
			s = append(s, routing.Version{Name: string(rune('a' + i)), Weight: w})
		}
		return map[string]routing.Split{"m": s}
	}

	DescribeTable("are of every version with a weight but the first", func(splits map[string]routing.Split, want string) {
		Expect(strings.Join(names(trialsOf(splits)), ", ")).To(Equal(want))
	},
		Entry("one new", split(950, 50), "b against a"),
		Entry("one new that has most", split(100, 900), "b against a"),
		Entry("two new", split(800, 100, 100), "b against a, c against a"),
		Entry("the first withdrawn", split(0, 900, 100), "c against b"),
		Entry("all the first's", split(1000, 0), ""),
		Entry("all the new one's", split(0, 1000), ""),
		Entry("nothing divided", map[string]routing.Split{}, ""),
	)

	// see has a version's requests fail or not, and the other's not, until there is a verdict.
	see := func(t *canary.Trials, version, other string, fails bool, requests int) (worse bool) {
		for i := range requests {
			at := epoch.Add(time.Duration(i) * time.Second)
			worse = t.Observe("m", version, canary.Observation{Failed: fails, TTFT: time.Second}, at) || worse
			worse = t.Observe("m", other, canary.Observation{TTFT: time.Second}, at) || worse
		}
		return worse
	}

	It("end when weights change, and begin anew", func() {
		t := trialsOf(halves("a", "b"))
		Expect(see(t, "b", "a", true, 100)).To(BeTrue())
		Expect(t.All()[0].Verdict.Worse).To(BeTrue())
		Expect(t.Set(halves("a", "b"), 0.01, epoch.Add(time.Hour))).To(Succeed())
		Expect(t.All()[0].Verdict.Worse).To(BeTrue(), "nothing has changed")
		Expect(t.Set(split(600, 400), 0.01, epoch.Add(time.Hour))).To(Succeed())
		Expect(t.All()[0].Verdict).To(BeZero())
		Expect(t.All()[0].Versions["b"].Requests).To(BeZero())
		Expect(t.Set(split(1000, 0), 0.01, epoch.Add(time.Hour))).To(Succeed())
		Expect(t.All()).To(BeEmpty())
		Expect(t.Set(nil, 0.01, epoch.Add(time.Hour))).To(Succeed())
		Expect(t.Has("m", "a")).To(BeFalse())
	})

	It("say nothing against the present version, nor of what is not listed", func() {
		t := trialsOf(halves("a", "b"))
		Expect(see(t, "a", "b", true, 200)).To(BeFalse())
		Expect(t.Observe("m", "c", canary.Observation{Failed: true}, epoch)).To(BeFalse())
		Expect(t.Observe("other", "b", canary.Observation{Failed: true}, epoch)).To(BeFalse())
		Expect(t.All()[0].Versions["a"].ErrorRate()).To(Equal(1.0))
	})

	It("judge each new version by itself", func() {
		t := trialsOf(halves("a", "b", "c"))
		for i := range 300 {
			at := epoch.Add(time.Duration(i) * time.Second)
			for _, v := range []string{"a", "b", "c"} {
				t.Observe("m", v, canary.Observation{Failed: v == "c"}, at)
			}
		}
		all := t.All()
		Expect(all[0].Verdict.Worse).To(BeFalse())
		Expect(all[1].Verdict).To(And(HaveField("Worse", true), HaveField("Signal", canary.SignalErrors)))
	})
})

// draw is a request of one of two versions, of which b is as told.
func draw(random *rand.Rand, slower, fails float64) (version string, o canary.Observation) {
	o = canary.Observation{
		Prompt: 64 << random.IntN(3), Failed: random.Float64() < 0.01,
		TTFT: time.Duration(math.Exp(0.4*random.NormFloat64()) * float64(time.Second)),
	}
	if version = "a"; random.IntN(2) == 0 {
		version = "b"
		o.TTFT = time.Duration(float64(o.TTFT) * slower)
		o.Failed = o.Failed || random.Float64() < fails
	}
	return version, o
}

var _ = Describe("Routers that tell each other", func() {
	evidence := func(t *canary.Trials) [3]float64 { return t.All()[0].Verdict.Evidence }
	alike := func(a, b [3]float64) bool {
		for i := range a {
			if math.Abs(a[i]-b[i]) > 1e-6 {
				return false
			}
		}
		return true
	}

	It("come to the same, whatever is lost, late or told twice, and whoever starts anew", func() {
		rapid.Check(GinkgoT(), func(t *rapid.T) {
			random := rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "seed"), 1))
			routers := []*canary.Trials{trialsOf(halves("a", "b")), trialsOf(halves("a", "b")), trialsOf(halves("a", "b"))}
			epochs := []int{0, 0, 0}
			sequence := uint64(0)
			name := func(i int) string { return string(rune('x'+i)) + string(rune('0'+epochs[i])) }
			tell := func(from, to int) {
				sequence++
				routers[to].Learn(name(from), sequence, routers[from].Tell(), epoch)
			}
			restarted := false
			for range rapid.IntRange(1, 20).Draw(t, "steps") {
				for range 30 {
					version, o := draw(random, 1, 0)
					routers[random.IntN(3)].Observe("m", version, o, epoch)
				}
				from, to := rapid.IntRange(0, 2).Draw(t, "from"), rapid.IntRange(0, 2).Draw(t, "to")
				switch rapid.SampledFrom([]string{"told", "told twice", "lost", "restart"}).Draw(t, "what") {
				case "told":
					tell(from, (from+1+to%2)%3)
				case "told twice":
					to = (from + 1 + to%2) % 3
					said := routers[from].Tell()
					sequence++
					routers[to].Learn(name(from), sequence, said, epoch)
					routers[to].Learn(name(from), sequence, said, epoch)
				case "restart":
					restarted = true
					for i := range routers {
						if i != from {
							tell(from, i) // what nobody has heard is lost with it
						}
					}
					routers[from] = trialsOf(halves("a", "b"))
					epochs[from]++
				}
			}
			for from := range routers {
				for to := range routers {
					if from != to {
						tell(from, to)
					}
				}
			}
			for i := range routers {
				// Who has started anew lacks what it had seen itself.
				if restarted && epochs[i] > 0 {
					continue
				}
				for k := range routers {
					if (!restarted || epochs[k] == 0) && !alike(evidence(routers[i]), evidence(routers[k])) {
						t.Fatalf("%v and %v", evidence(routers[i]), evidence(routers[k]))
					}
				}
			}
		})
	})

	It("find out together what none would alone", func() {
		random := rand.New(rand.NewPCG(5, 5))
		routers := []*canary.Trials{trialsOf(halves("a", "b")), trialsOf(halves("a", "b")), trialsOf(halves("a", "b")), trialsOf(halves("a", "b"))}
		alone := trialsOf(halves("a", "b"))
		found := -1
		for i := 0; i < 4000 && found < 0; i++ {
			at := epoch.Add(time.Duration(i) * 50 * time.Millisecond)
			version, o := draw(random, 1.25, 0)
			routers[i%4].Observe("m", version, o, at)
			if i%4 == 0 {
				alone.Observe("m", version, o, at)
			}
			for to := range routers {
				if to != i%4 && routers[to].Learn(string(rune('w'+i%4)), uint64(i+1), routers[i%4].Tell(), at) {
					found = i
				}
			}
		}
		Expect(found).To(BeNumerically(">", 0))
		Expect(alone.All()[0].Verdict.Worse).To(BeFalse())
		Expect(alone.All()[0].Verdict.Evidence[1]).To(BeNumerically("<", 0.6))
	})

	It("do not mix what was seen under other weights, or before a teller began anew", func() {
		a, b := trialsOf(halves("a", "b")), trialsOf(halves("a", "b"))
		for i := range 40 {
			b.Observe("m", []string{"a", "b"}[i%2], canary.Observation{Failed: i%2 == 1}, epoch)
		}
		old := b.Tell()
		Expect(old[0].Compared).To(BeNumerically(">", 0))
		other := old[0]
		other.Split = "other"
		a.Learn("b", 1, []canary.Told{other}, epoch)
		Expect(evidence(a)).To(BeZero())
		a.Learn("b", 2, old, epoch)
		Expect(alike(evidence(a), evidence(b))).To(BeTrue())
		later := old[0]
		later.Began, later.Evidence = later.Began.Add(time.Minute), canary.Evidence{}
		a.Learn("b", 3, []canary.Told{later}, epoch)
		Expect(alike(evidence(a), evidence(b))).To(BeTrue(), "what it said before it forgot still counts")
		a.Learn("b", 4, old, epoch)
		Expect(alike(evidence(a), evidence(b))).To(BeTrue(), "and not twice")
	})

	It("believe no numbers that are none", func() {
		e := canary.Evidence{}
		Expect(e.Valid()).To(BeTrue())
		for _, bad := range []float64{math.NaN(), math.Inf(1), math.Inf(-1), 1e10} {
			e.Log[1][2] = bad
			Expect(e.Valid()).To(BeFalse(), "%v", bad)
		}
		Expect((&canary.Evidence{Compared: -1}).Valid()).To(BeFalse())
	})
})

var _ = Describe("A version's figures", func() {
	It("compare times size by size", func() {
		t := trialsOf(halves("a", "b"))
		observe := func(version string, prompt int, ttft, perToken time.Duration, times int) {
			for range times {
				t.Observe("m", version, canary.Observation{Prompt: prompt, Output: 64, TTFT: ttft, PerToken: perToken}, epoch)
			}
		}
		// The new one gets the long prompts, and is a quarter slower.
		observe("a", 64, 100*time.Millisecond, 10*time.Millisecond, 90)
		observe("a", 4096, 1000*time.Millisecond, 10*time.Millisecond, 10)
		observe("b", 64, 125*time.Millisecond, 20*time.Millisecond, 10)
		observe("b", 4096, 1250*time.Millisecond, 20*time.Millisecond, 90)
		observe("b", 8192, time.Hour, 0, 1) // which nothing can be compared with
		versions := t.All()[0].Versions
		ratio, known := versions["b"].Ratio(canary.SignalTTFT, versions["a"])
		Expect(known).To(BeTrue())
		Expect(ratio).To(BeNumerically("~", 1.25, 1e-6))
		ratio, known = versions["b"].Ratio(canary.SignalPerToken, versions["a"])
		Expect(known).To(BeTrue())
		Expect(ratio).To(BeNumerically("~", 2, 1e-6))
		Expect(versions["a"].Typical(canary.SignalTTFT)).To(BeNumerically("~", time.Duration(math.Exp(0.9*math.Log(0.1))*1e9), time.Microsecond))
		Expect(versions["a"].BySize).To(And(HaveKey(64), HaveKey(4096)))
		_, known = (&canary.Figures{}).Ratio(canary.SignalTTFT, versions["a"])
		Expect(known).To(BeFalse())
	})

	It("add up, and count what fails and not how long that took", func() {
		t := trialsOf(halves("a", "b"))
		t.Observe("m", "a", canary.Observation{Failed: true, TTFT: time.Hour}, epoch)
		t.Observe("m", "a", canary.Observation{TTFT: time.Second}, epoch)
		a := t.All()[0].Versions["a"]
		sum := a.Plus(a)
		Expect(sum.Requests).To(Equal(4))
		Expect(sum.ErrorRate()).To(Equal(0.5))
		Expect(sum.Typical(canary.SignalTTFT)).To(Equal(time.Second))
		Expect(a.Requests).To(Equal(2), "it is as it was")
		Expect((&canary.Figures{}).ErrorRate()).To(BeZero())
		Expect((&canary.Figures{}).Typical(canary.SignalTTFT)).To(BeZero())
	})
})
