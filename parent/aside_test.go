package parent_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"strings"
	"sync/atomic"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"

	"github.com/mrgc/mrgc/internal/api"
	"github.com/mrgc/mrgc/internal/fleet"
	"github.com/mrgc/mrgc/internal/identity"
	"github.com/mrgc/mrgc/internal/lease"
	"github.com/mrgc/mrgc/internal/state"
	"github.com/mrgc/mrgc/internal/state/schema"
	"github.com/mrgc/mrgc/parent"
	"github.com/mrgc/mrgc/parent/turn"
	"github.com/mrgc/mrgc/parent/wash"
)

// restarting has full washes restart the engine.
func restarting(_ *washing, c *parent.Config) {
	c.Settings.Wash.RestartEngine = true
	c.Wash.TurnLength = 600 * time.Millisecond
}

// startRestarting is an instance of which washes restart the engine, beside another one.
func startRestarting(ctx context.Context, options ...func(*washing, *parent.Config)) (in *washing, other *peer) {
	GinkgoHelper()
	in = startWashing(append([]func(*washing, *parent.Config){restarting}, options...)...)
	other = in.peer(ctx, "use1-1", fleet.Load{}, true, elsewhere)
	in.ready(ctx)
	return in, other
}

// leaseOfM is the name of the lease of model m in the region: it has the SHA-256 of m.
const leaseOfM = "wash/use1/62c66a7a5dd70c31"

// checksUntil has the model checked until goOn is closed, and says when that begins.
func checksUntil(goOn <-chan struct{}, begins chan<- struct{}) func(*washing, *parent.Config) {
	return func(_ *washing, c *parent.Config) {
		c.Wash.CheckModel = func(ctx context.Context, _ bool) (string, error) {
			begins <- struct{}{}
			select {
			case <-goOn:
			case <-ctx.Done():
			}
			return "1 file", nil
		}
	}
}

// goneRecords are of a store that is away when it is said to be.
type goneRecords struct {
	state.Store
	away *atomic.Bool
}

func (s *goneRecords) Get(ctx context.Context, table schema.Table, key state.Key) (state.Item, error) {
	if s.away.Load() {
		return state.Item{}, errStore
	}
	return s.Store.Get(ctx, table, key)
}

func (s *goneRecords) List(ctx context.Context, table schema.Table, query state.Query) ([]state.Item, error) {
	if s.away.Load() {
		return nil, errStore
	}
	return s.Store.List(ctx, table, query)
}

func (s *goneRecords) Write(ctx context.Context, table schema.Table, write state.Write) (int64, error) {
	if s.away.Load() {
		return 0, errStore
	}
	return s.Store.Write(ctx, table, write)
}

// newest is the newest wash, as it is stored; the zero value: there is none.
func (in *washing) newest(ctx context.Context) (w state.Wash) {
	if rows := in.washes(ctx); len(rows) > 0 {
		w = rows[0].Value
	}
	return w
}

// held has the restart of the engine begin, tell of it, and go on when it is let.
func held(ctx context.Context, in *washing) (begun <-chan struct{}, let func()) {
	began, goOn := make(chan struct{}), make(chan struct{})
	in.guard.onRestart(func(asked context.Context) {
		close(began)
		select {
		case <-goOn:
		case <-asked.Done():
		case <-ctx.Done():
		}
	})
	return began, func() { close(goOn) }
}

var _ = Describe("A full wash that restarts the engine", func() {
	It("takes the instance out of traffic meanwhile, and back with a fresh enclave", func(ctx SpecContext) {
		in, other := startRestarting(ctx)
		begun, let := held(ctx, in)
		Expect(in.order(in.client(routerID))).To(HaveHTTPStatus(http.StatusAccepted))
		Eventually(ctx, begun).Should(BeClosed())

		Expect(in.registered(ctx)).To(And(Not(healthy()), HaveField("KeyIDs", BeEmpty()), HaveField("Draining", false),
			HaveField("Health.Reason", HavePrefix("washing: "))))
		Expect(in.get("/healthz")).To(HaveHTTPStatus(http.StatusServiceUnavailable))
		Expect(in.newest(ctx)).To(HaveField("Open", state.WashUnderWay))

		By("telling who has sealed to this instance alone to seal anew, so that Envoy tries others before")
		alone := in.ask(ctx, "a", "claims of 0")
		Expect(alone.Header.Get(api.HeaderKeyStatus)).To(Equal(api.KeyStatusStale))
		expectError(alone, http.StatusServiceUnavailable, "stale_recipients")

		By("sending on what is sealed to another, too")
		resp := in.eventuallyAnswered(ctx, "use1-1 got sealed", keyID("claims of 0"), elsewhere)
		Expect(resp.StatusCode).To(Equal(http.StatusOK))
		Expect(other.from.Load()).To(Equal(identity.RoleParent))

		let()
		Eventually(ctx, in.ended).Should(HaveLen(1))
		w := in.ended(ctx)[0]
		Expect(w.Reason).To(BeEmpty())
		Expect(w.Passed).To(BeTrue())
		var names []string
		for _, step := range w.Steps {
			Expect(step.Passed).To(BeTrue())
			Expect(step.Detail).NotTo(BeEmpty())
			names = append(names, step.Name)
		}
		Expect(names).To(Equal([]string{"await_turn", "check_model", "plant_canary", "keep_turn", "step_aside", "clear_gpu", "restart_enclave", "check_health", "check_canary", "step_back"}))
		Expect(in.guard.washes()).To(Equal([]string{api.PathWashPlant, api.PathWashRestart, api.PathWashCheck}))
		Expect(in.registered(ctx)).To(And(healthy(), HaveField("KeyIDs", Equal([]string{keyID("claims of 1")}))), "once the wash has ended the fleet knows")
		Expect(in.enclaves.nth(0).ended).To(BeClosed())
		Expect(readAll(in.ask(ctx, "a", "claims of 1"))).To(Equal("answer of 1"))
		Expect(in.get("/healthz")).To(HaveHTTPStatus(http.StatusOK))
		Expect(gathered(in.metrics, "mrgc_parent_wash_aside_seconds", "")).To(BeEquivalentTo(1))
	}, NodeTimeout(specTimeout))

	It("begins when what runs has ended, and serves what comes until the fleet knows", func(ctx SpecContext) {
		in, _ := startRestarting(ctx, func(_ *washing, c *parent.Config) { c.Wash.Linger = 300 * time.Millisecond })
		begun, let := held(ctx, in)
		leave := make(chan struct{})
		in.enclaves.nth(0).answers(func(w http.ResponseWriter, r *http.Request) {
			body, _ := io.ReadAll(r.Body)
			_, _ = io.WriteString(w, "an ")
			_ = http.NewResponseController(w).Flush()
			if string(body) == "slow" {
				<-leave
			}
			_, _ = io.WriteString(w, "answer")
		})
		req := in.asking(ctx, "a", "claims of 0")
		req.Body, req.ContentLength = io.NopCloser(strings.NewReader("slow")), 4
		slow := in.send(req)
		Expect(in.order(in.client(routerID))).To(HaveHTTPStatus(http.StatusAccepted))
		in.eventuallyRegistered(ctx, And(Not(healthy()), HaveField("KeyIDs", BeEmpty())))
		Expect(readAll(in.ask(ctx, "a", "claims of 0"))).To(Equal("an answer"), "it comes just then")
		Eventually(ctx, func() string { return in.ask(ctx, "a", "claims of 0").Header.Get(api.HeaderKeyStatus) }).Should(Equal(api.KeyStatusStale))
		Consistently(begun, "200ms").ShouldNot(BeClosed())
		close(leave)
		Expect(readAll(slow)).To(Equal("an answer"))
		Eventually(ctx, begun).Should(BeClosed())
		let()
		Eventually(ctx, in.ended).Should(HaveLen(1))
		Expect(in.ended(ctx)[0].Passed).To(BeTrue())
	}, NodeTimeout(specTimeout))

	It("waits, and is seen to, while no other instance of its models in the region is ready", func(ctx SpecContext) {
		in := startWashing(restarting)
		in.ready(ctx)
		in.peer(ctx, "use1-1", fleet.Load{}, false, elsewhere)
		Expect(in.store.Store.Register(ctx, fleet.Instance{ID: "use2-0", Region: "use2", Address: "127.0.0.1:9", Models: []string{"m"}, Health: fleet.Health{Enclave: true, Engine: true}})).To(Succeed())
		Expect(in.store.Store.Register(ctx, fleet.Instance{ID: "use1-2", Region: region, Address: "127.0.0.1:8", Models: []string{"n"}, Health: fleet.Health{Enclave: true, Engine: true}})).To(Succeed())
		Expect(in.order(in.client(routerID))).To(HaveHTTPStatus(http.StatusAccepted))
		Eventually(ctx, in.newest).Should(And(HaveField("Open", state.WashWaiting), HaveField("Reason", "no other instance of use1 that serves m, of the same version, is ready")))
		Expect(gathered(in.metrics, "mrgc_parent_wash_waiting", "")).To(BeEquivalentTo(1))
		expectError(in.order(in.client(routerID)), http.StatusConflict, "wash_under_way")
		Consistently(ctx, in.registered, "200ms").Should(healthy())
		Expect(readAll(in.ask(ctx, "a", "claims of 0"))).To(Equal("answer of 0"))
		Expect(in.guard.washes()).To(BeEmpty())

		in.peer(ctx, "use1-3", fleet.Load{}, true, nowhere)
		Eventually(ctx, in.ended).Should(ConsistOf(HaveField("Passed", true)))
		Expect(in.washes(ctx)).To(HaveLen(1), "it is the same")
		Expect(in.ended(ctx)[0].Steps[0]).To(And(HaveField("Name", "await_turn"), HaveField("Duration", BeNumerically(">", 200*time.Millisecond))))
		Expect(gathered(in.metrics, "mrgc_parent_wash_waiting", "")).To(BeZero())
	}, NodeTimeout(specTimeout))

	It("waits for another of the same version: one of another may get no requests", func(ctx SpecContext) {
		in := startWashing(restarting, func(_ *washing, c *parent.Config) { c.ModelVersions = map[string]string{"m": "1"} })
		in.ready(ctx)
		other := fleet.Instance{ID: "use1-1", Region: region, Address: "127.0.0.1:8", Models: []string{"m"}, Versions: map[string]string{"m": "2"}, Health: fleet.Health{Enclave: true, Engine: true}}
		Expect(in.store.Store.Register(ctx, other)).To(Succeed())
		Expect(in.order(in.client(routerID))).To(HaveHTTPStatus(http.StatusAccepted))
		Eventually(ctx, in.newest).Should(HaveField("Open", state.WashWaiting))
		Consistently(ctx, in.ended, "300ms").Should(BeEmpty())
		other.Versions = map[string]string{"m": "1"}
		Expect(in.store.Store.Register(ctx, other)).To(Succeed())
		Eventually(ctx, in.ended).Should(ConsistOf(HaveField("Passed", true)))
	}, NodeTimeout(specTimeout))

	It("begins at once when the configuration says that it restarts none, and goes on to wait over a start of the parent", func(ctx SpecContext) {
		in := startWashing(restarting)
		in.ready(ctx)
		Expect(in.order(in.client(routerID))).To(HaveHTTPStatus(http.StatusAccepted))
		Eventually(ctx, in.newest).Should(HaveField("Open", state.WashWaiting))
		in.stop()
		Eventually(ctx, in.done).Should(BeClosed())

		again := startWashing(restarting, func(next *washing, c *parent.Config) { next.records, c.Wash.Records = in.records, in.records })
		again.ready(ctx)
		expectError(again.order(again.client(routerID)), http.StatusConflict, "wash_under_way")
		again.parent.SetSettings(parent.Settings{HeartbeatInterval: 50 * time.Millisecond})
		Eventually(ctx, again.ended).Should(ConsistOf(HaveField("Passed", true)))
		Expect(again.washes(ctx)).To(HaveLen(1))
		Expect(again.guard.washes()).To(Equal([]string{api.PathWashPlant, api.PathWashClear, api.PathWashCheck}))
	}, NodeTimeout(specTimeout))

	It("has its turn when who has it dies", func(ctx SpecContext) {
		in, _ := startRestarting(ctx)
		Expect(in.wash(ctx).Passed).To(BeTrue())
		leases := state.LeaseTable(in.records)
		read := func(ctx context.Context) (state.Record[lease.Record], error) {
			return leases.Get(ctx, state.LeaseKey(leaseOfM))
		}
		Eventually(ctx, read).Should(HaveField("Value.Holder", ""), "it is given back")
		row, err := read(ctx)
		Expect(err).NotTo(HaveOccurred())
		row.Value = lease.Record{Holder: "use1-1/it", Token: row.Value.Token + 1, Length: time.Second}
		_, err = leases.Put(ctx, row)
		Expect(err).NotTo(HaveOccurred())

		began := time.Now()
		Expect(in.order(in.client(routerID))).To(HaveHTTPStatus(http.StatusAccepted))
		Eventually(ctx, in.newest).Should(And(HaveField("Open", state.WashWaiting), HaveField("Reason", "it is the turn of use1-1, which serves m, too")))
		Eventually(ctx, in.ended).Should(HaveLen(2))
		Expect(in.ended(ctx)[0].Passed).To(BeTrue())
		Expect(time.Since(began)).To(BeNumerically(">=", time.Second))
	}, NodeTimeout(specTimeout))

	It("leaves no turn behind: a start gives back what a parent before it held", func(ctx SpecContext) {
		in := startWashing(restarting, func(in *washing, _ *parent.Config) {
			old := state.Record[lease.Record]{Key: state.LeaseKey(leaseOfM), Value: lease.Record{Holder: "use1-0/it", Token: 7, Length: 8 * time.Minute}}
			_, err := state.LeaseTable(in.records).Put(ctx, old)
			Expect(err).NotTo(HaveOccurred())
		})
		read := func(ctx context.Context) (state.Record[lease.Record], error) {
			return state.LeaseTable(in.records).Get(ctx, state.LeaseKey(leaseOfM))
		}
		Eventually(ctx, read).Should(HaveField("Value", lease.Record{Token: 7, Length: 8 * time.Minute}))
	}, NodeTimeout(specTimeout))

	It("keeps its turn while its engine is down, though the store that has it is away", func(ctx SpecContext) {
		var away atomic.Bool
		in, _ := startRestarting(ctx, func(in *washing, c *parent.Config) { c.Wash.Records = &goneRecords{Store: in.records, away: &away} })
		in.peer(ctx, "use1-2", fleet.Load{}, true, nowhere)
		begun, let := held(ctx, in)
		Expect(in.order(in.client(routerID))).To(HaveHTTPStatus(http.StatusAccepted))
		Eventually(ctx, begun).Should(BeClosed())
		away.Store(true)
		row, err := state.LeaseTable(in.records).Get(ctx, state.LeaseKey(leaseOfM))
		Expect(err).NotTo(HaveOccurred())
		Expect(row.Value.Length).To(BeNumerically(">=", 8*time.Minute))

		var told atomic.Pointer[wash.Observation]
		asks, stop := context.WithCancel(ctx)
		defer stop()
		other, err := turn.New(turn.Config{
			Self: fleet.Instance{ID: "use1-1", Region: region, Models: []string{"m"}}, Leases: in.records, Snapshot: in.store.Snapshot, Length: 600 * time.Millisecond,
			StaleAfter: func() time.Duration { return time.Minute }, Aside: func() time.Duration { return time.Minute },
			Wash: func() (wash.State, <-chan struct{}) { return wash.State{Wash: "it", Waiting: true}, nil },
			Tell: func(o wash.Observation) { told.Store(&o) }, Logger: slog.New(slog.DiscardHandler),
		})
		Expect(err).NotTo(HaveOccurred())
		ran := make(chan struct{})
		go func() { other.Run(asks); close(ran) }()
		Eventually(ctx, told.Load).ShouldNot(BeNil())
		Consistently(told.Load, "1500ms").Should(And(HaveField("Turn", false), HaveField("Waits", "it is the turn of use1-0, which serves m, too")))
		let()
		Eventually(ctx, in.registered).Should(healthy())
		Expect(told.Load().Turn).To(BeFalse())
		away.Store(false)
		Eventually(ctx, told.Load).Should(HaveField("Turn", true), "it is given back")
		stop()
		Eventually(ctx, ran).Should(BeClosed())
		Eventually(ctx, in.ended).Should(ConsistOf(HaveField("Passed", true)))
	}, NodeTimeout(specTimeout))

	It("does not step aside when its turn was lost meanwhile, but waits for it again", func(ctx SpecContext) {
		var away atomic.Bool
		checking, checked := make(chan struct{}, 8), make(chan struct{})
		in, _ := startRestarting(ctx, checksUntil(checked, checking), func(in *washing, c *parent.Config) {
			c.Wash.Records = &goneRecords{Store: in.records, away: &away}
		})
		Expect(in.order(in.client(routerID))).To(HaveHTTPStatus(http.StatusAccepted))
		Eventually(ctx, checking).Should(Receive())
		away.Store(true)
		leases := state.LeaseTable(in.records)
		var row state.Record[lease.Record]
		Eventually(ctx, func() (err error) { // as another would, whose turn it is
			if row, err = leases.Get(ctx, state.LeaseKey(leaseOfM)); err == nil {
				row.Value = lease.Record{Holder: "use1-1/it", Token: row.Value.Token + 1, Length: time.Minute}
				row, err = leases.Put(ctx, row)
			}
			return err
		}).Should(Succeed())
		away.Store(false)
		close(checked)
		Eventually(ctx, in.newest).Should(And(HaveField("Open", state.WashWaiting), HaveField("Reason", "it is the turn of use1-1, which serves m, too")))
		Expect(in.registered(ctx)).To(healthy())
		Expect(readAll(in.ask(ctx, "a", "claims of 0"))).To(Equal("answer of 0"))
		Expect(in.guard.washes()).NotTo(ContainElement(api.PathWashRestart))

		row.Value.Holder = ""
		_, err := leases.Put(ctx, row)
		Expect(err).NotTo(HaveOccurred())
		Eventually(ctx, in.ended).Should(ConsistOf(HaveField("Passed", true)), "it is the same wash")
	}, NodeTimeout(specTimeout))

	It("is of one instance after the other, when all are due at once, and another always serves", func(ctx SpecContext) {
		first := startWashing(restarting)
		all := []*washing{first}
		for n := 1; n < 3; n++ {
			id := fmt.Sprintf("use1-%d", n)
			all = append(all, startWashingIn(furtherSurroundings(), restarting, func(in *washing, c *parent.Config) {
				in.store, c.Store = first.store, first.store
				in.records, c.Wash.Records = first.records, first.records
				c.Instance.ID = id
				c.Identity = in.source(identity.ID{Region: region, Instance: id, Role: identity.RoleParent})
				in.guard = newFakeGuard(in.source(identity.ID{Region: region, Instance: id, Role: identity.RoleGuard}))
				c.DialGuard = in.guard.dial
			}))
		}
		ready := func(ctx context.Context) int {
			snapshot, err := first.store.Snapshot(ctx)
			Expect(err).NotTo(HaveOccurred())
			return len(snapshot.Ready(time.Minute))
		}
		Eventually(ctx, ready).Should(Equal(3))
		var down, most, restarts atomic.Int64
		for _, in := range all {
			in.guard.onRestart(func(ctx context.Context) {
				defer GinkgoRecover()
				now := down.Add(1)
				defer down.Add(-1)
				if now > most.Load() {
					most.Store(now)
				}
				restarts.Add(1)
				Expect(ready(ctx)).To(Equal(2))
				select {
				case <-time.After(300 * time.Millisecond):
				case <-ctx.Done():
				}
				Expect(ready(ctx)).To(Equal(2))
			})
		}
		for i, in := range all {
			resp, err := in.clientOf(routerID, fmt.Sprintf("use1-%d", i)).Post(in.url(api.PathWash), "", nil)
			Expect(err).NotTo(HaveOccurred())
			DeferCleanup(resp.Body.Close)
			Expect(resp).To(HaveHTTPStatus(http.StatusAccepted))
		}
		washes := func(ctx context.Context) (ended []state.Wash) {
			rows, err := state.WashTable(first.records).List(ctx, state.WashesOf(region, 100))
			Expect(err).NotTo(HaveOccurred())
			for _, row := range rows {
				if row.Value.Open == "" {
					ended = append(ended, row.Value)
				}
			}
			return ended
		}
		Eventually(ctx, washes).Should(HaveLen(3))
		Expect(washes(ctx)).To(HaveEach(HaveField("Passed", true)))
		Expect(restarts.Load()).To(BeEquivalentTo(3))
		Expect(most.Load()).To(BeEquivalentTo(1))
		Eventually(ctx, ready).Should(Equal(3))
	}, NodeTimeout(specTimeout))

	It("is not made to fail by a request that does not end: it is cut", func(ctx SpecContext) {
		in, _ := startRestarting(ctx, washed(func(c *wash.Config) { c.StepTimeout = 2 * time.Second }))
		in.enclaves.nth(0).answers(func(w http.ResponseWriter, r *http.Request) {
			_, _ = io.Copy(io.Discard, r.Body)
			_, _ = io.WriteString(w, "old ")
			_ = http.NewResponseController(w).Flush()
			<-r.Context().Done()
		})
		endless := in.ask(ctx, "a", "claims of 0")
		w := in.wash(ctx)
		Expect(w.Reason).To(BeEmpty())
		Expect(w.Steps).To(ContainElement(And(HaveField("Name", "step_aside"), HaveField("Detail", ContainSubstring("are cut")))))
		in.eventuallyRegistered(ctx, healthy())
		body, err := io.ReadAll(endless.Body)
		Expect(string(body)).To(Equal("old "))
		Expect(err).To(HaveOccurred(), "a cut answer looks cut")
	}, NodeTimeout(specTimeout))

	It("that was cut off by the end of its parent leaves the instance in quarantine, until it was made again", func(ctx SpecContext) {
		in, _ := startRestarting(ctx)
		begun, _ := held(ctx, in)
		Expect(in.order(in.client(routerID))).To(HaveHTTPStatus(http.StatusAccepted))
		Eventually(ctx, begun).Should(BeClosed())
		in.stop()
		Eventually(ctx, in.done).Should(BeClosed())
		Expect(in.newest(ctx)).To(HaveField("Open", state.WashUnderWay))

		again := startWashing(restarting, func(next *washing, c *parent.Config) {
			next.records, c.Wash.Records = in.records, in.records
			next.guard.sick.Store(true) // its engine is loading still
		})
		again.eventuallyRegistered(ctx, HaveField("Health.Reason", HavePrefix("quarantined: the instance's parent stopped while the wash was under way")))
		Eventually(ctx, again.newest).Should(HaveField("Open", state.WashUnderWay), "nobody has ordered it; nobody else is needed, as the instance takes no requests")
		expectError(again.ask(ctx, "a", "claims of 0"), http.StatusServiceUnavailable, "instance_quarantined")
		again.guard.sick.Store(false)
		Eventually(ctx, again.ended).Should(HaveLen(2))
		again.eventuallyRegistered(ctx, And(healthy(), HaveField("KeyIDs", Equal([]string{keyID("claims of 1")}))))
		washes := again.ended(ctx)
		Expect(washes[1]).To(And(HaveField("Passed", false), HaveField("Reason", ContainSubstring("parent stopped"))))
		Expect(washes[0]).To(And(HaveField("Passed", true), HaveField("Trigger", wash.TriggerOperator)))
		Expect(gathered(again.metrics, "mrgc_parent_quarantined", "")).To(BeZero())
	}, NodeTimeout(specTimeout))

	DescribeTable("of which a step is broken is caught: recorded, told, and the instance out of service until one passes",
		func(ctx SpecContext, breakIt func(*washing) (mend func()), step, reason string) {
			in, _ := startRestarting(ctx, washed(func(c *wash.Config) { c.StepTimeout = 1500 * time.Millisecond }))
			Expect(in.wash(ctx).Reason).To(BeEmpty())
			mend := breakIt(in)
			w := in.wash(ctx)
			Expect(w.Passed).To(BeFalse())
			Expect(w.Reason).To(ContainSubstring(reason))
			Expect(w.Steps[len(w.Steps)-1]).To(And(HaveField("Name", step), HaveField("Passed", false)))
			expectError(in.ask(ctx, "a", "claims of 1"), http.StatusServiceUnavailable, "instance_quarantined")
			mend()
			in.eventuallyRegistered(ctx, And(Not(healthy()), HaveField("Health.Reason", HavePrefix("quarantined: "))))
			Expect(in.wash(ctx).Reason).To(BeEmpty())
			in.eventuallyRegistered(ctx, healthy())
		},
		Entry("a canary that the engine does not keep", NodeTimeout(specTimeout), brokenGuard(api.PathWashPlant), "plant_canary", "no such luck"),
		Entry("a fleet that cannot be told", NodeTimeout(specTimeout), func(in *washing) func() {
			in.store.deaf.Store(true)
			return func() { in.store.deaf.Store(false) }
		}, "step_aside", "could not be told"),
		Entry("an engine that is not restarted", NodeTimeout(specTimeout), brokenGuard(api.PathWashRestart), "clear_gpu", "no such luck"),
		Entry("a restart that does not end", NodeTimeout(specTimeout), func(in *washing) func() {
			in.guard.onRestart(func(ctx context.Context) { <-ctx.Done() })
			return func() { in.guard.onRestart(func(context.Context) {}) }
		}, "clear_gpu", "restart_engine"),
		Entry("a model's file that is another", NodeTimeout(specTimeout), func(in *washing) func() { return breaking(&in.files) }, "check_model", "check_model: broken"),
		Entry("an enclave that does not start", NodeTimeout(specTimeout), func(in *washing) func() {
			in.enclaves.set(func() { in.enclaves.fails = errors.New("no room") })
			return func() { in.enclaves.set(func() { in.enclaves.fails = nil }) }
		}, "restart_enclave", "no room"),
		Entry("an old enclave that does not end", NodeTimeout(specTimeout), func(in *washing) func() {
			in.enclaves.nth(1).stuck.Store(true)
			return func() {}
		}, "restart_enclave", "it is stuck"),
		Entry("an engine that does not answer afterwards", NodeTimeout(specTimeout), func(in *washing) func() {
			in.guard.onRestart(func(context.Context) { in.guard.sick.Store(true) })
			return func() { in.guard.onRestart(func(context.Context) {}); in.guard.sick.Store(false) }
		}, "check_health", "engine"),
		Entry("a canary that is still there", NodeTimeout(specTimeout), brokenGuard(api.PathWashCheck), "check_canary", "no such luck"),
	)

	It("that passes while the fleet's store is away is told later", func(ctx SpecContext) {
		in, _ := startRestarting(ctx, washed(func(c *wash.Config) { c.StepTimeout = 12 * time.Second }))
		in.guard.onRestart(func(context.Context) { in.store.deaf.Store(true) })
		w := in.wash(ctx)
		Expect(w.Passed).To(BeTrue(), w.Reason)
		Expect(w.Steps[len(w.Steps)-1].Detail).To(ContainSubstring("yet to be told"))
		Expect(readAll(in.ask(ctx, "a", "claims of 1"))).To(Equal("answer of 1"))
		in.store.deaf.Store(false)
		in.eventuallyRegistered(ctx, And(healthy(), HaveField("KeyIDs", Equal([]string{keyID("claims of 1")}))))
	}, NodeTimeout(2*specTimeout))

	It("of an instance that drains needs nobody in its place", func(ctx SpecContext) {
		in := startWashing(restarting)
		in.ready(ctx)
		Expect(in.store.SetDraining(ctx, instanceID, true)).To(Succeed())
		Expect(in.wash(ctx).Reason).To(BeEmpty())
		Expect(in.registered(ctx)).To(HaveField("Draining", true))
	}, NodeTimeout(specTimeout))
})
