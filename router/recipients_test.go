package router_test

import (
	"net/http"
	"strings"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"

	"github.com/mrgc/mrgc/internal/api"
	"github.com/mrgc/mrgc/router"
	"github.com/mrgc/mrgc/standin/devca"
)

var _ = Describe("A collector", func() {
	var (
		ca        *devca.Authority
		collector router.Collector
		a, b      *parent
		now       time.Time
	)
	BeforeEach(func() {
		noLeaks()
		ca = newAuthority()
		collector = router.NewCollector(clientOf(sourceOf(ca, routerID)))
		a, b = startParent(ca, "use1", "use1-0"), startParent(ca, "use2", "use2-0")
		now = time.Now()
	})

	document := func(id string) func() string {
		return func() string {
			recipient, _ := collector.Get(kidOf(id))
			return string(recipient.Attestation)
		}
	}

	It("fetches every instance's recipients", func(ctx SpecContext) {
		collector.Refresh(ctx, snapshotOf(a, b), now)
		Expect(document("use1-0")()).To(Equal("document of use1-0"))
		Expect(document("use2-0")()).To(Equal("document of use2-0"))
	})

	It("fetches documents again when they are a minute old", func(ctx SpecContext) {
		collector.Refresh(ctx, snapshotOf(a), now)
		a.answer(offer(api.Recipient{Claims: claimsOf("use1-0"), Attestation: []byte("renewed")}))
		collector.Refresh(ctx, snapshotOf(a), now.Add(time.Minute-1))
		Expect(a.times()).To(Equal(1))
		collector.Refresh(ctx, snapshotOf(a), now.Add(time.Minute))
		Expect(a.times()).To(Equal(2))
		Expect(document("use1-0")()).To(Equal("renewed"))
	})

	It("fetches at once for a key that is new", func(ctx SpecContext) {
		collector.Refresh(ctx, snapshotOf(a), now)
		a.instance.KeyIDs = append([]string{kidOf("use1-0 restarted")}, a.instance.KeyIDs...)
		a.answer(offer(api.Recipient{Claims: claimsOf("use1-0 restarted"), Attestation: []byte("new")}))
		collector.Refresh(ctx, snapshotOf(a), now)
		Expect(document("use1-0 restarted")()).To(Equal("new"))
		Expect(document("use1-0")()).To(Equal("document of use1-0"))
	})

	It("forgets keys that nobody holds any more", func(ctx SpecContext) {
		collector.Refresh(ctx, snapshotOf(a, b), now)
		collector.Refresh(ctx, snapshotOf(b), now)
		_, known := collector.Get(kidOf("use1-0"))
		Expect(known).To(BeFalse())
		_, known = collector.Get(kidOf("use2-0"))
		Expect(known).To(BeTrue())
	})

	It("does not ask an instance whose enclave is not healthy", func(ctx SpecContext) {
		a.instance.Health.Enclave = false
		collector.Refresh(ctx, snapshotOf(a), now)
		Expect(a.times()).To(BeZero())
	})

	DescribeTable("keeps what it has when an instance", func(ctx SpecContext, answer http.HandlerFunc) {
		collector.Refresh(ctx, snapshotOf(a, b), now)
		a.answer(answer)
		b.answer(offer(api.Recipient{Claims: claimsOf("use2-0"), Attestation: []byte("renewed")}))
		collector.Refresh(ctx, snapshotOf(a, b), now.Add(time.Hour))
		Expect(a.times()).To(BeNumerically(">", 1))
		Expect(document("use1-0")()).To(Equal("document of use1-0"))
		Expect(document("use2-0")()).To(Equal("renewed"))
	},
		Entry("does not answer", func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }),
		Entry("answers with an error", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusServiceUnavailable) }),
		Entry("says something else", func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("hello")) }),
		Entry("says too much", func(w http.ResponseWriter, r *http.Request) {
			offer(api.Recipient{Claims: claimsOf("use1-0"), Attestation: []byte(strings.Repeat("x", 256<<10))})(w, r)
		}),
		Entry("has none", offer()),
	)

	It("does not have one slow instance delay the others", func(ctx SpecContext) {
		release := a.block()
		refreshed := make(chan struct{})
		go func() {
			defer close(refreshed)
			collector.Refresh(ctx, snapshotOf(a, b), now)
		}()
		Eventually(document("use2-0")).Should(Equal("document of use2-0"))
		Expect(refreshed).NotTo(BeClosed())
		release()
		Eventually(refreshed).Should(BeClosed())
		Expect(document("use1-0")()).To(Equal("document of use1-0"))
	})

	It("lets no instance speak for another's key", func(ctx SpecContext) {
		collector.Refresh(ctx, snapshotOf(b), now)
		a.answer(offer(api.Recipient{Claims: claimsOf("use2-0"), Attestation: []byte("forged")}))
		collector.Refresh(ctx, snapshotOf(a, b), now)
		Expect(a.times()).To(Equal(1))
		Expect(document("use2-0")()).To(Equal("document of use2-0"))
	})

	It("does not take another instance at the address for the one it asks", func(ctx SpecContext) {
		a.instance.Address = b.instance.Address
		b.answer(offer(api.Recipient{Claims: claimsOf("use1-0"), Attestation: []byte("forged")}))
		collector.Refresh(ctx, snapshotOf(a), now)
		Expect(b.times()).To(Equal(1))
		_, known := collector.Get(kidOf("use1-0"))
		Expect(known).To(BeFalse())
	})
})
