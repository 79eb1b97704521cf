package routing_test

import (
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	"pgregory.net/rapid"

	"github.com/mrgc/mrgc/internal/routing"
)

var _ = Describe("A meter", func() {
	var (
		m   *routing.Meter
		now time.Time
	)
	BeforeEach(func() { m, now = &routing.Meter{}, time.Unix(1_800_000_000, 0) })

	// reads has an engine read a prompt that nothing is before of.
	reads := func(tokens int, took, total time.Duration) {
		p := m.Begin(tokens, now)
		m.First(p, now.Add(took))
		m.End(p, now.Add(total))
	}

	It("knows nothing before the first request", func() {
		Expect(m.Unread()).To(BeZero())
		Expect(m.ReadTokensPerSecond()).To(BeZero())
		Expect(m.Duration()).To(BeZero())
	})

	It("counts a prompt as unread until its answer begins, or ends without one", func() {
		a, b := m.Begin(1000, now), m.Begin(500, now)
		Expect(m.Unread()).To(Equal(1500))
		m.First(a, now.Add(time.Second))
		Expect(m.Unread()).To(Equal(500))
		m.First(a, now.Add(time.Second)) // said twice
		Expect(m.Unread()).To(Equal(500))
		m.End(b, now.Add(time.Second))
		Expect(m.Unread()).To(BeZero())
		m.End(a, now.Add(2*time.Second))
		Expect(m.Unread()).To(BeZero())
	})

	It("finds an engine's speed, whatever waits for it", func() {
		// 10,000 tokens per second, and the step that makes the first token.
		const perSecond = 10_000
		took := func(tokens int) time.Duration { return time.Duration(tokens+256) * time.Second / perSecond }
		for range 50 {
			a, b := m.Begin(700, now), m.Begin(100, now) // b waits for a
			m.First(a, now.Add(took(700)))
			m.First(b, now.Add(took(800)))
			m.End(a, now.Add(time.Second))
			m.End(b, now.Add(time.Second))
		}
		Expect(m.ReadTokensPerSecond()).To(BeNumerically("~", perSecond, 1))
		Expect(m.Duration()).To(BeNumerically("~", time.Second, time.Millisecond))
	})

	It("follows an engine that becomes slower", func() {
		for range 100 {
			reads(744, 100*time.Millisecond, time.Second)
		}
		Expect(m.ReadTokensPerSecond()).To(BeNumerically("~", 10_000, 1))
		for range 100 {
			reads(744, 200*time.Millisecond, 3*time.Second)
		}
		Expect(m.ReadTokensPerSecond()).To(BeNumerically("~", 5_000, 50))
		Expect(m.Duration()).To(BeNumerically("~", 3*time.Second, 50*time.Millisecond))
	})

	It("learns no speed from answers that come at once, which may have begun long before", func() {
		reads(744, 100*time.Millisecond, time.Second)
		for range 100 {
			reads(744, 4*time.Second, 4*time.Second+time.Millisecond)
		}
		Expect(m.ReadTokensPerSecond()).To(BeNumerically("~", 10_000, 1))
		Expect(m.Duration()).To(BeNumerically("~", 4*time.Second, 50*time.Millisecond))
	})

	It("ends with nothing unread, whatever happens in which order", func() {
		rapid.Check(GinkgoT(), func(t *rapid.T) {
			var meter routing.Meter
			var open []*routing.Prompt
			at := now
			for range rapid.IntRange(0, 40).Draw(t, "events") {
				at = at.Add(time.Duration(rapid.IntRange(0, 1000).Draw(t, "ms")) * time.Millisecond)
				if len(open) == 0 || rapid.Bool().Draw(t, "begins") {
					open = append(open, meter.Begin(rapid.IntRange(-1, 1<<40).Draw(t, "tokens"), at))
					continue
				}
				i := rapid.IntRange(0, len(open)-1).Draw(t, "which")
				if meter.First(open[i], at); rapid.Bool().Draw(t, "ends") {
					meter.End(open[i], at)
					open = append(open[:i], open[i+1:]...)
				}
			}
			if meter.Unread() < 0 || meter.ReadTokensPerSecond() < 0 || meter.Duration() < 0 {
				t.Fatalf("unread %d, %f tokens/s, %v", meter.Unread(), meter.ReadTokensPerSecond(), meter.Duration())
			}
			for _, p := range open {
				meter.End(p, at)
			}
			if meter.Unread() != 0 {
				t.Fatalf("%d tokens are left", meter.Unread())
			}
		})
	})
})
