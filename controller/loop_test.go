package controller_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"sync"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"

	"github.com/mrgc/mrgc/controller"
	"github.com/mrgc/mrgc/internal/state"
	"github.com/mrgc/mrgc/internal/state/memory"
	"github.com/mrgc/mrgc/internal/state/schema"
	"github.com/mrgc/mrgc/internal/state/sqlite"
)

var use1 = state.Key{Partition: "use1"}

// launch is the only action of the loop that the specs run.
type launch struct{ Number int }

// world is where instances are launched, each id once.
type world struct {
	mu       sync.Mutex // guards what follows
	launched map[string]int
	order    []string
	fail     error  // of the next launches
	before   func() // at the begin of each observation
}

func (w *world) observe(context.Context, int64) (int, error) {
	if w.before != nil {
		w.before()
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.launched), nil
}

func (w *world) execute(_ context.Context, id string, _ launch) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.fail != nil {
		return w.fail
	}
	if w.launched[id]++; w.launched[id] == 1 {
		w.order = append(w.order, id)
	}
	return nil
}

type toy = controller.Loop[state.Autoscaling, int, launch]

// scaler launches what is missing to the desired capacity.
func scaler(observe func(context.Context, int64) (int, error), execute func(context.Context, string, launch) error) toy {
	return toy{
		Name: "scaler", Table: schema.AutoscalingState, Key: use1, ByHand: state.ByHand, Every: 50 * time.Millisecond,
		Initial: state.Autoscaling{DesiredCapacity: 3, Min: 2, Max: 20},
		Observe: observe,
		Step: func(s state.Autoscaling, there int, now time.Time) (state.Autoscaling, []launch) {
			var actions []launch
			for i := there; i < s.DesiredCapacity; i++ {
				actions = append(actions, launch{i})
			}
			if len(actions) > 0 {
				s.LastAction, s.LastReason, s.LastActionAt = fmt.Sprintf("launch %d", len(actions)), "too few", now
			}
			return s, actions
		},
		Explain: func(l launch) (string, string) { return fmt.Sprintf("launch number %d", l.Number), "too few" },
		Execute: execute,
	}
}

var _ = Describe("A control loop", func() {
	var (
		w     *world
		store state.Store
		clock time.Time
	)
	BeforeEach(func(ctx SpecContext) {
		w = &world{launched: map[string]int{}}
		clock = time.Date(2026, time.March, 14, 9, 26, 53, 0, time.UTC)
		var err error
		store, err = sqlite.Open(ctx, sqlite.Config{Path: filepath.Join(GinkgoT().TempDir(), "state.db")})
		Expect(err).NotTo(HaveOccurred())
		DeferCleanup(store.Close)
	})
	loop := func() toy { return scaler(w.observe, w.execute) }
	round := func(ctx context.Context, l toy, token int64) error {
		return l.Round(ctx, &controller.Leader{Store: store, Token: token, Now: func() time.Time { return clock }})
	}
	row := func(ctx context.Context) state.Record[state.Autoscaling] {
		GinkgoHelper()
		record, err := state.AutoscalingTable(store).Get(ctx, use1)
		Expect(err).NotTo(HaveOccurred())
		return record
	}

	It("stores what it decides with its reasons, does it, and notes that", func(ctx SpecContext) {
		Expect(round(ctx, loop(), 1)).To(Succeed())
		Expect(w.launched).To(HaveLen(3))
		got := row(ctx)
		Expect(got.Fence).To(Equal(int64(1)))
		Expect(got.Value.LastAction).To(Equal("launch 3"))
		Expect(got.Value.Journal.DecidedAt).To(Equal(clock))
		Expect(got.Value.Journal.Pending).To(BeEmpty())
		Expect(got.Value.Journal.Done).To(HaveLen(3))
		for i, action := range got.Value.Journal.Done {
			Expect(action.ID).To(Equal(w.order[i]))
			Expect(action.What).To(Equal(fmt.Sprintf("launch number %d", i)))
			Expect(action.Reason).To(Equal("too few"))
			Expect(action.EndedAt).To(Equal(clock))
			Expect(action.Error).To(BeEmpty())
			Expect(action.ID).To(MatchRegexp(`^[a-z0-9-]{1,64}$`), "EC2 takes it for a client token")
		}
	})

	It("writes nothing while nothing changes", func(ctx SpecContext) {
		Expect(round(ctx, loop(), 1)).To(Succeed())
		l, times := loop(), 0
		l.Step = func(s state.Autoscaling, _ int, _ time.Time) (state.Autoscaling, []launch) {
			// The same, as stores and programs write it.
			s.Memory = []json.RawMessage{[]byte(`{"a":1,"b":[2.0]}`), []byte(`{"b": [2], "a": 1}`)}[times%2]
			times++
			return s, nil
		}
		Expect(round(ctx, l, 1)).To(Succeed())
		before := row(ctx).Version
		for range 3 {
			Expect(round(ctx, l, 1)).To(Succeed())
		}
		Expect(times).To(Equal(4))
		Expect(row(ctx).Version).To(Equal(before))
	})

	It("shuts its predecessors out before it does anything", func(ctx SpecContext) {
		Expect(round(ctx, loop(), 1)).To(Succeed())
		Expect(round(ctx, loop(), 2)).To(Succeed())
		Expect(row(ctx).Fence).To(Equal(int64(2)))
		w.launched = map[string]int{} // all are gone
		Expect(round(ctx, loop(), 1)).To(MatchError(state.ErrFenced))
		Expect(w.launched).To(BeEmpty())
	})

	It("does nothing of what it decided after another leads, however long it slept", func(ctx SpecContext) {
		sleeper, slept := loop(), false
		sleeper.Observe = func(ctx context.Context, token int64) (int, error) {
			there, err := w.observe(ctx, 1)
			if !slept {
				slept = true
				Expect(round(ctx, loop(), 2)).To(Succeed()) // another, meanwhile
			}
			return there, err
		}
		Expect(round(ctx, sleeper, 1)).To(MatchError(state.ErrFenced))
		Expect(w.launched).To(HaveLen(3))
		Expect(row(ctx).Value.Journal.Done).To(HaveLen(3))
	})

	It("decides again when its row was written meanwhile, and keeps what was written", func(ctx SpecContext) {
		Expect(round(ctx, loop(), 1)).To(Succeed())
		w.launched = map[string]int{}
		observations := 0
		w.before = func() {
			if observations++; observations > 1 {
				return
			}
			_, err := store.Write(ctx, schema.AutoscalingState, state.Write{
				Key: use1, Fields: json.RawMessage(`{"memory":{"note":"by another program"}}`), Version: state.AnyVersion,
			})
			Expect(err).NotTo(HaveOccurred())
		}
		Expect(round(ctx, loop(), 1)).To(Succeed())
		Expect(observations).To(Equal(2))
		Expect(w.launched).To(HaveLen(3))
		Expect(row(ctx).Value.Memory).To(MatchJSON(`{"note":"by another program"}`))
	})

	It("tells no time before one that it has told, whoever leads and what his clock shows", func(ctx SpecContext) {
		var told []time.Time
		l := loop()
		step := l.Step
		l.Step = func(s state.Autoscaling, there int, now time.Time) (state.Autoscaling, []launch) {
			told = append(told, now)
			return step(s, there, now)
		}
		Expect(round(ctx, l, 1)).To(Succeed())
		clock = clock.Add(-time.Hour)
		w.launched = map[string]int{}
		Expect(round(ctx, l, 2)).To(Succeed())
		clock = clock.Add(time.Minute)
		w.launched = map[string]int{}
		Expect(round(ctx, l, 3)).To(Succeed())
		Expect(told).To(HaveLen(3))
		Expect(told[1]).To(Equal(told[0]))
		Expect(told[2].Before(told[1])).To(BeFalse())
	})

	It("tries a failed action again with the same id, those after it later, and gives it up in the end", func(ctx SpecContext) {
		w.fail = errors.New("insufficient capacity")
		for try := 1; try < 5; try++ {
			Expect(round(ctx, loop(), 1)).To(MatchError(ContainSubstring("launch number 0: insufficient capacity")))
			pending := row(ctx).Value.Journal.Pending
			Expect(pending).To(HaveLen(3))
			Expect(pending[0].Tries).To(Equal(try))
			Expect(pending[0].Error).To(Equal("insufficient capacity"))
			Expect(pending[1].Tries).To(BeZero())
		}
		first := row(ctx).Value.Journal.Pending[0].ID
		// The next round gives up the first, and goes on with the second.
		Expect(round(ctx, loop(), 1)).To(HaveOccurred())
		journal := row(ctx).Value.Journal
		Expect(journal.Done).To(HaveExactElements(And(HaveField("ID", first), HaveField("Error", "insufficient capacity"))))
		w.fail = nil
		Expect(round(ctx, loop(), 1)).To(Succeed())
		journal = row(ctx).Value.Journal
		Expect(journal.Pending).To(BeEmpty())
		Expect(journal.Done).To(HaveLen(4), "the one that was given up was decided anew")
		Expect(w.launched).To(HaveLen(3))
	})

	It("tries an action once if the step decides it again, and tells of it once", func(ctx SpecContext) {
		l := loop()
		l.Tries, l.Initial.DesiredCapacity = 1, 1
		w.fail = errors.New("not now")
		leader := &controller.Leader{Store: store, Token: 1, Now: func() time.Time { return clock }}
		for range 4 {
			Expect(l.Round(ctx, leader)).To(Succeed())
			clock = clock.Add(time.Second)
		}
		journal := row(ctx).Value.Journal
		Expect(journal.Pending).To(BeEmpty())
		Expect(journal.Done).To(HaveExactElements(And(HaveField("Tries", 4), HaveField("Error", "not now"))))
		Expect(journal.Done[0].EndedAt.Sub(journal.Done[0].DecidedAt)).To(Equal(3 * time.Second))
		w.fail = nil
		Expect(l.Round(ctx, leader)).To(Succeed())
		Expect(row(ctx).Value.Journal.Done).To(HaveLen(2))
	})

	Describe("whose state has what need not outlive the leader", func() {
		// watcher counts its rounds in Memory, which is not worth a write.
		watcher := func() toy {
			l := loop()
			l.Same = func(a, b state.Autoscaling) bool { return a.DesiredCapacity == b.DesiredCapacity }
			l.Step = func(s state.Autoscaling, _ int, _ time.Time) (state.Autoscaling, []launch) {
				s.Memory = json.RawMessage(fmt.Sprintf("%d", count(s)+1))
				return s, nil
			}
			return l
		}
		var seen []int // rounds that each step knows of
		BeforeEach(func() { seen = nil })
		watched := func(l toy) toy {
			step := l.Step
			l.Step = func(s state.Autoscaling, there int, now time.Time) (state.Autoscaling, []launch) {
				seen = append(seen, count(s))
				return step(s, there, now)
			}
			return l
		}

		It("keeps that in memory, without a write, until somebody else writes", func(ctx SpecContext) {
			leader := &controller.Leader{Store: store, Token: 1}
			l := watched(watcher())
			for range 3 {
				Expect(l.Round(ctx, leader)).To(Succeed())
			}
			Expect(seen).To(Equal([]int{0, 1, 2}))
			Expect(row(ctx).Version).To(Equal(int64(1)), "its claim alone")
			_, err := store.Write(ctx, schema.AutoscalingState, state.Write{
				Key: use1, Fields: json.RawMessage(`{"memory":40}`), Version: state.AnyVersion,
			})
			Expect(err).NotTo(HaveOccurred())
			Expect(l.Round(ctx, leader)).To(Succeed())
			Expect(l.Round(ctx, leader)).To(Succeed())
			Expect(seen).To(Equal([]int{0, 1, 2, 40, 41}))
		})

		It("goes by what is written by hand, though that counts no version", func(ctx SpecContext) {
			data := memory.New(nil)
			leader := &controller.Leader{Store: data.Open(), Token: 1}
			l := watched(watcher())
			Expect(l.Round(ctx, leader)).To(Succeed())
			Expect(l.Round(ctx, leader)).To(Succeed())
			Expect(data.Edit(schema.AutoscalingState, use1, map[string]json.RawMessage{
				"desired_capacity": json.RawMessage("9"), "memory": json.RawMessage("70"),
			})).To(Succeed())
			Expect(l.Round(ctx, leader)).To(Succeed())
			Expect(seen).To(Equal([]int{0, 1, 70}))
		})
	})

	It("remembers the last twenty actions", func(ctx SpecContext) {
		l := loop()
		l.Initial.DesiredCapacity = 15
		Expect(round(ctx, l, 1)).To(Succeed())
		w.launched = map[string]int{}
		Expect(round(ctx, l, 1)).To(Succeed())
		Expect(w.order).To(HaveLen(30))
		done := row(ctx).Value.Journal.Done
		Expect(done).To(HaveLen(20))
		Expect(done[19].ID).To(Equal(w.order[29]))
	})

	It("decides nothing on a row that somebody has spoilt, and says where", func(ctx SpecContext) {
		Expect(round(ctx, loop(), 1)).To(Succeed())
		_, err := store.Write(ctx, schema.AutoscalingState, state.Write{
			Key: use1, Fields: json.RawMessage(`{"max_capacity":1}`), Version: state.AnyVersion,
		})
		Expect(err).NotTo(HaveOccurred())
		Expect(round(ctx, loop(), 1)).To(MatchError(And(ContainSubstring("autoscaling_state: use1"), ContainSubstring("want 0 <= min <= max"))))
	})

	It("does not store a decision that is none", func(ctx SpecContext) {
		l := loop()
		l.Step = func(s state.Autoscaling, _ int, _ time.Time) (state.Autoscaling, []launch) {
			s.DesiredCapacity = -1
			return s, []launch{{}}
		}
		Expect(round(ctx, l, 1)).To(MatchError(ContainSubstring("desired_capacity -1")))
		Expect(w.launched).To(BeEmpty())
	})

	It("has every action's effect once, wherever its leader is killed, and leaves nothing undone", func(ctx SpecContext) {
		steps := 0
		for kill := 1; ; kill++ {
			for _, after := range []bool{false, true} {
				path := filepath.Join(GinkgoT().TempDir(), "state.db")
				real, err := sqlite.Open(ctx, sqlite.Config{Path: path})
				Expect(err).NotTo(HaveOccurred())
				w = &world{launched: map[string]int{}}
				life, die := context.WithCancel(ctx)
				mortal := &mortal{Store: real, die: die, at: kill, after: after}
				l := scaler(w.observe, func(ctx context.Context, id string, action launch) error {
					return mortal.call(func() error { return w.execute(ctx, id, action) })
				})
				killed := l.Round(life, &controller.Leader{Store: mortal, Token: 1}) != nil

				for range 3 {
					Expect(scaler(w.observe, w.execute).Round(ctx, &controller.Leader{Store: real, Token: 2})).To(Succeed())
				}
				record, err := state.AutoscalingTable(real).Get(ctx, use1)
				Expect(err).NotTo(HaveOccurred())
				Expect(w.launched).To(HaveLen(3), "killed at call %d, after it: %t", kill, after)
				Expect(record.Value.Journal.Pending).To(BeEmpty())
				Expect(record.Value.Journal.Done).To(HaveLen(3))
				for i, action := range record.Value.Journal.Done {
					Expect(action.ID).To(Equal(w.order[i]))
				}
				Expect(real.Close()).To(Succeed())
				if !killed {
					Expect(steps).To(BeNumerically(">=", 7), "it was killed at each call before")
					return
				}
				steps++
			}
		}
	}, SpecTimeout(time.Minute))
})

func count(s state.Autoscaling) (rounds int) {
	_ = json.Unmarshal(s.Memory, &rounds)
	return rounds
}

// mortal is a store whose user is killed at one of its calls: before or after the
// call has effect.
type mortal struct {
	state.Store
	die   context.CancelFunc
	at    int
	after bool
	calls int
}

var errKilled = errors.New("killed")

func (m *mortal) call(do func() error) error {
	if m.calls++; m.calls != m.at {
		if m.calls > m.at {
			return errKilled
		}
		return do()
	}
	if m.after {
		_ = do()
	}
	m.die()
	return errKilled
}

func (m *mortal) Get(ctx context.Context, table schema.Table, key state.Key) (item state.Item, err error) {
	err = m.call(func() (err error) { item, err = m.Store.Get(context.WithoutCancel(ctx), table, key); return err })
	return item, err
}

func (m *mortal) Write(ctx context.Context, table schema.Table, w state.Write) (version int64, err error) {
	err = m.call(func() (err error) {
		version, err = m.Store.Write(context.WithoutCancel(ctx), table, w)
		return err
	})
	return version, err
}
