package parent_test

import (
	"context"
	"encoding/json"
	"net/http"
	"os"
	"sync/atomic"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"

	"github.com/mrgc/mrgc/internal/fleet"
	"github.com/mrgc/mrgc/internal/state"
	"github.com/mrgc/mrgc/parent"
)

// after is a start of another parent in the place of one that has stopped, on the same
// disk, while the state store is away when it is said to be.
func after(ctx context.Context, in *washing, away *atomic.Bool, options ...func(*washing, *parent.Config)) *washing {
	GinkgoHelper()
	in.stop()
	Eventually(ctx, in.done).Should(BeClosed())
	options = append([]func(*washing, *parent.Config){restarting, func(next *washing, c *parent.Config) {
		next.records = in.records
		c.Wash.Records, c.Wash.Note = &goneRecords{Store: in.records, away: away}, in.config.Wash.Note
	}}, options...)
	return startWashingIn(furtherSurroundings(), options...)
}

var _ = Describe("A start of the parent while the state store is away", func() {
	var away atomic.Bool

	BeforeEach(func() { away.Store(true) })

	It("knows of a wash that was cut off, serves nothing, and makes it again when the store is back", func(ctx SpecContext) {
		in, _ := startRestarting(ctx)
		begun, _ := held(ctx, in)
		Expect(in.order(in.client(routerID))).To(HaveHTTPStatus(http.StatusAccepted))
		Eventually(ctx, begun).Should(BeClosed())

		again := after(ctx, in, &away)
		again.eventuallyRegistered(ctx, And(Not(healthy()), HaveField("Health.Reason", HavePrefix("quarantined: the instance's parent stopped while the wash was under way"))))
		expectError(again.ask(ctx, "a", "claims of 0"), http.StatusServiceUnavailable, "instance_quarantined")
		Consistently(ctx, again.registered, "300ms").ShouldNot(healthy())
		away.Store(false)
		Eventually(ctx, again.ended).Should(HaveLen(2))
		Expect(again.ended(ctx)[0].Passed).To(BeTrue())
		Expect(again.ended(ctx)[1].Reason).To(ContainSubstring("parent stopped"))
		again.eventuallyRegistered(ctx, healthy())
	}, NodeTimeout(specTimeout))

	It("knows of one that has failed", func(ctx SpecContext) {
		in := startWashing()
		in.ready(ctx)
		breaking(&in.files)
		Expect(in.wash(ctx).Passed).To(BeFalse())
		again := after(ctx, in, &away)
		again.eventuallyRegistered(ctx, HaveField("Health.Reason", HavePrefix("quarantined: check_model")))
	}, NodeTimeout(specTimeout))

	It("keeps no sound instance from serving, and waits for nothing", func(ctx SpecContext) {
		in, _ := startRestarting(ctx)
		Expect(in.wash(ctx).Passed).To(BeTrue())
		began := time.Now()
		again := after(ctx, in, &away)
		again.eventuallyRegistered(ctx, healthy())
		Expect(time.Since(began)).To(BeNumerically("<", 3*time.Second))
		Expect(readAll(again.ask(ctx, "a", "claims of 0"))).To(Equal("answer of 0"))
		away.Store(false)
		again.peer(ctx, "use1-1", fleet.Load{}, true, nowhere)
		Expect(again.wash(ctx).Passed).To(BeTrue())
	}, NodeTimeout(specTimeout))

	It("takes a note that cannot be read for a wash that has failed, until one passes", func(ctx SpecContext) {
		in, _ := startRestarting(ctx)
		Expect(in.wash(ctx).Passed).To(BeTrue())
		Expect(os.WriteFile(in.config.Wash.Note, []byte(`{"wash":""}`), 0o600)).To(Succeed())
		again := after(ctx, in, &away)
		again.eventuallyRegistered(ctx, HaveField("Health.Reason", HavePrefix("quarantined: note of the last wash: it names no wash")))
		away.Store(false)
		Expect(again.wash(ctx).Passed).To(BeTrue())
		again.eventuallyRegistered(ctx, healthy())
	}, NodeTimeout(specTimeout))

	It("knows of one that has failed after the clock was set back", func(ctx SpecContext) {
		in := startWashing()
		in.ready(ctx)
		Expect(in.wash(ctx).Passed).To(BeTrue())
		var note struct {
			Wash string     `json:"wash"`
			Row  state.Wash `json:"row"`
		}
		content, err := os.ReadFile(in.config.Wash.Note)
		Expect(err).NotTo(HaveOccurred())
		Expect(json.Unmarshal(content, &note)).To(Succeed())
		note.Row.StartedAt = note.Row.StartedAt.Add(time.Hour)
		key := state.WashKey(in.config.Instance.ID, note.Row.StartedAt)
		note.Wash = key.Partition + "/" + key.Sort
		content, err = json.Marshal(note)
		Expect(err).NotTo(HaveOccurred())
		Expect(os.WriteFile(in.config.Wash.Note, content, 0o600)).To(Succeed())
		away.Store(false)
		again := after(ctx, in, &away)
		again.eventuallyRegistered(ctx, healthy())
		again.peer(ctx, "use1-1", fleet.Load{}, true, nowhere)
		breaking(&again.files)
		Expect(again.order(again.client(routerID))).To(HaveHTTPStatus(http.StatusAccepted))
		again.eventuallyRegistered(ctx, HaveField("Health.Reason", HavePrefix("quarantined: check_model")))
		Eventually(func() (string, error) { content, err := os.ReadFile(in.config.Wash.Note); return string(content), err }).Should(ContainSubstring(`"passed":false`))
		away.Store(true)
		third := after(ctx, again, &away)
		third.eventuallyRegistered(ctx, HaveField("Health.Reason", HavePrefix("quarantined: check_model")))
	}, NodeTimeout(specTimeout))

	It("goes on to wait, in service, where the wash waits again", func(ctx SpecContext) {
		checking, goOn := make(chan struct{}, 8), make(chan struct{})
		in, _ := startRestarting(ctx, checksUntil(goOn, checking))
		Expect(in.order(in.client(routerID))).To(HaveHTTPStatus(http.StatusAccepted))
		Eventually(ctx, checking).Should(Receive())
		in.peer(ctx, "use1-1", fleet.Load{}, false, elsewhere)
		close(goOn)
		Eventually(ctx, in.newest).Should(And(HaveField("Open", state.WashWaiting), HaveField("Reason", ContainSubstring("no other instance"))))

		again := after(ctx, in, &away)
		again.eventuallyRegistered(ctx, healthy())
		Expect(readAll(again.ask(ctx, "a", "claims of 0"))).To(Equal("answer of 0"))
		Consistently(ctx, again.registered, "300ms").Should(healthy())
	}, NodeTimeout(specTimeout))

	It("has stored later what was only noted, of a wash that had no record before it ended", func(ctx SpecContext) {
		var gone atomic.Bool
		in := startWashing(func(in *washing, c *parent.Config) { c.Wash.Records = &goneRecords{Store: in.records, away: &gone} })
		in.ready(ctx)
		gone.Store(true)
		Expect(in.order(in.client(routerID))).To(HaveHTTPStatus(http.StatusAccepted))
		Eventually(func() (string, error) { content, err := os.ReadFile(in.config.Wash.Note); return string(content), err }).Should(ContainSubstring(`"passed":true`))
		again := after(ctx, in, &away)
		again.eventuallyRegistered(ctx, healthy())
		Expect(again.washes(ctx)).To(BeEmpty())
		away.Store(false)
		Eventually(ctx, again.newest).Should(HaveField("Passed", true))
	}, NodeTimeout(specTimeout))

	It("has stored later what was only noted", func(ctx SpecContext) {
		var gone atomic.Bool
		in, _ := startRestarting(ctx, func(in *washing, c *parent.Config) { c.Wash.Records = &goneRecords{Store: in.records, away: &gone} })
		begun, let := held(ctx, in)
		Expect(in.order(in.client(routerID))).To(HaveHTTPStatus(http.StatusAccepted))
		Eventually(ctx, begun).Should(BeClosed())
		gone.Store(true)
		let()
		in.eventuallyRegistered(ctx, healthy())
		Eventually(func() (string, error) { content, err := os.ReadFile(in.config.Wash.Note); return string(content), err }).Should(ContainSubstring(`"passed":true`))
		again := after(ctx, in, &away)
		again.eventuallyRegistered(ctx, healthy())
		Expect(again.newest(ctx)).To(HaveField("Open", state.WashUnderWay))
		away.Store(false)
		Eventually(ctx, again.newest).Should(And(HaveField("Open", ""), HaveField("Passed", true)))
		Consistently(ctx, again.registered, "200ms").Should(healthy())
		Expect(again.washes(ctx)).To(HaveLen(1))
	}, NodeTimeout(specTimeout))
})
