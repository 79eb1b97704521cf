package fleet_test

import (
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	"pgregory.net/rapid"

	"github.com/mrgc/mrgc/internal/fleet"
)

// sees has a reader read one instance with a stamp, and says when it takes it to have
// been heard of.
func sees(h *fleet.Hearing, read, stamp time.Time, lagging bool) time.Time {
	in := &fleet.Instance{ID: "a", HeartbeatAt: stamp}
	h.Date(read, []*fleet.Instance{in}, func(*fleet.Instance) bool { return lagging })
	return in.HeartbeatAt
}

var _ = Describe("A heartbeat is dated", func() {
	var h *fleet.Hearing
	BeforeEach(func() { h = &fleet.Hearing{} })
	after := func(d time.Duration) time.Time { return at.Add(d) }

	It("by its stamp while clocks agree", func() {
		Expect(sees(h, after(0), after(-time.Second), false)).To(Equal(after(-time.Second)))
		Expect(sees(h, after(5*time.Second), after(4*time.Second), false)).To(Equal(after(4 * time.Second)))
	})

	It("within a read of when it came, though its clock is an hour behind", func() {
		Expect(sees(h, after(0), after(-time.Hour), false)).To(Equal(after(-time.Hour)), "nothing else is known yet")
		Expect(sees(h, after(time.Second), after(time.Second-time.Hour), false)).To(Equal(after(0)))
		Expect(sees(h, after(2*time.Second), after(2*time.Second-time.Hour), false)).To(Equal(after(time.Second)))
	})

	It("once: an instance whose clock is an hour ahead grows old, too", func() {
		for range 3 {
			Expect(sees(h, after(0), after(time.Hour), false)).To(Equal(after(0)))
		}
		Expect(sees(h, after(time.Minute), after(time.Hour), false)).To(Equal(after(0)))
		Expect(sees(h, after(2*time.Minute), after(time.Hour+time.Second), false)).To(Equal(after(2 * time.Minute)))
	})

	It("by its stamp where rows lag, but never in the future", func() {
		sees(h, after(0), after(-2*time.Minute), true)
		Expect(sees(h, after(time.Second), after(-time.Minute), true)).To(Equal(after(-time.Minute)))
		Expect(sees(h, after(2*time.Second), after(time.Hour), true)).To(Equal(after(2 * time.Second)))
	})

	It("by its stamp after the store could not be read for long", func() {
		sees(h, after(0), after(0), false)
		Expect(sees(h, after(time.Hour), after(20*time.Minute), false)).To(Equal(after(20*time.Minute)), "whoever has died meanwhile is not heard of now")
	})

	It("as before by a read that was overtaken by a later one", func() {
		sees(h, after(0), after(-time.Hour), false)
		Expect(sees(h, after(10*time.Second), after(10*time.Second-time.Hour), false)).To(Equal(after(0)))
		sees(h, after(5*time.Second), after(-time.Hour), false)
		Expect(sees(h, after(11*time.Second), after(10*time.Second-time.Hour), false)).To(Equal(after(0)))
	})

	It("by its stamp, once more, after the reader's clock was set back", func() {
		sees(h, after(0), after(-time.Second), false)
		Expect(sees(h, after(-time.Hour), after(-time.Second), false)).To(Equal(after(-time.Hour)))
		Expect(sees(h, after(-59*time.Minute), after(-time.Second), false)).To(Equal(after(-time.Hour)), "it grows old")
	})

	It("to between the read that did not have it and the one that has, whatever clocks show", func() {
		rapid.Check(GinkgoT(), func(t *rapid.T) {
			var h fleet.Hearing
			skew := time.Duration(rapid.Int64Range(int64(-24*time.Hour), int64(24*time.Hour)).Draw(t, "skew"))
			beat, read := at, at
			sees(&h, read, beat.Add(skew), false)
			dated := time.Time{}
			for range rapid.IntRange(1, 20).Draw(t, "reads") {
				last := read
				read = read.Add(time.Duration(rapid.Int64Range(1, int64(time.Minute)).Draw(t, "between")))
				if rapid.Bool().Draw(t, "beats") {
					beat = last.Add(time.Duration(rapid.Int64Range(1, int64(read.Sub(last))).Draw(t, "beat")))
					dated = sees(&h, read, beat.Add(skew), false)
					if dated.Before(last) || dated.After(read) {
						t.Fatalf("dated %v, between %v and %v", dated, last, read)
					}
				} else if again := sees(&h, read, beat.Add(skew), false); !dated.IsZero() && !again.Equal(dated) {
					t.Fatalf("dated %v, and then %v", dated, again)
				}
			}
		})
	})
})
