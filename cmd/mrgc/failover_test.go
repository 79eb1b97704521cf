package main

import (
	"context"
	"encoding/json"
	"path/filepath"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"

	"github.com/mrgc/mrgc/controller"
	"github.com/mrgc/mrgc/controller/failover"
	"github.com/mrgc/mrgc/internal/fleet"
	"github.com/mrgc/mrgc/internal/state"
	"github.com/mrgc/mrgc/internal/state/open"
)

var _ = Describe("mrgc failover", func() {
	var (
		address string
		round   func(context.Context) // one of the leading controller's
		dials   map[fleet.Region]int
	)
	BeforeEach(func(ctx SpecContext) {
		address = "sqlite:" + filepath.Join(GinkgoT().TempDir(), "state.db")
		store, err := open.Store(ctx, address, nil)
		Expect(err).NotTo(HaveOccurred())
		DeferCleanup(store.Close)
		dials = map[fleet.Region]int{"use1": 100, "use2": 100, "usw2": 100}
		loop, err := controller.Routing{
			Config:  failover.Defaults("use1", "use2", "usw2"),
			Observe: func(context.Context) (failover.Observation, error) { return failover.Observation{Dials: dials}, nil },
			Execute: func(_ context.Context, _ string, a failover.Action) error {
				if a.Kind == failover.SetDial {
					dials[a.Region] = a.Dial
				}
				return nil
			},
		}.Loop()
		Expect(err).NotTo(HaveOccurred())
		leader := &controller.Leader{Store: store, Token: 1}
		round = func(ctx context.Context) { Expect(loop.Round(ctx, leader)).To(Succeed()) }
	})

	It("shows the regions, and has the controller follow orders", func(ctx SpecContext) {
		round(ctx)
		got := mrgc("failover", "status", "--state", address)
		Expect(got.err).NotTo(HaveOccurred())
		Expect(got.stdout).To(MatchRegexp(`led by nobody\n`))
		Expect(got.stdout).To(MatchRegexp(`use2 +NORMAL +100 % +20\S+ \S+Z +first start\n`))

		Expect(mrgc("failover", "drain", "use2", "--why", "new drivers", "--by", "ann", "--state", address).err).NotTo(HaveOccurred())
		round(ctx)
		Expect(dials).To(HaveKeyWithValue(fleet.Region("use2"), 0))
		got = mrgc("failover", "status", "--why", "--state", address)
		Expect(got.err).NotTo(HaveOccurred())
		Expect(got.stdout).To(MatchRegexp(`use2 +FAILOVER_ACTIVE, draining +0 % .* drain by ann: new drivers\n`))
		Expect(got.stdout).To(MatchRegexp(`set the dial of use2 to 0 % +drain by ann: new drivers +done at`))

		Expect(mrgc("failover", "hold", "usw2", "--why", "wait", "--state", address).err).NotTo(HaveOccurred())
		got = mrgc("failover", "status", "-o", "json", "--state", address)
		Expect(got.err).NotTo(HaveOccurred())
		var shown failoverStatus
		Expect(json.Unmarshal([]byte(got.stdout), &shown)).To(Succeed())
		Expect(shown.Regions["usw2"].Hold).To(HaveSuffix(": wait"))
		Expect(shown.Regions["use2"].State).To(Equal(state.FailoverActive))

		Expect(mrgc("failover", "resume", "usw2", "--why", "on", "--state", address).err).NotTo(HaveOccurred())
		Expect(mrgc("failover", "restore", "use2", "--why", "drivers are in", "--by", "ann", "--state", address).err).NotTo(HaveOccurred())
		round(ctx)
		got = mrgc("failover", "status", "--state", address)
		Expect(got.stdout).To(MatchRegexp(`use2 +RECOVERING +`))
		Expect(got.stdout).NotTo(ContainSubstring("held"))
	})

	It("refuses to take out the last region", func(ctx SpecContext) {
		round(ctx)
		for _, region := range []string{"use1", "use2"} {
			Expect(mrgc("failover", "drain", region, "--why", "x", "--state", address).err).NotTo(HaveOccurred())
		}
		Expect(mrgc("failover", "drain", "usw2", "--why", "x", "--state", address).err).To(MatchError(failover.ErrLast))
	})

	It("says when no controller has decided yet, and which region it does not know", func(ctx SpecContext) {
		Expect(mrgc("failover", "status", "--state", address).err).To(MatchError(controller.ErrNoRouting))
		Expect(mrgc("failover", "hold", "use1", "--why", "x", "--state", address).err).To(MatchError(controller.ErrNoRouting))
		round(ctx)
		Expect(mrgc("failover", "hold", "euw1", "--why", "x", "--state", address).err).To(MatchError(ContainSubstring("no such region")))
	})
})
