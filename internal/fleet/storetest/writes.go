package storetest

import (
	"context"
	"fmt"
	"math"
	"strings"
	"sync"
	"time"

	"github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"

	"github.com/mrgc/mrgc/internal/fleet"
)

func describeWrites(b *bench) {
	ginkgo.It("is empty at first", func(ctx ginkgo.SpecContext) {
		snapshot, err := b.store(ctx).Snapshot(ctx)
		Expect(err).NotTo(HaveOccurred())
		Expect(snapshot.Instances).To(BeEmpty())
		Expect(snapshot.At).To(Equal(epoch))
	})

	ginkgo.It("gives back what was registered, with its own stamps", func(ctx ginkgo.SpecContext) {
		store := b.store(ctx)
		want := instance("use1-0")
		given := instance("use1-0")
		given.Version, given.RegisteredAt, given.HeartbeatAt = 99, epoch.Add(time.Hour), epoch.Add(time.Hour)
		Expect(store.Register(ctx, given)).To(Succeed())

		want.Version, want.RegisteredAt, want.HeartbeatAt = 1, epoch, epoch
		Expect(only(ctx, store)).To(Equal(want))
	})

	ginkgo.It("registers an instance that has no zone, model or key yet", func(ctx ginkgo.SpecContext) {
		store := b.store(ctx)
		Expect(store.Register(ctx, fleet.Instance{ID: "new", Region: "use1", Address: "[::1]:8080"})).To(Succeed())
		got := only(ctx, store)
		Expect(got.Models).To(BeEmpty())
		Expect(got.KeyIDs).To(BeEmpty())
		Expect(got.Address).To(Equal("[::1]:8080"))
	})

	ginkgo.It("gives back any text and number as it was", func(ctx ginkgo.SpecContext) {
		store := b.store(ctx)
		want := instance("use1-0")
		want.Health.Reason = "engine:\n\t\"läuft nicht\" \U0001f525\x00" + strings.Repeat("x", 1<<16)
		want.Load = fleet.Load{Running: 1000000, Queued: math.MaxInt32, Slots: 10, Latency: math.MaxInt64, Requests: math.MaxInt64}
		b.clock.Advance(time.Hour - time.Duration(epoch.Nanosecond()))
		Expect(store.Register(ctx, want)).To(Succeed())
		want.Version, want.RegisteredAt, want.HeartbeatAt = 1, b.clock.Now(), b.clock.Now()
		Expect(only(ctx, store)).To(Equal(want))
	})

	ginkgo.It("replaces a registration", func(ctx ginkgo.SpecContext) {
		store := b.store(ctx)
		Expect(store.Register(ctx, instance("use1-0"))).To(Succeed())
		now := b.clock.Advance(time.Minute)
		want := fleet.Instance{
			ID: "use1-0", Region: "use2", Zone: "use2-az3", Address: "10.0.0.8:8081",
			Models: []string{"third"}, KeyIDs: []string{"0000000000000001"},
		}
		Expect(store.Register(ctx, want)).To(Succeed())

		want.Version, want.RegisteredAt, want.HeartbeatAt = 2, now, now
		Expect(only(ctx, store)).To(Equal(want))
	})

	ginkgo.DescribeTable("keeps a drain, or its absence, when the instance registers again",
		func(ctx ginkgo.SpecContext, draining bool) {
			store := b.store(ctx)
			Expect(store.Register(ctx, instance("use1-0"))).To(Succeed())
			Expect(store.SetDraining(ctx, "use1-0", draining)).To(Succeed())
			again := instance("use1-0")
			again.Draining = !draining
			Expect(store.Register(ctx, again)).To(Succeed())
			Expect(only(ctx, store).Draining).To(Equal(draining))
		},
		ginkgo.Entry("a drain", true),
		ginkgo.Entry("none", false),
	)

	ginkgo.It("registers an instance that drains from the start", func(ctx ginkgo.SpecContext) {
		store := b.store(ctx)
		in := instance("use1-0")
		in.Draining = true
		Expect(store.Register(ctx, in)).To(Succeed())
		Expect(only(ctx, store).Draining).To(BeTrue())
	})

	ginkgo.It("forgets a drain with the instance", func(ctx ginkgo.SpecContext) {
		store := b.store(ctx)
		Expect(store.Register(ctx, instance("use1-0"))).To(Succeed())
		Expect(store.SetDraining(ctx, "use1-0", true)).To(Succeed())
		Expect(store.Deregister(ctx, "use1-0")).To(Succeed())
		Expect(store.Register(ctx, instance("use1-0"))).To(Succeed())
		Expect(only(ctx, store).Draining).To(BeFalse())
	})

	ginkgo.It("changes health, load and time with a heartbeat, and nothing else", func(ctx ginkgo.SpecContext) {
		store := b.store(ctx)
		Expect(store.Register(ctx, instance("use1-0"))).To(Succeed())
		want := only(ctx, store)
		now := b.clock.Advance(time.Second)
		hb := heartbeat("use1-0")
		Expect(store.Heartbeat(ctx, hb)).To(Succeed())

		want.Health, want.Load, want.Usage, want.HeartbeatAt, want.Version = hb.Health, hb.Load, hb.Usage, now, 2
		Expect(only(ctx, store)).To(Equal(want))
	})

	ginkgo.It("tells usage that is not known from usage that is none", func(ctx ginkgo.SpecContext) {
		store := b.store(ctx)
		Expect(store.Register(ctx, instance("use1-0"))).To(Succeed())
		for _, usage := range []map[string]fleet.Usage{nil, {}, {"m": {}}, nil} {
			hb := heartbeat("use1-0")
			hb.Usage = usage
			Expect(store.Heartbeat(ctx, hb)).To(Succeed())
			Expect(only(ctx, store).Usage).To(Equal(usage))
		}
	})

	ginkgo.DescribeTable("dates heartbeats by the reader's clock, though their writer's is", func(ctx ginkgo.SpecContext, off time.Duration) {
		writer, err := b.open(ctx, func() time.Time { return b.clock.Now().Add(off) })
		Expect(err).NotTo(HaveOccurred())
		ginkgo.DeferCleanup(writer.Close)
		reader := b.store(ctx)
		Expect(writer.Register(ctx, instance("use1-0"))).To(Succeed())
		Expect(only(ctx, reader).HeartbeatAt).NotTo(BeTemporally(">", b.clock.Now()))
		for range 2 {
			read := b.clock.Now()
			now := b.clock.Advance(time.Second)
			Expect(writer.Heartbeat(ctx, heartbeat("use1-0"))).To(Succeed())
			Expect(only(ctx, reader).HeartbeatAt).To(And(BeTemporally(">=", read), BeTemporally("<=", now)))
		}
		heard := b.clock.Now()
		b.clock.Advance(time.Minute)
		Expect(only(ctx, reader).HeartbeatAt).NotTo(BeTemporally(">", heard), "it grows old")
	},
		ginkgo.Entry("behind", -time.Hour),
		ginkgo.Entry("ahead", time.Hour),
	)

	ginkgo.It("changes the drain alone with a drain", func(ctx ginkgo.SpecContext) {
		store := b.store(ctx)
		Expect(store.Register(ctx, instance("use1-0"))).To(Succeed())
		want := only(ctx, store)
		b.clock.Advance(time.Second)
		Expect(store.SetDraining(ctx, "use1-0", true)).To(Succeed())
		want.Draining, want.Version = true, 2
		Expect(only(ctx, store)).To(Equal(want))

		Expect(store.SetDraining(ctx, "use1-0", false)).To(Succeed())
		want.Draining, want.Version = false, 3
		Expect(only(ctx, store)).To(Equal(want))
	})

	ginkgo.It("says ErrNotFound for an instance that is not there, and does not add it", func(ctx ginkgo.SpecContext) {
		store := b.store(ctx)
		Expect(store.Register(ctx, instance("use1-0"))).To(Succeed())
		Expect(store.Heartbeat(ctx, heartbeat("use1-1"))).To(MatchError(fleet.ErrNotFound))
		Expect(store.SetDraining(ctx, "use1-1", true)).To(MatchError(fleet.ErrNotFound))
		Expect(only(ctx, store).ID).To(Equal("use1-0"))
	})

	ginkgo.It("deregisters one instance, once or twice", func(ctx ginkgo.SpecContext) {
		store := b.store(ctx)
		Expect(store.Register(ctx, instance("use1-0"))).To(Succeed())
		Expect(store.Register(ctx, instance("use1-1"))).To(Succeed())
		Expect(store.Deregister(ctx, "use1-0")).To(Succeed())
		Expect(store.Deregister(ctx, "use1-0")).To(Succeed())
		Expect(only(ctx, store).ID).To(Equal("use1-1"))
		Expect(store.Heartbeat(ctx, heartbeat("use1-0"))).To(MatchError(fleet.ErrNotFound))
	})

	ginkgo.It("lists instances in order of ID and finds them by key", func(ctx ginkgo.SpecContext) {
		store := b.store(ctx)
		for i, id := range []string{"b", "c", "a"} {
			in := instance(id)
			in.KeyIDs = []string{fmt.Sprintf("%016x", i)}
			Expect(store.Register(ctx, in)).To(Succeed())
		}
		snapshot, err := store.Snapshot(ctx)
		Expect(err).NotTo(HaveOccurred())
		Expect(ids(snapshot)).To(Equal([]string{"a", "b", "c"}))
		Expect(snapshot.Holders("0000000000000001")).To(HaveExactElements(HaveField("ID", "c")))
	})
}

func describeRefusals(b *bench) {
	ginkgo.DescribeTable("refuses what does not fit, names the field, and writes nothing",
		func(ctx ginkgo.SpecContext, try func(context.Context, fleet.Store) error, field string) {
			store := b.store(ctx)
			Expect(store.Register(ctx, instance("use1-0"))).To(Succeed())
			Expect(try(ctx, store)).To(MatchError(ContainSubstring(field)))
			Expect(only(ctx, store).Version).To(Equal(int64(1)))
		},
		ginkgo.Entry("Register", func(ctx context.Context, store fleet.Store) error {
			in := instance("use1-0")
			in.Address = "parent.example:8080"
			return store.Register(ctx, in)
		}, "address"),
		ginkgo.Entry("Heartbeat", func(ctx context.Context, store fleet.Store) error {
			hb := heartbeat("use1-0")
			hb.Load.Queued = -1
			return store.Heartbeat(ctx, hb)
		}, "queued"),
		ginkgo.Entry("SetDraining", func(ctx context.Context, store fleet.Store) error {
			return store.SetDraining(ctx, "use1-0\n", true)
		}, "id"),
		ginkgo.Entry("Deregister", func(ctx context.Context, store fleet.Store) error {
			return store.Deregister(ctx, "")
		}, "id"),
	)

	ginkgo.It("does nothing for a context that has ended", func(ctx ginkgo.SpecContext) {
		store := b.store(ctx)
		Expect(store.Register(ctx, instance("use1-0"))).To(Succeed())
		ended, cancel := context.WithCancel(ctx)
		cancel()
		Expect(store.Register(ended, instance("use1-1"))).To(MatchError(context.Canceled))
		Expect(store.Heartbeat(ended, heartbeat("use1-0"))).To(MatchError(context.Canceled))
		Expect(store.SetDraining(ended, "use1-0", true)).To(MatchError(context.Canceled))
		Expect(store.Deregister(ended, "use1-0")).To(MatchError(context.Canceled))
		_, err := store.Snapshot(ended)
		Expect(err).To(MatchError(context.Canceled))
		Expect(only(ctx, store).Version).To(Equal(int64(1)))
	})
}

func describeSharing(b *bench) {
	ginkgo.It("shows one handle's write to another at once", func(ctx ginkgo.SpecContext) {
		one, other := b.store(ctx), b.store(ctx)
		Expect(one.Register(ctx, instance("use1-0"))).To(Succeed())
		Expect(only(ctx, other).Version).To(Equal(int64(1)))
		Expect(other.SetDraining(ctx, "use1-0", true)).To(Succeed())
		Expect(only(ctx, one).Draining).To(BeTrue())
	})

	ginkgo.It("keeps data when a handle closes", func(ctx ginkgo.SpecContext) {
		one := b.store(ctx)
		Expect(one.Register(ctx, instance("use1-0"))).To(Succeed())
		Expect(one.Close()).To(Succeed())
		Expect(only(ctx, b.store(ctx)).ID).To(Equal("use1-0"))
	})

	ginkgo.It("loses no update of concurrent writers", func(ctx ginkgo.SpecContext) {
		const writers, writes = 4, 25
		stores := []fleet.Store{b.store(ctx), b.store(ctx)}
		Expect(stores[0].Register(ctx, instance("use1-0"))).To(Succeed())

		var running sync.WaitGroup
		for n := range writers {
			running.Go(func() {
				defer ginkgo.GinkgoRecover()
				store := stores[n%len(stores)]
				for i := range writes {
					hb := heartbeat("use1-0")
					hb.Load.Running = i + 1
					Expect(store.Heartbeat(ctx, hb)).To(Succeed())
					Expect(store.SetDraining(ctx, "use1-0", i%2 == 0)).To(Succeed())
				}
			})
		}
		running.Wait()

		got := only(ctx, stores[0])
		Expect(got.Version).To(Equal(int64(1 + 2*writers*writes)))
		Expect(got.Draining).To(BeTrue(), "the last write of every writer starts a drain")
		Expect(got.Load.Running).To(Equal(writes), "every writer's last heartbeat says so")
		Expect(got.Address).To(Equal(instance("use1-0").Address))
	}, ginkgo.SpecTimeout(time.Minute))

	ginkgo.It("loses no drain to a registration at the same time", func(ctx ginkgo.SpecContext) {
		const registrations = 20
		one, other := b.store(ctx), b.store(ctx)
		Expect(one.Register(ctx, instance("use1-0"))).To(Succeed())
		var running sync.WaitGroup
		running.Go(func() {
			defer ginkgo.GinkgoRecover()
			for range registrations {
				Expect(one.Register(ctx, instance("use1-0"))).To(Succeed())
			}
		})
		Expect(other.SetDraining(ctx, "use1-0", true)).To(Succeed())
		running.Wait()
		got := only(ctx, one)
		Expect(got.Draining).To(BeTrue())
		Expect(got.Version).To(Equal(int64(2 + registrations)))
	})

	ginkgo.It("does not let a heartbeat bring back what is deregistered at the same time", func(ctx ginkgo.SpecContext) {
		one, other := b.store(ctx), b.store(ctx)
		Expect(one.Register(ctx, instance("use1-0"))).To(Succeed())
		beating := make(chan error)
		go func() {
			var err error
			for err == nil {
				err = one.Heartbeat(ctx, heartbeat("use1-0"))
			}
			beating <- err
		}()
		Expect(other.Deregister(ctx, "use1-0")).To(Succeed())
		Eventually(beating, soon).Should(Receive(MatchError(fleet.ErrNotFound)))
		snapshot, err := other.Snapshot(ctx)
		Expect(err).NotTo(HaveOccurred())
		Expect(snapshot.Instances).To(BeEmpty())
	})

	ginkgo.It("holds more than a megabyte", func(ctx ginkgo.SpecContext) {
		const instances = 20
		store := b.store(ctx)
		for n := range instances {
			in := instance(fmt.Sprintf("use1-%02d", n))
			in.Health.Reason = strings.Repeat("x", 1<<16)
			Expect(store.Register(ctx, in)).To(Succeed())
		}
		Expect(receive(Watch(ctx, store)).Instances).To(HaveLen(instances))
	})

	ginkgo.It("registers instances that arrive together", func(ctx ginkgo.SpecContext) {
		stores := []fleet.Store{b.store(ctx), b.store(ctx)}
		var running sync.WaitGroup
		for n := range 20 {
			running.Go(func() {
				defer ginkgo.GinkgoRecover()
				Expect(stores[n%2].Register(ctx, instance(fmt.Sprintf("use1-%d", n)))).To(Succeed())
			})
		}
		running.Wait()
		snapshot, err := stores[0].Snapshot(ctx)
		Expect(err).NotTo(HaveOccurred())
		Expect(snapshot.Instances).To(HaveLen(20))
	}, ginkgo.SpecTimeout(time.Minute))
}

func ids(snapshot *fleet.Snapshot) []string {
	var ids []string
	for _, in := range snapshot.Instances {
		ids = append(ids, in.ID)
	}
	return ids
}
