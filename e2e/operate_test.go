package e2e_test

import (
	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
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
})
