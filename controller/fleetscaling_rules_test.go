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
	awsec2 "github.com/mrgc/mrgc/controller/ec2"
	"github.com/mrgc/mrgc/internal/fleet"
	"github.com/mrgc/mrgc/internal/fleet/sqlite"
	"github.com/mrgc/mrgc/internal/state"
	"github.com/mrgc/mrgc/internal/state/open"
	"github.com/mrgc/mrgc/internal/testclock"
)

// ruled is a region whose real loop goes by rules that a spec changes: on a DynamoDB, with
// EC2's driver and an emulator of EC2, by the rows that its instances' parents write. The
// time is the spec's.
type ruled struct {
	*emulated
	clock  *testclock.Clock
	rows   *sqlite.Store
	store  state.Store
	cloud  *awsec2.Cloud
	rules  autoscaler.Config
	leader *controller.Leader
	round  func(context.Context, *controller.Leader) error

	load   float64 // requests/s of the region
	others map[fleet.Region]float64
	tokens int64   // of a request
	power  float64 // tokens/s that an instance serves; 0: any number
	parent map[string]*workload
}

// workload is what an instance has had, and has not done yet.
type workload struct {
	fleet.Usage
	backlog float64 // requests
	begun   float64 // of them a fraction
}

func startRuled(ctx context.Context, at time.Time) *ruled {
	GinkgoHelper()
	r := &ruled{
		emulated: startEmulated(ctx), clock: testclock.At(at), tokens: 128, parent: map[string]*workload{}, others: map[fleet.Region]float64{},
		rules: autoscaler.Config{Region: "use1", Zones: []string{"us-east-1a", "us-east-1b"}},
	}
	var err error
	r.rows, err = sqlite.Open(ctx, sqlite.Config{Path: filepath.Join(GinkgoT().TempDir(), "fleet.db"), Clock: r.clock.Now})
	Expect(err).NotTo(HaveOccurred())
	DeferCleanup(r.rows.Close)
	s, _ := dynamoSite(ctx, time.Second)
	r.store, err = open.Store(ctx, s.address, nil)
	Expect(err).NotTo(HaveOccurred())
	DeferCleanup(r.store.Close)
	r.cloud, err = awsec2.Open(ctx, cloudConfig(r.url))
	Expect(err).NotTo(HaveOccurred())
	DeferCleanup(r.cloud.Close)
	r.lead(1)
	return r
}

// lead begins with a new leader, who knows what is stored and nothing else.
func (r *ruled) lead(token int64) {
	GinkgoHelper()
	scaling, err := controller.NewScaling(func() autoscaler.Config { return r.rules }, controller.Scaled{Cloud: r.cloud, Fleet: r.rows})
	Expect(err).NotTo(HaveOccurred())
	loop, err := scaling.Loop()
	Expect(err).NotTo(HaveOccurred())
	r.leader, r.round = &controller.Leader{Store: r.store, Token: token, Now: r.clock.Now}, loop.Round
}

// goes lets so much time pass, by the minute.
func (r *ruled) goes(ctx context.Context, d time.Duration) {
	GinkgoHelper()
	for end := r.clock.Now().Add(d); r.clock.Now().Before(end); {
		r.clock.Advance(time.Minute)
		machines, err := r.machines(ctx)
		Expect(err).NotTo(HaveOccurred())
		var ids []string
		for _, m := range machines {
			if m.running {
				ids = append(ids, m.id)
			}
		}
		r.serve(ctx, "use1", r.load, ids)
		for region, load := range r.others {
			r.serve(ctx, region, load, []string{"i-of-" + string(region)})
		}
		Expect(r.round(ctx, r.leader)).To(Succeed())
	}
}

// serve has instances do a minute's work, and say so.
func (r *ruled) serve(ctx context.Context, region fleet.Region, load float64, ids []string) {
	GinkgoHelper()
	snapshot, err := r.rows.Snapshot(ctx)
	Expect(err).NotTo(HaveOccurred())
	draining, ready := map[string]bool{}, 0
	for _, in := range snapshot.Instances {
		draining[in.ID] = in.Draining
	}
	for _, id := range ids {
		if !draining[id] {
			ready++
		}
	}
	for i, id := range ids {
		w := r.parent[id]
		if w == nil {
			w = &workload{}
			r.parent[id] = w
		}
		if !draining[id] {
			w.begun += load * 60 / float64(ready)
			came := int64(w.begun)
			w.begun -= float64(came)
			w.Requests += came
			w.backlog += float64(came)
		}
		done, late := int64(w.backlog), false
		if most := int64(r.power * 60 / float64(r.tokens)); r.power > 0 && done > most {
			done, late = most, true
		}
		w.backlog = min(w.backlog-float64(done), load*30) // who would wait for longer is gone
		w.Ended, w.Answers = w.Ended+done, w.Answers+done
		w.PromptTokens, w.OutputTokens = w.PromptTokens+done*r.tokens/2, w.OutputTokens+done*r.tokens/2
		if late {
			w.Late += done
		}
		beat := fleet.Heartbeat{
			ID: id, Health: fleet.Health{Enclave: true, Engine: true},
			Load: fleet.Load{Requests: w.Requests}, Usage: map[string]fleet.Usage{"m": w.Usage},
		}
		err := r.rows.Heartbeat(ctx, beat)
		if errors.Is(err, fleet.ErrNotFound) {
			err = r.rows.Register(ctx, fleet.Instance{
				ID: id, Region: region, Address: fmt.Sprintf("127.0.0.1:%d", 1000+i), Models: []string{"m"}, Health: beat.Health, Load: beat.Load, Usage: beat.Usage,
			})
		}
		Expect(err).NotTo(HaveOccurred())
	}
}

// remembered is what the region's row says.
func (r *ruled) remembered(ctx context.Context) (desired int, s autoscaler.State) {
	GinkgoHelper()
	row, err := state.AutoscalingTable(r.store).Get(ctx, use1)
	Expect(err).NotTo(HaveOccurred())
	Expect(json.Unmarshal(row.Value.Memory, &s)).To(Succeed())
	return row.Value.DesiredCapacity, s
}

func (r *ruled) desired(ctx context.Context) int {
	GinkgoHelper()
	n, _ := r.remembered(ctx)
	return n
}

var _ = Describe("A rule that is switched on while controllers run", func() {
	morning := time.Date(2026, 11, 26, 7, 0, 0, 0, time.UTC)

	It("has a reserve held, and given up when it is switched off", func(ctx SpecContext) {
		r := startRuled(ctx, morning)
		r.load, r.others = 28, map[fleet.Region]float64{"use2": 40, "usw2": 40}
		r.goes(ctx, 15*time.Minute)
		Expect(r.running(ctx)).To(Equal(2), "14 requests/s each")
		r.rules.Reserve = true
		r.goes(ctx, 10*time.Minute)
		Expect(r.running(ctx)).To(Equal(4), "28 + 40/2 requests/s at 15 each")
		_, s := r.remembered(ctx)
		Expect(s.Said).To(And(HaveField("Reserve", true), HaveField("Reserved", BeNumerically("~", 48, 1))))
		r.load = 20
		r.goes(ctx, 20*time.Minute)
		Expect(r.running(ctx)).To(Equal(4))
		r.rules.Reserve = false
		r.goes(ctx, 20*time.Minute)
		Expect(r.running(ctx)).To(Equal(2))
	}, SpecTimeout(5*time.Minute))

	It("has requests weigh what their tokens take", func(ctx SpecContext) {
		r := startRuled(ctx, morning)
		r.load, r.power = 28, 3000
		r.goes(ctx, 15*time.Minute)
		r.tokens = 768 // six times as many
		r.goes(ctx, 15*time.Minute)
		Expect(r.running(ctx)).To(Equal(2), "as many requests as before, though they are late")
		r.rules.Learn = true
		r.goes(ctx, 40*time.Minute)
		Expect(r.running(ctx)).To(BeNumerically("~", 9, 2), "28 * 768 tokens/s, of which an instance serves 3000 in time")
		_, s := r.remembered(ctx)
		Expect(s.Capacity["m"].Tokens).To(BeNumerically("~", 3000, 500))

		r.lead(2)
		r.goes(ctx, time.Minute)
		_, s = r.remembered(ctx)
		Expect(s.Capacity["m"].Tokens).To(BeNumerically("~", 3000, 500), "the next leader knows it")
		r.tokens = 128
		r.rules.Learn = false
		r.goes(ctx, 30*time.Minute)
		Expect(r.running(ctx)).To(Equal(3), "28 requests/s at 12.5 each")
	}, SpecTimeout(5*time.Minute))

	It("has instances launched before the rise of the day before, also by another leader", func(ctx SpecContext) {
		r := startRuled(ctx, morning)
		r.rules.Forecast = true
		// beforeTheRise is how many are wanted a minute before eight.
		beforeTheRise := func() int {
			GinkgoHelper()
			r.load = 40
			r.goes(ctx, 59*time.Minute)
			return r.desired(ctx)
		}
		first := beforeTheRise()
		r.load = 160
		r.goes(ctx, 91*time.Minute)
		Expect(r.desired(ctx)).To(BeNumerically(">=", 11))
		r.load = 40
		r.goes(ctx, 90*time.Minute) // which gives most of them up
		evening := r.desired(ctx)
		Expect(evening).To(BeNumerically("<=", first+1))

		r.clock.Advance(20 * time.Hour) // nobody decides
		r.clock.Advance(morning.Add(24 * time.Hour).Sub(r.clock.Now()))
		r.lead(2)
		second := beforeTheRise()
		Expect(second).To(BeNumerically(">", first+1), "the load has not risen yet")
		_, s := r.remembered(ctx)
		Expect(s.Reason).To(MatchRegexp(`^up: 40\.0 requests/s now, up to \d+\.\d within 5m0s$`))

		r.rules.Forecast = false // and the plain rules go by the load alone
		r.load = 30
		r.goes(ctx, 15*time.Minute)
		Expect(r.desired(ctx)).To(Equal(3), "30 requests/s at 12.5 each, whatever there was at this time yesterday")
	}, SpecTimeout(5*time.Minute))
})
