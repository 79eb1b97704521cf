package controller_test

import (
	"context"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	"github.com/onsi/gomega/gleak"

	"github.com/mrgc/mrgc/controller"
	"github.com/mrgc/mrgc/internal/fleet"
	"github.com/mrgc/mrgc/internal/state"
	"github.com/mrgc/mrgc/internal/state/memory"
	"github.com/mrgc/mrgc/internal/state/schema"
)

var _ = Describe("A controller", func() {
	BeforeEach(func() {
		good := gleak.Goroutines()
		DeferCleanup(func() { Eventually(gleak.Goroutines, "5s").ShouldNot(gleak.HaveLeaked(good)) })
	})

	// start runs a controller until the spec, or who calls what it gives, ends it.
	start := func(config controller.Config) (stop func()) {
		GinkgoHelper()
		config.Lease = time.Second
		c, err := controller.New(config)
		Expect(err).NotTo(HaveOccurred())
		ctx, cancel := context.WithCancel(context.Background())
		var running sync.WaitGroup
		running.Go(func() {
			defer GinkgoRecover()
			Expect(c.Run(ctx)).To(Succeed())
		})
		stop = func() { cancel(); running.Wait() }
		DeferCleanup(stop)
		return stop
	}

	It("of one region runs the loops of all regions, and another's when it ends", func(ctx SpecContext) {
		data := memory.New(nil)
		var now, rounds atomic.Int64 // how many run it at once; how often it ran
		global := scaler(func(context.Context, int64) (int, error) {
			if now.Add(1) > 1 {
				Fail("two at once")
			}
			defer now.Add(-1)
			rounds.Add(1)
			return 3, nil
		}, func(context.Context, string, launch) error { return nil })
		global.Lease, global.Every = "failover", time.Millisecond
		config := func(region fleet.Region) controller.Config {
			return controller.Config{
				Region: region, Regions: []fleet.Region{"use1", "use2"}, Store: data.Open(), Loops: []controller.Runner{global},
			}
		}
		one := start(config("use1"))
		Eventually(rounds.Load, "5s").Should(BeNumerically(">", 3))
		start(config("use2"))
		Eventually(func(g Gomega) {
			leases, err := state.LeaseTable(data.Open()).GetMany(ctx, []state.Key{state.LeaseKey("region/use1"), state.LeaseKey("region/use2")})
			g.Expect(err).NotTo(HaveOccurred())
			g.Expect(leases).To(HaveLen(2), "each leads its own region")
		}, "5s").Should(Succeed())
		one()
		before := rounds.Load()
		Eventually(rounds.Load, "5s").Should(BeNumerically(">", before+3))
		lease, err := state.LeaseTable(data.Open()).Get(ctx, state.LeaseKey("failover"))
		Expect(err).NotTo(HaveOccurred())
		Expect(lease.Value.Token).To(BeNumerically(">", 1))
	})

	It("that stands by watches, does nothing, and goes on with what it has seen when it leads", func(ctx SpecContext) {
		data := memory.New(nil)
		w := &world{launched: map[string]int{}}
		type adoption struct {
			Stored, Own int
			Token       int64
		}
		adopted := make(chan adoption, 100)
		watcher := func() toy {
			l := scaler(w.observe, w.execute)
			step := l.Step
			l.Lease, l.Every, l.Initial.DesiredCapacity = "failover", time.Millisecond, 5
			l.Same = func(a, b state.Autoscaling) bool { return a.LastAction == b.LastAction }
			l.Step = func(s state.Autoscaling, there int, now time.Time) (state.Autoscaling, []launch) {
				s, actions := step(s, there, now)
				s.Memory = []byte(strconv.Itoa(count(s) + 1))
				return s, actions
			}
			l.Adopt = func(stored, own state.Autoscaling, token int64) state.Autoscaling {
				adopted <- adoption{count(stored), count(own), token}
				stored.Memory = own.Memory
				return stored
			}
			return l
		}
		config := func(region fleet.Region) controller.Config {
			return controller.Config{
				Region: region, Regions: []fleet.Region{"use1", "use2"}, Store: data.Open(), Loops: []controller.Runner{watcher()},
			}
		}
		one := start(config("use1"))
		Eventually(func() int { there, _ := w.observe(ctx, 1); return there }, "5s").Should(Equal(5))
		start(config("use2"))
		Eventually(func(g Gomega) {
			lease, err := state.LeaseTable(data.Open()).Get(ctx, state.LeaseKey("region/use2"))
			g.Expect(err).NotTo(HaveOccurred())
			g.Expect(lease.Version).To(BeNumerically(">", 5)) // it has stood by for a while
		}, "5s").Should(Succeed())
		one()
		Eventually(adopted, "10s").Should(Receive(SatisfyAll(
			HaveField("Token", BeNumerically(">=", 2)), HaveField("Own", BeNumerically(">", 5)),
			WithTransform(func(a adoption) bool { return a.Stored < a.Own }, BeTrue()),
		)))
		Expect(w.launched).To(HaveLen(5), "a standby decides, and does nothing")
	})

	It("goes on leading when its lease was renewed at the last moment", func(ctx SpecContext) {
		const lease = 600 * time.Millisecond
		data := memory.New(nil)
		late := &late{Store: data.Open()}
		var rounds atomic.Int64
		l := scaler(func(context.Context, int64) (int, error) { rounds.Add(1); return 3, nil },
			func(context.Context, string, launch) error { return nil })
		l.Every = time.Millisecond
		c, err := controller.New(controller.Config{
			Region: "use1", Regions: []fleet.Region{"use1"}, Store: late, Loops: []controller.Runner{l}, Lease: lease,
		})
		Expect(err).NotTo(HaveOccurred())
		life, end := context.WithCancel(ctx)
		var running sync.WaitGroup
		running.Go(func() {
			defer GinkgoRecover()
			Expect(c.Run(life)).To(Succeed())
		})
		DeferCleanup(func() { end(); running.Wait() })
		Eventually(late.renewed.Load, "10s", "1ms").Should(BeTrue())
		before := rounds.Load()
		Eventually(rounds.Load, "5s", "1ms").Should(BeNumerically(">", before+100))
	})

	It("takes a higher token when its row has been written with one, as after its lease was removed", func(ctx SpecContext) {
		data := memory.New(nil)
		_, err := state.AutoscalingTable(data.Open()).Put(ctx, state.Record[state.Autoscaling]{
			Key: use1, Value: state.Autoscaling{DesiredCapacity: 3, Min: 2, Max: 20},
		}, state.Fenced(41))
		Expect(err).NotTo(HaveOccurred())
		w := &world{launched: map[string]int{}}
		start(controller.Config{
			Region: "use1", Regions: []fleet.Region{"use1"}, Store: data.Open(), Loops: []controller.Runner{scaler(w.observe, w.execute)},
		})
		Eventually(func() int { there, _ := w.observe(ctx, 1); return there }, "5s").Should(Equal(3))
		row, err := state.AutoscalingTable(data.Open()).Get(ctx, use1)
		Expect(err).NotTo(HaveOccurred())
		Expect(row.Fence).To(Equal(int64(42)))
	})

	DescribeTable("is refused with", func(change func(*controller.Config), why string) {
		config := controller.Config{Region: "use1", Regions: []fleet.Region{"use1"}, Store: memory.New(nil).Open()}
		change(&config)
		_, err := controller.New(config)
		Expect(err).To(MatchError(ContainSubstring(why)))
	},
		Entry("no region", func(c *controller.Config) { c.Region = "" }, `region ""`),
		Entry("another region", func(c *controller.Config) { c.Region = "use2" }, "none of the cluster's"),
		Entry("no store", func(c *controller.Config) { c.Store = nil }, "no store"),
		Entry("a lease that is too long", func(c *controller.Config) { c.Lease = 2 * time.Hour }, "length 2h"),
		Entry("a loop without a name", badLoop(func(l *toy) { l.Name = "" }), "loop without a name"),
		Entry("a loop that never runs", badLoop(func(l *toy) { l.Every = 0 }), "every 0s"),
		Entry("a loop that does not look", badLoop(func(l *toy) { l.Observe = nil }), "are required"),
		Entry("a loop under no lease's name", badLoop(func(l *toy) { l.Lease = "A" }), `lease "A"`),
		Entry("a loop without a row", badLoop(func(l *toy) { l.Key = state.Key{} }), "want 1 to 512 bytes of region"),
	)
})

// late answers nothing about the lease, between a sixth and five sixths of its
// first length, and then takes its time for one renewal.
type late struct {
	state.Store
	renewed atomic.Bool

	mu   sync.Mutex // guards what follows
	from time.Time  // of the first write
	done bool
}

func (l *late) lease(key state.Key, write bool) error {
	if key != state.LeaseKey("region/use1") {
		return nil
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.from.IsZero() && write {
		l.from = time.Now()
		return nil
	}
	if l.from.IsZero() || l.done {
		return nil
	}
	if time.Since(l.from) < 490*time.Millisecond {
		return errStore
	}
	if write {
		l.done = true
		time.Sleep(150 * time.Millisecond) // what is tested is an answer that is late
		defer l.renewed.Store(true)
	}
	return nil
}

func (l *late) Get(ctx context.Context, table schema.Table, key state.Key) (state.Item, error) {
	if err := l.lease(key, false); err != nil {
		return state.Item{}, err
	}
	return l.Store.Get(ctx, table, key)
}

func (l *late) Write(ctx context.Context, table schema.Table, w state.Write) (int64, error) {
	if err := l.lease(w.Key, true); err != nil {
		return 0, err
	}
	return l.Store.Write(ctx, table, w)
}

func badLoop(change func(*toy)) func(*controller.Config) {
	return func(c *controller.Config) {
		l := scaler(func(context.Context, int64) (int, error) { return 0, nil }, func(context.Context, string, launch) error { return nil })
		change(&l)
		c.Loops = []controller.Runner{l}
	}
}
