package follow_test

import (
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"testing"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	"github.com/onsi/gomega/gbytes"

	"github.com/mrgc/mrgc/internal/tenant"
	"github.com/mrgc/mrgc/internal/tenant/follow"
	"github.com/mrgc/mrgc/internal/tenant/tenanttest"
)

func TestFollow(t *testing.T) {
	RegisterFailHandler(Fail)
	SetDefaultEventuallyTimeout(10 * time.Second)
	RunSpecs(t, "follow")
}

var _ = Describe("A file", func() {
	var (
		signer        *tenanttest.Signer
		path, keyPath string
		log           *gbytes.Buffer
	)
	put := func(content []byte) {
		GinkgoHelper()
		Expect(os.WriteFile(path+".new", content, 0o600)).To(Succeed())
		Expect(os.Rename(path+".new", path)).To(Succeed())
	}
	open := func() (*follow.File, error) {
		return follow.Open(path, keyPath, slog.New(slog.NewTextHandler(log, nil)))
	}

	BeforeEach(func() {
		dir := GinkgoT().TempDir()
		signer, log = tenanttest.NewSigner(GinkgoTB()), gbytes.NewBuffer()
		path, keyPath = filepath.Join(dir, "tenants.signed.json"), filepath.Join(dir, "tenants.pub")
		Expect(os.WriteFile(keyPath, signer.PublicPEM(GinkgoTB()), 0o600)).To(Succeed())
	})

	It("is followed: what is good is taken, whatever else comes and goes", func() {
		acme := tenanttest.Tenant("acme", "edge", "enclave")
		first := signer.Sign(GinkgoTB(), acme)
		put(first)
		file, err := open()
		Expect(err).NotTo(HaveOccurred())
		keeper := file.Keeper()
		Expect(keeper.Set().Active()).To(HaveLen(1))
		ctx, stop := context.WithCancel(context.Background())
		ended := make(chan struct{})
		go func() { defer close(ended); file.Run(ctx) }()
		DeferCleanup(func() { stop(); Eventually(ended).Should(BeClosed()) })

		put(signer.Sign(GinkgoTB()))
		Eventually(func() []*tenant.Tenant { return keeper.Set().Active() }).Should(BeEmpty())
		put(first)
		Eventually(log).Should(gbytes.Say("the one before stays.*older list"))
		put([]byte("half a fi"))
		Eventually(log).Should(gbytes.Say("the one before stays"))
		Expect(os.Remove(path)).To(Succeed())
		Eventually(log).Should(gbytes.Say("no such file"))
		Expect(keeper.Set().Version()).To(BeEquivalentTo(2))
		put(signer.Sign(GinkgoTB(), acme))
		Eventually(func() uint64 { return keeper.Set().Version() }).Should(BeEquivalentTo(3))
	})

	It("is taken anew when only its content differs, not its size and time", func() {
		at := time.Now().Add(-time.Minute)
		putAt := func(content []byte) {
			GinkgoHelper()
			Expect(os.WriteFile(path+".new", content, 0o600)).To(Succeed())
			Expect(os.Chtimes(path+".new", at, at)).To(Succeed()) // as if written within the clock's tick
			Expect(os.Rename(path+".new", path)).To(Succeed())
		}
		first := signer.Sign(GinkgoTB(), tenanttest.Tenant("acme", "edge", "enclave"))
		second := signer.Sign(GinkgoTB(), tenanttest.Tenant("acme", "egde", "enclave"))
		Expect(second).To(HaveLen(len(first)))
		putAt(first)
		file, err := open()
		Expect(err).NotTo(HaveOccurred())
		ctx, stop := context.WithCancel(context.Background())
		ended := make(chan struct{})
		go func() { defer close(ended); file.Run(ctx) }()
		DeferCleanup(func() { stop(); Eventually(ended).Should(BeClosed()) })
		putAt(second)
		Eventually(func() uint64 { return file.Keeper().Set().Version() }).Should(BeEquivalentTo(2))
	})

	DescribeTable("must be good at the start", func(reason string, spoil func()) {
		put(signer.Sign(GinkgoTB()))
		_, err := open()
		Expect(err).NotTo(HaveOccurred())
		spoil()
		_, err = open()
		Expect(err).To(MatchError(ContainSubstring(reason)))
	},
		Entry("it is not there", "no such file", func() { Expect(os.Remove(path)).To(Succeed()) }),
		Entry("it is not genuine", "no signature", func() { put(tenanttest.NewSigner(GinkgoTB()).Sign(GinkgoTB())) }),
		Entry("the key is not there", "no such file", func() { Expect(os.Remove(keyPath)).To(Succeed()) }),
		Entry("the key is none", "not PEM", func() { Expect(os.WriteFile(keyPath, []byte("x"), 0o600)).To(Succeed()) }),
	)
})
