package e2e_test

import (
	"context"
	"fmt"
	"net/http"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"

	"github.com/mrgc/mrgc/client"
)

var _ = Describe("An operator", func() {
	It("drains an instance, at no request's cost, and ends the drain", func(ctx SpecContext) {
		engine := newToldEngine()
		c := startCluster("--regions", "use1", "--instances", "2", "--engine-url", engine.server.URL, "--model-name", "told", "--ask=false")
		models := func() string { return c.mrgc("models", "--admin", c.env()["MRGC_ADMIN_USE1"]) }
		drain := func(args ...string) string {
			return c.mrgc(append([]string{"drain", "use1-0", "--store", c.env()["MRGC_STORE"]}, args...)...)
		}
		Expect(models()).To(MatchRegexp(`told +- +use1 +2 of 2 +0\n`))
		Expect(c.during("instance drained", func() {
			Expect(drain("--wait", "1m")).To(ContainSubstring("use1-0 has no requests\n"))
			Expect(models()).To(MatchRegexp(`told +- +use1 +1 of 2 +1\n`))
		})).To(BeEmpty())
		drain("--end")
		Eventually(ctx, models, "10s").Should(MatchRegexp(`told +- +use1 +2 of 2 +0\n`))
	})

	It("drains one instance after the other, and no conversation notices, though each was sealed to it alone", func(ctx SpecContext) {
		c := startCluster("--regions", "use1", "--instances", "3", "--engine", "sim", "--sim-profile", "h100-llama-8b", "--ask=false")
		asking, stop := context.WithCancel(ctx)
		r := &requests{cancel: stop}
		DeferCleanup(func() { stop(); r.done.Wait() })
		for n := range 6 {
			c.keepTalking(asking, fmt.Sprintf("conversation %d", n), r)
		}
		Eventually(ctx, r.count, "60s").Should(BeNumerically(">", 100))
		for _, instance := range []string{"use1-0", "use1-1", "use1-2"} {
			drain := []string{"drain", instance, "--store", c.env()["MRGC_STORE"]}
			Expect(c.mrgc(append(drain, "--wait", "1m")...)).To(ContainSubstring(instance + " has no requests\n"))
			enough := r.count() + 50
			Eventually(ctx, r.count, "30s").Should(BeNumerically(">", enough))
			c.mrgc(append(drain, "--end")...)
			Eventually(ctx, func() string { return c.mrgc("models", "--admin", c.env()["MRGC_ADMIN_USE1"]) }, "10s").Should(ContainSubstring("3 of 3"))
		}
		stop()
		r.done.Wait()
		for _, one := range r.sent {
			Expect(one.failure).To(BeEmpty())
		}
		AddReportEntry("requests", fmt.Sprintf("%d answers in %d conversations sealed to one instance each, none failed", len(r.sent), 6))
	}, NodeTimeout(5*time.Minute))
})

// keepTalking has a program of a tenant's go on with one conversation until ctx ends, each
// turn sealed to one instance alone: that which had the one before, while it is offered.
func (c *cluster) keepTalking(ctx context.Context, name string, r *requests) {
	GinkgoHelper()
	sealing := c.sealing(func(config *client.Config) { config.Recipients = 1 })
	model, key := c.env()["MRGC_MODEL"], c.env()["OPENAI_API_KEY"]
	r.done.Go(func() {
		pause := time.NewTicker(20 * time.Millisecond)
		defer pause.Stop()
		for n := 0; ctx.Err() == nil; n++ {
			began := time.Now()
			status, body, err := askWith(&http.Client{Transport: sealing}, model, key, name, n%2 == 0)
			r.note(began, status, name+": "+body, err)
			select {
			case <-pause.C:
			case <-ctx.Done():
			}
		}
	})
}
