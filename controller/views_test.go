package controller_test

import (
	"context"
	"errors"
	"sync"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"

	"github.com/mrgc/mrgc/controller"
	"github.com/mrgc/mrgc/controller/failover"
	"github.com/mrgc/mrgc/internal/fleet"
	"github.com/mrgc/mrgc/internal/state"
	"github.com/mrgc/mrgc/internal/state/memory"
	"github.com/mrgc/mrgc/internal/state/schema"
)

var _ = Describe("What is seen of a region", func() {
	at := time.Date(2026, time.March, 14, 9, 26, 53, 0, time.UTC)
	type of func(*fleet.Instance)
	old := func(age time.Duration) of { return func(in *fleet.Instance) { in.HeartbeatAt = at.Add(-age) } }
	sick := of(func(in *fleet.Instance) { in.Health.Engine = false })
	draining := of(func(in *fleet.Instance) { in.Draining = true })
	instance := func(id string, region fleet.Region, what ...of) *fleet.Instance {
		in := &fleet.Instance{ID: id, Region: region, Health: fleet.Health{Enclave: true, Engine: true}, HeartbeatAt: at}
		for _, change := range what {
			change(in)
		}
		return in
	}
	// look has use2 well, its door open, and use1 as the case has it.
	look := func(open bool, lag time.Duration, been map[string]bool, instances ...*fleet.Instance) (failover.Sight, map[string]bool) {
		GinkgoHelper()
		sights, now := controller.Sights(allRegions, map[fleet.Region]bool{"use1": open, "use2": true},
			fleet.NewSnapshot(at, append(instances, instance("use2-0", "use2"))), 15*time.Second, map[fleet.Region]time.Duration{"use1": lag}, been)
		Expect(sights).To(HaveLen(3))
		Expect(sights["use2"]).To(Equal(failover.Sight{Door: true, Ready: 1, Want: 1}))
		Expect(sights["usw2"]).To(Equal(failover.Sight{}), "no door, nobody behind")
		return sights["use1"], now
	}
	been := map[string]bool{"a": true, "b": true}

	DescribeTable("is", func(open bool, lag time.Duration, been map[string]bool, want failover.Sight, verdict failover.Verdict, instances ...*fleet.Instance) {
		got, _ := look(open, lag, been, instances...)
		Expect(got).To(Equal(want))
		Expect(got.Verdict()).To(Equal(verdict))
	},
		Entry("well", true, time.Duration(0), nil, failover.Sight{Door: true, Ready: 2, Want: 2}, failover.Up, instance("a", "use1"), instance("b", "use1")),
		Entry("down behind a door that does not answer", false, time.Duration(0), nil, failover.Sight{Ready: 1, Want: 1}, failover.Down, instance("a", "use1")),
		Entry("down without instances", true, time.Duration(0), nil, failover.Sight{Door: true}, failover.Down),
		Entry("no worse for what is on its way", true, time.Duration(0), nil, failover.Sight{Door: true, Ready: 1, Want: 1}, failover.Up,
			instance("a", "use1"), instance("b", "use1", sick), instance("c", "use1", sick)),
		Entry("partial for what was there", true, time.Duration(0), map[string]bool{"a": true, "b": true, "c": true}, failover.Sight{Door: true, Ready: 1, Want: 3}, failover.Partial,
			instance("a", "use1"), instance("b", "use1", sick), instance("c", "use1", old(time.Minute))),
		Entry("no worse for what is on its way out, or gone", true, time.Duration(0), map[string]bool{"a": true, "b": true, "c": true}, failover.Sight{Door: true, Ready: 1, Want: 1}, failover.Up,
			instance("a", "use1"), instance("b", "use1", draining)),
		Entry("down with all that was there sick", true, time.Duration(0), been, failover.Sight{Door: true, Want: 2}, failover.Down,
			instance("a", "use1", sick), instance("b", "use1", sick)),
		Entry("behind when its rows lag", true, 6*time.Second, nil, failover.Sight{Door: true, Ready: 1, Want: 1, Lag: 6 * time.Second}, failover.Behind, instance("a", "use1")),
		Entry("behind, and not dead, when no row comes from there any more and its door says that it serves", true, time.Second, nil,
			failover.Sight{Door: true, Ready: 1, Want: 1, Lag: time.Minute}, failover.Behind, instance("a", "use1", old(time.Minute)), instance("b", "use1", old(time.Hour), sick)),
		Entry("down when neither comes", false, time.Duration(0), nil, failover.Sight{Lag: time.Minute}, failover.Down, instance("a", "use1", old(time.Minute))),
	)

	It("remembers who has been ready for as long as they are registered", func() {
		_, now := look(true, 0, been, instance("a", "use1", sick), instance("c", "use1"), instance("d", "use1", sick))
		Expect(now).To(Equal(map[string]bool{"a": true, "c": true, "use2-0": true}))
	})
})

// world is regions with front doors, and a fleet; it may be changed while controllers
// look at it.
type viewedWorld struct {
	fleet.Store // is asked for snapshots only

	mu      sync.Mutex
	shut    map[fleet.Region]bool // guarded by mu
	noFleet bool                  // guarded by mu
}

func (w *viewedWorld) door(_ context.Context, region fleet.Region) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.shut[region] {
		return errors.New("connection refused")
	}
	return nil
}

func (w *viewedWorld) Snapshot(context.Context) (*fleet.Snapshot, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.noFleet {
		return nil, errors.New("no store")
	}
	var instances []*fleet.Instance
	for _, region := range allRegions {
		instances = append(instances, &fleet.Instance{
			ID: string(region) + "-0", Region: region, Health: fleet.Health{Enclave: true, Engine: true}, HeartbeatAt: time.Now(),
		})
	}
	return fleet.NewSnapshot(time.Now(), instances), nil
}

func (w *viewedWorld) set(change func(*viewedWorld)) {
	w.mu.Lock()
	defer w.mu.Unlock()
	change(w)
}

var _ = Describe("Controllers of three regions", func() {
	var (
		data  *memory.Data
		world *viewedWorld
	)
	start := func(region fleet.Region) {
		GinkgoHelper()
		store := data.Open()
		loop, err := controller.NewRouting(failover.Config{Regions: allRegions, Validate: 5 * time.Second, Hold: time.Second, Calm: 3 * time.Second}, store, nil).Loop()
		Expect(err).NotTo(HaveOccurred())
		c, err := controller.New(controller.Config{
			Region: region, Regions: allRegions, Name: string(region), Store: store, Fleet: world, Door: world.door,
			Loops: []controller.Runner{loop}, Lease: 2 * time.Second,
		})
		Expect(err).NotTo(HaveOccurred())
		ctx, cancel := context.WithCancel(context.Background())
		ended := make(chan error, 1)
		go func() { ended <- c.Run(ctx) }()
		DeferCleanup(func() {
			cancel()
			Eventually(ended, "10s").Should(Receive(BeNil()))
		})
	}
	BeforeEach(func() {
		data, world = memory.New(nil), &viewedWorld{shut: map[fleet.Region]bool{}}
		for _, region := range allRegions {
			start(region)
		}
	})
	report := func(ctx context.Context, from fleet.Region) failover.Report {
		record, err := state.NewTable[failover.Report](data.Open(), schema.RoutingState, 0).Get(ctx, state.ViewKey(from))
		if err != nil {
			return failover.Report{}
		}
		return record.Value
	}
	is := func(ctx context.Context, region fleet.Region) func() state.Failover {
		return func() state.Failover {
			row, err := state.RoutingTable(data.Open()).Get(ctx, state.RoutingKey)
			if err != nil {
				return ""
			}
			return row.Value.Regions[region].State
		}
	}

	It("publish what they see, and drain a region that dies, without an accelerator, too", func(ctx SpecContext) {
		for _, from := range allRegions {
			Eventually(func() uint64 { return report(ctx, from).Sequence }, "20s").Should(BeNumerically(">", 1), "%s", from)
			Expect(report(ctx, from).Sights).To(HaveLen(3))
		}
		Eventually(is(ctx, "use1"), "20s").Should(Equal(state.Normal))
		world.set(func(w *viewedWorld) { w.shut["use1"] = true })
		Eventually(is(ctx, "use1"), "20s").Should(Equal(state.FailoverActive))
		Expect(controller.Drained(ctx, data.Open())).To(Equal(map[fleet.Region]bool{"use1": true}))
	}, SpecTimeout(time.Minute))

	It("say nothing while they cannot see the fleet", func(ctx SpecContext) {
		Eventually(func() uint64 { return report(ctx, "use1").Sequence }, "20s").Should(BeNumerically(">", 0))
		world.set(func(w *viewedWorld) { w.noFleet, w.shut["use1"] = true, true })
		Eventually(func() time.Duration { return time.Since(report(ctx, "use2").At) }, "20s").Should(BeNumerically(">", 8*time.Second))
		Expect(is(ctx, "use1")()).NotTo(Equal(state.FailoverActive))
	}, SpecTimeout(time.Minute))
})
