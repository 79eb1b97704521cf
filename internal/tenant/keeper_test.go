package tenant_test

import (
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"

	"github.com/mrgc/mrgc/internal/tenant"
	"github.com/mrgc/mrgc/internal/tenant/tenanttest"
)

var _ = Describe("A keeper", func() {
	var (
		signer *tenanttest.Signer
		keeper *tenant.Keeper
		acme   = tenanttest.Tenant("acme", "edge", "enclave")
		now    = time.Date(2026, 11, 1, 12, 0, 0, 0, time.UTC)
	)
	BeforeEach(func() {
		signer = tenanttest.NewSigner(GinkgoTB())
		var err error
		keeper, err = tenant.NewKeeper(signer.Public())
		Expect(err).NotTo(HaveOccurred())
	})

	It("takes a newer list, and says so", func() {
		_, _, changed := keeper.Held()
		first, second := signer.Sign(GinkgoTB(), acme), signer.Sign(GinkgoTB())
		Expect(keeper.Offer(first, now)).To(Succeed())
		Expect(changed).To(BeClosed())
		set, file, changed := keeper.Held()
		Expect(set.Version()).To(BeEquivalentTo(1))
		Expect(file).To(Equal(first))
		Expect(keeper.Offer(first, now)).To(Succeed(), "the same again")
		Expect(changed).NotTo(BeClosed())
		Expect(keeper.Offer(second, now)).To(Succeed())
		Expect(changed).To(BeClosed())
		Expect(keeper.Set().Active()).To(BeEmpty())
	})

	It("takes no older list, and no other one of the same version", func() {
		first, second := signer.Sign(GinkgoTB(), acme), signer.Sign(GinkgoTB())
		Expect(keeper.Offer(second, now)).To(Succeed())
		Expect(keeper.Offer(first, now)).To(MatchError(tenant.ErrOlder))
		spaced := append([]byte(" "), second...) // genuine, and not the same file
		Expect(keeper.Offer(spaced, now)).To(MatchError(tenant.ErrOlder))
		Expect(keeper.Set().Version()).To(BeEquivalentTo(2))
	})

	It("takes no list whose grace is over, and keeps what it has until then", func() {
		signer.Expires = now
		late := signer.Sign(GinkgoTB(), acme)
		Expect(keeper.Offer(late, now.Add(tenant.Grace))).To(MatchError(ContainSubstring("grace of 1h0m0s is over")))
		Expect(keeper.Set()).To(BeNil())
		Expect(keeper.Offer(late, now.Add(tenant.Grace-1))).To(Succeed())
		_, err := keeper.Set().Find("acme", now.Add(tenant.Grace-1))
		Expect(err).NotTo(HaveOccurred())
		_, err = keeper.Set().Find("acme", now.Add(tenant.Grace))
		Expect(err).To(MatchError(tenant.ErrNoList))
	})

	It("takes nothing that is not genuine", func() {
		Expect(keeper.Offer(signer.Sign(GinkgoTB(), acme), now)).To(Succeed())
		for _, bad := range [][]byte{nil, []byte("{}"), tenanttest.NewSigner(GinkgoTB()).Sign(GinkgoTB())} {
			Expect(keeper.Offer(bad, now)).NotTo(Succeed())
		}
		Expect(keeper.Set().Active()).To(HaveLen(1))
	})
})
