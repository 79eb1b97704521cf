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

var _ = Describe("The scaling loop", func() {
	var (
		cloud  *ec2
		data   *memory.Data
		clock  time.Time
		leader *controller.Leader
	)
	BeforeEach(func() {
		cloud, data = &ec2{instances: map[string]autoscaler.Instance{}}, memory.New(nil)
		clock = time.Date(2026, time.March, 14, 9, 26, 53, 0, time.UTC)
		leader = &controller.Leader{Store: data.Open(), Token: 1, Now: func() time.Time { return clock }}
	})
	goes := func(ctx context.Context, d time.Duration) {
		GinkgoHelper()
		loop, err := controller.Scaling{
			Config:  autoscaler.Config{Region: "use1", Zones: []string{"a", "b"}},
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
		_, err := controller.Scaling{Config: autoscaler.Config{Region: "use1"}}.Loop()
		Expect(err).To(MatchError(ContainSubstring("no zones")))
	})
})
