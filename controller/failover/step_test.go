package failover_test

import (
	"fmt"
	"maps"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	"pgregory.net/rapid"

	"github.com/mrgc/mrgc/controller/failover"
	"github.com/mrgc/mrgc/internal/fleet"
)

const (
	use1 fleet.Region = "use1"
	use2 fleet.Region = "use2"
	usw2 fleet.Region = "usw2"
)

var epoch = time.Unix(1_790_000_000, 0)

// stage is a machine, and an accelerator that does what it is told.
type stage struct {
	config failover.Config
	state  failover.State
	now    time.Time
	term   int64
	saw    map[fleet.Region]map[fleet.Region]failover.Verdict // observer, then region
	dials  map[fleet.Region]int
	last   []failover.Action
}

func newStage() *stage {
	s := &stage{config: failover.Defaults(use1, use2, usw2), now: epoch, term: 1, saw: map[fleet.Region]map[fleet.Region]failover.Verdict{}, dials: map[fleet.Region]int{}}
	Expect(s.config.Check()).To(Succeed())
	s.state = failover.Initial(s.config, epoch)
	for _, from := range s.config.Regions {
		s.saw[from] = map[fleet.Region]failover.Verdict{}
		s.dials[from] = 100
	}
	s.everyoneSees(use1, failover.Up)
	s.everyoneSees(use2, failover.Up)
	s.everyoneSees(usw2, failover.Up)
	return s
}

func (s *stage) everyoneSees(region fleet.Region, v failover.Verdict) {
	for from := range s.saw {
		s.sees(from, region, v)
	}
}

func (s *stage) sees(from, region fleet.Region, v failover.Verdict) {
	if s.saw[from] == nil {
		s.saw[from] = map[fleet.Region]failover.Verdict{}
	}
	s.saw[from][region] = v
}

// silent is an observer that is not heard of.
func (s *stage) silent(from fleet.Region) { delete(s.saw, from) }

// dies is a region of which nothing is heard, and which the others see down.
func (s *stage) dies(region fleet.Region) {
	s.everyoneSees(region, failover.Down)
	s.silent(region)
}

// lives is one of which everything is heard again, and which all see well.
func (s *stage) lives(region fleet.Region) {
	for _, other := range s.config.Regions {
		s.sees(region, other, failover.Up)
	}
	s.everyoneSees(region, failover.Up)
}

func (s *stage) step() {
	views := map[fleet.Region]failover.View{}
	for from, of := range s.saw {
		views[from] = failover.View{Freshness: failover.Fresh, Of: of}
	}
	s.state, s.last = failover.Step(s.config, s.state, failover.Observation{Term: s.term, Views: views, Dials: maps.Clone(s.dials)}, s.now)
	for _, a := range s.last {
		if a.Kind == failover.SetDial {
			s.dials[a.Region] = a.Dial
		}
	}
}

// goes steps every second for so long.
func (s *stage) goes(d time.Duration) {
	for end := s.now.Add(d); s.now.Before(end); s.now = s.now.Add(time.Second) {
		s.step()
	}
}

func (s *stage) phase(r fleet.Region) failover.Phase { return s.state.Regions[r].Phase }

func (s *stage) order(r fleet.Region, kind failover.OrderKind) error {
	next, err := failover.Obey(s.state, r, failover.Order{Kind: kind, By: "ann", Why: "because", At: s.now})
	s.state = next
	return err
}

var _ = Describe("A region", func() {
	It("is taken out within ten seconds of its death, and drained", func() {
		s := newStage()
		s.goes(time.Minute)
		s.dies(use1)
		s.step()
		Expect(s.phase(use1)).To(Equal(failover.Degraded), "suspected at once")
		Expect(s.dials[use1]).To(Equal(100))
		s.goes(7 * time.Second)
		Expect(s.phase(use1)).To(Equal(failover.FailoverActive))
		Expect(s.dials).To(Equal(map[fleet.Region]int{use1: 0, use2: 100, usw2: 100}))
		Expect(s.state.Regions[use1].Drain).To(BeTrue())
		Expect(s.state.Regions[use1].Reason).To(ContainSubstring("down by 2"))
	})

	It("is taken out when it is cut off from both others, though it sees them down", func() {
		s := newStage()
		s.goes(time.Minute)
		for _, other := range []fleet.Region{use2, usw2} {
			s.sees(use1, other, failover.Down)
			s.sees(other, use1, failover.Down)
		}
		s.goes(8 * time.Second)
		Expect(s.dials).To(Equal(map[fleet.Region]int{use1: 0, use2: 100, usw2: 100}))
		s.goes(time.Hour)
		Expect(s.dials).To(Equal(map[fleet.Region]int{use1: 0, use2: 100, usw2: 100}))
		s.lives(use1)
		s.goes(15 * time.Minute)
		Expect(s.dials).To(HaveEach(100))
	})

	It("says what it did, once", func() {
		s := newStage()
		s.dies(use1)
		var drains, dials int
		for range 60 {
			s.goes(time.Second)
			for _, a := range s.last {
				switch a.Kind {
				case failover.StartDrain:
					drains++
				case failover.SetDial:
					dials++
				}
			}
		}
		Expect([]int{drains, dials}).To(Equal([]int{1, 1}))
	})

	DescribeTable("that dies is taken out while another serves, well or behind", func(others failover.Verdict, change func(*stage), taken bool) {
		s := newStage()
		for _, from := range s.config.Regions {
			for _, r := range s.config.Regions {
				if r != from { // what is a region's own does not lag
					s.sees(from, r, others)
				}
			}
		}
		if change != nil {
			change(s)
		}
		s.goes(time.Hour)
		Expect(s.dials).To(HaveEach(100), "being behind is no reason to go")
		s.dies(use1)
		s.goes(8 * time.Second)
		dial, phase := 100, failover.Degraded
		if taken {
			dial, phase = 0, failover.FailoverActive
		}
		Expect(s.dials).To(Equal(map[fleet.Region]int{use1: dial, use2: 100, usw2: 100}))
		Expect(s.phase(use1)).To(Equal(phase))
	},
		Entry("all well", failover.Up, nil, true),
		Entry("each behind for the others", failover.Behind, nil, true),
		Entry("each behind for itself, too", failover.Behind, func(s *stage) { s.sees(use2, use2, failover.Behind); s.sees(usw2, usw2, failover.Behind) }, true),
		Entry("behind for some, and well for others", failover.Behind, func(s *stage) { s.sees(usw2, use2, failover.Up) }, true),
		Entry("each behind, and seen down by one", failover.Behind, func(s *stage) { s.sees(usw2, use2, failover.Down); s.sees(use2, usw2, failover.Down) }, false),
		Entry("nobody can tell", failover.Verdict(""), nil, false),
	)

	It("comes back after two minutes of health, in four stages of a minute", func() {
		s := newStage()
		s.dies(use1)
		s.goes(20 * time.Second)
		s.lives(use1)
		s.goes(2 * time.Minute)
		Expect(s.phase(use1)).To(Equal(failover.FailoverActive))
		var dials []int
		for range 5 {
			s.goes(time.Minute)
			dials = append(dials, s.dials[use1])
		}
		Expect(dials).To(Equal([]int{10, 25, 50, 100, 100}))
		s.goes(2 * time.Second)
		Expect(s.phase(use1)).To(Equal(failover.Normal))
		Expect(s.state.Regions[use1].Drain).To(BeFalse())
	})

	It("does not come back while its state lags", func() {
		s := newStage()
		s.dies(use1)
		s.goes(20 * time.Second)
		s.lives(use1)
		s.everyoneSees(use1, failover.Behind)
		s.goes(time.Hour)
		Expect(s.phase(use1)).To(Equal(failover.FailoverActive))
	})

	It("stays at its stage while not all see it well", func() {
		s := newStage()
		s.dies(use1)
		s.goes(20 * time.Second)
		s.lives(use1)
		s.goes(4 * time.Minute)
		Expect(s.dials[use1]).To(Equal(25))
		s.sees(use2, use1, failover.Down)
		s.goes(time.Hour)
		Expect(s.phase(use1)).To(Equal(failover.Recovering))
		Expect(s.dials[use1]).To(Equal(25))
	})

	It("stays at its stage until the accelerator has it", func() {
		s := newStage()
		s.dies(use1)
		s.goes(20 * time.Second)
		s.lives(use1)
		for range 1000 {
			s.step()
			s.dials[use1] = 0 // it does not listen
			s.now = s.now.Add(time.Second)
		}
		Expect(s.state.Regions[use1].Dial).To(Equal(10))
	})

	It("turns its dial ten minutes after the accelerator had the last turn, not after it was decided", func() {
		s := newStage()
		s.dies(use1)
		for range 300 {
			s.step()
			s.dials[use1] = 100 // it does not listen
			s.now = s.now.Add(time.Second)
		}
		s.goes(2 * time.Second)
		had := s.now
		s.lives(use1)
		s.goes(3 * time.Minute)
		Expect(s.dials[use1]).To(Equal(10))
		s.dies(use1)
		for s.dials[use1] != 0 {
			s.goes(time.Second)
		}
		Expect(s.now.Sub(had)).To(BeNumerically(">=", 10*time.Minute))
	})

	It("that dies within its recovery is drained at once, its dial moves when it may, and the next recovery is later", func() {
		s := newStage()
		s.dies(use1)
		s.goes(20 * time.Second)
		s.lives(use1)
		s.goes(3 * time.Minute)
		Expect(s.dials[use1]).To(Equal(10))
		s.dies(use1)
		s.goes(7 * time.Second)
		Expect(s.phase(use1)).To(Equal(failover.FailoverActive))
		Expect(s.state.Regions[use1].Drain).To(BeTrue())
		Expect(s.dials[use1]).To(Equal(10), "down, up and down within ten minutes would be flapping")
		s.goes(8 * time.Minute)
		Expect(s.dials[use1]).To(Equal(0))
		s.lives(use1)
		s.goes(3*time.Minute + 55*time.Second)
		Expect(s.phase(use1)).To(Equal(failover.FailoverActive), "four minutes this time")
	})

	It("with too little ready gets half of its share after a minute, and all of it back", func() {
		s := newStage()
		s.everyoneSees(use1, failover.Partial)
		s.goes(59 * time.Second)
		Expect(s.dials[use1]).To(Equal(100))
		s.goes(3 * time.Second)
		Expect(s.phase(use1)).To(Equal(failover.Degraded))
		Expect(s.dials[use1]).To(Equal(50))
		s.everyoneSees(use1, failover.Up)
		s.goes(4 * time.Minute)
		Expect(s.phase(use1)).To(Equal(failover.Normal))
		Expect(s.dials[use1]).To(Equal(100))
	})

	It("that is suspected for a moment is normal again after a minute of calm", func() {
		s := newStage()
		s.sees(use2, use1, failover.Down)
		s.goes(3 * time.Second)
		Expect(s.phase(use1)).To(Equal(failover.Degraded))
		s.sees(use2, use1, failover.Up)
		s.goes(59 * time.Second)
		Expect(s.phase(use1)).To(Equal(failover.Degraded))
		s.goes(3 * time.Second)
		Expect(s.phase(use1)).To(Equal(failover.Normal))
	})
})

var _ = Describe("A state", func() {
	It("is the same until something is to be stored", func() {
		s := newStage()
		s.goes(time.Second)
		before := s.state
		s.goes(time.Minute)
		Expect(s.state.Same(before)).To(BeTrue())
		s.dies(use1)
		s.step()
		Expect(s.state.Same(before)).To(BeFalse())
		before = s.state
		s.term++
		s.step()
		Expect(s.state.Same(before)).To(BeFalse())
	})
})

var _ = Describe("A standby", func() {
	It("that has watched takes over where it is, and by what it has seen itself", func() {
		stored, standby := newStage(), newStage()
		standby.term = 0
		Expect(stored.order(usw2, failover.Drain)).To(Succeed())
		standby.goes(time.Minute)
		standby.dies(use1)
		standby.goes(4 * time.Second)
		standby.state, standby.term = stored.state.Watched(standby.state, 2), 2
		Expect(standby.phase(usw2)).To(Equal(failover.FailoverActive))
		standby.goes(3 * time.Second)
		Expect(standby.phase(use1)).To(Equal(failover.FailoverActive))
	})
})

var _ = Describe("Nobody is judged", func() {
	DescribeTable("by too few", func(change func(*stage)) {
		s := newStage()
		s.goes(time.Minute)
		change(s)
		s.goes(time.Hour)
		for r, dial := range s.dials {
			Expect(dial).To(Equal(100), string(r))
			Expect(s.phase(r)).To(BeElementOf(failover.Normal, failover.Degraded))
		}
	},
		Entry("by itself alone", func(s *stage) { s.sees(use1, use1, failover.Down) }),
		Entry("by one other alone", func(s *stage) { s.sees(use2, use1, failover.Down) }),
		Entry("while the other's view is missing", func(s *stage) { s.sees(use2, use1, failover.Down); s.silent(usw2) }),
		Entry("while all are silent", func(s *stage) { s.silent(use1); s.silent(use2); s.silent(usw2) }),
		Entry("when every region looks down", func(s *stage) {
			for _, r := range s.config.Regions {
				s.everyoneSees(r, failover.Down)
			}
		}),
		Entry("when a partition cuts each off from both others", func(s *stage) {
			for from := range s.saw {
				for _, r := range s.config.Regions {
					if r != from {
						s.sees(from, r, failover.Down)
					}
				}
			}
		}),
	)

	It("when there are only two regions", func() {
		s := newStage()
		s.config = failover.Defaults(use1, use2)
		s.state = failover.Initial(s.config, epoch)
		s.everyoneSees(use1, failover.Down)
		s.goes(time.Hour)
		Expect(s.dials[use1]).To(Equal(100))
	})

	It("on views that are stale", func() {
		s := newStage()
		views := map[fleet.Region]failover.View{}
		for from, of := range s.saw {
			views[from] = failover.View{Freshness: failover.Stale, Of: of}
			of[use1] = failover.Down
		}
		for range 60 {
			s.state, s.last = failover.Step(s.config, s.state, failover.Observation{Term: 1, Views: views, Dials: s.dials}, s.now)
			s.now = s.now.Add(time.Second)
			Expect(s.last).To(BeEmpty())
		}
		Expect(s.phase(use1)).To(Equal(failover.Normal))
	})

	It("on what was seen before a new leader, or before a gap", func() {
		s := newStage()
		s.dies(use1)
		for range 10 {
			s.goes(3 * time.Second)
			s.term++
		}
		Expect(s.phase(use1)).To(Equal(failover.Degraded))
		for range 10 {
			s.goes(3 * time.Second)
			s.now = s.now.Add(6 * time.Second)
		}
		Expect(s.phase(use1)).To(Equal(failover.Degraded))
		s.goes(7 * time.Second)
		Expect(s.phase(use1)).To(Equal(failover.FailoverActive))
	})
})

var _ = Describe("A dial is not lowered", func() {
	out := func(s *stage) { s.dies(use1); s.goes(20 * time.Second) }
	It("while the accelerator does not say that another one is at 100 %", func() {
		s := newStage()
		s.dials = map[fleet.Region]int{}
		s.dies(use1)
		s.goes(time.Minute)
		Expect(s.phase(use1)).To(Equal(failover.Degraded))
		Expect(s.state.Regions[use1].Reason).To(ContainSubstring("no other region serves"))
	})
	It("within half a minute of another region's", func() {
		s := newStage()
		s.goes(time.Minute)
		s.everyoneSees(use1, failover.Down)
		s.everyoneSees(use2, failover.Down)
		s.goes(20 * time.Second)
		Expect(s.dials).To(Equal(map[fleet.Region]int{use1: 0, use2: 100, usw2: 100}))
		s.goes(20 * time.Second)
		Expect(s.dials).To(Equal(map[fleet.Region]int{use1: 0, use2: 0, usw2: 100}))
	})
	It("when it is the last", func() {
		s := newStage()
		for _, r := range []fleet.Region{use1, use2} {
			s.everyoneSees(r, failover.Down)
			s.goes(time.Minute)
		}
		s.everyoneSees(use1, failover.Behind) // so that not all look down
		s.everyoneSees(usw2, failover.Down)
		s.goes(time.Hour)
		Expect(s.dials[usw2]).To(Equal(100))
		Expect(s.state.Regions[usw2].Reason).To(ContainSubstring("not taken out"))
	})
	It("again until the accelerator has it, and what raises one comes first", func() {
		s := newStage()
		out(s)
		s.dials[use1], s.dials[use2] = 100, 0
		s.step()
		Expect(s.last).To(HaveLen(2))
		Expect([]any{s.last[0].Region, s.last[0].Dial}).To(Equal([]any{use2, 100}))
		Expect([]any{s.last[1].Region, s.last[1].Dial}).To(Equal([]any{use1, 0}))
	})
})

var _ = Describe("An operator", func() {
	It("drains a region and restores it in stages, without waiting", func() {
		s := newStage()
		Expect(s.order(use1, failover.Drain)).To(Succeed())
		s.step()
		Expect(s.dials[use1]).To(Equal(0))
		s.goes(time.Hour)
		Expect(s.phase(use1)).To(Equal(failover.FailoverActive), "well, but ordered")
		Expect(s.order(use1, failover.Restore)).To(Succeed())
		s.step()
		Expect(s.dials[use1]).To(Equal(10))
		s.goes(5 * time.Minute)
		Expect(s.phase(use1)).To(Equal(failover.Normal))
	})
	It("drains and resumes: the machine validates", func() {
		s := newStage()
		Expect(s.order(use1, failover.Drain)).To(Succeed())
		s.goes(time.Minute)
		Expect(s.order(use1, failover.Resume)).To(Succeed())
		s.goes(30 * time.Second)
		Expect(s.dials[use1]).To(Equal(0))
		s.goes(time.Minute)
		Expect(s.dials[use1]).To(Equal(10))
	})
	It("holds a region where it is", func() {
		s := newStage()
		Expect(s.order(use1, failover.Hold)).To(Succeed())
		s.dies(use1)
		s.goes(time.Hour)
		Expect(s.phase(use1)).To(Equal(failover.Normal))
		Expect(s.dials[use1]).To(Equal(100))
		Expect(s.order(use1, failover.Resume)).To(Succeed())
		s.goes(10 * time.Second)
		Expect(s.dials[use1]).To(Equal(0))
	})
	It("cannot drain the last", func() {
		s := newStage()
		Expect(s.order(use1, failover.Drain)).To(Succeed())
		Expect(s.order(use2, failover.Drain)).To(Succeed())
		Expect(s.order(usw2, failover.Drain)).To(MatchError(failover.ErrLast))
		s.goes(time.Minute)
		Expect(s.dials[usw2]).To(Equal(100))
	})
	It("is told what is no order, and no region", func() {
		s := newStage()
		Expect(s.order(use1, "drian")).To(MatchError(ContainSubstring("want hold, drain, restore or resume")))
		Expect(s.order("use3", failover.Drain)).To(MatchError(ContainSubstring("no such region")))
	})
})

var _ = Describe("Whatever is seen", func() {
	It("some region is at 100 %, and no dial turns twice in ten minutes", func() {
		rapid.Check(GinkgoT(), func(t *rapid.T) {
			s := newStage()
			moves := map[fleet.Region][]move{}
			before := maps.Clone(s.dials)
			verdict := rapid.SampledFrom([]failover.Verdict{failover.Up, failover.Up, failover.Up, failover.Down, failover.Partial, failover.Behind, ""})
			for range rapid.IntRange(5, 60).Draw(t, "changes") {
				from, of := rapid.SampledFrom(s.config.Regions).Draw(t, "from"), rapid.SampledFrom(s.config.Regions).Draw(t, "of")
				switch rapid.IntRange(0, 5).Draw(t, "what") {
				case 0:
					s.sees(from, of, verdict.Draw(t, "verdict"))
				case 1:
					s.dies(of)
				case 2, 3:
					s.lives(of)
				case 4:
					s.everyoneSees(of, verdict.Draw(t, "verdict"))
				case 5:
					s.term++
				}
				for range rapid.IntRange(1, 400).Draw(t, "seconds") {
					s.step()
					full := 0
					for r, dial := range s.dials {
						if dial == 100 {
							full++
						}
						if dial != before[r] {
							moves[r] = append(moves[r], move{s.now, dial > before[r]})
						}
					}
					if full == 0 {
						t.Fatalf("no region at 100 %%: %v", s.dials)
					}
					before = maps.Clone(s.dials)
					s.now = s.now.Add(time.Second)
				}
			}
			for r, m := range moves {
				if err := flaps(m); err != nil {
					t.Fatalf("%s: %v", r, err)
				}
			}
		})
	})
})

type move struct {
	at time.Time
	up bool
}

// flaps finds two turns within ten minutes.
func flaps(moves []move) error {
	for i := range moves {
		turns := 0
		for j := i + 1; j < len(moves) && moves[j].at.Sub(moves[i].at) < 10*time.Minute; j++ {
			if moves[j].up != moves[j-1].up {
				turns++
			}
		}
		if turns > 1 {
			return fmt.Errorf("%d turns within ten minutes from %v", turns, moves[i].at)
		}
	}
	return nil
}
