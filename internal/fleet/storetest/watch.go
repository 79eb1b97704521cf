package storetest

import (
	"context"
	"slices"
	"time"

	"github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"

	"github.com/mrgc/mrgc/internal/fleet"
)

// soon is far more than any store needs to notice a change.
const soon = 10 * time.Second

func describeWatch(b *bench) {
	ginkgo.It("sends the present snapshot first, also of an empty fleet", func(ctx ginkgo.SpecContext) {
		store := b.store(ctx)
		Expect(receive(Watch(ctx, store)).Instances).To(BeEmpty())
		Expect(store.Register(ctx, instance("use1-0"))).To(Succeed())
		Expect(ids(receive(Watch(ctx, store)))).To(Equal([]string{"use1-0"}))
	})

	ginkgo.DescribeTable("sends a snapshot after each kind of change",
		func(ctx ginkgo.SpecContext, otherHandle bool) {
			watched := b.store(ctx)
			writer := watched
			if otherHandle {
				writer = b.store(ctx)
			}
			snapshots := Watch(ctx, watched)
			receive(snapshots)

			Expect(writer.Register(ctx, instance("use1-0"))).To(Succeed())
			Expect(receive(snapshots).Instances).To(ConsistOf(HaveField("Version", int64(1))))
			Expect(writer.Heartbeat(ctx, heartbeat("use1-0"))).To(Succeed())
			Expect(receive(snapshots).Instances).To(ConsistOf(HaveField("Load.Running", 5)))
			Expect(writer.SetDraining(ctx, "use1-0", true)).To(Succeed())
			Expect(receive(snapshots).Instances).To(ConsistOf(HaveField("Draining", true)))
			Expect(writer.Deregister(ctx, "use1-0")).To(Succeed())
			Expect(receive(snapshots).Instances).To(BeEmpty())
		},
		ginkgo.Entry("through the same handle", false),
		ginkgo.Entry("through another handle", true),
	)

	ginkgo.It("gives a slow reader the newest, never an old one after a newer, and does not hold up writers", func(ctx ginkgo.SpecContext) {
		const last = 200
		store := b.store(ctx)
		slow, prompt := Watch(ctx, store), Watch(ctx, store)
		versions := []int64{versionIn(receive(prompt))}
		Expect(store.Register(ctx, instance("use1-0"))).To(Succeed())
		for range last - 1 {
			Expect(store.Heartbeat(ctx, heartbeat("use1-0"))).To(Succeed())
		}
		Eventually(func() int64 {
			versions = append(versions, versionIn(receive(prompt)))
			return versions[len(versions)-1]
		}, soon).Should(Equal(int64(last)))
		Expect(slices.IsSorted(versions)).To(BeTrue(), "%v", versions)

		Consistently(prompt, "1s").ShouldNot(Receive()) // the slow one is as far by now
		Expect(versionIn(receive(slow))).To(Equal(int64(last)))
	}, ginkgo.SpecTimeout(time.Minute))

	ginkgo.It("sends a snapshot when nothing changes, so that its time advances", func(ctx ginkgo.SpecContext) {
		store := b.store(ctx)
		snapshots := Watch(ctx, store)
		Expect(receive(snapshots).At).To(Equal(epoch))
		now := b.clock.Advance(time.Minute)
		Consistently(snapshots, fleet.RefreshInterval/2).ShouldNot(Receive())
		Expect(receive(snapshots).At).To(Equal(now))
	})

	ginkgo.It("closes the channel when its context ends, with or without a snapshot under way", func(ctx ginkgo.SpecContext) {
		store := b.store(ctx)
		watching, cancel := context.WithCancel(ctx)
		read, unread := store.Watch(watching), store.Watch(watching)
		receive(read)
		cancel()
		Eventually(read, soon).Should(BeClosed())
		Eventually(unread, soon).Should(BeClosed())
		Eventually(store.Watch(watching), soon).Should(BeClosed())
	})
}

func describeClose(b *bench) {
	ginkgo.It("ends every watch", func(ctx ginkgo.SpecContext) {
		store := b.store(ctx)
		snapshots := store.Watch(ctx)
		Expect(store.Close()).To(Succeed())
		Expect(snapshots).To(BeClosed(), "Close waits for it")
		Expect(store.Watch(ctx)).To(BeClosed())
	})

	ginkgo.It("does nothing the second time, and calls fail afterwards", func(ctx ginkgo.SpecContext) {
		store := b.store(ctx)
		Expect(store.Close()).To(Succeed())
		Expect(store.Close()).To(Succeed())
		Expect(store.Register(ctx, instance("use1-0"))).To(MatchError(ContainSubstring("closed")))
		Expect(store.Heartbeat(ctx, heartbeat("use1-0"))).To(MatchError(ContainSubstring("closed")))
		Expect(store.SetDraining(ctx, "use1-0", true)).To(MatchError(ContainSubstring("closed")))
		Expect(store.Deregister(ctx, "use1-0")).To(MatchError(ContainSubstring("closed")))
		_, err := store.Snapshot(ctx)
		Expect(err).To(MatchError(ContainSubstring("closed")))
	})
}

func receive(snapshots <-chan *fleet.Snapshot) *fleet.Snapshot {
	ginkgo.GinkgoHelper()
	var snapshot *fleet.Snapshot
	Eventually(snapshots, soon).Should(Receive(&snapshot))
	return snapshot
}

// versionIn is the version of the one instance that there is, 0 before there is.
func versionIn(snapshot *fleet.Snapshot) int64 {
	for _, in := range snapshot.Instances {
		return in.Version
	}
	return 0
}
