package parent_test

import (
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"

	"github.com/mrgc/mrgc/internal/fleet"
	"github.com/mrgc/mrgc/internal/tenant"
	"github.com/mrgc/mrgc/internal/tenant/tenanttest"
	"github.com/mrgc/mrgc/parent"
)

var _ = Describe("The list of tenants", func() {
	It("is handed to the enclave as it is: at its start, when there is a newer one, and when it is another enclave", func(ctx SpecContext) {
		signer := tenanttest.NewSigner(GinkgoTB())
		keeper, err := tenant.NewKeeper(signer.Public())
		Expect(err).NotTo(HaveOccurred())
		first, second := signer.Sign(GinkgoTB()), signer.Sign(GinkgoTB(), tenanttest.Tenant("acme", "edge", "enclave"))
		Expect(keeper.Offer(first, time.Now())).To(Succeed())
		in := start(func(c *parent.Config) {
			c.Tenants = keeper
			c.ProbeInterval = 100 * time.Millisecond
		})
		Eventually(in.enclave.handed).Should(Equal([]string{string(first)}))
		Expect(keeper.Offer(second, time.Now())).To(Succeed())
		Eventually(in.enclave.handed).Should(Equal([]string{string(first), string(second)}))

		in.enclave.stop()
		in.enclave.start()
		Eventually(in.enclave.handed).Should(ContainElement(string(second)))
		Expect(in.enclave.handed()).NotTo(ContainElement(string(first)))
	}, NodeTimeout(specTimeout))

	It("is what an instance is unwell without", func(ctx SpecContext) {
		in := surroundings()
		in.enclave.refusesTenants.Store(true)
		in.run(in.config())
		in.eventuallyRegistered(ctx, HaveField("Health", And(
			HaveField("Enclave", false), HaveField("Reason", ContainSubstring("refuses the list of tenants")))))
		in.enclave.refusesTenants.Store(false)
		in.eventuallyRegistered(ctx, HaveField("Health", Equal(fleet.Health{Enclave: true, Engine: true})))
	}, NodeTimeout(specTimeout))
})
