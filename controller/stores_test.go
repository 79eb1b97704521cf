package controller_test

import (
	"context"
	"encoding/json"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"

	"github.com/mrgc/mrgc/controller"
	"github.com/mrgc/mrgc/controller/autoscaler"
	"github.com/mrgc/mrgc/controller/failover"
	"github.com/mrgc/mrgc/internal/fleet"
	"github.com/mrgc/mrgc/internal/state"
	"github.com/mrgc/mrgc/internal/state/memory"
	"github.com/mrgc/mrgc/internal/state/open"
)

var _ = Describe("What the loops remember", func() {
	// story runs both loops through a rise of load and a dead region, each round by
	// another leader, so that nothing is remembered but what is stored.
	story := func(ctx context.Context, store state.Store) (scaling state.Autoscaling, routing state.Routing) {
		GinkgoHelper()
		cloud := &ec2{instances: map[string]autoscaler.Instance{}}
		scale, err := controller.Scaling{
			Config:  always(autoscaler.Config{Region: "use1", Zones: []string{"a", "b"}, Learn: true, Forecast: true, Reserve: true}),
			Observe: cloud.observe, Execute: cloud.execute,
		}.Loop()
		Expect(err).NotTo(HaveOccurred())
		world := &doors{dead: map[fleet.Region]bool{}, dials: map[fleet.Region]int{"use1": 100, "use2": 100, "usw2": 100}}
		route, err := controller.Routing{Config: failover.Defaults(allRegions...), Observe: world.observe, Execute: world.execute}.Loop()
		Expect(err).NotTo(HaveOccurred())
		clock := time.Date(2026, time.March, 14, 9, 26, 53, 123456789, time.UTC)
		now := func() time.Time { return clock }
		long := &controller.Leader{Store: store, Token: 1, Now: now}
		for i := range int64(24) {
			cloud.load = float64(7 * i)
			Expect(scale.Round(ctx, &controller.Leader{Store: store, Token: 1 + i/8, Now: now})).To(Succeed())
			world.dead["use2"] = i > 4
			Expect(route.Round(ctx, long)).To(Succeed())
			clock = clock.Add(4 * time.Second)
		}
		scaled, err := state.AutoscalingTable(store).Get(ctx, use1)
		Expect(err).NotTo(HaveOccurred())
		routed, err := state.RoutingTable(store).Get(ctx, state.RoutingKey)
		Expect(err).NotTo(HaveOccurred())
		return scaled.Value, routed.Value
	}

	It("is the same on DynamoDB as in memory", func(ctx SpecContext) {
		s, _ := dynamoSite(ctx, time.Second)
		store, err := open.Store(ctx, s.address, nil)
		Expect(err).NotTo(HaveOccurred())
		DeferCleanup(store.Close)
		scaling, routing := story(ctx, store)
		wantScaling, wantRouting := story(ctx, memory.New(nil).Open())
		Expect(routing.Regions["use2"].State).To(Equal(state.FailoverActive))
		Expect(scaling.DesiredCapacity).To(BeNumerically(">", 2))
		for _, pair := range [][2]any{{scaling, wantScaling}, {routing, wantRouting}} {
			got, err := json.Marshal(pair[0])
			Expect(err).NotTo(HaveOccurred())
			want, err := json.Marshal(pair[1])
			Expect(err).NotTo(HaveOccurred())
			Expect(got).To(MatchJSON(want))
		}
	}, SpecTimeout(time.Minute))
})
