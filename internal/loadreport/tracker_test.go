package loadreport_test

import (
	"fmt"
	"testing"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	"pgregory.net/rapid"

	"github.com/mrgc/mrgc/internal/loadreport"
)

// at is a moment of the tests' day.
func at(after time.Duration) time.Time { return time.Unix(1_800_000_000, 0).Add(after) }

func queued(n int) loadreport.Report { return loadreport.Report{Queued: n} }

var _ = Describe("A report's age", func() {
	DescribeTable("is", func(since time.Duration, want loadreport.Age, name string) {
		Expect(loadreport.AgeOf(since)).To(Equal(want))
		Expect(want.String()).To(Equal(name))
	},
		Entry("fresh when a clock went back", -time.Second, loadreport.Fresh, "fresh"),
		Entry("fresh at once", time.Duration(0), loadreport.Fresh, "fresh"),
		Entry("fresh for a second", loadreport.FreshFor, loadreport.Fresh, "fresh"),
		Entry("stale afterwards", loadreport.FreshFor+1, loadreport.Stale, "stale"),
		Entry("stale for a minute", loadreport.MissingAfter, loadreport.Stale, "stale"),
		Entry("missing afterwards", loadreport.MissingAfter+1, loadreport.Missing, "missing"),
	)
})

var _ = Describe("A tracker", func() {
	var t *loadreport.Tracker
	BeforeEach(func() {
		t = &loadreport.Tracker{}
		t.Follow([]string{"a", "b"})
	})
	get := func(id string, now time.Duration) (int, loadreport.Age) {
		r, _, age := t.Get(id, at(now))
		return r.Queued, age
	}

	It("has nothing of whom it has not heard", func() {
		n, age := get("a", 0)
		Expect(age).To(Equal(loadreport.Missing))
		Expect(n).To(BeZero())
		Expect(t.All(at(0))).To(Equal([]loadreport.Entry{{Instance: "a"}, {Instance: "b"}}))
	})

	It("holds the newest report, which ages", func() {
		t.Put("a", queued(1), at(0))
		t.Put("a", queued(2), at(time.Second))
		for _, want := range []struct {
			now time.Duration
			n   int
			age loadreport.Age
		}{
			{time.Second, 2, loadreport.Fresh},
			{2*time.Second + 1, 2, loadreport.Stale},
			{time.Minute + time.Second + 1, 0, loadreport.Missing},
		} {
			n, age := get("a", want.now)
			Expect(age).To(Equal(want.age))
			Expect(n).To(Equal(want.n))
		}
		_, age := get("b", time.Second)
		Expect(age).To(Equal(loadreport.Missing))
	})

	It("takes the reports of who is far away for fresh for longer", func() {
		t.Follow([]string{"a"}, "f")
		t.Put("f", queued(1), at(0))
		for now, want := range map[time.Duration]loadreport.Age{
			3 * time.Second: loadreport.Fresh, 3*time.Second + 1: loadreport.Stale, time.Minute + 1: loadreport.Missing,
		} {
			_, age := get("f", now)
			Expect(age).To(Equal(want))
		}
	})

	It("never goes back to an earlier one", func() {
		t.Put("a", queued(2), at(time.Second))
		t.Put("a", queued(1), at(0))
		n, _ := get("a", time.Second)
		Expect(n).To(Equal(2))
	})

	It("forgets who has left, takes nothing from them, and starts anew when they are back", func() {
		t.Put("a", queued(1), at(0))
		t.Put("b", queued(2), at(0))
		t.Follow([]string{"b"})
		t.Put("a", queued(3), at(1))
		Expect(t.All(at(time.Second))).To(Equal([]loadreport.Entry{{Instance: "b", Report: queued(2), Age: loadreport.Fresh, Heard: true, Since: time.Second}}))
		_, age := get("a", 1)
		Expect(age).To(Equal(loadreport.Missing))
		t.Follow([]string{"a", "b"})
		_, age = get("a", 1)
		Expect(age).To(Equal(loadreport.Missing))
	})

	It("agrees with a plain list of what was put, whatever the order", func() {
		rapid.Check(GinkgoT(), func(rt *rapid.T) {
			tracker := &loadreport.Tracker{}
			tracker.Follow([]string{"0", "1"})
			newest := map[string]time.Duration{}
			for i := range rapid.IntRange(0, 30).Draw(rt, "puts") {
				id := fmt.Sprint(rapid.IntRange(0, 2).Draw(rt, "instance"))
				when := time.Duration(rapid.IntRange(0, 100).Draw(rt, "second")) * time.Second
				tracker.Put(id, queued(int(when/time.Second)), at(when))
				if last, ok := newest[id]; id != "2" && (!ok || when >= last) {
					newest[id] = when
				}
				_ = i
			}
			now := time.Duration(rapid.IntRange(100, 200).Draw(rt, "now")) * time.Second
			for _, id := range []string{"0", "1", "2"} {
				when, ok := newest[id]
				want := loadreport.Missing
				if ok {
					want = loadreport.AgeOf(now - when)
				}
				r, _, age := tracker.Get(id, at(now))
				if age != want || age != loadreport.Missing && r.Queued != int(when/time.Second) {
					rt.Fatalf("%s: %v %v, want %v of %v", id, r, age, want, when)
				}
			}
		})
	})
})

func BenchmarkGet(b *testing.B) {
	t := &loadreport.Tracker{}
	t.Follow([]string{"a"})
	t.Put("a", full(), at(0))
	now := at(0)
	b.ReportAllocs()
	for b.Loop() {
		t.Get("a", now)
	}
}
