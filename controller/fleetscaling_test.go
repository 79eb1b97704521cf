package controller_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"

	"github.com/mrgc/mrgc/controller"
	"github.com/mrgc/mrgc/controller/autoscaler"
	"github.com/mrgc/mrgc/internal/fleet"
	"github.com/mrgc/mrgc/internal/fleet/sqlite"
	"github.com/mrgc/mrgc/internal/state"
	"github.com/mrgc/mrgc/internal/state/memory"
	"github.com/mrgc/mrgc/internal/state/schema"
	"github.com/mrgc/mrgc/internal/testclock"
)

// listedCloud is a cloud that lists what it is told to.
type listedCloud struct {
	instances  []controller.CloudInstance
	fails      error
	full       bool
	terminated []string
	before     func() // each listing
}

func (c *listedCloud) Launch(_ context.Context, a autoscaler.Action) (autoscaler.Result, error) {
	if c.full {
		return autoscaler.Result{Intent: a.Intent, Attempt: a.Attempt, NoCapacity: true}, c.fails
	}
	return autoscaler.Result{Intent: a.Intent, Attempt: a.Attempt, Instance: "i-new"}, c.fails
}

func (c *listedCloud) Instances(context.Context) ([]controller.CloudInstance, error) {
	if c.before != nil {
		c.before()
	}
	return c.instances, c.fails
}

func (c *listedCloud) Terminate(_ context.Context, id string) error {
	c.terminated = append(c.terminated, id)
	return c.fails
}

// unlisted is a store that fails to list when it is told to.
type unlisted struct {
	state.Store
	fails error
}

func (u *unlisted) List(ctx context.Context, table schema.Table, query state.Query) ([]state.Item, error) {
	if u.fails != nil {
		return nil, u.fails
	}
	return u.Store.List(ctx, table, query)
}

var _ = Describe("What a region is scaled by", func() {
	var (
		clock   *testclock.Clock
		cloud   *listedCloud
		rows    fleet.Store
		washes  state.Store
		ordered []string
		scaling controller.Scaling
	)
	build := func(washed bool) controller.Scaling {
		GinkgoHelper()
		of := controller.Scaled{Cloud: cloud, Fleet: rows}
		if washed {
			of.Washes = washes
			of.Wash = func(_ context.Context, in *fleet.Instance) error {
				ordered = append(ordered, in.ID)
				return nil
			}
		}
		built, err := controller.NewScaling(always(autoscaler.Config{Region: "use1", Zones: []string{"a"}}), of)
		Expect(err).NotTo(HaveOccurred())
		return built
	}
	BeforeEach(func(ctx SpecContext) {
		clock = testclock.At(time.Date(2026, 11, 26, 12, 0, 0, 0, time.UTC))
		cloud, ordered = &listedCloud{}, nil
		store, err := sqlite.Open(ctx, sqlite.Config{Path: filepath.Join(GinkgoT().TempDir(), "fleet.db"), Clock: clock.Now})
		Expect(err).NotTo(HaveOccurred())
		DeferCleanup(store.Close)
		rows, washes = store, memory.New(clock.Now).Open()
		scaling = build(true)
	})
	well := fleet.Health{Enclave: true, Engine: true}
	register := func(ctx context.Context, id string, region fleet.Region) {
		GinkgoHelper()
		Expect(rows.Register(ctx, fleet.Instance{ID: id, Region: region, Address: "127.0.0.1:1", Health: well})).To(Succeed())
	}
	// beat is a heartbeat, so long after the one before.
	beat := func(ctx context.Context, after time.Duration, id string, load fleet.Load) {
		GinkgoHelper()
		clock.Advance(after)
		Expect(rows.Heartbeat(ctx, fleet.Heartbeat{ID: id, Health: well, Load: load})).To(Succeed())
	}
	observe := func(ctx context.Context) autoscaler.Observation {
		GinkgoHelper()
		o, err := scaling.Observe(ctx)
		Expect(err).NotTo(HaveOccurred())
		return o
	}

	It("is a load that two heartbeats tell, by region, over the last half a minute", func(ctx SpecContext) {
		register(ctx, "i-1", "use1")
		register(ctx, "i-2", "use2")
		Expect(observe(ctx).Load.Fresh).To(BeFalse())
		for i := range 20 {
			beat(ctx, 5*time.Second, "i-1", fleet.Load{Requests: int64(i+1) * 10})
			beat(ctx, 0, "i-2", fleet.Load{Requests: int64(i+1) * 50})
			o := observe(ctx)
			Expect(o.Load.Fresh).To(BeTrue())
			Expect(o.Load.Requests).To(BeNumerically("~", 2, 1e-9))
			Expect(o.Others["use2"].Requests).To(BeNumerically("~", 10, 1e-9))
		}
		for i := range 7 {
			beat(ctx, 5*time.Second, "i-1", fleet.Load{Requests: int64(200 + 100*(i+1))})
			observe(ctx)
		}
		Expect(observe(ctx).Load.Requests).To(BeNumerically("~", 20, 1e-9), "what was before is forgotten")
		Expect(observe(ctx).Others["use2"].Fresh).To(BeFalse(), "it has not been heard of")
		beat(ctx, 5*time.Second, "i-1", fleet.Load{Requests: 3})
		Expect(observe(ctx).Load.Fresh).To(BeFalse(), "its parent has started anew")
	})

	Describe("is what the tokens of models take", func() {
		models := func(ctx context.Context) map[string]autoscaler.Usage {
			GinkgoHelper()
			return observe(ctx).Load.Models
		}
		// used is a heartbeat with what one model was used for.
		used := func(ctx context.Context, after time.Duration, id string, m fleet.Usage) {
			GinkgoHelper()
			clock.Advance(after)
			Expect(rows.Heartbeat(ctx, fleet.Heartbeat{ID: id, Health: well, Load: fleet.Load{Requests: m.Requests}, Usage: map[string]fleet.Usage{"m": m}})).To(Succeed())
		}

		It("by what answers took lately, over all instances", func(ctx SpecContext) {
			register(ctx, "i-1", "use1")
			register(ctx, "i-2", "use1")
			used(ctx, 0, "i-1", fleet.Usage{})
			used(ctx, 0, "i-2", fleet.Usage{})
			observe(ctx)
			used(ctx, 10*time.Second, "i-1", fleet.Usage{Requests: 40, Ended: 20, Late: 5, Answers: 16, PromptTokens: 1200, OutputTokens: 400})
			used(ctx, 0, "i-2", fleet.Usage{Requests: 20, Ended: 10})
			Expect(models(ctx)).To(Equal(map[string]autoscaler.Usage{"m": {Tokens: 600, Served: 300, Late: 5.0 / 30}}),
				"6 requests/s come, 3 end, with 100 tokens each")
		})

		It("by what the last took while none is told of", func(ctx SpecContext) {
			register(ctx, "i-1", "use1")
			used(ctx, 0, "i-1", fleet.Usage{})
			observe(ctx)
			used(ctx, 10*time.Second, "i-1", fleet.Usage{Requests: 10})
			Expect(models(ctx)).To(BeNil(), "nothing is known of it yet")
			used(ctx, 10*time.Second, "i-1", fleet.Usage{Requests: 20, Ended: 10, Answers: 10, PromptTokens: 1000})
			Expect(models(ctx)).To(HaveKeyWithValue("m", autoscaler.Usage{Tokens: 100, Served: 50}))
			for i := range 4 {
				used(ctx, 10*time.Second, "i-1", fleet.Usage{Requests: 20 + 10*int64(i+1), Ended: 10 + 5*int64(i+1), Answers: 10, PromptTokens: 1000})
				observe(ctx)
			}
			Expect(models(ctx)).To(HaveKeyWithValue("m", autoscaler.Usage{Tokens: 100, Served: 50}))
		})

		It("by what they took since the start when a new leader has seen no other", func(ctx SpecContext) {
			register(ctx, "i-1", "use1")
			used(ctx, 0, "i-1", fleet.Usage{Requests: 100, Ended: 100, Answers: 96, OutputTokens: 9600})
			observe(ctx)
			used(ctx, 10*time.Second, "i-1", fleet.Usage{Requests: 110, Ended: 110, Answers: 96, OutputTokens: 9600})
			Expect(models(ctx)).To(HaveKeyWithValue("m", autoscaler.Usage{Tokens: 100, Served: 100}))
		})

		It("of a model of which too little is known, as of the others", func(ctx SpecContext) {
			register(ctx, "i-1", "use1")
			both := func(after time.Duration, m, other fleet.Usage) {
				GinkgoHelper()
				clock.Advance(after)
				Expect(rows.Heartbeat(ctx, fleet.Heartbeat{ID: "i-1", Health: well, Usage: map[string]fleet.Usage{"m": m, "other": other, "idle": {}}})).To(Succeed())
			}
			both(0, fleet.Usage{}, fleet.Usage{})
			observe(ctx)
			both(10*time.Second, fleet.Usage{Requests: 20, Ended: 20, Answers: 20, PromptTokens: 4000}, fleet.Usage{Requests: 10, Ended: 5})
			Expect(models(ctx)).To(Equal(map[string]autoscaler.Usage{"m": {Tokens: 400, Served: 400}, "other": {Tokens: 200, Served: 100}, "idle": {}}))
		})

		It("and is not known while an instance does not say, which leaves requests", func(ctx SpecContext) {
			register(ctx, "i-1", "use1")
			register(ctx, "i-2", "use1")
			used(ctx, 0, "i-1", fleet.Usage{})
			beat(ctx, 0, "i-2", fleet.Load{})
			observe(ctx)
			used(ctx, 10*time.Second, "i-1", fleet.Usage{Requests: 10, Ended: 10, PromptTokens: 1000})
			beat(ctx, 0, "i-2", fleet.Load{Requests: 10})
			o := observe(ctx)
			Expect(o.Load.Models).To(BeNil())
			Expect(o.Load.Requests).To(BeNumerically("~", 2, 1e-9))
		})

		It("from when a parent has started anew, whichever counter shows it", func(ctx SpecContext) {
			register(ctx, "i-1", "use1")
			used(ctx, 0, "i-1", fleet.Usage{})
			observe(ctx)
			used(ctx, 10*time.Second, "i-1", fleet.Usage{Requests: 10, Ended: 10, Late: 3})
			Expect(observe(ctx).Load.Fresh).To(BeTrue())
			used(ctx, 10*time.Second, "i-1", fleet.Usage{Requests: 11, Ended: 11, Late: 2})
			Expect(observe(ctx).Load.Fresh).To(BeFalse())
		})
	})

	It("is not known of another region that has instances and is not heard of", func(ctx SpecContext) {
		register(ctx, "i-1", "use1")
		Expect(observe(ctx).Others).To(BeEmpty())
		register(ctx, "i-2", "use2")
		Expect(observe(ctx).Others).To(Equal(map[fleet.Region]autoscaler.Load{"use2": {}}))
	})

	It("is what EC2 lists, with what the fleet says of each", func(ctx SpecContext) {
		cloud.instances = []controller.CloudInstance{{ID: "i-1", Intent: "use1-1-1", Zone: "a"}, {ID: "i-2", Zone: "b", Leaving: true}}
		register(ctx, "i-1", "use1")
		o := observe(ctx)
		Expect(o.Listed).To(BeTrue())
		Expect(o.Known).To(BeTrue())
		Expect(o.Instances).To(HaveExactElements(
			autoscaler.Instance{ID: "i-1", Intent: "use1-1-1", Zone: "a", Registered: true, Healthy: true},
			autoscaler.Instance{ID: "i-2", Zone: "b", Leaving: true}))
		clock.Advance(time.Minute)
		register(ctx, "i-3", "use2")
		Expect(observe(ctx).Instances[0].Healthy).To(BeFalse(), "not heard of for a minute")
		Expect(observe(ctx).Known).To(BeFalse(), "of this region nobody is heard of, though of another one is")
		register(ctx, "i-2", "use1")
		Expect(observe(ctx).Known).To(BeTrue())
		cloud.fails = errors.New("no answer")
		_, err := scaling.Observe(ctx)
		Expect(err).To(MatchError("no answer"))
	})

	It("lets nobody go who has not said twice that there are no requests, and been washed since", func(ctx SpecContext) {
		cloud.instances = []controller.CloudInstance{{ID: "i-1"}}
		register(ctx, "i-1", "use1")
		seen := func() (drained, washed bool) {
			GinkgoHelper()
			in := observe(ctx).Instances[0]
			return in.Drained, in.Washed
		}
		wash := func(passed bool) {
			GinkgoHelper()
			w := state.Wash{Region: "use1", Trigger: "operator", StartedAt: clock.Now(), Passed: passed, Reason: "clear_gpu: a byte"}
			for _, name := range state.WashSteps() {
				w.Steps = append(w.Steps, state.WashStep{Name: name, Passed: passed, Detail: "seen"})
			}
			_, err := state.WashTable(washes).Put(ctx, state.Record[state.Wash]{Key: state.WashKey("i-1", clock.Now()), Value: w}, state.Anyway())
			Expect(err).NotTo(HaveOccurred())
		}
		expect := func(drained, washed bool) {
			GinkgoHelper()
			isDrained, isWashed := seen()
			Expect([]bool{isDrained, isWashed}).To(Equal([]bool{drained, washed}))
		}
		expect(false, false)
		wash(true)
		Expect(scaling.Execute(ctx, "1", autoscaler.Action{Kind: autoscaler.Drain, Instance: "i-1"})).To(Succeed())
		expect(false, false)
		beat(ctx, time.Second, "i-1", fleet.Load{})
		expect(false, false)
		expect(false, false)
		beat(ctx, time.Second, "i-1", fleet.Load{Running: 1})
		expect(false, false)
		beat(ctx, time.Second, "i-1", fleet.Load{})
		expect(false, false)
		beat(ctx, time.Second, "i-1", fleet.Load{})
		expect(true, false)
		Expect(scaling.Execute(ctx, "2", autoscaler.Action{Kind: autoscaler.Wash, Instance: "i-1"})).To(Succeed())
		Expect(ordered).To(Equal([]string{"i-1"}))
		clock.Advance(time.Second)
		wash(false)
		expect(true, false)
		clock.Advance(time.Second)
		_, err := washes.Write(ctx, schema.CleanupValidation, state.Write{Key: state.WashKey("i-1", clock.Now()), Fields: fmt.Appendf(nil,
			`{"region":"use1","trigger":"operator","passed":true,"started_at":%q,"steps":[{"name":"clear_gpu","passed":true,"detail":"seen"}]}`, clock.Now().Format(time.RFC3339Nano))})
		Expect(err).NotTo(HaveOccurred())
		expect(true, false)
		clock.Advance(time.Second)
		wash(true)
		expect(true, true)
		Expect(scaling.Execute(ctx, "3", autoscaler.Action{Kind: autoscaler.Terminate, Instance: "i-1"})).To(Succeed())
		Expect(cloud.terminated).To(Equal([]string{"i-1"}))
		cloud.instances = nil
		Expect(observe(ctx).Instances).To(BeEmpty())
	})

	It("wants no wash where instances are not washed", func(ctx SpecContext) {
		scaling = build(false)
		cloud.instances = []controller.CloudInstance{{ID: "i-1"}}
		register(ctx, "i-1", "use1")
		Expect(rows.SetDraining(ctx, "i-1", true)).To(Succeed())
		observe(ctx)
		for range 2 {
			beat(ctx, time.Second, "i-1", fleet.Load{})
			observe(ctx)
		}
		Expect(observe(ctx).Instances[0]).To(And(HaveField("Drained", true), HaveField("Washed", true)))
	})

	It("tells of how launches ended until a decision that knows of it is stored", func(ctx SpecContext) {
		action := autoscaler.Action{Kind: autoscaler.Launch, Intent: "use1-1-1", Attempt: 2}
		Expect(scaling.Execute(ctx, "1", action)).To(Succeed())
		cloud.full = true
		Expect(scaling.Execute(ctx, "2", action)).To(Succeed())
		Expect(observe(ctx).Results).To(HaveExactElements(
			autoscaler.Result{Intent: "use1-1-1", Attempt: 2, Instance: "i-new"}, HaveField("NoCapacity", true)))
		seen := observe(ctx)
		Expect(seen.Results).To(HaveLen(2))
		Expect(scaling.Execute(ctx, "3", action)).To(Succeed())
		scaling.Decided(seen)
		seen = observe(ctx)
		Expect(seen.Results).To(HaveLen(1), "that was not known yet")
		scaling.Decided(seen)
		Expect(observe(ctx).Results).To(BeEmpty())
		cloud.fails = errors.New("no answer")
		Expect(scaling.Execute(ctx, "3", action)).To(MatchError("no answer"))
	})

	It("tells how launches ended to a decision that is made anew, as somebody wrote meanwhile", func(ctx SpecContext) {
		data := memory.New(clock.Now)
		loop, err := scaling.Loop()
		Expect(err).NotTo(HaveOccurred())
		leader := &controller.Leader{Store: data.Open(), Token: 1, Now: clock.Now}
		cloud.full = true
		Expect(loop.Round(ctx, leader)).To(Succeed())
		clock.Advance(10 * time.Second)
		written := 0
		cloud.before = func() {
			if written++; written == 1 {
				Expect(data.Edit(schema.AutoscalingState, use1, map[string]json.RawMessage{"max_capacity": json.RawMessage("7")})).To(Succeed())
			}
		}
		Expect(loop.Round(ctx, leader)).To(Succeed())
		Expect(written).To(Equal(2), "it was decided twice")
		row, err := state.AutoscalingTable(data.Open()).Get(ctx, use1)
		Expect(err).NotTo(HaveOccurred())
		var remembered autoscaler.State
		Expect(json.Unmarshal(row.Value.Memory, &remembered)).To(Succeed())
		Expect(remembered.Zones).To(HaveKeyWithValue("a", clock.Now().Add(5*time.Minute)), "the only zone is known to have no capacity")
		Expect(remembered.Members).To(HaveEach(HaveField("Attempt", 1)))
	})

	It("tells how launches ended after a look that failed, too", func(ctx SpecContext) {
		away := &unlisted{Store: washes}
		washes = away
		scaling = build(true)
		cloud.instances = []controller.CloudInstance{{ID: "i-1"}}
		register(ctx, "i-1", "use1")
		Expect(rows.SetDraining(ctx, "i-1", true)).To(Succeed())
		observe(ctx)
		for range 2 {
			beat(ctx, time.Second, "i-1", fleet.Load{})
			observe(ctx)
		}
		cloud.full = true
		Expect(scaling.Execute(ctx, "1", autoscaler.Action{Kind: autoscaler.Launch, Intent: "use1-1-1"})).To(Succeed())
		away.fails = errors.New("away")
		_, err := scaling.Observe(ctx)
		Expect(err).To(MatchError(ContainSubstring("washes of i-1: away")))
		away.fails = nil
		Expect(observe(ctx).Results).To(HaveExactElements(HaveField("NoCapacity", true)))
	})

	It("drains who never registered, which takes no requests", func(ctx SpecContext) {
		Expect(scaling.Execute(ctx, "1", autoscaler.Action{Kind: autoscaler.Drain, Instance: "i-9"})).To(Succeed())
		Expect(scaling.Execute(ctx, "2", autoscaler.Action{Kind: autoscaler.Wash, Instance: "i-9"})).To(Succeed())
		Expect(ordered).To(BeEmpty())
	})

	It("is not built of half of it", func() {
		_, err := controller.NewScaling(always(autoscaler.Config{}), controller.Scaled{Cloud: cloud})
		Expect(err).To(MatchError(ContainSubstring("the fleet's store")))
		_, err = controller.NewScaling(always(autoscaler.Config{}), controller.Scaled{Cloud: cloud, Fleet: rows, Washes: washes})
		Expect(err).To(MatchError(ContainSubstring("or neither")))
	})
})
