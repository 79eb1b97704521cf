package parent_test

import (
	"context"
	"net/http"
	"sync"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"

	"github.com/mrgc/mrgc/internal/api"
	"github.com/mrgc/mrgc/internal/fleet"
	"github.com/mrgc/mrgc/parent"
)

// health matches an instance whose reason contains each text.
func health(enclave, engine bool, reason ...string) OmegaMatcher {
	matchers := []OmegaMatcher{HaveField("Health.Enclave", enclave), HaveField("Health.Engine", engine)}
	for _, text := range reason {
		matchers = append(matchers, HaveField("Health.Reason", ContainSubstring(text)))
	}
	return And(matchers...)
}

func healthy() OmegaMatcher { return And(health(true, true), HaveField("Health.Reason", BeEmpty())) }

var _ = Describe("An instance", func() {
	It("registers itself with what it is, the enclave's keys and the engine's load", func(ctx SpecContext) {
		in := start()
		in.eventuallyRegistered(ctx, healthy())
		got := in.registered(ctx)
		Expect(got.Address).To(Equal(in.listener.Addr().String()))
		Expect(got.Region).To(BeEquivalentTo(region))
		Expect(got.Zone).To(Equal("use1-az1"))
		Expect(got.Models).To(Equal([]string{"m"}))
		Expect(got.KeyIDs).To(Equal([]string{keyID("first claims")}))
		Expect(got.Load).To(Equal(fleet.Load{Running: 2, Queued: 3, Slots: 4}))
	}, NodeTimeout(specTimeout))

	It("says again and again that it lives, without registering again", func(ctx SpecContext) {
		in := start()
		in.eventuallyRegistered(ctx, healthy())
		first := in.registered(ctx)
		in.eventuallyRegistered(ctx, And(
			HaveField("HeartbeatAt", BeTemporally(">", first.HeartbeatAt.Add(100*time.Millisecond))),
			HaveField("RegisteredAt", first.RegisteredAt),
		))
		Expect(in.store.registrations.Load()).To(BeEquivalentTo(1))
	}, NodeTimeout(specTimeout))

	It("tells its enclave, which repeats it in receipts, the model's version", func(ctx SpecContext) {
		in := start(func(c *parent.Config) { c.ModelVersions = map[string]string{"m": "v7"} })
		Eventually(ctx, in.enclave.told).Should(Equal(api.Host{ModelVersion: "v7"}))
	}, NodeTimeout(specTimeout))

	It("takes an enclave that signs no receipts for a healthy one", func(ctx SpecContext) {
		in := start()
		in.enclave.signsNone.Store(true)
		Eventually(ctx, in.enclave.refused.Load).Should(BeNumerically(">", 1))
		in.eventuallyRegistered(ctx, healthy())
	}, NodeTimeout(specTimeout))

	It("tells how long answers take to begin", func(ctx SpecContext) {
		in := start()
		Expect(readAll(in.send(in.sealed(ctx, "request")))).To(Equal("sealed answer"))
		in.eventuallyRegistered(ctx, HaveField("Load.Latency", BeNumerically(">", 0)))
	}, NodeTimeout(specTimeout))

	Describe("tells what its models were asked for, and have used", func() {
		used := func(of fleet.Usage) OmegaMatcher {
			return HaveField("Usage", Equal(map[string]fleet.Usage{"m": of}))
		}

		// sends so many requests, one after the other, each answered so.
		sends := func(ctx context.Context, in *instance, n int, size string) {
			GinkgoHelper()
			in.enclave.answers(uses(size))
			for range n {
				readAll(in.send(in.sealed(ctx, "request")))
			}
		}

		It("in sums to powers of two, of sixteen answers at least", func(ctx SpecContext) {
			in := start()
			in.eventuallyRegistered(ctx, used(fleet.Usage{}))
			sends(ctx, in, 14, "64/1024")
			sends(ctx, in, 1, "128/64")
			in.eventuallyRegistered(ctx, used(fleet.Usage{Requests: 15, Ended: 15}))
			sends(ctx, in, 1, "128/64")
			all := fleet.Usage{Requests: 16, Ended: 16, Answers: 16, PromptTokens: 14*64 + 2*128, OutputTokens: 14*1024 + 2*64}
			in.eventuallyRegistered(ctx, used(all))
			sends(ctx, in, 1, "1024/64")
			all.Requests, all.Ended = 17, 17
			in.eventuallyRegistered(ctx, used(all))
		}, NodeTimeout(specTimeout))

		It("of each model by itself, and not of fewer answers though more requests have ended", func(ctx SpecContext) {
			in := start(func(c *parent.Config) { c.Instance.Models = []string{"m", "other"} })
			both := func(m, other fleet.Usage) OmegaMatcher {
				return HaveField("Usage", Equal(map[string]fleet.Usage{"m": m, "other": other}))
			}
			sends(ctx, in, 10, "64/64")
			for range 10 {
				req := in.sealed(ctx, "request")
				req.Header.Set(api.HeaderModel, "other")
				readAll(in.send(req))
			}
			in.enclave.answers(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusServiceUnavailable) })
			for range 6 {
				in.send(in.sealed(ctx, "request"))
			}
			in.eventuallyRegistered(ctx, both(fleet.Usage{Requests: 16, Ended: 16}, fleet.Usage{Requests: 10, Ended: 10}))
			sends(ctx, in, 6, "128/64")
			in.eventuallyRegistered(ctx, both(
				fleet.Usage{Requests: 22, Ended: 22, Answers: 16, PromptTokens: 10*64 + 6*128, OutputTokens: 16 * 64}, fleet.Usage{Requests: 10, Ended: 10}))
		}, NodeTimeout(specTimeout))

		It("and which were late, by the settings of then", func(ctx SpecContext) {
			in := start(func(c *parent.Config) { c.FirstTokenWithin = time.Nanosecond })
			sends(ctx, in, 1, "64/64")
			in.eventuallyRegistered(ctx, used(fleet.Usage{Requests: 1, Ended: 1, Late: 1}))
			in.parent.SetSettings(parent.Settings{HeartbeatInterval: 50 * time.Millisecond, FirstTokenWithin: time.Hour})
			sends(ctx, in, 1, "64/64")
			in.eventuallyRegistered(ctx, used(fleet.Usage{Requests: 2, Ended: 2, Late: 1}))
		}, NodeTimeout(specTimeout))

		It("those under way among them", func(ctx SpecContext) {
			in := start()
			entered, leave := make(chan struct{}), make(chan struct{})
			in.enclave.answers(waitsIn(entered, leave))
			var answered sync.WaitGroup
			answered.Go(func() {
				defer GinkgoRecover()
				readAll(in.send(in.sealed(ctx, "request")))
			})
			Eventually(ctx, entered).Should(Receive())
			in.eventuallyRegistered(ctx, used(fleet.Usage{Requests: 1}))
			close(leave)
			answered.Wait()
			in.eventuallyRegistered(ctx, used(fleet.Usage{Requests: 1, Ended: 1}))
		}, NodeTimeout(specTimeout))

		It("and nothing of what another instance does", func(ctx SpecContext) {
			in := start()
			in.peer(ctx, "use1-1", fleet.Load{}, true, elsewhere)
			in.eventuallyAnswered(ctx, "use1-1 got sealed", elsewhere)
			Eventually(ctx, func(g Gomega) {
				snapshot, err := in.store.Snapshot(ctx)
				g.Expect(err).NotTo(HaveOccurred())
				g.Expect(snapshot.Instances).To(ContainElement(Satisfy(func(in *fleet.Instance) bool {
					return in.ID == instanceID && in.Load.Requests > in.Usage["m"].Requests
				})))
			}).Should(Succeed())
		}, NodeTimeout(specTimeout))
	})

	It("registers again when the enclave's keys change", func(ctx SpecContext) {
		in := start()
		in.eventuallyRegistered(ctx, healthy())
		in.enclave.holds("new claims", "first claims")
		in.eventuallyRegistered(ctx, HaveField("KeyIDs", []string{keyID("new claims"), keyID("first claims")}))
	}, NodeTimeout(specTimeout))

	It("looks at its keys as soon as the enclave calls a request's stale", func(ctx SpecContext) {
		in := start(func(c *parent.Config) { c.ProbeInterval = time.Hour })
		in.eventuallyRegistered(ctx, healthy())
		in.enclave.holds("new claims")
		in.enclave.answers(func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set(api.HeaderKeyStatus, api.KeyStatusStale)
			w.WriteHeader(http.StatusServiceUnavailable)
		})
		in.send(in.sealed(ctx, "sealed"))
		in.eventuallyRegistered(ctx, HaveField("KeyIDs", []string{keyID("new claims")}))
	}, NodeTimeout(specTimeout))

	It("reports a change at once, not at the next heartbeat", func(ctx SpecContext) {
		in := start(func(c *parent.Config) { c.HeartbeatInterval = time.Hour })
		in.eventuallyRegistered(ctx, healthy())
		in.guard.sick.Store(true)
		in.eventuallyRegistered(ctx, health(true, false))
	}, NodeTimeout(specTimeout))

	It("is unhealthy while its engine is, says why, and recovers", func(ctx SpecContext) {
		in := start()
		in.eventuallyRegistered(ctx, healthy())
		in.guard.sick.Store(true)
		in.eventuallyRegistered(ctx, health(true, false, "engine:", "status 503"))
		in.guard.sick.Store(false)
		in.eventuallyRegistered(ctx, healthy())
	}, NodeTimeout(specTimeout))

	It("is unhealthy when its guard has died", func(ctx SpecContext) {
		in := start()
		in.eventuallyRegistered(ctx, healthy())
		in.guard.stop()
		in.eventuallyRegistered(ctx, health(true, false, "connection refused"))
	}, NodeTimeout(specTimeout))

	It("is unhealthy when somebody else answers as its guard", func(ctx SpecContext) {
		in := surroundings()
		in.guard.stop()
		in.guard = newFakeGuard(in.source(enclaveID))
		in.run(in.config())
		in.eventuallyRegistered(ctx, health(true, false, "not admitted"))
	}, NodeTimeout(specTimeout))

	It("is unhealthy and without keys while its enclave is down, and comes back with new ones", func(ctx SpecContext) {
		in := start()
		in.eventuallyRegistered(ctx, healthy())
		in.enclave.stop()
		in.eventuallyRegistered(ctx, And(health(false, true, "enclave:"), HaveField("KeyIDs", BeEmpty())))
		in.enclave.holds("other claims")
		in.enclave.start()
		in.eventuallyRegistered(ctx, And(healthy(), HaveField("KeyIDs", []string{keyID("other claims")})))
	}, NodeTimeout(specTimeout))

	It("says what is wrong with both of its parts", func(ctx SpecContext) {
		in := start()
		in.enclave.stop()
		in.guard.sick.Store(true)
		in.eventuallyRegistered(ctx, health(false, false, "enclave:", "engine:"))
	}, NodeTimeout(specTimeout))
})

var _ = Describe("The fleet's store", func() {
	It("may be away: requests are served, and the instance registers when it is back", func(ctx SpecContext) {
		in := surroundings()
		in.store.away.Store(true)
		in.run(in.config())
		Eventually(ctx, in.store.refused.Load).Should(BeNumerically(">=", 3))
		Expect(readAll(in.send(in.sealed(ctx, "request")))).To(Equal("sealed answer"))
		in.store.away.Store(false)
		in.eventuallyRegistered(ctx, healthy())
	}, NodeTimeout(specTimeout))

	It("may go away later: what changed meanwhile is there when it is back", func(ctx SpecContext) {
		in := start()
		in.eventuallyRegistered(ctx, healthy())
		in.store.away.Store(true)
		in.enclave.holds("new claims")
		refused := in.store.refused.Load()
		Eventually(ctx, in.store.refused.Load).Should(BeNumerically(">", refused))
		Expect(readAll(in.send(in.sealed(ctx, "request")))).To(Equal("sealed answer"))
		in.store.away.Store(false)
		in.eventuallyRegistered(ctx, And(healthy(), HaveField("KeyIDs", []string{keyID("new claims")})))
	}, NodeTimeout(specTimeout))

	It("may forget the instance, which registers again", func(ctx SpecContext) {
		in := start()
		in.eventuallyRegistered(ctx, healthy())
		Expect(in.store.Store.Deregister(ctx, instanceID)).To(Succeed())
		in.eventuallyRegistered(ctx, And(healthy(), HaveField("KeyIDs", []string{keyID("first claims")})))
	}, NodeTimeout(specTimeout))
})
