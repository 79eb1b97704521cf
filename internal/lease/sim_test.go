package lease_test

import (
	"container/heap"
	"fmt"
	"math/rand/v2"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	"pgregory.net/rapid"

	"github.com/mrgc/mrgc/internal/lease"
)

// world is candidates, each with a clock of its own, and a store that loses
// requests and answers, in virtual time.
type world struct {
	random *rand.Rand
	now    time.Duration // real time
	events events

	record  lease.Record
	version int64

	candidates []*process
	restarts   int
	calm       bool // nothing is lost, nobody pauses or dies

	highest  int64            // token of any acquisition
	holders  map[int64]string // by token
	fence    int64            // of what the holder writes to
	overlaps int
	wrong    []string
}

// process is a candidate with a clock that shows anything, and runs at a rate of
// its own.
type process struct {
	name   string
	offset time.Duration
	rate   float64
	*lease.Candidate
	place string // of all lives; empty: each is on its own
	life  int    // counts restarts: what was under way for an earlier life is nobody's
}

func (p *process) clock(real time.Duration) time.Time {
	return begin.Add(p.offset + time.Duration(float64(real)*p.rate))
}

// after is how much real time passes until the clock shows a time.
func (p *process) after(real time.Duration, show time.Time) time.Duration {
	return max(time.Duration(float64(show.Sub(p.clock(real)))/p.rate), 0) + 1
}

type event struct {
	at   time.Duration
	do   func()
	rank int
}

type events []event

func (e events) Len() int { return len(e) }
func (e events) Less(i, j int) bool {
	return e[i].at < e[j].at || e[i].at == e[j].at && e[i].rank < e[j].rank
}
func (e events) Swap(i, j int) { e[i], e[j] = e[j], e[i] }
func (e *events) Push(x any)   { *e = append(*e, x.(event)) }
func (e *events) Pop() any {
	last := (*e)[len(*e)-1]
	*e = (*e)[:len(*e)-1]
	return last
}

func newWorld(seed uint64, count int, slowest, fastest float64) *world {
	w := &world{random: rand.New(rand.NewPCG(seed, 1)), holders: map[int64]string{}}
	for i := range count {
		p := &process{
			place:  []string{"", fmt.Sprintf("place %d/", i)}[w.random.IntN(2)],
			offset: time.Duration(w.random.Int64N(int64(20000*time.Hour))) - 10000*time.Hour,
			rate:   slowest + w.random.Float64()*(fastest-slowest),
		}
		w.candidates = append(w.candidates, p)
		w.start(p)
	}
	return w
}

func (w *world) later(by time.Duration, do func()) {
	heap.Push(&w.events, event{at: w.now + by, do: do, rank: len(w.events)})
}

// some is a random time up to a limit, mostly much less, with a pause at times.
func (w *world) some(limit time.Duration) time.Duration {
	d := time.Duration(w.random.Int64N(int64(limit)))
	if !w.calm && w.random.IntN(20) == 0 {
		d += time.Duration(w.random.Int64N(int64(3 * length))) // paused, or stuck in the network
	}
	return d
}

func (w *world) lost() bool { return !w.calm && w.random.IntN(10) == 0 }

// start begins a life of a candidate, under a name that nobody had.
func (w *world) start(p *process) {
	w.restarts++
	p.life++
	p.name = fmt.Sprintf("%s%d", p.place, w.restarts)
	var err error
	p.Candidate, err = lease.New(lease.Config{Self: p.name, Place: p.place, Length: length})
	Expect(err).NotTo(HaveOccurred())
	w.alive(p, w.some(time.Second), func() { w.step(p) })
	if !w.calm {
		w.alive(p, time.Duration(w.random.Int64N(int64(20*length))), func() { w.start(p) }) // it dies, and another comes
	}
	w.act(p)
}

// alive runs something later, unless the candidate has died by then.
func (w *world) alive(p *process, by time.Duration, do func()) {
	life := p.life
	w.later(by, func() {
		if p.life == life {
			do()
		}
	})
}

// act has the candidate write somewhere whenever it believes that it holds the
// lease; the write may be under way for long.
func (w *world) act(p *process) {
	w.alive(p, w.some(time.Second), func() {
		if token, _ := p.Held(p.clock(w.now)); token != 0 {
			name := p.name
			w.later(w.some(time.Second), func() { w.write(name, token) })
		}
		if !w.calm && w.random.IntN(5) == 0 {
			Expect(p.Last(length * time.Duration(1+w.random.IntN(3)))).To(Succeed())
		} else if w.calm {
			Expect(p.Last(length)).To(Succeed())
		}
		w.act(p)
	})
}

// write arrives where fencing tokens are looked at.
func (w *world) write(name string, token int64) {
	if token < w.fence {
		return
	}
	w.fence = token
	if w.holders[token] != name {
		w.wrong = append(w.wrong, fmt.Sprintf("%s acts with token %d, which is %s's", name, token, w.holders[token]))
	}
}

// step has a candidate do what is next.
func (w *world) step(p *process) {
	do := p.Next(p.clock(w.now))
	switch do.Kind {
	case lease.Wait:
		w.alive(p, p.after(w.now, do.At)+w.some(time.Millisecond), func() { w.step(p) })
	case lease.Read:
		w.request(p, func() func() {
			record, version := w.record, w.version
			return func() { p.Read(record, version, p.clock(w.now)) }
		})
	case lease.Write:
		name := p.name
		w.request(p, func() func() {
			if w.version != do.Version {
				return p.Refused
			}
			w.stored(name, do.Record)
			version := w.version
			return func() { p.Wrote(version) }
		})
	}
}

func (w *world) stored(name string, record lease.Record) {
	if record.Token != w.record.Token || record.Holder != w.record.Holder {
		if record.Token <= w.highest {
			w.wrong = append(w.wrong, fmt.Sprintf("%s takes token %d after %d", name, record.Token, w.highest))
		}
		w.highest = max(w.highest, record.Token)
		w.holders[record.Token] = name
	}
	w.record = record
	w.version++
}

// request reaches the store, or not, and its answer the candidate, or not.
func (w *world) request(p *process, effect func() (answer func())) {
	there, back := w.some(200*time.Millisecond), w.some(200*time.Millisecond)
	life := p.life
	unknown := func() { p.Unknown(p.clock(w.now)); w.step(p) }
	if w.lost() {
		w.alive(p, there+back, unknown)
		return
	}
	dropped := w.lost()
	w.later(there, func() { // it arrives even when its sender has died
		answer := effect()
		if p.life != life {
			return
		}
		if dropped {
			w.alive(p, back, unknown)
			return
		}
		w.alive(p, back, func() {
			answer()
			w.countHolders()
			w.step(p)
		})
	})
}

func (w *world) holding() (names []string) {
	for _, p := range w.candidates {
		if token, _ := p.Held(p.clock(w.now)); token != 0 {
			names = append(names, p.name)
		}
	}
	return names
}

// countHolders is called when somebody may have come to hold the lease.
func (w *world) countHolders() {
	if len(w.holding()) > 1 {
		w.overlaps++
	}
}

func (w *world) run(until time.Duration) {
	for len(w.events) > 0 && w.events[0].at <= until {
		next := heap.Pop(&w.events).(event)
		w.now = next.at
		next.do()
	}
	w.now = until
}

var _ = Describe("Candidates, whatever their clocks show, whoever is paused or dies, whatever is lost", func() {
	const story = 100 * length

	It("are holders one at a time, act by tokens that rise, and one is there when all is calm", func() {
		rapid.Check(GinkgoT(), func(t *rapid.T) {
			w := newWorld(rapid.Uint64().Draw(t, "seed"), rapid.IntRange(1, 4).Draw(t, "candidates"), 0.95, 1.05)
			w.run(story)
			if w.overlaps > 0 || len(w.wrong) > 0 {
				t.Fatalf("%d times more than one holder; %q", w.overlaps, w.wrong)
			}
			w.calm = true
			w.run(story + 10*length)
			w.run(story + 20*length) // those who were to die have
			for range 20 {
				w.run(w.now + length/7)
				if holding := w.holding(); len(holding) > 1 {
					t.Fatalf("held by %q", holding)
				}
			}
			if w.version == 0 {
				t.Fatal("nobody ever held it")
			}
		})
	})

	It("are soon one again after the holder has died", func() {
		for seed := range uint64(100) {
			w := newWorld(seed, 2, 0.95, 1.05)
			w.events = nil
			w.calm = true
			for _, p := range w.candidates {
				w.start(p)
			}
			w.run(10 * length)
			holding := w.holding()
			Expect(holding).To(HaveLen(1))
			for _, p := range w.candidates {
				if p.name == holding[0] {
					p.life++ // nothing of it happens any more
					p.Refused()
				}
			}
			died := w.now
			for len(w.holding()) == 0 {
				w.run(w.now + 10*time.Millisecond)
			}
			// A third until it is looked at, the length and its grace, and the calls.
			Expect(w.now - died).To(BeNumerically("<", length/3+length+length/9+length/10+time.Second))
		}
	})

	It("may be two when clocks run at other rates than promised; only one of them can write then", func() {
		overlaps := 0
		for seed := range uint64(200) {
			w := newWorld(seed, 3, 0.5, 2)
			w.run(story)
			overlaps += w.overlaps
			Expect(w.wrong).To(BeEmpty())
		}
		Expect(overlaps).To(BeNumerically(">", 0), "the check for overlaps finds them")
	})
})
