package main

import (
	"context"
	"path/filepath"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"

	"github.com/mrgc/mrgc/internal/fleet"
	"github.com/mrgc/mrgc/internal/fleet/open"
)

var _ = Describe("mrgc drain", func() {
	var (
		address string
		store   fleet.Store
	)
	BeforeEach(func(ctx SpecContext) {
		address = "sqlite:" + filepath.Join(GinkgoT().TempDir(), "fleet.db")
		var err error
		store, err = open.Store(ctx, address, nil)
		Expect(err).NotTo(HaveOccurred())
		DeferCleanup(store.Close)
		for i, id := range []string{"use1-0", "use1-1"} {
			Expect(store.Register(ctx, fleet.Instance{
				ID: id, Region: "use1", Address: []string{"10.0.0.1:8080", "10.0.0.2:8080"}[i], Models: []string{"m"},
				Health: fleet.Health{Enclave: true, Engine: true},
			})).To(Succeed())
		}
	})
	drain := func(args ...string) result { return mrgc(append([]string{"drain", "--store", address}, args...)...) }
	draining := func(ctx context.Context, id string) bool {
		GinkgoHelper()
		snapshot, err := store.Snapshot(ctx)
		Expect(err).NotTo(HaveOccurred())
		return find(snapshot, id).Draining
	}

	It("begins a drain, and ends it", func(ctx SpecContext) {
		got := drain("use1-0")
		Expect(got.err).NotTo(HaveOccurred())
		Expect(got.stdout).To(Equal("use1-0 drains\n"))
		Expect(draining(ctx, "use1-0")).To(BeTrue())
		Expect(drain("use1-0", "--end").stdout).To(Equal("use1-0 takes requests again\n"))
		Expect(draining(ctx, "use1-0")).To(BeFalse())
	})

	It("does not take a model's last instance without being told to", func(ctx SpecContext) {
		Expect(drain("use1-0").err).NotTo(HaveOccurred())
		Expect(drain("use1-1").err).To(MatchError("no other instance is ready that serves m: --force drains use1-1 all the same"))
		Expect(draining(ctx, "use1-1")).To(BeFalse())
		Expect(drain("use1-0").err).NotTo(HaveOccurred(), "it drains already")
		Expect(drain("use1-1", "--force").err).NotTo(HaveOccurred())
		Expect(draining(ctx, "use1-1")).To(BeTrue())
	})

	It("waits until there are no requests, and says when there still are", func(ctx SpecContext) {
		beats := func(running int) (stop func()) {
			ctx, cancel := context.WithCancel(ctx)
			ended := make(chan struct{})
			go func() {
				defer close(ended)
				for ctx.Err() == nil {
					_ = store.Heartbeat(ctx, fleet.Heartbeat{ID: "use1-0", Health: fleet.Health{Enclave: true, Engine: true}, Load: fleet.Load{Running: running}})
					select {
					case <-ctx.Done():
					case <-time.After(10 * time.Millisecond):
					}
				}
			}()
			return func() { cancel(); <-ended }
		}
		stop := beats(3)
		Expect(drain("use1-0", "--wait", "2s").err).To(MatchError("use1-0 drains, and has had 3 requests still within 2s"))
		stop()
		stop = beats(0)
		got := drain("use1-0", "--wait", "30s")
		stop()
		Expect(got.err).NotTo(HaveOccurred())
		Expect(got.stdout).To(Equal("use1-0 drains\nuse1-0 has no requests\n"))
		Expect(drain("use1-0", "--wait", "100ms").err).To(MatchError(ContainSubstring("has not said twice")))
	})

	It("ends its wait when somebody ends the drain", func(ctx SpecContext) {
		got := make(chan result, 1)
		go func() { got <- drain("use1-0", "--wait", "30s") }()
		Eventually(ctx, func() bool { return draining(ctx, "use1-0") }).Should(BeTrue())
		Expect(drain("use1-0", "--end").err).NotTo(HaveOccurred())
		var waited result
		Eventually(ctx, got, "20s").Should(Receive(&waited))
		Expect(waited.err).To(MatchError("somebody has ended the drain of use1-0"))
		Expect(waited.stdout).To(Equal("use1-0 drains\n"))
	})

	DescribeTable("wants", func(reason string, args ...string) {
		Expect(mrgc(append([]string{"drain"}, args...)...).err).To(MatchError(ContainSubstring(reason)))
	},
		Entry("an instance", "accepts 1 arg(s)"),
		Entry("a store", "no fleet store", "use1-0", "--store", ""),
		Entry("a time to wait that has not passed", "must not be negative", "use1-0", "--store", "sqlite:x", "--wait", "-1s"),
		Entry("nothing to wait for at a drain's end", "none of the others can be", "use1-0", "--end", "--wait", "1s"),
	)

	It("wants an instance that is there", func() {
		Expect(drain("use1-9").err).To(MatchError(fleet.ErrNotFound))
	})
})

var _ = Describe("An instance that is waited for", func() {
	It("has no requests when it has left", func() {
		Expect(drained(&fleet.Drain{}, "i", nil)).To(BeTrue())
	})

	It("may be made to take requests again by somebody else", func() {
		_, err := drained(&fleet.Drain{}, "i", &fleet.Instance{ID: "i"})
		Expect(err).To(MatchError("somebody has ended the drain of i"))
	})
})
