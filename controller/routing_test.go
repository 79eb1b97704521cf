package controller_test

import (
	"context"
	"errors"
	"maps"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"

	"github.com/mrgc/mrgc/controller"
	"github.com/mrgc/mrgc/controller/failover"
	"github.com/mrgc/mrgc/internal/fleet"
	"github.com/mrgc/mrgc/internal/state"
	"github.com/mrgc/mrgc/internal/state/memory"
)

// doors are the regions' front doors, and the dials before them.
type doors struct {
	dead  map[fleet.Region]bool
	dials map[fleet.Region]int
	done  []failover.Action

	refuses bool // to have dials set
}

var allRegions = []fleet.Region{"use1", "use2", "usw2"}

func (d *doors) observe(context.Context) (failover.Observation, error) {
	o := failover.Observation{Views: map[fleet.Region]failover.View{}, Dials: maps.Clone(d.dials)}
	for _, from := range allRegions {
		if d.dead[from] {
			continue
		}
		view := failover.View{Freshness: failover.Fresh, Of: map[fleet.Region]failover.Verdict{}}
		for _, region := range allRegions {
			view.Of[region] = failover.Up
			if d.dead[region] {
				view.Of[region] = failover.Down
			}
		}
		o.Views[from] = view
	}
	return o, nil
}

func (d *doors) execute(_ context.Context, _ string, a failover.Action) error {
	d.done = append(d.done, a)
	if a.Kind == failover.SetDial {
		if d.refuses {
			return errors.New("not now")
		}
		d.dials[a.Region] = a.Dial
	}
	return nil
}

var _ = Describe("The routing loop", func() {
	var (
		world   *doors
		data    *memory.Data
		clock   time.Time
		leader  *controller.Leader
		routing controller.Routing
	)
	BeforeEach(func() {
		world = &doors{dead: map[fleet.Region]bool{}, dials: map[fleet.Region]int{"use1": 100, "use2": 100, "usw2": 100}}
		data = memory.New(nil)
		clock = time.Date(2026, time.March, 14, 9, 26, 53, 0, time.UTC)
		leader = &controller.Leader{Store: data.Open(), Token: 1, Now: func() time.Time { return clock }}
		routing = controller.Routing{Config: failover.Defaults(allRegions...), Observe: world.observe, Execute: world.execute}
	})
	goes := func(ctx context.Context, d time.Duration) {
		GinkgoHelper()
		loop, err := routing.Loop()
		Expect(err).NotTo(HaveOccurred())
		for end := clock.Add(d); clock.Before(end); clock = clock.Add(loop.Every) {
			Expect(loop.Round(ctx, leader)).To(Succeed())
		}
	}
	row := func(ctx context.Context) state.Record[state.Routing] {
		GinkgoHelper()
		record, err := state.RoutingTable(data.Open()).Get(ctx, state.RoutingKey)
		Expect(err).NotTo(HaveOccurred())
		return record
	}

	It("writes nothing while all is well, however long that is", func(ctx SpecContext) {
		goes(ctx, 5*time.Second)
		version := row(ctx).Version
		goes(ctx, time.Hour)
		Expect(row(ctx).Version).To(Equal(version))
		Expect(row(ctx).Value.Regions).To(HaveLen(3))
		Expect(row(ctx).Value.Regions["use2"]).To(And(HaveField("State", state.Normal), HaveField("Dial", 100), HaveField("Epoch", int64(1))))
	})

	It("takes a dead region out within ten seconds, says so with the reason, and has it back in steps", func(ctx SpecContext) {
		goes(ctx, time.Minute)
		world.dead["use2"] = true
		goes(ctx, 10*time.Second)
		use2 := row(ctx).Value.Regions["use2"]
		Expect(use2.State).To(Equal(state.FailoverActive))
		Expect(use2.Drain).To(BeTrue())
		Expect(use2.Reason).NotTo(BeEmpty())
		Expect(use2.Epoch).To(Equal(int64(3)), "NORMAL, DEGRADED, FAILOVER_ACTIVE")
		Expect(world.dials).To(HaveKeyWithValue(fleet.Region("use2"), 0))
		Expect(row(ctx).Value.Journal.Done).To(ContainElement(And(
			HaveField("What", "set the dial of use2 to 0 %"), HaveField("Reason", use2.Reason))))

		world.dead["use2"] = false
		goes(ctx, 30*time.Minute)
		Expect(row(ctx).Value.Regions["use2"].State).To(Equal(state.Normal))
		Expect(world.dials).To(HaveKeyWithValue(fleet.Region("use2"), 100))
	})

	It("goes on deciding while dials cannot be set, and sets them when they can be", func(ctx SpecContext) {
		goes(ctx, time.Minute)
		world.refuses, world.dead["use2"] = true, true
		goes(ctx, 10*time.Second)
		Expect(row(ctx).Value.Regions["use2"].State).To(Equal(state.FailoverActive))
		goes(ctx, time.Minute)
		Expect(row(ctx).Value.Journal.Done).To(HaveLen(3), "dial, drain, and the dial, which is tried time and again, once more")
		Expect(row(ctx).Value.Journal.Done).To(ContainElement(And(HaveField("What", "set the dial of use2 to 0 %"), HaveField("Error", "not now"), HaveField("Tries", BeNumerically(">", 50)))))
		world.dead["use2"] = false
		goes(ctx, 2*time.Minute+10*time.Second)
		Expect(row(ctx).Value.Regions["use2"]).To(And(HaveField("State", state.Recovering), HaveField("Drain", false)))
		Expect(world.dials).To(HaveKeyWithValue(fleet.Region("use2"), 100))
		world.refuses = false
		goes(ctx, 2*time.Second)
		Expect(world.dials).To(HaveKeyWithValue(fleet.Region("use2"), 10))
	})

	It("is watched by standbys, so that a death is not seen anew when its leader dies with it", func(ctx SpecContext) {
		goes(ctx, time.Minute)
		loop, err := routing.Loop()
		Expect(err).NotTo(HaveOccurred())
		world.dead["use1"] = true // and with it the leader
		own := loop.Initial
		for range 8 {
			o, err := loop.Observe(ctx, 0)
			Expect(err).NotTo(HaveOccurred())
			var actions []failover.Action
			own, actions = loop.Step(own, o, clock)
			Expect(actions == nil || own.Memory.Term == 0).To(BeTrue())
			clock = clock.Add(time.Second)
		}
		stored := own
		stored.Memory = nil
		Expect(loop.Adopt(stored, own, 2).Memory).To(BeNil(), "nothing was stored: it begins at the beginning")
		before := row(ctx)
		table := state.NewTable[state.RoutingOf[*failover.State]](data.Open(), loop.Table, 0)
		record, err := table.Get(ctx, state.RoutingKey)
		Expect(err).NotTo(HaveOccurred())
		adopted := loop.Adopt(record.Value, own, 2)
		Expect(adopted.Memory.Term).To(Equal(int64(2)))
		Expect(adopted.Memory.Regions["use1"].DownSince).To(Equal(own.Memory.Regions["use1"].DownSince))
		o, err := loop.Observe(ctx, 2)
		Expect(err).NotTo(HaveOccurred())
		next, actions := loop.Step(adopted, o, clock)
		Expect(next.Regions["use1"].State).To(BeElementOf(state.Degraded, state.FailoverActive))
		next, more := loop.Step(next, o, clock.Add(time.Second))
		Expect(next.Regions["use1"].State).To(Equal(state.FailoverActive), "what the standby saw counts")
		Expect(append(actions, more...)).NotTo(BeEmpty())
		Expect(row(ctx).Version).To(Equal(before.Version))
	})

	It("does what an operator orders, and nothing else while it holds", func(ctx SpecContext) {
		order := failover.Order{Kind: failover.Hold, By: "ann", Why: "maintenance", At: clock}
		Expect(controller.Order(ctx, data.Open(), "use2", order)).To(MatchError(controller.ErrNoRouting))
		goes(ctx, time.Minute)
		Expect(controller.Order(ctx, data.Open(), "use2", order)).To(Succeed())
		Expect(row(ctx).Value.Regions["use2"].Hold).To(Equal("ann: maintenance"))
		world.dead["use2"] = true
		goes(ctx, 5*time.Minute)
		Expect(world.dials).To(HaveKeyWithValue(fleet.Region("use2"), 100))
		order.Kind, order.At = failover.Resume, clock
		Expect(controller.Order(ctx, data.Open(), "use2", order)).To(Succeed())
		goes(ctx, time.Minute)
		Expect(world.dials).To(HaveKeyWithValue(fleet.Region("use2"), 0))
		Expect(row(ctx).Value.Regions["use2"].Hold).To(BeEmpty())

		order.Kind = failover.Drain
		Expect(controller.Order(ctx, data.Open(), "euw1", order)).To(MatchError(ContainSubstring("no such region")))
		Expect(row(ctx).Value.Regions).To(HaveLen(3))
	})

	It("is refused with a configuration that cannot be", func() {
		_, err := controller.Routing{}.Loop()
		Expect(err).To(MatchError(ContainSubstring("0 regions")))
	})
})
