package parent_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sys/unix"

	"github.com/mrgc/mrgc/internal/api"
	"github.com/mrgc/mrgc/internal/audit"
	"github.com/mrgc/mrgc/internal/state"
	"github.com/mrgc/mrgc/internal/state/memory"
	"github.com/mrgc/mrgc/internal/state/schema"
	"github.com/mrgc/mrgc/parent"
	"github.com/mrgc/mrgc/parent/wash"
)

// fakeEnclaves starts fake enclaves, each with a key of its own.
type fakeEnclaves struct {
	dir string

	mu      sync.Mutex
	started []*startedFake // guarded by mu: all there ever were
	fails   error          // guarded by mu: what a start fails with
	same    bool           // guarded by mu: the next ones show the first one's key
	dead    bool           // guarded by mu: the next ones die at once
}

// startedFake is one of them.
type startedFake struct {
	*fakeEnclave
	place int
	ended chan struct{}
	die   func()
	stuck atomic.Bool // does not end when asked to
}

func (s *startedFake) Dial(ctx context.Context) (net.Conn, error) { return s.dial(ctx) }
func (s *startedFake) Ended() <-chan struct{}                     { return s.ended }

func (s *startedFake) Stop(ctx context.Context) error {
	if s.stuck.Load() {
		s.stuck.Store(false) // so that the test's own end can
		return errors.New("it is stuck")
	}
	s.die()
	return ctx.Err()
}

func (f *fakeEnclaves) Start(place int) (parent.StartedEnclave, error) {
	defer GinkgoRecover()
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.fails != nil {
		return nil, f.fails
	}
	for _, other := range f.started {
		select {
		case <-other.ended:
		default:
			if other.place == place {
				return nil, fmt.Errorf("there is one in place %d", place)
			}
		}
	}
	n := len(f.started)
	e := &startedFake{place: place, ended: make(chan struct{}), fakeEnclave: &fakeEnclave{
		address: fmt.Sprintf("unix:%s:5000", filepath.Join(f.dir, fmt.Sprintf("e%d", n))),
		claims:  []string{fmt.Sprintf("claims of %d", n)},
		answer: func(w http.ResponseWriter, r *http.Request) {
			_, _ = io.Copy(io.Discard, r.Body)
			_, _ = fmt.Fprintf(w, "answer of %d", n)
		},
	}}
	if f.same {
		e.claims = []string{"claims of 0"}
	}
	e.start()
	e.die = sync.OnceFunc(func() { e.stop(); close(e.ended) })
	if f.dead {
		e.die()
	}
	f.started = append(f.started, e)
	return e, nil
}

func (f *fakeEnclaves) set(change func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	change()
}

// nth is one that was started; nil: not yet.
func (f *fakeEnclaves) nth(n int) *startedFake {
	f.mu.Lock()
	defer f.mu.Unlock()
	if n >= len(f.started) {
		return nil
	}
	return f.started[n]
}

// washing is an instance that can be washed.
type washing struct {
	*instance
	enclaves *fakeEnclaves
	records  state.Store
	metrics  *prometheus.Registry
	files    atomic.Pointer[error] // what is wrong with the model
	document atomic.Pointer[error] // what is wrong with attestation
	config   parent.Config
}

func startWashing(options ...func(*washing, *parent.Config)) *washing {
	GinkgoHelper()
	return startWashingIn(surroundings(), options...)
}

func startWashingIn(around *instance, options ...func(*washing, *parent.Config)) *washing {
	GinkgoHelper()
	in := &washing{instance: around, records: memory.New(time.Now).Open(), metrics: prometheus.NewRegistry()}
	in.enclaves = &fakeEnclaves{dir: in.dir}
	in.config = in.instance.config()
	in.config.DialEnclave, in.config.Enclaves, in.config.Metrics = nil, in.enclaves, in.metrics
	verdict := func(of *atomic.Pointer[error]) error {
		if err := of.Load(); err != nil {
			return *err
		}
		return nil
	}
	in.config.Wash = &parent.Wash{
		Records: in.records, Note: filepath.Join(in.dir, "wash.json"), Linger: time.Millisecond,
		Attested:   func(_, _ []byte, _ time.Time) error { return verdict(&in.document) },
		CheckModel: func(context.Context, bool) (string, error) { return "1 file", verdict(&in.files) },
	}
	for _, option := range options {
		option(in, &in.config)
	}
	in.run(in.config)
	return in
}

func washed(change func(*wash.Config)) func(*washing, *parent.Config) {
	return func(_ *washing, c *parent.Config) { change(&c.Settings.Wash) }
}

// refusingRecords refuses records of washes that have passed.
type refusingRecords struct {
	state.Store
	refused atomic.Int64
}

func (s *refusingRecords) Write(ctx context.Context, table schema.Table, write state.Write) (int64, error) {
	if bytes.Contains(write.Fields, []byte(`"passed":true`)) {
		s.refused.Add(1)
		return 0, state.ErrNotWhole
	}
	return s.Store.Write(ctx, table, write)
}

// order is what a router passes on.
func (in *washing) order(as *http.Client) *http.Response {
	GinkgoHelper()
	resp, err := as.Post(in.url(api.PathWash), "", nil)
	Expect(err).NotTo(HaveOccurred())
	DeferCleanup(resp.Body.Close)
	return resp
}

// washes are the recorded ones, the newest first.
func (in *washing) washes(ctx context.Context) []state.Record[state.Wash] {
	rows, err := state.WashTable(in.records).List(ctx, state.Query{Partition: instanceID, Newest: true})
	Expect(err).NotTo(HaveOccurred())
	return rows
}

// ended are the washes that have, the newest first.
func (in *washing) ended(ctx context.Context) (ended []state.Wash) {
	for _, row := range in.washes(ctx) {
		if row.Value.Open == "" {
			ended = append(ended, row.Value)
		}
	}
	return ended
}

// wash orders one and waits until its record is closed.
func (in *washing) wash(ctx context.Context) state.Wash {
	GinkgoHelper()
	before := len(in.ended(ctx))
	resp := in.order(in.client(routerID))
	Expect(resp).To(HaveHTTPStatus(http.StatusAccepted))
	var ordered struct{ Wash string }
	Expect(json.NewDecoder(resp.Body).Decode(&ordered)).To(Succeed())
	Eventually(ctx, in.ended).Should(HaveLen(before + 1))
	key := in.washes(ctx)[0].Key
	Expect(key.Partition + "/" + key.Sort).To(Equal(ordered.Wash))
	return in.ended(ctx)[0]
}

// ask sends one request that is sealed to an enclave's key.
func (in *washing) ask(ctx context.Context, tenant, claims string) *http.Response {
	GinkgoHelper()
	return in.send(in.asking(ctx, tenant, claims))
}

func (in *washing) asking(ctx context.Context, tenant, claims string) *http.Request {
	GinkgoHelper()
	req := in.sealed(ctx, "sealed")
	req.Header.Set(api.HeaderTenant, tenant)
	req.Header.Set(api.HeaderRecipients, keyID(claims))
	return req
}

func (in *washing) ready(ctx context.Context) {
	GinkgoHelper()
	in.eventuallyRegistered(ctx, And(healthy(), HaveField("KeyIDs", HaveLen(1))))
}

var _ = Describe("A full wash", func() {
	It("puts a fresh enclave in the old one's place, and records each step", func(ctx SpecContext) {
		in := startWashing()
		in.ready(ctx)
		w := in.wash(ctx)
		Expect(w.Reason).To(BeEmpty())
		Expect(w.Passed).To(BeTrue())
		var names []string
		for _, step := range w.Steps {
			Expect(step.Passed).To(BeTrue())
			Expect(step.Detail).NotTo(BeEmpty())
			names = append(names, step.Name)
		}
		Expect(names).To(Equal([]string{"plant_canary", "clear_gpu", "check_model", "restart_enclave", "check_health", "check_canary"}))
		Expect(in.guard.washes()).To(Equal([]string{api.PathWashPlant, api.PathWashClear, api.PathWashCheck}))
		Expect(in.enclaves.nth(0).ended).To(BeClosed())
		Expect(readAll(in.ask(ctx, "a", "claims of 1"))).To(Equal("answer of 1"))
		in.eventuallyRegistered(ctx, HaveField("KeyIDs", Equal([]string{keyID("claims of 1")})))

		By("telling the enclave, for receipts")
		id := in.washes(ctx)[0].Key
		Eventually(in.enclaves.nth(1).told).Should(HaveField("WashID", id.Partition+"/"+id.Sort))
		Expect(gathered(in.metrics, "mrgc_parent_washes_total", "passed")).To(BeEquivalentTo(1))
	}, NodeTimeout(specTimeout))

	It("lets what runs in the old enclave end there, and sends it what is sealed to it alone", func(ctx SpecContext) {
		in := startWashing(func(_ *washing, c *parent.Config) { c.Wash.Linger = 100 * time.Millisecond })
		in.ready(ctx)
		leave := make(chan struct{})
		in.enclaves.nth(0).answers(func(w http.ResponseWriter, r *http.Request) {
			_, _ = io.Copy(io.Discard, r.Body)
			_, _ = io.WriteString(w, "old ")
			_ = http.NewResponseController(w).Flush()
			<-leave
			_, _ = io.WriteString(w, "answer")
		})
		slow := in.ask(ctx, "a", "claims of 0")
		Expect(in.order(in.client(routerID))).To(HaveHTTPStatus(http.StatusAccepted))
		expectError(in.order(in.client(routerID)), http.StatusConflict, "wash_under_way")
		in.eventuallyRegistered(ctx, HaveField("KeyIDs", Equal([]string{keyID("claims of 1")})))
		Expect(readAll(in.ask(ctx, "a", "claims of 1"))).To(Equal("answer of 1"))
		Consistently(in.enclaves.nth(0).ended, "200ms").ShouldNot(BeClosed())
		close(leave)
		Expect(readAll(slow)).To(Equal("old answer"))
		Eventually(ctx, in.washes).Should(HaveLen(1))
		Expect(in.washes(ctx)[0].Value.Passed).To(BeTrue())
		Expect(in.enclaves.nth(0).ended).To(BeClosed())
	}, NodeTimeout(specTimeout))

	// Else a tenant that reads its answers slowly would take every instance out of service.
	It("is not made to fail by a request that does not end: it is cut", func(ctx SpecContext) {
		in := startWashing(washed(func(c *wash.Config) { c.StepTimeout = 2 * time.Second }))
		in.ready(ctx)
		in.enclaves.nth(0).answers(func(w http.ResponseWriter, r *http.Request) {
			_, _ = io.Copy(io.Discard, r.Body)
			_, _ = io.WriteString(w, "old ")
			_ = http.NewResponseController(w).Flush()
			<-r.Context().Done()
		})
		endless := in.ask(ctx, "a", "claims of 0")
		w := in.wash(ctx)
		Expect(w.Reason).To(BeEmpty())
		Expect(w.Steps[3].Detail).To(ContainSubstring("cut"))
		in.eventuallyRegistered(ctx, healthy())
		body, err := io.ReadAll(endless.Body)
		Expect(string(body)).To(Equal("old "))
		Expect(err).To(HaveOccurred(), "a cut answer looks cut")
		Expect(in.enclaves.nth(0).ended).To(BeClosed())
	}, NodeTimeout(specTimeout))

	DescribeTable("of which a step is broken is caught: recorded, told, and the instance out of service until one passes",
		func(ctx SpecContext, breakIt func(*washing) (mend func()), step, reason string) {
			in := startWashing()
			in.ready(ctx)
			Expect(in.wash(ctx).Passed).To(BeTrue())
			mend := breakIt(in)
			w := in.wash(ctx)
			Expect(w.Passed).To(BeFalse())
			Expect(w.Reason).To(ContainSubstring(reason))
			Expect(w.Steps[len(w.Steps)-1]).To(And(HaveField("Name", step), HaveField("Passed", false)))
			in.eventuallyRegistered(ctx, And(Not(healthy()), HaveField("Health.Reason", HavePrefix("quarantined: "))))
			refused := in.ask(ctx, "a", "claims of 1")
			Expect(refused.Header.Get(api.HeaderKeyStatus)).To(Equal(api.KeyStatusStale), "so that what is sealed to it alone is sealed anew")
			expectError(refused, http.StatusServiceUnavailable, "instance_quarantined")
			Expect(in.get("/healthz")).To(HaveHTTPStatus(http.StatusServiceUnavailable))
			Expect(gathered(in.metrics, "mrgc_parent_washes_total", "failed")).To(BeEquivalentTo(1))
			Expect(gathered(in.metrics, "mrgc_parent_quarantined", "")).To(BeEquivalentTo(1))

			mend()
			w = in.wash(ctx)
			Expect(w.Reason).To(BeEmpty())
			in.eventuallyRegistered(ctx, healthy())
			Expect(in.get("/healthz")).To(HaveHTTPStatus(http.StatusOK))
		},
		Entry("a canary that the engine does not keep", NodeTimeout(specTimeout), brokenGuard(api.PathWashPlant), "plant_canary", "no such luck"),
		Entry("an engine that does not forget", NodeTimeout(specTimeout), brokenGuard(api.PathWashClear), "clear_gpu", "no such luck"),
		Entry("a model's file that is another", NodeTimeout(specTimeout), func(in *washing) func() { return breaking(&in.files) }, "check_model", "check_model: broken"),
		Entry("an enclave that does not start", NodeTimeout(specTimeout), func(in *washing) func() {
			in.enclaves.set(func() { in.enclaves.fails = errors.New("no room") })
			return func() { in.enclaves.set(func() { in.enclaves.fails = nil }) }
		}, "restart_enclave", "no room"),
		Entry("an enclave that dies at once", NodeTimeout(specTimeout), func(in *washing) func() {
			in.enclaves.set(func() { in.enclaves.dead = true })
			return func() { in.enclaves.set(func() { in.enclaves.dead = false }) }
		}, "restart_enclave", "has died"),
		Entry("a fresh enclave that is not attested", NodeTimeout(specTimeout), func(in *washing) func() { return breaking(&in.document) },
			"restart_enclave", "attestation: broken"),
		Entry("an old enclave that does not end", NodeTimeout(specTimeout), func(in *washing) func() {
			in.enclaves.nth(1).stuck.Store(true)
			return func() {}
		}, "restart_enclave", "it is stuck"),
		Entry("an engine that is not healthy", NodeTimeout(specTimeout), func(in *washing) func() {
			in.guard.sick.Store(true)
			return func() { in.guard.sick.Store(false) }
		}, "check_health", "engine"),
		Entry("a canary that is still there", NodeTimeout(specTimeout), brokenGuard(api.PathWashCheck), "check_canary", "no such luck"),
	)

	It("of an enclave that is the present one under another name is caught", func(ctx SpecContext) {
		in := startWashing()
		in.ready(ctx)
		in.enclaves.set(func() { in.enclaves.same = true })
		Expect(in.wash(ctx).Reason).To(ContainSubstring("no key of its own"))
		Expect(in.enclaves.nth(1).ended).To(BeClosed(), "the standby is dropped")
	}, NodeTimeout(specTimeout))

	It("goes back to the old enclave when the fleet cannot be told", func(ctx SpecContext) {
		in := startWashing(washed(func(c *wash.Config) { c.StepTimeout = 300 * time.Millisecond }))
		in.ready(ctx)
		in.store.away.Store(true)
		w := in.wash(ctx)
		Expect(w.Reason).To(ContainSubstring("switch_over"))
		Eventually(ctx, in.enclaves.nth(1).ended).Should(BeClosed())
		in.store.away.Store(false)
		in.eventuallyRegistered(ctx, HaveField("KeyIDs", Equal([]string{keyID("claims of 0")})))
	}, NodeTimeout(specTimeout))

	It("that has failed holds over a restart of the parent", func(ctx SpecContext) {
		in := startWashing()
		in.ready(ctx)
		mend := breaking(&in.files)
		Expect(in.wash(ctx).Passed).To(BeFalse())
		mend()
		in.stop()
		Eventually(ctx, in.done).Should(BeClosed())
		again := startWashing(func(next *washing, c *parent.Config) { next.records, c.Wash.Records = in.records, in.records })
		again.eventuallyRegistered(ctx, HaveField("Health.Reason", HavePrefix("quarantined: check_model")))
	}, NodeTimeout(specTimeout))

	It("whose record is refused is not written again and again", func(ctx SpecContext) {
		refusing := &refusingRecords{}
		in := startWashing(func(in *washing, c *parent.Config) {
			refusing.Store = in.records
			c.Wash.Records = refusing
		})
		in.ready(ctx)
		Expect(in.order(in.client(routerID))).To(HaveHTTPStatus(http.StatusAccepted))
		Eventually(ctx, refusing.refused.Load).Should(BeEquivalentTo(1))
		Consistently(ctx, refusing.refused.Load, "1500ms").Should(BeEquivalentTo(1))
	}, NodeTimeout(specTimeout))

	It("whose record says that it passed, and does not show it, leaves the instance in quarantine until one is ordered", func(ctx SpecContext) {
		in := startWashing(func(next *washing, _ *parent.Config) {
			_, err := next.records.Write(ctx, schema.CleanupValidation, state.Write{
				Key: state.WashKey(instanceID, time.Now()), Fields: []byte(`{"region":"use1","trigger":"operator","passed":true,"steps":[]}`),
			})
			Expect(err).NotTo(HaveOccurred())
		})
		in.eventuallyRegistered(ctx, HaveField("Health.Reason", And(HavePrefix("quarantined: the record of the last wash"), ContainSubstring("not whole"))))
		Expect(in.order(in.client(routerID))).To(HaveHTTPStatus(http.StatusAccepted))
		in.eventuallyRegistered(ctx, healthy())
	}, NodeTimeout(specTimeout))

	It("comes after so many requests, and not after what no enclave has opened", func(ctx SpecContext) {
		in := startWashing(washed(func(c *wash.Config) { c.EveryRequests = 2 }))
		in.ready(ctx)
		in.enclaves.nth(0).answers(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusUnprocessableEntity) })
		for range 3 {
			Expect(in.ask(ctx, "a", "claims of 0")).To(HaveHTTPStatus(http.StatusUnprocessableEntity))
		}
		in.enclaves.nth(0).answers(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "an answer") })
		readAll(in.ask(ctx, "a", "claims of 0"))
		Consistently(ctx, in.washes, "200ms").Should(BeEmpty())
		readAll(in.ask(ctx, "a", "claims of 0"))
		Eventually(ctx, in.washes).Should(HaveLen(1))
		Expect(in.washes(ctx)[0].Value.Trigger).To(Equal(wash.TriggerRequests))
	}, NodeTimeout(specTimeout))

	It("comes when the tenant is another", func(ctx SpecContext) {
		in := startWashing(washed(func(c *wash.Config) { c.OnTenantChange = true }))
		in.ready(ctx)
		for _, tenant := range []string{"a", "a", "b"} {
			readAll(in.ask(ctx, tenant, "claims of 0"))
		}
		Eventually(ctx, in.washes).Should(HaveLen(1))
		Expect(in.washes(ctx)[0].Value.Trigger).To(Equal(wash.TriggerTenant))
	}, NodeTimeout(specTimeout))

	It("comes after every request in strict mode, while the next one waits", func(ctx SpecContext) {
		in := startWashing(washed(func(c *wash.Config) { c.Strict = true }))
		in.ready(ctx)
		for n := range 3 { // no key: each goes to the enclave that is there
			Expect(readAll(in.ask(ctx, "a", "nobody's"))).To(Equal(fmt.Sprintf("answer of %d", n)))
		}
		Eventually(ctx, in.washes).Should(HaveLen(3))
		Expect(in.washes(ctx)).To(HaveEach(HaveField("Value.Trigger", wash.TriggerStrict)))
	}, NodeTimeout(specTimeout))

	It("is ordered by routers alone", func(ctx SpecContext) {
		in := startWashing()
		in.ready(ctx)
		expectError(in.order(in.envoy), http.StatusForbidden, "not_allowed")
		Consistently(ctx, in.washes, "100ms").Should(BeEmpty())
	}, NodeTimeout(specTimeout))

	It("cannot be where somebody else starts the enclave", func(ctx SpecContext) {
		in := start()
		in.eventuallyRegistered(ctx, healthy())
		resp, err := in.client(routerID).Post(in.url(api.PathWash), "", nil)
		Expect(err).NotTo(HaveOccurred())
		DeferCleanup(resp.Body.Close)
		expectError(resp, http.StatusNotFound, "no_washes")
	}, NodeTimeout(specTimeout))

	It("goes to the audit log", func(ctx SpecContext) {
		path := filepath.Join(GinkgoT().TempDir(), "audit.log")
		log, err := audit.Open(path)
		Expect(err).NotTo(HaveOccurred())
		DeferCleanup(log.Close)
		in := startWashing(func(_ *washing, c *parent.Config) { c.Audit = log })
		in.ready(ctx)
		Expect(in.wash(ctx).Passed).To(BeTrue())
		Eventually(func() (string, error) { b, err := os.ReadFile(path); return string(b), err }).Should(
			And(ContainSubstring(`"event":"instance_washed"`), ContainSubstring(`"passed":"true"`)))
	}, NodeTimeout(specTimeout))

	It("goes to the audit log later where that fails", func(ctx SpecContext) {
		path := filepath.Join(GinkgoT().TempDir(), "audit.log")
		Expect(unix.Mkfifo(path, 0o600)).To(Succeed()) // which cannot be synced
		log, err := audit.Open(path)
		Expect(err).NotTo(HaveOccurred())
		DeferCleanup(log.Close)
		Expect(log.Append(time.Now(), audit.Event{Name: audit.Washed})).NotTo(Succeed())
		in := startWashing(func(_ *washing, c *parent.Config) { c.Audit = log })
		in.ready(ctx)
		id := in.wash(ctx).StartedAt
		Expect(os.Remove(path)).To(Succeed())
		Eventually(ctx, func() (string, error) { b, err := os.ReadFile(path); return string(b), err }).Should(
			And(ContainSubstring(`"event":"instance_washed"`), ContainSubstring(state.WashKey(instanceID, id).Sort)))
	}, NodeTimeout(specTimeout))
})

var _ = Describe("An enclave that its parent has started", func() {
	It("is started again when it dies, and ended with the parent", func(ctx SpecContext) {
		in := startWashing()
		in.ready(ctx)
		in.enclaves.nth(0).die()
		in.eventuallyRegistered(ctx, And(healthy(), HaveField("KeyIDs", Equal([]string{keyID("claims of 1")}))))
		Expect(readAll(in.ask(ctx, "a", "claims of 1"))).To(Equal("answer of 1"))
		in.stop()
		Eventually(ctx, in.done).Should(BeClosed())
		Expect(in.enclaves.nth(1).ended).To(BeClosed())
	}, NodeTimeout(specTimeout))
})

// brokenGuard has the guard fail at one step.
func brokenGuard(path string) func(*washing) func() {
	return func(in *washing) func() {
		in.guard.fails.Store(path)
		return func() { in.guard.fails.Store("") }
	}
}

// breaking has a check fail until it is mended.
func breaking(check *atomic.Pointer[error]) (mend func()) {
	broken := errors.New("broken")
	check.Store(&broken)
	return func() { check.Store(nil) }
}

// gathered is the sum of a metric's of which a label has a value.
func gathered(reg *prometheus.Registry, name, value string) (sum float64) {
	GinkgoHelper()
	families, err := reg.Gather()
	Expect(err).NotTo(HaveOccurred())
	for _, family := range families {
		if family.GetName() != name {
			continue
		}
		for _, m := range family.GetMetric() {
			match := value == ""
			for _, label := range m.GetLabel() {
				match = match || label.GetValue() == value
			}
			if match {
				sum += m.GetCounter().GetValue() + m.GetGauge().GetValue() + float64(m.GetHistogram().GetSampleCount())
			}
		}
	}
	return sum
}
