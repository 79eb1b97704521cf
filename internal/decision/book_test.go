package decision_test

import (
	"fmt"
	"sync"
	"testing"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"

	"github.com/mrgc/mrgc/internal/decision"
	"github.com/mrgc/mrgc/internal/routing"
)

var _ = Describe("A book", func() {
	add := func(b *decision.Book, n int) {
		r := record(n, 0)
		candidates := r.Candidates
		r.Candidates = nil
		b.Add(&r, candidates)
		clear(candidates) // they are the caller's again
	}

	It("has the last decisions, whole", func() {
		var b decision.Book
		Expect(b.Last(10)).To(BeEmpty())
		for n := range decision.Kept + 5 {
			add(&b, n)
		}
		Expect(b.Last(2)).To(Equal([]decision.Record{record(decision.Kept+3, 0), record(decision.Kept+4, 0)}))
		Expect(b.Last(1 << 20)).To(HaveLen(decision.Kept))
		oldest, count := b.Oldest()
		Expect(oldest).To(Equal(record(5, 0).At))
		Expect(count).To(Equal(decision.Kept))
	})

	It("finds a request by the tenant's id and by Envoy's, until it is too old", func() {
		var b decision.Book
		add(&b, 1)
		r := record(1, 0)
		Expect(b.Find(r.Request.ID)).To(Equal([]decision.Record{r}))
		Expect(b.Find(r.EnvoyID)).To(Equal([]decision.Record{r}))
		Expect(b.Find("another")).To(BeEmpty())
		for n := range decision.Kept {
			add(&b, 2+n)
		}
		Expect(b.Find(r.EnvoyID)).To(BeEmpty())
	})

	It("gives both decisions over a request that came twice, the newest first", func() {
		var b decision.Book
		again := record(1, 0)
		again.At = again.At.Add(time.Second)
		add(&b, 1)
		b.Add(&again, again.Candidates)
		Expect(b.Find(again.Request.ID)).To(HaveExactElements(HaveField("At", again.At), HaveField("At", record(1, 0).At)))
	})

	It("keeps refusals apart, so that they push out nothing but each other", func() {
		var b decision.Book
		add(&b, 1)
		for n := range decision.Kept + 1 {
			b.Refuse(&decision.Record{Request: routing.Request{ID: fmt.Sprint(n)}, Refusal: decision.Refusal{Code: "invalid_api_key"}})
		}
		Expect(b.Last(10)).To(HaveLen(1))
		Expect(b.Find("0")).To(BeEmpty())
		Expect(b.Find(fmt.Sprint(decision.Kept))).To(HaveExactElements(HaveField("Refusal.Code", "invalid_api_key")))
	})

	It("notes what became of the newest decision that Envoy calls so, while it is there", func() {
		var b decision.Book
		add(&b, 1)
		end := func(at time.Time, o *decision.Outcome) {
			o.End, o.After = decision.EndServed, at.Add(time.Second).Sub(at)
		}
		b.Update(record(1, 0).EnvoyID, end)
		b.Update("unknown", end)
		Expect(b.Last(1)[0].Outcome).To(Equal(decision.Outcome{End: decision.EndServed, After: time.Second}))
		for n := range decision.Kept {
			add(&b, 2+n)
		}
		b.Update(record(1, 0).EnvoyID, end) // has no place any more
		for _, r := range b.Last(decision.Kept) {
			Expect(r.Outcome).To(BeZero())
		}
	})

	It("is safe for concurrent use", func() {
		var b decision.Book
		var all sync.WaitGroup
		for who := range 4 {
			all.Go(func() {
				for n := range 2 * decision.Kept / 4 {
					add(&b, who*decision.Kept+n)
					b.Update(fmt.Sprintf("envoy-%d", n), func(_ time.Time, o *decision.Outcome) { o.Attempts++ })
				}
			})
		}
		for range 10 {
			b.Find("envoy-1")
			b.Last(100)
		}
		all.Wait()
		Expect(b.Last(decision.Kept)).To(HaveLen(decision.Kept))
	})
})

// BenchmarkAdd is what a decision costs to note that had four candidates.
func BenchmarkAdd(b *testing.B) {
	var book decision.Book
	r := record(1, 0)
	candidates := append(r.Candidates, r.Candidates[0])
	r.Candidates = nil
	ids := make([]string, 2*decision.Kept)
	for i := range ids {
		ids[i] = fmt.Sprintf("01234567-89ab-cdef-0123-%012x", i)
	}
	n := 0
	b.ReportAllocs()
	for b.Loop() {
		n++
		r.EnvoyID = ids[n%len(ids)]
		book.Add(&r, candidates)
	}
}

// FuzzRead reads traces that anybody may have written: what is read is written
// and read again as it was, and can be explained and replayed.
func FuzzRead(f *testing.F) {
	RegisterTestingT(f)
	f.Add([]byte(trace(record(1, routing.PolicyScore), record(2, routing.PolicyRoundRobin))))
	f.Add([]byte(trace(decision.Record{At: now(), Refusal: decision.Refusal{Code: "invalid_api_key"}})))
	f.Fuzz(func(t *testing.T, content []byte) {
		RegisterTestingT(t)
		records, err := read(string(content))
		if err != nil {
			return
		}
		again, err := read(trace(records...))
		if err != nil || len(again) != len(records) {
			t.Fatalf("%d records, then %d: %v", len(records), len(again), err)
		}
		replay := decision.NewReplay(nil)
		for _, r := range records {
			decision.Explain(r, now())
			replay.Add(r)
		}
		replay.Result()
	})
}
