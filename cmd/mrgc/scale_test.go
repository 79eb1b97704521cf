package main

import (
	"context"
	"encoding/json"
	"path/filepath"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"

	"github.com/mrgc/mrgc/internal/lease"
	"github.com/mrgc/mrgc/internal/state"
	"github.com/mrgc/mrgc/internal/state/open"
	"github.com/mrgc/mrgc/internal/state/schema"
)

var _ = Describe("mrgc scale status", func() {
	var (
		address string
		store   state.Store
		at      = time.Date(2026, time.March, 14, 9, 26, 53, 0, time.UTC)
	)
	BeforeEach(func(ctx SpecContext) {
		address = "sqlite:" + filepath.Join(GinkgoT().TempDir(), "state.db")
		var err error
		store, err = open.Store(ctx, address, nil)
		Expect(err).NotTo(HaveOccurred())
		DeferCleanup(store.Close)
	})
	fill := func(ctx context.Context) {
		GinkgoHelper()
		_, err := state.AutoscalingTable(store).Put(ctx, state.Record[state.Autoscaling]{
			Key: state.Key{Partition: "use1"},
			Value: state.Autoscaling{
				DesiredCapacity: 4, Min: 2, Max: 20, CooldownUntil: at.Add(5 * time.Minute),
				LastAction: "launch 2", LastReason: "21 requests/s for each instance over 2 min",
				Journal: state.Journal{
					Done: []state.Action{
						{ID: "a", What: "launch in use1-az1", Reason: "too busy", DecidedAt: at, EndedAt: at.Add(time.Second), Tries: 1},
						{ID: "b", What: "launch in use1-az2", Reason: "too busy", DecidedAt: at, EndedAt: at.Add(time.Minute), Tries: 5, Error: "no capacity"},
					},
					Pending: []state.Action{{ID: "c", What: "launch in use1-az3", Reason: "still too busy", DecidedAt: at, Tries: 1, Error: "throttled"}},
				},
			},
		})
		Expect(err).NotTo(HaveOccurred())
		_, err = state.LeaseTable(store).Put(ctx, state.Record[lease.Record]{
			Key: state.LeaseKey("region/use1"), Value: lease.Record{Holder: "host-1", Token: 7, Length: time.Second},
		})
		Expect(err).NotTo(HaveOccurred())
	}

	It("shows what the table says, and why with --why", func(ctx SpecContext) {
		fill(ctx)
		got := mrgc("scale", "status", "--state", address)
		Expect(got.err).NotTo(HaveOccurred())
		Expect(got.stdout).To(MatchRegexp(`use1 +4 +2 +20 +2026-03-14 09:31:53Z +host-1 +launch 2: 21 requests/s`))
		Expect(got.stdout).NotTo(ContainSubstring("use1-az1"))
		got = mrgc("scale", "status", "--state", address, "--why")
		Expect(got.err).NotTo(HaveOccurred())
		Expect(got.stdout).To(MatchRegexp(`launch in use1-az1 +too busy +done at 2026-03-14 09:26:54Z\n`))
		Expect(got.stdout).To(MatchRegexp(`launch in use1-az2 +too busy +given up at 2026-03-14 09:27:53Z after 5 tries: no capacity\n`))
		Expect(got.stdout).To(MatchRegexp(`launch in use1-az3 +still too busy +pending, tried 1 times: throttled\n`))
	})

	It("says which rules were on, and what each said", func(ctx SpecContext) {
		why := func(remembered string) string {
			GinkgoHelper()
			_, err := store.Write(ctx, schema.AutoscalingState, state.Write{
				Key: state.Key{Partition: "use1"}, Version: state.AnyVersion,
				Fields: json.RawMessage(`{"desired_capacity":4,"min_capacity":2,"max_capacity":20,"memory":` + remembered + `}`),
			})
			Expect(err).NotTo(HaveOccurred())
			got := mrgc("scale", "status", "--state", address, "--why")
			Expect(got.err).NotTo(HaveOccurred())
			return got.stdout
		}
		Expect(why(`null`)).NotTo(ContainSubstring("load"))
		Expect(why(`{"Said":{}}`)).To(And(MatchRegexp(`use1 +load +not known`), MatchRegexp(`use1 +plain rules`)))
		all := why(`{"Said":{"Learn":true,"Reserve":true,"Forecast":true,"Fresh":true,"Demand":41.5,"Ahead":60,"Reserved":90,"Needed":6},
			"Capacity":{"m":{"Tokens":2500},"a":{"Tokens":10}},"Forecast":{"Margin":0.25,"Day":[1,0],"Days":[2,0]}}`)
		Expect(all).To(MatchRegexp(`use1 +load +41\.5 requests/s; .* 6 instances\n`))
		Expect(all).To(MatchRegexp(`use1 +learn +tokens/s of an instance: a 10, m 2500\n`))
		Expect(all).To(MatchRegexp(`use1 +reserve +room for 90\.0 requests/s should another region be lost\n`))
		Expect(all).To(MatchRegexp(`use1 +forecast +up to 60\.0 requests/s while .* 25 % included; 50 % of the day`))
		Expect(all).NotTo(ContainSubstring("plain rules"))
	})

	It("is JSON for programs", func(ctx SpecContext) {
		fill(ctx)
		got := mrgc("scale", "status", "--state", address, "-o", "json")
		Expect(got.err).NotTo(HaveOccurred())
		var regions []regionScale
		Expect(json.Unmarshal([]byte(got.stdout), &regions)).To(Succeed())
		Expect(regions).To(HaveExactElements(And(HaveField("Region", "use1"), HaveField("Leader", "host-1"),
			HaveField("DesiredCapacity", 4), HaveField("Journal.Done", HaveLen(2)))))
	})

	It("shows the other regions when one's row is spoilt, and fails", func(ctx SpecContext) {
		fill(ctx)
		_, err := store.Write(ctx, schema.AutoscalingState, state.Write{
			Key: state.Key{Partition: "use2"}, Fields: json.RawMessage(`{"desired_capacity":"many"}`),
		})
		Expect(err).NotTo(HaveOccurred())
		got := mrgc("scale", "status", "--state", address)
		Expect(got.err).To(MatchError(And(ContainSubstring("use2"), ContainSubstring("desired_capacity"))))
		Expect(got.stdout).To(ContainSubstring("use1"))
	})

	It("says when there is nothing yet", func() {
		got := mrgc("scale", "status", "--state", address)
		Expect(got.err).NotTo(HaveOccurred())
		Expect(got.stdout).To(ContainSubstring("no controller has decided"))
	})
})

var _ = Describe("mrgc controller", func() {
	It("leads the region that it is given, and lets go of it when it ends", func(ctx SpecContext) {
		address := "sqlite:" + filepath.Join(GinkgoT().TempDir(), "state.db")
		life, end := context.WithCancel(ctx)
		done := make(chan error, 1)
		go func() {
			done <- run(life, []string{
				"controller", "--config", example, "--region", "use1", "--state", address,
				"--store", "sqlite:" + filepath.Join(GinkgoT().TempDir(), "fleet.db"), "--admin-listen", "127.0.0.1:0",
			}, GinkgoWriter, GinkgoWriter)
		}()
		DeferCleanup(end)
		Eventually(func(g Gomega) {
			store, err := open.Store(ctx, address, nil)
			g.Expect(err).NotTo(HaveOccurred())
			defer store.Close()
			got, err := state.LeaseTable(store).Get(ctx, state.LeaseKey("region/use1"))
			g.Expect(err).NotTo(HaveOccurred())
			g.Expect(got.Value.Holder).NotTo(BeEmpty())
			beat, err := state.HeartbeatTable(store).Get(ctx, state.HeartbeatKey("use1"))
			g.Expect(err).NotTo(HaveOccurred())
			g.Expect(beat.Value.Controller).To(Equal(got.Value.Holder))
		}, "10s", "50ms").Should(Succeed())
		end()
		Eventually(done, "5s").Should(Receive(BeNil()))
		store, err := open.Store(ctx, address, nil)
		Expect(err).NotTo(HaveOccurred())
		DeferCleanup(store.Close)
		got, err := state.LeaseTable(store).Get(ctx, state.LeaseKey("region/use1"))
		Expect(err).NotTo(HaveOccurred())
		Expect(got.Value.Holder).To(BeEmpty())
	})

	DescribeTable("refuses", func(why string, args ...string) {
		address := "sqlite:" + filepath.Join(GinkgoT().TempDir(), "state.db")
		got := mrgc(append([]string{"controller", "--config", example, "--state", address, "--admin-listen", "127.0.0.1:0"}, args...)...)
		Expect(got.err).To(MatchError(ContainSubstring(why)))
	},
		Entry("a region that is not there", "region euw1 is none of the cluster's", "--region", "euw1"),
		Entry("a lease that is no time", "length 1ns", "--region", "use1", "--lease", "1ns"),
		Entry("metrics of nothing", "needs --store", "--region", "use1", "--cloudwatch", "MRGC"),
		Entry("metrics for AWS's own", "not beginning with AWS/", "--region", "use1", "--store", "sqlite:x", "--cloudwatch", "AWS/x"),
		Entry("an admin for everybody", "loopback only", "--region", "use1", "--admin-listen", "0.0.0.0:0"),
	)
})
