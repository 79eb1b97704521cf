package wash_test

import (
	"fmt"
	"slices"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	"pgregory.net/rapid"

	"github.com/mrgc/mrgc/internal/state"
	"github.com/mrgc/mrgc/parent/wash"
)

var (
	restarting = []wash.Kind{
		wash.Announce, wash.CheckModel, wash.PlantCanary, wash.KeepTurn, wash.StepAside, wash.AwaitIdle, wash.RestartEngine,
		wash.StartStandby, wash.SwitchOver, wash.StopOld, wash.CheckHealth, wash.CheckCanary, wash.StepBack,
	}
	restartingSteps = []string{
		"await_turn", "check_model", "plant_canary", "keep_turn", "step_aside", "clear_gpu", "restart_enclave", "check_health", "check_canary", "step_back",
	}
)

func restarts(c *wash.Config) { c.RestartEngine = true }

// play orders a wash that has its turn at once, and answers each action after a second as
// pass says; look sees the state while each is under way.
func play(c wash.Config, s wash.State, pass func(wash.Kind) bool, look func(wash.Kind, wash.State)) (wash.State, []wash.Action) {
	now := start.Add(time.Hour)
	s, all := c.Step(s, wash.Observation{Ordered: true, Turn: true}, now)
	for last := all[len(all)-1]; s.Wash != ""; last = all[len(all)-1] {
		look(last.Kind, s)
		now = now.Add(time.Second)
		var more []wash.Action
		s, more = c.Step(s, wash.Observation{Result: wash.Result{Wash: last.Wash, Kind: last.Kind, Passed: pass(last.Kind), Detail: "seen"}}, now)
		all = append(all, more...)
	}
	return s, all
}

func unseen(wash.Kind, wash.State) {}

var _ = Describe("A wash that restarts the engine", func() {
	It("steps aside before, serves nothing from then on, and steps back when all has passed", func() {
		c := config(restarts)
		var aside, closed []wash.Kind
		s, actions := play(c, wash.State{Washed: start}, always, func(kind wash.Kind, s wash.State) {
			Expect(s.WantsTurn()).To(BeTrue())
			Expect(s.KeepsTurn()).To(Equal(slices.Index(restarting, kind) >= 3), "from before it steps aside until it is back")
			if s.Aside() {
				aside = append(aside, kind)
			}
			if s.Closed() {
				closed = append(closed, kind)
			}
			Expect(c.Admits(s, 0)).To(Equal(!s.Closed()))
		})
		Expect(kinds(actions)).To(Equal(append(slices.Clone(restarting), wash.Record)))
		Expect(aside).To(Equal(restarting[4 : len(restarting)-1]))
		Expect(closed).To(Equal(restarting[5 : len(restarting)-1]))
		Expect(s.WantsTurn()).To(BeFalse())
		Expect(c.Admits(s, 5)).To(BeTrue())

		announced, row := actions[0].Row, actions[len(actions)-1].Row
		Expect(announced.Validate()).To(Succeed())
		Expect(announced.Open).To(Equal(state.WashUnderWay))
		Expect(row.Validate()).To(Succeed())
		Expect(row).To(And(HaveField("Passed", true), HaveField("Open", ""), HaveField("StartedAt", announced.StartedAt)))
		var names []string
		for _, step := range row.Steps {
			names = append(names, step.Name)
		}
		Expect(names).To(Equal(restartingSteps))
	})

	It("waits until it may, with nothing begun and nothing in quarantine, and says why", func() {
		c := config(restarts, func(c *wash.Config) { c.EveryRequests = 1 })
		s, actions := c.Step(wash.State{Washed: start}, wash.Observation{Ended: []string{"a"}}, start)
		Expect(kinds(actions)).To(Equal([]wash.Kind{wash.Wait}))
		Expect(actions[0].Row).To(And(HaveField("Open", state.WashWaiting), HaveField("Trigger", wash.TriggerRequests), HaveField("Reason", Not(BeEmpty()))))
		Expect(actions[0].Row.Validate()).To(Succeed())
		for i := range 1000 {
			s, actions = c.Step(s, wash.Observation{Ended: []string{"b"}, Ordered: true, Waits: "use1-1 has it"}, start.Add(time.Duration(i)*time.Hour))
			if i == 0 {
				Expect(kinds(actions)).To(Equal([]wash.Kind{wash.Wait}))
				Expect(actions[0].Row.Reason).To(Equal("use1-1 has it"))
			} else {
				Expect(actions).To(BeEmpty(), "said once")
			}
			Expect(c.Admits(s, 3)).To(BeTrue())
			Expect(s.Quarantined).To(BeEmpty())
			Expect(s.WantsTurn()).To(BeTrue())
		}
		at := start.Add(1000 * time.Hour)
		s, actions = c.Step(s, wash.Observation{Turn: true}, at)
		Expect(kinds(actions)).To(Equal([]wash.Kind{wash.Announce}))
		Expect(actions[0].Row.Steps).To(ConsistOf(And(HaveField("Name", "await_turn"), HaveField("Duration", at.Sub(start)))))
		Expect(actions[0].Row.EndedAt()).To(Equal(at))
		Expect(s.Requests).To(BeZero(), "what ended while it waited is washed away, too")
	})

	It("needs no turn when it restarts none any more", func() {
		s, _ := config(restarts).Step(wash.State{Washed: start}, wash.Observation{Ordered: true}, start)
		Expect(s.Waiting).To(BeTrue())
		s, actions := config().Step(s, wash.Observation{}, start.Add(time.Minute))
		Expect(kinds(actions)).To(Equal([]wash.Kind{wash.PlantCanary}))
		Expect(s.WantsTurn()).To(BeFalse())
		Expect(s.Row.Open).To(BeEmpty())
	})

	It("goes on as it began when the configuration changes meanwhile", func() {
		s, _ := config(restarts).Step(wash.State{Washed: start}, wash.Observation{Ordered: true, Turn: true}, start)
		s, actions := config().Step(s, wash.Observation{Result: wash.Result{Wash: s.Wash, Kind: wash.Announce, Passed: true, Detail: "seen"}}, start)
		Expect(kinds(actions)).To(Equal([]wash.Kind{wash.CheckModel}))
		Expect(s.Restart).To(BeTrue())
	})

	It("is none in strict mode, where each request would have one", func() {
		_, actions := config(restarts, func(c *wash.Config) { c.Strict = true }).Step(wash.State{Washed: start}, wash.Observation{Ordered: true}, start)
		Expect(kinds(actions)).To(Equal([]wash.Kind{wash.PlantCanary}))
	})

	It("waits once more when its turn does not last, or its instance is needed: it serves still", func() {
		c := config(restarts)
		s, actions := c.Step(wash.State{Washed: start}, wash.Observation{Ordered: true, Turn: true}, start)
		began, now := s, start
		for _, kind := range restarting[:3] {
			now = now.Add(time.Second)
			s, actions = c.Step(s, wash.Observation{Result: wash.Result{Wash: s.Wash, Kind: kind, Passed: true, Detail: "seen"}}, now)
		}
		Expect(kinds(actions)).To(Equal([]wash.Kind{wash.KeepTurn}))
		for _, lost := range []wash.Observation{
			{Result: wash.Result{Wash: s.Wash, Kind: wash.KeepTurn, Detail: "it was lost"}}, {}, // no answer in time
		} {
			waits, actions := c.Step(s, lost, now.Add(time.Hour))
			Expect(kinds(actions)).To(Equal([]wash.Kind{wash.Wait}))
			Expect(actions[0].Row.Validate()).To(Succeed())
			Expect(actions[0].Row).To(And(HaveField("Open", state.WashWaiting), HaveField("Reason", Not(BeEmpty())), HaveField("StartedAt", began.Row.StartedAt)))
			Expect(waits.Waiting).To(BeTrue())
			Expect(waits.Wash).To(Equal(began.Wash))
			Expect(waits.Quarantined).To(BeEmpty())
			Expect(waits.Aside()).To(BeFalse())
			Expect(c.Admits(waits, 3)).To(BeTrue())
			waits, actions = c.Step(waits, wash.Observation{Turn: true}, now.Add(2*time.Hour))
			Expect(kinds(actions)).To(Equal([]wash.Kind{wash.Announce}))
			Expect(waits.Row.Steps).To(HaveLen(1))
			Expect(waits.Row.Steps[0].Duration).To(Equal(now.Add(2 * time.Hour).Sub(start)))
		}
	})

	for i, failing := range restarting {
		if failing == wash.KeepTurn {
			continue
		}
		It("whose "+string(failing)+" fails leaves the instance in quarantine, and gives the turn back", func() {
			c := config(restarts)
			s, actions := play(c, wash.State{Washed: start}, func(k wash.Kind) bool { return k != failing }, unseen)
			want := slices.Clone(restarting[:i+1])
			if failing == wash.StartStandby || failing == wash.SwitchOver {
				want = append(want, wash.DropStandby)
			}
			Expect(kinds(actions)).To(Equal(append(want, wash.Record, wash.Quarantine)))
			row := actions[len(actions)-1].Row
			Expect(row.Validate()).To(Succeed())
			Expect(row).To(And(HaveField("Passed", false), HaveField("Open", ""), HaveField("Reason", string(failing)+": seen")))
			Expect(c.Admits(s, 0)).To(BeFalse())
			Expect(s.WantsTurn()).To(BeFalse())

			s, actions = play(c, s, always, unseen)
			Expect(kinds(actions)).To(Equal(append(slices.Clone(restarting), wash.Record, wash.Release)))
			Expect(c.Admits(s, 0)).To(BeTrue())
		})
	}

	It("may take the instance out of traffic for so long, whatever single steps may take", func() {
		c := config(restarts, func(c *wash.Config) { c.StepTimeout, c.AsideTimeout = time.Hour, 2*time.Hour })
		now := start
		s, actions := c.Step(wash.State{Washed: start}, wash.Observation{Ordered: true, Turn: true}, now)
		var left time.Time
		for s.Wash != "" {
			last := actions[len(actions)-1]
			if last.Kind == wash.StepAside {
				left = now
			}
			now = now.Add(50 * time.Minute)
			var more []wash.Action
			s, more = c.Step(s, wash.Observation{Result: wash.Result{Wash: last.Wash, Kind: last.Kind, Passed: now.Before(c.Deadline(s)), Detail: "x"}}, now)
			actions = append(actions, more...)
		}
		Expect(now.Sub(left)).To(Equal(150 * time.Minute))
		Expect(s.Quarantined).NotTo(BeEmpty())

		s, actions = c.Step(wash.State{Washed: start}, wash.Observation{Ordered: true, Turn: true}, start)
		for range 4 { // announced, checked, planted, kept
			last := actions[len(actions)-1]
			s, actions = c.Step(s, wash.Observation{Result: wash.Result{Wash: last.Wash, Kind: last.Kind, Passed: true, Detail: "seen"}}, start)
		}
		Expect(c.Deadline(s)).To(Equal(start.Add(time.Hour)), "the step's")
		s, _ = c.Step(s, wash.Observation{Result: wash.Result{Wash: s.Wash, Kind: wash.StepAside, Passed: true, Detail: "seen"}}, start.Add(59*time.Minute))
		s, _ = c.Step(s, wash.Observation{Result: wash.Result{Wash: s.Wash, Kind: wash.AwaitIdle, Passed: true, Detail: "seen"}}, start.Add(118*time.Minute))
		Expect(c.Deadline(s)).To(Equal(start.Add(2*time.Hour)), "the instance's")
		s, _ = c.Step(s, wash.Observation{}, start.Add(2*time.Hour-1))
		Expect(s.Wash).NotTo(BeEmpty())
		s, _ = c.Step(s, wash.Observation{}, start.Add(2*time.Hour))
		Expect(s.Quarantined).To(ContainSubstring("restart_engine has not ended, and the instance has been out of traffic for 2h0m0s"))
	})

	Describe("is taken up after a start of the parent", func() {
		id := "use1-0/2026"
		row := state.Wash{Region: "use1", Trigger: wash.TriggerInterval, StartedAt: start}
		c := config(restarts)

		It("where it had passed: there is nothing to do", func() {
			passed := row
			passed.Passed, passed.Steps = true, []state.WashStep{{Name: "x", Passed: true}}
			s, actions := c.Resume(wash.State{Washed: start}, id, passed)
			Expect(actions).To(BeEmpty())
			Expect(s).To(Equal(wash.State{Washed: start}))
		})

		It("where it had failed: in quarantine, until somebody orders another", func() {
			failed := row
			failed.Reason = "so it is"
			s, actions := c.Resume(wash.State{Washed: start}, id, failed)
			Expect(kinds(actions)).To(Equal([]wash.Kind{wash.Quarantine}))
			_, actions = c.Step(s, wash.Observation{}, start.Add(time.Hour))
			Expect(actions).To(BeEmpty())
		})

		It("where it waited: it waits on, as the same", func() {
			waited := row
			waited.Open, waited.Reason = state.WashWaiting, "no turn"
			s, actions := c.Resume(wash.State{Washed: start}, id, waited)
			Expect(actions).To(BeEmpty())
			Expect(c.Admits(s, 1)).To(BeTrue())
			s, actions = c.Step(s, wash.Observation{Turn: true}, start.Add(time.Hour))
			Expect(kinds(actions)).To(Equal([]wash.Kind{wash.Announce}))
			Expect(s.Wash).To(Equal(id))
			Expect(s.Row).To(And(HaveField("Trigger", wash.TriggerInterval), HaveField("StartedAt", start)))
		})

		It("where it was cut off: in quarantine, and washed again without being told to", func() {
			cut := row
			cut.Open = state.WashUnderWay
			s, actions := c.Resume(wash.State{Washed: start}, id, cut)
			Expect(kinds(actions)).To(Equal([]wash.Kind{wash.Record, wash.Quarantine}))
			Expect(actions[0].Row).To(And(HaveField("Open", ""), HaveField("Passed", false), HaveField("Reason", ContainSubstring("parent stopped"))))
			Expect(c.Admits(s, 0)).To(BeFalse())
			s, actions = c.Step(s, wash.Observation{}, start.Add(time.Hour))
			Expect(kinds(actions)).To(Equal([]wash.Kind{wash.Wait}))
			Expect(s.Row.Trigger).To(Equal(wash.TriggerInterval))
			Expect(s.Wash).NotTo(Equal(id))
			Expect(c.Admits(s, 0)).To(BeFalse())
		})

		It("late, when another is due already: the one that waited is given up", func() {
			s, _ := c.Step(wash.State{Washed: start}, wash.Observation{Ordered: true}, start.Add(time.Hour))
			waited := row
			waited.Open = state.WashWaiting
			after, actions := c.Resume(s, id, waited)
			Expect(after).To(Equal(s))
			Expect(kinds(actions)).To(Equal([]wash.Kind{wash.Record}))
			Expect(actions[0].Row).To(And(HaveField("Open", ""), HaveField("Passed", false)))
		})
	})

	It("is never beside another's, never serves while the engine is down, and always ends, whatever happens", func() {
		rapid.Check(GinkgoT(), func(t *rapid.T) {
			n := rapid.IntRange(2, 4).Draw(t, "instances")
			c := make([]wash.Config, n)
			s := make([]wash.State, n)
			under := make([]wash.Action, n)
			rows := make([]*state.Wash, n) // the newest, as stored
			for i := range n {
				c[i] = wash.Config{
					Region: "use1", Instance: fmt.Sprintf("use1-%d", i), RestartEngine: true, StepTimeout: 5 * time.Second, AsideTimeout: 20 * time.Second,
					EveryRequests: rapid.IntRange(0, 3).Draw(t, "every"),
				}
				s[i].Washed = start
			}
			turn := -1 // who has it
			now := start
			act := func(i int, actions []wash.Action) {
				for _, a := range actions {
					switch a.Kind {
					case wash.Announce, wash.Wait, wash.Record:
						row := a.Row
						Expect(row.Validate()).To(Succeed())
						rows[i] = &row
					}
					if slices.Contains(restarting, a.Kind) {
						under[i] = a
					}
				}
			}
			step := func(i int, o wash.Observation) {
				if o.Turn = s[i].Waiting && (turn < 0 || turn == i); o.Turn {
					turn = i
				}
				before := s[i]
				var actions []wash.Action
				s[i], actions = c[i].Step(before, o, now)
				act(i, actions)
				if before.Closed() && !s[i].Closed() && s[i].Quarantined == "" {
					Expect(under[i].Kind).To(Equal(wash.StepBack), "back after all has passed")
				}
				if turn == i && !s[i].WantsTurn() {
					turn = -1
				}
			}
			look := func() {
				var aside int
				for i := range n {
					if s[i].Aside() {
						aside++
						Expect(turn).To(Equal(i))
						Expect(rows[i].Open).To(Equal(state.WashUnderWay), "who finds the row knows")
					}
					if s[i].Closed() {
						Expect(c[i].Admits(s[i], 0)).To(BeFalse())
					}
				}
				Expect(aside).To(BeNumerically("<=", 1))
			}
			for range 150 {
				now = now.Add(time.Duration(rapid.IntRange(0, 2000).Draw(t, "later")) * time.Millisecond)
				i := rapid.IntRange(0, n-1).Draw(t, "who")
				if rapid.IntRange(0, 29).Draw(t, "dies") == 0 { // and its turn ends before it asks again
					s[i] = wash.State{Washed: now}
					if turn == i {
						turn = -1
					}
					if rows[i] != nil {
						wasOpen := rows[i].Open
						var actions []wash.Action
						s[i], actions = c[i].Resume(s[i], "use1/then", *rows[i])
						act(i, actions)
						Expect(c[i].Admits(s[i], 0)).To(Equal(rows[i].Passed || wasOpen == state.WashWaiting), "half washed is not served")
					}
					look()
					continue
				}
				o := wash.Observation{Ended: rapid.SliceOfN(rapid.SampledFrom([]string{"a", "b"}), 0, 2).Draw(t, "ended"), Ordered: rapid.IntRange(0, 5).Draw(t, "ordered") == 0}
				if rapid.IntRange(0, 3).Draw(t, "answers") > 0 {
					o.Result = wash.Result{Wash: under[i].Wash, Kind: under[i].Kind, Passed: rapid.IntRange(0, 19).Draw(t, "passes") > 0}
				}
				step(i, o)
				look()
			}
			for range 100 * n { // without a word from anybody all that is under way ends
				now = now.Add(6 * time.Second)
				for i := range n {
					c[i].EveryRequests = 0
					step(i, wash.Observation{})
					look()
				}
			}
			for i := range n {
				Expect(s[i].Wash).To(BeEmpty())
				if rows[i] != nil {
					Expect(rows[i].Open).To(BeEmpty())
				}
			}
		})
	})
})
