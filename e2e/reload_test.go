package e2e_test

import (
	"encoding/json"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
)

// configure puts another mrgc.yaml in the place of the cluster's, and gives when.
func (c *cluster) configure(change func(string) string) time.Time {
	GinkgoHelper()
	path := filepath.Join(c.stateDir, "mrgc.yaml")
	text, err := os.ReadFile(path)
	Expect(err).NotTo(HaveOccurred())
	changed := change(string(text))
	Expect(changed).NotTo(Equal(string(text)))
	Expect(os.WriteFile(path+".new", []byte(changed), 0o600)).To(Succeed())
	Expect(os.Rename(path+".new", path)).To(Succeed())
	return time.Now()
}

func replacing(old, with string) func(string) string {
	return func(text string) string { return strings.Replace(text, old, with, 1) }
}

// runningConfig is a page /config.
type runningConfig struct{ Version, Refused string }

// configs are what the region's routers go by.
func (c *cluster) configs(ctx SpecContext) (all []runningConfig) {
	GinkgoHelper()
	for _, admin := range []string{"MRGC_ADMIN_USE1", "MRGC_ADMIN_USE1_1"} {
		var page runningConfig
		Expect(json.Unmarshal([]byte(get(ctx, c.env()[admin]+"/config")), &page)).To(Succeed())
		all = append(all, page)
	}
	return all
}

// changed waits until every router goes by another version than before, and says
// when that was.
func (c *cluster) changed(ctx SpecContext, before []runningConfig) time.Time {
	GinkgoHelper()
	Eventually(ctx, func() []runningConfig { return c.configs(ctx) }, "20s", "5ms").Should(HaveEach(And(
		HaveField("Version", Not(Equal(before[0].Version))), HaveField("Refused", BeEmpty()))))
	return time.Now()
}

var _ = Describe("mrgc.yaml", func() {
	It("holds as it is written, within a second and without a lost request; what needs a restart is refused", func(ctx SpecContext) {
		engine := newToldEngine()
		// Pickers learn of a request's end up to 100 ms later. Answers that take less than
		// that keep more slots than they do, and two tenants would share what is left.
		engine.does(func(w http.ResponseWriter, r *http.Request) {
			_, _ = io.Copy(io.Discard, r.Body)
			select {
			case <-time.After(50 * time.Millisecond):
			case <-r.Context().Done():
			}
			w.Header().Set("Content-Type", "application/json")
			_, _ = io.WriteString(w, `{"object":"chat.completion"}`)
		})
		c := startCluster("--regions", "use1", "--instances", "2", "--engine-url", engine.server.URL, "--model-name", "told", "--ask=false")
		dev := c.newForger(ctx)
		other := dev.as(c.tenants("add", "other"))
		c.signTenants()
		Eventually(ctx, func() string { return other.outcome(ctx) }, "20s").Should(HavePrefix("127.0.0.1:"))
		version := func() string { return c.configs(ctx)[0].Version }

		By("another policy")
		Expect(c.during("another policy", func() {
			before := c.configs(ctx)
			began := c.configure(replacing("  - name: \"told\"\n", "  - name: \"told\"\n    policy: round-robin\n"))
			took := c.changed(ctx, before).Sub(began)
			AddReportEntry("reload", "every router goes by another policy after "+took.String())
			Eventually(ctx, func() string { return get(ctx, c.env()["MRGC_ADMIN_USE1"]+"/decisions?last=1") }, "10s").Should(And(
				ContainSubstring(`"policy":"round-robin"`), ContainSubstring(`"config":"`+version()+`"`)))
		})).To(BeEmpty())

		By("less for a tenant, at Envoy and at the routers, and all of it again")
		Expect(c.during("a restriction", func() {
			began := c.configure(func(text string) string { return text + "tenants: [{name: other, models: []}]\n" })
			Eventually(ctx, func() string { return other.outcome(ctx) }, "20s", "5ms").Should(Equal("model_not_found"))
			AddReportEntry("reload", "a tenant is refused "+since(began).String()+" after mrgc.yaml took its model away")
			for range 20 {
				Expect(other.outcome(ctx)).To(Equal("model_not_found"))
			}
			c.configure(replacing("tenants: [{name: other, models: []}]\n", ""))
			Eventually(ctx, func() string { return other.outcome(ctx) }, "20s").Should(HavePrefix("127.0.0.1:"))
		})).To(BeEmpty())

		By("limits, of Envoy's listener and of what an instance takes")
		Expect(c.during("limits", func() {
			before := c.configs(ctx)
			c.configure(func(text string) string {
				return text + "limits: {response_idle_timeout: 4m, request_body_bytes: 1048576, concurrent_requests_per_instance: 32}\n"
			})
			c.changed(ctx, before)
			Eventually(ctx, func() string { return get(ctx, c.env()["MRGC_ADMIN_USE1"]+"/envoys") }, "20s").Should(ContainSubstring(`"synced": true`))
		})).To(BeEmpty())

		By("a model more, and that model gone")
		before := c.configs(ctx)
		c.configure(replacing("models:\n", "models:\n  - name: another\n"))
		c.changed(ctx, before)
		Expect(get(ctx, c.env()["MRGC_ADMIN_USE1"]+"/weights")).To(ContainSubstring(`"another@use1"`))
		before = c.configs(ctx)
		c.configure(replacing("  - name: another\n", ""))
		c.changed(ctx, before)
		Eventually(ctx, func() string { return get(ctx, c.env()["MRGC_ADMIN_USE1"]+"/weights") }, "20s").ShouldNot(ContainSubstring("another"))

		By("what takes a restart, and what is faulty")
		holds := version()
		for _, wrong := range []struct{ line, reason string }{
			{"listeners: {tenant_port: 8443}\n", "listeners.tenant_port: 443 cannot become 8443"},
			{"tenants: [{name: other, models: [none]}]\n", `no model is named \"none\"`},
		} {
			c.configure(func(text string) string { return text + wrong.line })
			for _, admin := range []string{"MRGC_ADMIN_USE1", "MRGC_ADMIN_USE1_1"} {
				Eventually(ctx, func() string { return get(ctx, c.env()[admin]+"/config") }, "20s").Should(And(
					ContainSubstring(wrong.reason), ContainSubstring(`"version":"`+holds+`"`)))
			}
			Expect(other.outcome(ctx)).To(HavePrefix("127.0.0.1:"), "the one before stays in force")
			c.configure(replacing(wrong.line, ""))
			Eventually(ctx, func() []runningConfig { return c.configs(ctx) }, "20s").Should(HaveEach(runningConfig{Version: holds}))
		}
		log, err := os.ReadFile(filepath.Join(c.stateDir, "logs", "parent-use1-0.log"))
		Expect(err).NotTo(HaveOccurred())
		Expect(string(log)).To(And(ContainSubstring("the configuration has changed"), ContainSubstring("tenant_port: 443 cannot become 8443")))
		status, body := c.chat(ctx, http.DefaultClient, c.base(), "still there?")
		Expect(status).To(Equal(http.StatusOK), body)
	})
})
