package failover_test

import (
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"

	"github.com/mrgc/mrgc/controller/failover"
	"github.com/mrgc/mrgc/internal/fleet"
)

var _ = DescribeTable("A sight is", func(s failover.Sight, want failover.Verdict) {
	Expect(s.Verdict()).To(Equal(want))
},
	Entry("down without a door", failover.Sight{Ready: 4, Want: 4}, failover.Down),
	Entry("down with nothing ready", failover.Sight{Door: true, Want: 4}, failover.Down),
	Entry("partial with less than half", failover.Sight{Door: true, Ready: 1, Want: 3}, failover.Partial),
	Entry("up with half", failover.Sight{Door: true, Ready: 2, Want: 4}, failover.Up),
	Entry("behind when its state lags", failover.Sight{Door: true, Ready: 2, Want: 2, Lag: 5*time.Second + 1}, failover.Behind),
	Entry("partial rather than behind", failover.Sight{Door: true, Ready: 1, Want: 3, Lag: time.Minute}, failover.Partial),
)

var _ = Describe("A reader", func() {
	var r *failover.Reader
	BeforeEach(func() { r = failover.NewReader(failover.Defaults(use1, use2, usw2)) })
	read := func(after time.Duration, report failover.Report) failover.Freshness {
		return r.Read(map[fleet.Region]failover.Report{use1: report}, epoch.Add(after))[use1].Freshness
	}
	of := func(epoch int64, sequence uint64, at time.Time) failover.Report {
		return failover.Report{Epoch: epoch, Sequence: sequence, At: at, Sights: map[fleet.Region]failover.Sight{use2: {Door: true, Ready: 1}}}
	}

	It("believes a report whose number rises, for ten seconds", func() {
		Expect(read(0, of(1, 5, epoch))).To(Equal(failover.Missing), "it may have been lying there for a year")
		Expect(read(time.Second, of(1, 5, epoch))).To(Equal(failover.Missing))
		Expect(read(2*time.Second, of(1, 6, epoch.Add(2*time.Second)))).To(Equal(failover.Fresh))
		Expect(read(12*time.Second, of(1, 6, epoch.Add(2*time.Second)))).To(Equal(failover.Fresh))
		Expect(read(13*time.Second, of(1, 6, epoch.Add(2*time.Second)))).To(Equal(failover.Stale))
		Expect(read(14*time.Second, of(2, 1, epoch.Add(14*time.Second)))).To(Equal(failover.Fresh), "a new epoch's first")
	})
	It("does not believe one that comes late or again", func() {
		read(0, of(1, 5, epoch))
		read(time.Second, of(1, 7, epoch))
		Expect(read(2*time.Second, of(1, 6, epoch))).To(Equal(failover.Stale))
		Expect(read(2*time.Second, of(0, 9, epoch))).To(Equal(failover.Stale))
		Expect(read(3*time.Second, of(1, 7, epoch))).To(Equal(failover.Fresh), "and is not led astray by it")
		Expect(read(time.Minute, of(1, 8, epoch))).To(Equal(failover.Stale), "a minute on its way")
	})
	It("tells what is missing from what was there", func() {
		read(0, of(1, 5, epoch))
		views := r.Read(nil, epoch)
		Expect(views[use1].Freshness).To(Equal(failover.Stale))
		Expect(views[use2].Freshness).To(Equal(failover.Missing))
		Expect(views).To(HaveLen(3))
	})
	It("gives verdicts with it", func() {
		Expect(r.Read(map[fleet.Region]failover.Report{use1: of(1, 1, epoch)}, epoch)[use1].Of).To(Equal(map[fleet.Region]failover.Verdict{use2: failover.Up}))
	})
})

var _ = DescribeTable("A configuration is refused", func(change func(*failover.Config), message string) {
	c := failover.Defaults(use1, use2, usw2)
	Expect(c.Check()).To(Succeed())
	change(&c)
	Expect(c.Check()).To(MatchError(ContainSubstring(message)))
},
	Entry("without regions", func(c *failover.Config) { c.Regions = nil }, "0 regions"),
	Entry("with a region twice", func(c *failover.Config) { c.Regions = append(c.Regions, use1) }, "use1 is listed twice"),
	Entry("with a bad name", func(c *failover.Config) { c.Regions[0] = "USE1" }, "USE1"),
	Entry("with a negative duration", func(c *failover.Config) { c.Hold = -1 }, "negative"),
	Entry("with stages that fall", func(c *failover.Config) { c.Stages = []int{50, 10, 100} }, "rising"),
	Entry("with stages that end early", func(c *failover.Config) { c.Stages = []int{50} }, "last must be 100"),
	Entry("with a partial dial of nothing", func(c *failover.Config) { c.Partial = -1 }, "1 to 100"),
)
