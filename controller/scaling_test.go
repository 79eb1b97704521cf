package controller_test

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"

	"github.com/mrgc/mrgc/controller"
	"github.com/mrgc/mrgc/controller/autoscaler"
	"github.com/mrgc/mrgc/internal/state"
	"github.com/mrgc/mrgc/internal/state/memory"
	"github.com/mrgc/mrgc/internal/state/schema"
)

// ec2 launches instances that are ready at once, each client token's once.
type ec2 struct {
	instances map[string]autoscaler.Instance // by client token
	results   []autoscaler.Result
	load      float64 // requests/s
	silent    bool    // launches have no answer
}

func (e *ec2) observe(context.Context) (autoscaler.Observation, error) {
	o := autoscaler.Observation{
		Load: autoscaler.Load{Fresh: true, Requests: e.load}, Listed: true, Known: true, Results: e.results,
		Instances: slices.Collect(maps.Values(e.instances)),
	}
	e.results = nil
	return o, nil
}

func (e *ec2) execute(_ context.Context, _ string, a autoscaler.Action) error {
	switch a.Kind {
	case autoscaler.Launch:
		if _, there := e.instances[a.Token]; !there {
			e.instances[a.Token] = autoscaler.Instance{
				ID: fmt.Sprintf("i-%03d", len(e.instances)), Intent: a.Intent, Zone: a.Zone, Registered: true, Healthy: true,
			}
		}
		if e.silent {
			return context.DeadlineExceeded
		}
		e.results = append(e.results, autoscaler.Result{Intent: a.Intent, Attempt: a.Attempt, Instance: e.instances[a.Token].ID})
	default:
		for token, in := range e.instances {
			if in.ID != a.Instance {
				continue
			}
			in.Draining, in.Drained = true, true
			in.Washed = in.Washed || a.Kind == autoscaler.Wash
			e.instances[token] = in
			if a.Kind == autoscaler.Terminate {
				delete(e.instances, token)
			}
		}
	}
	return nil
}

// loopRound is one round of a loop that is made anew.
func loopRound(ctx context.Context, rules autoscaler.Config, cloud *ec2, leader *controller.Leader) error {
	first := true
	loop, err := controller.Scaling{
		Config: func() autoscaler.Config {
			defer func() { first = false }()
			if first {
				return autoscaler.Config{Region: rules.Region, Zones: rules.Zones}
			}
			return rules
		},
		Observe: cloud.observe, Execute: cloud.execute,
	}.Loop()
	if err != nil {
		return err
	}
	return loop.Round(ctx, leader)
}

// sizedStore remembers the largest write.
type sizedStore struct {
	state.Store
	most int
}

func (s *sizedStore) Write(ctx context.Context, table schema.Table, write state.Write) (int64, error) {
	s.most = max(s.most, len(write.Fields))
	return s.Store.Write(ctx, table, write)
}

func (e *ec2) drained() (n int) {
	for _, in := range e.instances {
		if in.Draining {
			n++
		}
	}
	return n
}

var _ = Describe("The scaling loop", func() {
	var (
		cloud  *ec2
		data   *memory.Data
		clock  time.Time
		leader *controller.Leader
		rules  autoscaler.Config
	)
	BeforeEach(func() {
		rules = autoscaler.Config{Region: "use1", Zones: []string{"a", "b"}}
		cloud, data = &ec2{instances: map[string]autoscaler.Instance{}}, memory.New(nil)
		clock = time.Date(2026, time.March, 14, 9, 26, 53, 0, time.UTC)
		leader = &controller.Leader{Store: data.Open(), Token: 1, Now: func() time.Time { return clock }}
	})
	goes := func(ctx context.Context, d time.Duration) {
		GinkgoHelper()
		loop, err := controller.Scaling{
			Config:  func() autoscaler.Config { return rules },
			Observe: cloud.observe, Execute: cloud.execute,
		}.Loop()
		Expect(err).NotTo(HaveOccurred())
		for end := clock.Add(d); clock.Before(end); clock = clock.Add(loop.Every) {
			err := loop.Round(ctx, leader)
			if !cloud.silent {
				Expect(err).NotTo(HaveOccurred())
			}
		}
	}
	row := func(ctx context.Context) state.Autoscaling {
		GinkgoHelper()
		record, err := state.AutoscalingTable(data.Open()).Get(ctx, use1)
		Expect(err).NotTo(HaveOccurred())
		return record.Value
	}
	edit := func(field string, value int) {
		GinkgoHelper()
		Expect(data.Edit(schema.AutoscalingState, use1, map[string]json.RawMessage{field: json.RawMessage(fmt.Sprint(value))})).To(Succeed())
	}

	It("begins with the minimum, and says in its row what it wants and why", func(ctx SpecContext) {
		goes(ctx, time.Minute)
		Expect(cloud.instances).To(HaveLen(2))
		got := row(ctx)
		Expect([]int{got.DesiredCapacity, got.Min, got.Max}).To(Equal([]int{2, 2, 20}))
		Expect(got.Journal.Done).To(HaveLen(2))
		Expect(got.Journal.Done[0].What).To(MatchRegexp(`^launch use1-\S+ in [ab]$`))
	})

	It("follows the load, with the rule for its reason", func(ctx SpecContext) {
		goes(ctx, 6*time.Minute)
		cloud.load = 100
		goes(ctx, 6*time.Minute)
		got := row(ctx)
		Expect(got.DesiredCapacity).To(Equal(8))
		Expect(cloud.instances).To(HaveLen(8))
		Expect(got.LastAction).To(Equal("2 to 8"))
		Expect(got.LastReason).To(ContainSubstring("above 15"))
		Expect(got.CooldownUntil.Sub(got.LastActionAt)).To(Equal(5 * time.Minute))
	})

	It("honours what is written by hand, until its rules want another", func(ctx SpecContext) {
		goes(ctx, 6*time.Minute)
		edit("desired_capacity", 5)
		goes(ctx, time.Minute)
		Expect(cloud.instances).To(HaveLen(5))
		Expect(row(ctx).LastReason).To(ContainSubstring("5 by hand"))
		goes(ctx, time.Hour)
		Expect(row(ctx).DesiredCapacity).To(Equal(2), "there is no load")
		Expect(cloud.instances).To(HaveLen(2))

		edit("min_capacity", 4)
		goes(ctx, time.Hour)
		Expect(cloud.instances).To(HaveLen(4))
		edit("desired_capacity", 50)
		goes(ctx, time.Minute)
		Expect(row(ctx).DesiredCapacity).To(Equal(20))
		Expect(row(ctx).LastReason).To(ContainSubstring("50 by hand, within 4 to 20"))
	})

	limits := func(ctx context.Context) [2]int {
		GinkgoHelper()
		goes(ctx, 10*time.Second)
		got := row(ctx)
		return [2]int{got.Min, got.Max}
	}

	It("goes by its rules as they are at each decision, limits among them", func(ctx SpecContext) {
		Expect(limits(ctx)).To(Equal([2]int{2, 20}))
		rules.Min, rules.Max = 3, 5
		Expect(limits(ctx)).To(Equal([2]int{3, 5}))
		Expect(row(ctx).DesiredCapacity).To(Equal(3))
		Expect(row(ctx).LastReason).To(Equal("2 is not within 3 to 5"))
		Expect(cloud.instances).To(HaveLen(3))
		rules.Min, rules.Max = 1, 1
		Expect(limits(ctx)).To(Equal([2]int{1, 1}))
		Expect(row(ctx).DesiredCapacity).To(Equal(1))
		rules.Min = 2
		Expect(loopRound(ctx, rules, cloud, leader)).To(MatchError(ContainSubstring("want 1 ≤ min ≤ max")), "which no file says")
	})

	It("prefers a limit that is written by hand, until that is what the configuration says", func(ctx SpecContext) {
		Expect(limits(ctx)).To(Equal([2]int{2, 20}))
		edit("min_capacity", 4)
		Expect(limits(ctx)).To(Equal([2]int{4, 20}))
		rules.Min, rules.Max = 3, 30
		Expect(limits(ctx)).To(Equal([2]int{4, 30}), "of the configuration what is not by hand")
		leader = &controller.Leader{Store: data.Open(), Token: 2, Now: func() time.Time { return clock }}
		Expect(limits(ctx)).To(Equal([2]int{4, 30}), "the next leader knows which is which")
		edit("min_capacity", 3)
		Expect(limits(ctx)).To(Equal([2]int{3, 30}))
		rules.Min = 5
		Expect(limits(ctx)).To(Equal([2]int{5, 30}), "it was given back")
	})

	It("gives limits back to the configuration when they are 0 or gone", func(ctx SpecContext) {
		Expect(limits(ctx)).To(Equal([2]int{2, 20}))
		edit("max_capacity", 7)
		Expect(limits(ctx)).To(Equal([2]int{2, 7}))
		edit("max_capacity", 0)
		Expect(limits(ctx)).To(Equal([2]int{2, 20}))
	})

	It("has the other limit give way to one by hand, and remembers that it did", func(ctx SpecContext) {
		rules.Min, rules.Max = 2, 5
		Expect(limits(ctx)).To(Equal([2]int{2, 5}))
		edit("max_capacity", 12)
		edit("min_capacity", 9)
		Expect(limits(ctx)).To(Equal([2]int{9, 12}))
		edit("max_capacity", 0)
		Expect(limits(ctx)).To(Equal([2]int{9, 9}))
		edit("min_capacity", 0)
		Expect(limits(ctx)).To(Equal([2]int{2, 5}))
		edit("max_capacity", 5000)
		Expect(limits(ctx)).To(Equal([2]int{2, 250}), "more could not be remembered")
		edit("max_capacity", 2)
		rules.Min = 3
		Expect(limits(ctx)).To(Equal([2]int{2, 2}))
		edit("max_capacity", 0)
		Expect(limits(ctx)).To(Equal([2]int{3, 5}))
	})

	It("takes limits for written by hand that were there before it, and for its own those of versions that wrote the defaults", func(ctx SpecContext) {
		edit("min_capacity", 3)
		edit("max_capacity", 4)
		rules.Min, rules.Max = 5, 50
		Expect(limits(ctx)).To(Equal([2]int{3, 4}))
		data = memory.New(nil)
		leader = &controller.Leader{Store: data.Open(), Token: 1, Now: func() time.Time { return clock }}
		edit("min_capacity", 2)
		edit("max_capacity", 20)
		Expect(limits(ctx)).To(Equal([2]int{5, 50}))
	})

	It("remembers which rules were on, and what they said", func(ctx SpecContext) {
		said := func() autoscaler.Said {
			GinkgoHelper()
			var remembered autoscaler.State
			Expect(json.Unmarshal(row(ctx).Memory, &remembered)).To(Succeed())
			return remembered.Said
		}
		cloud.load = 20
		goes(ctx, 6*time.Minute)
		Expect(said()).To(Equal(autoscaler.Said{Fresh: true, Demand: 20, Reserved: 20, Needed: 2}))
		rules.Reserve, rules.Forecast = true, true
		goes(ctx, 10*time.Second)
		Expect(said()).To(And(HaveField("Reserve", true), HaveField("Forecast", true), HaveField("Learn", false), HaveField("Ahead", BeNumerically(">", 20))))
	})

	It("forecasts under whichever leader as under one alone", func(ctx SpecContext) {
		day := func(at time.Time) float64 {
			return 40 + 120*min(max(at.Sub(at.Truncate(24*time.Hour)).Hours()-8, 0), 1)
		}
		// story is a morning, and the next until the rise; it gives what is foreseen then.
		story := func(changing bool) autoscaler.State {
			GinkgoHelper()
			cloud, data := &ec2{instances: map[string]autoscaler.Instance{}}, memory.New(nil)
			rules.Forecast = true
			loop, err := controller.Scaling{
				Config: always(rules), Observe: cloud.observe, Execute: cloud.execute, Every: time.Minute,
			}.Loop()
			Expect(err).NotTo(HaveOccurred())
			clock := time.Date(2026, 11, 26, 7, 0, 0, 0, time.UTC)
			leader := &controller.Leader{Store: data.Open(), Token: 1, Now: func() time.Time { return clock }}
			for i := range 200 {
				if i == 150 {
					clock = time.Date(2026, 11, 27, 7, 10, 0, 0, time.UTC)
				}
				if changing && i%7 == 0 {
					leader = &controller.Leader{Store: data.Open(), Token: int64(2 + i), Now: func() time.Time { return clock }}
				}
				cloud.load = day(clock)
				Expect(loop.Round(ctx, leader)).To(Succeed())
				clock = clock.Add(time.Minute)
			}
			row, err := state.AutoscalingTable(data.Open()).Get(ctx, use1)
			Expect(err).NotTo(HaveOccurred())
			var remembered autoscaler.State
			Expect(json.Unmarshal(row.Value.Memory, &remembered)).To(Succeed())
			return remembered
		}
		one, many := story(false), story(true)
		Expect(one.Said.Ahead).To(BeNumerically(">", 1.1*40*(1+one.Forecast.Margin)), "what yesterday says of it")
		Expect(many.Said).To(Equal(one.Said))
		Expect(many.Forecast).To(Equal(one.Forecast))
	})

	It("remembers no more than an item of DynamoDB's holds, when all of the most instances are drained at once", func(ctx SpecContext) {
		sized := &sizedStore{Store: data.Open()}
		leader.Store = sized
		rules.Max, rules.Learn, rules.Forecast = 250, true, true
		edit("desired_capacity", 250)
		goes(ctx, 20*time.Minute)
		Expect(cloud.instances).To(HaveLen(250))
		var remembered map[string]any
		Expect(json.Unmarshal(row(ctx).Memory, &remembered)).To(Succeed())
		capacity, day, days := map[string]any{}, []float64{}, []float64{}
		for i := range 64 {
			capacity[fmt.Sprintf("%0128d", i)] = map[string]float64{"Tokens": 1.0 / 3}
		}
		for range 288 {
			day, days = append(day, 1000.0/3), append(days, 1000)
		}
		remembered["Capacity"], remembered["Forecast"] = capacity, map[string]any{"Day": day, "Days": days, "Minute": map[string]any{"Of": 1}}
		memory, err := json.Marshal(remembered)
		Expect(err).NotTo(HaveOccurred())
		Expect(data.Edit(schema.AutoscalingState, use1, map[string]json.RawMessage{"memory": memory})).To(Succeed())
		edit("desired_capacity", 2)
		goes(ctx, 10*time.Second)
		Expect(row(ctx).Journal.Done).To(HaveLen(20))
		Expect(cloud.drained()).To(BeNumerically(">=", 240), "all at once")
		longer := 4 * 250 * len("0123456789abcdef") // ids of EC2's, where these are short
		Expect(sized.most + longer).To(BeNumerically("<", 400_000))
		AddReportEntry("bytes", sized.most+longer)
	})

	It("launches nothing twice when answers are lost and leaders change", func(ctx SpecContext) {
		cloud.silent = true
		goes(ctx, 20*time.Second)
		Expect(cloud.instances).To(HaveLen(1), "the second waits for the first's tries")
		for token := range int64(5) {
			leader = &controller.Leader{Store: data.Open(), Token: 2 + token, Now: func() time.Time { return clock }}
			goes(ctx, 20*time.Second)
		}
		cloud.silent = false
		goes(ctx, 10*time.Minute)
		Expect(cloud.instances).To(HaveLen(2))
	})

	It("is refused with a configuration that cannot be", func() {
		_, err := controller.Scaling{Config: always(autoscaler.Config{Region: "use1"})}.Loop()
		Expect(err).To(MatchError(ContainSubstring("no zones")))
	})
})
