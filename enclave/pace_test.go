package enclave_test

import (
	"fmt"
	"slices"
	"strings"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	"pgregory.net/rapid"

	"github.com/mrgc/mrgc/enclave"
)

const paceWait = 100 * time.Millisecond

// told is an event.
type told struct {
	after time.Duration // since the one before
	bytes int
}

// evenly are n events of one size, at one rate.
func evenly(n, bytes int, after time.Duration) (all []told) {
	for range n {
		all = append(all, told{after, bytes})
	}
	return all
}

// left is what a stream's pace had leave: the frames, and when.
type left struct {
	at     time.Duration
	frames []int
}

func (l left) String() string { return fmt.Sprintf("%d:%v", l.at.Milliseconds(), l.frames) }

// paced plays a stream in no time. check sees the pace after each step.
func paced(events []told, check func(p *enclave.Pace, at time.Time)) (all []left) {
	p, start := enclave.NewPace(paceWait), time.Unix(1000, 0)
	now := start
	step := func(frames []int, at time.Time) {
		if len(frames) > 0 {
			all = append(all, left{at.Sub(start), frames})
		}
		if check != nil {
			check(p, at)
		}
	}
	for i, e := range events {
		if i > 0 {
			next := now.Add(e.after)
			for due, waits := p.Due(); waits && due.Before(next); due, waits = p.Due() {
				step(p.Release(due), due)
			}
			now = next
		}
		p.Came(e.bytes, now)
		if i+1 == len(events) || events[i+1].after > 0 { // else both are read at once
			step(p.Release(now), now)
		}
	}
	step(p.All(), now)
	return all
}

func written(all []left) string {
	var texts []string
	for _, l := range all {
		texts = append(texts, l.String())
	}
	return strings.Join(texts, " ")
}

const ms = time.Millisecond

var _ = Describe("A stream's pace", func() {
	DescribeTable("has leave", func(want string, events []told) { Expect(written(paced(events, nil))).To(Equal(want)) },
		Entry("the first events at once, then two whenever they nearly fill a frame",
			"0:[509] 20:[509] 60:[509] 100:[509]", evenly(6, 235, 20*ms)),
		Entry("what does not fill one at the end", "0:[509] 20:[509] 40:[509]", evenly(3, 235, 20*ms)),
		Entry("full frames of events that do not fit, cut, until they fit",
			"0:[509] 20:[509] 60:[509] 80:[509] 120:[509] 140:[509]", evenly(8, 330, 20*ms)),
		Entry("large events, each by itself", "0:[2045] 20:[2045] 40:[2045]", evenly(3, 2000, 20*ms)),
		Entry("each at once that no other would come in time for", "0:[509] 150:[509] 300:[509] 450:[509]", evenly(4, 235, 150*ms)),
		Entry("none later than it may wait: here the second of three comes too late to fill a frame",
			"0:[509] 20:[509] 140:[509] 200:[509]", []told{{0, 160}, {20 * ms, 160}, {20 * ms, 160}, {90 * ms, 160}, {70 * ms, 160}}),
		Entry("all of a burst that is the first", "0:[509 509 509]", evenly(6, 235, 0)),
		Entry("two and two of a fast stream", "0:[509] 1:[509] 3:[509] 5:[509]", evenly(6, 235, 1*ms)),
		Entry("an event that is by far not like the others at once",
			"0:[509] 20:[509] 40:[8189]", []told{{0, 235}, {20 * ms, 235}, {20 * ms, 8000}}),
		Entry("nothing of a stream without events", "", nil),
	)

	// anyEvents are like an engine's: much the same, but for some.
	anyEvents := func(t *rapid.T) (events []told) {
		size := rapid.IntRange(50, 700).Draw(t, "size")
		like := rapid.IntRange(size, size+40)
		bytes := rapid.OneOf(like, like, like, rapid.IntRange(1, 20_000))
		after := rapid.OneOf(rapid.IntRange(0, 40), rapid.IntRange(0, 400))
		for range rapid.IntRange(0, 60).Draw(t, "events") {
			events = append(events, told{time.Duration(after.Draw(t, "after")) * ms, bytes.Draw(t, "bytes")})
		}
		return events
	}

	It("lets nothing wait longer than it may, and leaves nothing behind", func() {
		rapid.Check(GinkgoT(), func(t *rapid.T) {
			events := anyEvents(t)
			came, room := 0, 0
			for _, e := range events {
				came += e.bytes
			}
			for _, l := range paced(events, func(p *enclave.Pace, at time.Time) {
				if due, waits := p.Due(); waits && !due.After(at) {
					t.Fatalf("something that was due at %v still waits at %v", due, at)
				} else if waits != (p.Pending() > 0) || waits && due.After(at.Add(paceWait)) {
					t.Fatalf("%d bytes wait, until %v at %v: %v", p.Pending(), due, at, waits)
				}
			}) {
				for _, holds := range l.frames {
					room += holds
				}
			}
			if room < came {
				t.Fatalf("%d bytes of %d have left", room, came)
			}
		})
	})

	It("does not depend on how long events are, within what they count as, while they come in time", func() {
		rapid.Check(GinkgoT(), func(t *rapid.T) {
			const step = 16
			counts := step * rapid.IntRange(8, 40).Draw(t, "counts")
			one := evenly(rapid.IntRange(0, 100).Draw(t, "events"), counts, time.Duration(rapid.IntRange(0, 20).Draw(t, "after"))*ms)
			other := slices.Clone(one)
			for i := range one[min(2, len(one)):] { // the first two leave as they are
				i += 2
				other[i] = told{one[i].after, counts - rapid.IntRange(0, step-1).Draw(t, "shorter")}
			}
			longest, shorter := written(paced(one, nil)), written(paced(other, nil))
			if longest != shorter {
				t.Fatalf("%s\n%s", longest, shorter)
			}
		})
	})

	It("pads little of a stream whose events come in time", func() {
		for _, bytes := range []int{180, 200, 220, 230, 240, 250, 260, 280, 300, 320, 350, 400, 450, 600} {
			for _, perSecond := range []int{40, 100} {
				room, events := 0, evenly(300, bytes, time.Second/time.Duration(perSecond))
				for _, l := range paced(events, nil) {
					for _, holds := range l.frames {
						room += holds
					}
				}
				clear := len(events) * bytes
				Expect(float64(room-clear)/float64(clear)).To(BeNumerically("<=", 0.15), "%d events a second of %d bytes", perSecond, bytes)
			}
		}
	})
})
