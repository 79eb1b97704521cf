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
)

var _ = Describe("InFlight", func() {
	const timeout = 10 * time.Second

	It("moves a request that is added again", func() {
		f := extproc.NewInFlight(timeout)
		f.Add("r", "a", epoch())
		f.Add("r", "b", epoch())
		Expect(f.Counts()).To(Equal(map[string]int{"b": 1}))
	})

	It("does not count a request that has no id", func() {
		f := extproc.NewInFlight(timeout)
		f.Add("", "a", epoch())
		Expect(f.Count("a")).To(BeZero())
	})

	It("forgets what has expired when something is added", func() {
		f := extproc.NewInFlight(timeout)
		f.Add("old", "a", epoch())
		f.Add("new", "a", epoch().Add(timeout+1))
		Expect(f.Count("a")).To(Equal(1))
		f.Done("old")
		Expect(f.Count("a")).To(Equal(1))
	})

	It("never drifts from a plain list of requests", func() {
		rapid.Check(GinkgoT(), func(t *rapid.T) {
			f, now := extproc.NewInFlight(timeout), epoch()
			type flight struct {
				instance string
				start    time.Time
			}
			twin := map[string]flight{}
			expire := func() {
				maps.DeleteFunc(twin, func(_ string, r flight) bool { return now.Sub(r.start) > timeout })
			}
			// Few names, so that requests are added and ended twice.
			request := rapid.SampledFrom([]string{"1", "2", "3", "4", "5", "6"})
			instance := rapid.SampledFrom([]string{"a", "b", "c"})
			t.Repeat(map[string]func(*rapid.T){
				"add": func(t *rapid.T) {
					id, in := request.Draw(t, "request"), instance.Draw(t, "instance")
					f.Add(id, in, now)
					expire()
					twin[id] = flight{in, now}
				},
				"move": func(t *rapid.T) {
					id, in := request.Draw(t, "request"), instance.Draw(t, "instance")
					f.Move(id, in)
					if r, ok := twin[id]; ok {
						twin[id] = flight{in, r.start}
					}
				},
				"done": func(t *rapid.T) {
					id := request.Draw(t, "request")
					f.Done(id)
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
					want := map[string]int{}
					for _, r := range twin {
						want[r.instance]++
					}
					if got := f.Counts(); !maps.Equal(got, want) {
						t.Fatalf("counts %v, want %v", got, want)
					}
					for _, in := range []string{"a", "b", "c"} {
						if f.Count(in) != want[in] {
							t.Fatalf("count of %s is %d, want %d", in, f.Count(in), want[in])
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
					f.Add(id, fmt.Sprintf("in-%d", i%3), epoch())
					f.Count("in-0")
					f.Expire(epoch())
					f.Done(id)
					f.Done(fmt.Sprintf("%d-%d", (worker+1)%8, i)) // another's, perhaps not there
				}
			})
		}
		all.Wait()
		Expect(f.Counts()).To(BeEmpty())
	})
})
