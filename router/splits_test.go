package router_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"

	"github.com/mrgc/mrgc/envoy/envoytest"
	"github.com/mrgc/mrgc/internal/config"
	"github.com/mrgc/mrgc/internal/fleet"
	"github.com/mrgc/mrgc/internal/routing"
)

// startVersioned is besides Envoy, with two instances of versions v1 and v2, and
// follows a configuration that gives v2 a weight.
func startVersioned(v2 int) (r *besideEnvoy, set func(v2 int)) {
	GinkgoHelper()
	envoytest.Binary(GinkgoTB())
	path := filepath.Join(GinkgoT().TempDir(), "mrgc.yaml")
	set = func(v2 int) {
		GinkgoHelper()
		text := fmt.Sprintf("regions: [{name: use1, aws_region: us-east-1}]\nmodels: [{name: %s, versions: [{name: v1, weight: %d}, {name: v2, weight: %d}]}]\n",
			model, routing.SplitTotal-v2, v2)
		Expect(os.WriteFile(path+".draft", []byte(text), 0o600)).To(Succeed())
		Expect(os.Rename(path+".draft", path)).To(Succeed())
	}
	set(v2)
	r = &besideEnvoy{envoys: envoytest.NewCA(GinkgoTB())}
	r.running = newRouterBesideEnvoy(r.envoys).start()
	ctx, cancel := context.WithCancel(context.Background())
	var followed sync.WaitGroup
	followed.Go(func() {
		config.Follow(ctx, path, func(cfg *config.Config, err error) {
			defer GinkgoRecover()
			Expect(err).NotTo(HaveOccurred())
			settings := r.config.Settings
			settings.Splits = cfg.Splits()
			Expect(r.router.SetSettings(settings)).To(Succeed())
		})
	})
	DeferCleanup(followed.Wait)
	DeferCleanup(cancel)
	instances := r.startParents()
	for i := range instances {
		instances[i].Versions = map[string]string{model: fmt.Sprintf("v%d", i+1)}
	}
	Eventually(r.store.snapshots).Should(BeSent(fleet.NewSnapshot(time.Now(), instances)))
	r.startEnvoy([]string{r.grpc}, []string{r.http})
	return r, set
}

// endpoints are those that Envoys have been sent.
func (r *besideEnvoy) endpoints() string { return r.adminPage("/weights").text }

var _ = Describe("Versions through the real Envoy", func() {
	It("share requests as the file says, and what is withdrawn gets none from then on; nothing is dropped", func(ctx SpecContext) {
		r, set := startVersioned(500)
		finish := r.underLoad(ctx)
		v1, v2 := r.parents[0], r.parents[1]
		Eventually(v2.Served).WithTimeout(20 * time.Second).Should(BeNumerically(">", 200))
		Expect(float64(v2.Served()) / float64(v1.Served()+v2.Served())).To(BeNumerically("~", 0.5, 0.15))

		changed := time.Now()
		set(0)
		// The picker keeps to it at once, and from when Envoy has it, so do requests whose
		// pick came too late.
		Eventually(r.endpoints).WithTimeout(20 * time.Second).ShouldNot(ContainSubstring("use1-1"))
		Eventually(func() string { return r.adminPage("/envoys").text }).WithTimeout(20 * time.Second).Should(ContainSubstring(`"synced": true`))
		AddReportEntry("withdrawn, and seen to be so, after", time.Since(changed).String())
		finish() // what was picked before may have been on its way
		last, since := v2.Served(), v1.Served()
		finish = r.underLoad(ctx)
		Eventually(v1.Served).WithTimeout(20 * time.Second).Should(BeNumerically(">", since+500))
		Expect(v2.Served()).To(Equal(last))

		set(1000)
		Eventually(v2.Served).WithTimeout(20 * time.Second).Should(BeNumerically(">", last+100))
		finish()
	})

	It("stay withdrawn without a picker", func(ctx SpecContext) {
		r, set := startVersioned(500)
		Eventually(r.endpoints).Should(ContainSubstring("use1-1"))
		set(0)
		Eventually(r.endpoints).WithTimeout(10 * time.Second).ShouldNot(ContainSubstring("use1-1"))
		// Once Envoy has it, requests that only the weights decide keep to it.
		Eventually(func() error {
			before := r.parents[1].Served()
			for range 20 {
				if err := r.ask(ctx); err != nil {
					return err
				}
			}
			if n := r.parents[1].Served() - before; n > 0 {
				return fmt.Errorf("%d of 20 went to what is withdrawn", n)
			}
			return nil
		}).WithTimeout(20 * time.Second).Should(Succeed())
		r.stop()
		before := r.parents[1].Served()
		for range 50 {
			Expect(r.ask(ctx)).To(Succeed())
		}
		Expect(r.parents[1].Served()).To(Equal(before))
	})
})
