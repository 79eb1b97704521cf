package e2e_test

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"syscall"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
)

// washed is a wash as mrgc wash show prints it.
type washed struct {
	ID      string
	Trigger string
	Passed  bool
	Reason  string
	Steps   []struct {
		Name     string
		Passed   bool
		Detail   string
		Duration time.Duration `json:"duration_ns"`
	}
}

// took is how long all of it took.
func (w washed) took() (all time.Duration) {
	for _, step := range w.Steps {
		all += step.Duration
	}
	return all
}

// washes are an instance's, the newest first.
func (c *cluster) washes(instance string) (all []washed) {
	GinkgoHelper()
	Expect(json.Unmarshal([]byte(c.mrgc("wash", "show", instance, "--last", "100", "--state", c.env()["MRGC_STATE"], "-o", "json")), &all)).To(Succeed())
	return all
}

// wash washes an instance in full, and gives the record.
func (c *cluster) wash(ctx SpecContext, instance string) washed {
	GinkgoHelper()
	now := exec.CommandContext(ctx, filepath.Join(root(), "bin", "mrgc"), "wash", "now", instance, "--wait", "--timeout", "60s",
		"--admin", c.env()["MRGC_ADMIN_USE1"], "--state", c.env()["MRGC_STATE"], "-o", "json")
	now.Stderr = GinkgoWriter
	shown, err := now.Output()
	var one []washed
	Expect(json.Unmarshal(shown, &one)).To(Succeed(), "%v", err)
	Expect(one).To(HaveLen(1))
	Expect(err == nil).To(Equal(one[0].Passed), "a wash that fails is an error: %v", err)
	return one[0]
}

// percentile of a list that it sorts.
func percentile(all []time.Duration, share float64) time.Duration {
	slices.Sort(all)
	if len(all) == 0 {
		return 0
	}
	return all[int(share*float64(len(all)-1))].Round(time.Millisecond)
}

// washSteps are what every full wash records.
var washSteps = []string{"plant_canary", "clear_gpu", "check_model", "restart_enclave", "check_health", "check_canary"}

var _ = Describe("A full wash", func() {
	DescribeTable("replaces the enclave of the only instance there is, and no request fails", func(ctx SpecContext, cleared string, args ...string) {
		c := startCluster(append(args, "--regions", "use1", "--instances", "1", "--routers", "1", "--wash", "--ask=false")...)
		r := c.send(1)
		DeferCleanup(r.cancel)
		Eventually(ctx, r.count, "60s").Should(BeNumerically(">", 100))
		quiet := time.Now()
		var during [][2]time.Time
		for range 3 {
			began := time.Now()
			w := c.wash(ctx, "use1-0")
			during = append(during, [2]time.Time{began, time.Now()})
			Expect(w.Passed).To(BeTrue(), w.Reason)
			Expect(w.Trigger).To(Equal("operator"))
			Expect(w.Steps).To(HaveLen(len(washSteps)))
			for i, step := range w.Steps {
				Expect(step.Name).To(Equal(washSteps[i]))
				AddReportEntry("wash", fmt.Sprintf("%s: %s: %s", step.Name, step.Duration.Round(time.Millisecond), step.Detail))
			}
			Expect(w.Steps[1].Detail).To(MatchRegexp(cleared))
		}
		var calm, washing []time.Duration
		for _, one := range r.stop() {
			Expect(one.failure).To(BeEmpty())
			if one.ended.Before(quiet) {
				calm = append(calm, one.took)
			} else if slices.ContainsFunc(during, func(d [2]time.Time) bool { return one.ended.After(d[0]) && one.ended.Before(d[1]) }) {
				washing = append(washing, one.took)
			}
		}
		Expect(len(washing)).To(BeNumerically(">", 20))
		AddReportEntry("wash", fmt.Sprintf("answers: without a wash p50 %s, p99 %s, slowest %s (%d); while washing p50 %s, p99 %s, slowest %s (%d)",
			percentile(calm, 0.5), percentile(calm, 0.99), percentile(calm, 1), len(calm),
			percentile(washing, 0.5), percentile(washing, 0.99), percentile(washing, 1), len(washing)))
		Expect(get(ctx, c.env()["MRGC_METRICS_USE1_0"])).To(ContainSubstring(`mrgc_parent_washes_total{instance="use1-0",outcome="passed",region="use1",trigger="operator"} 3`))
	},
		Entry("with llama.cpp", NodeTimeout(4*time.Minute), `[1-9]\d* tokens of \d+ slots are unreachable`), // the canary's at least
		Entry("with an engine that takes no CPU", NodeTimeout(4*time.Minute), `^reset_prefix_cache: `, "--engine", "sim", "--sim-profile", "h100-llama-8b"),
	)

	It("of files that are no longer the model's puts the instance in quarantine, from which one that passes releases it", func(ctx SpecContext) {
		model := filepath.Join(GinkgoT().TempDir(), "model.gguf")
		found, err := filepath.Glob(filepath.Join(root(), ".tools", "llm-*", "*", "*.gguf"))
		Expect(err).NotTo(HaveOccurred())
		Expect(found).NotTo(BeEmpty())
		content, err := os.ReadFile(found[0])
		Expect(err).NotTo(HaveOccurred())
		Expect(os.WriteFile(model, content, 0o600)).To(Succeed())
		c := startCluster("--regions", "use1", "--instances", "2", "--routers", "1", "--wash", "--ask=false", "--model", model)
		Expect(c.wash(ctx, "use1-0").Passed).To(BeTrue())

		last := content[len(content)-1]
		write := func(b byte) {
			f, err := os.OpenFile(model, os.O_WRONLY, 0)
			Expect(err).NotTo(HaveOccurred())
			_, err = f.WriteAt([]byte{b}, int64(len(content)-1))
			Expect(err).NotTo(HaveOccurred())
			Expect(f.Close()).To(Succeed())
		}
		write(last ^ 1)
		w := c.wash(ctx, "use1-0")
		Expect(w.Passed).To(BeFalse())
		Expect(w.Reason).To(MatchRegexp(`^check_model: .* is not the file that it has to be$`))
		state := func() string { return c.mrgc("status", "--admin", c.env()["MRGC_ADMIN_USE1"]) }
		Eventually(ctx, state, "20s", "200ms").Should(MatchRegexp(`use1-0 .*quarantined`))
		for range 10 {
			status, body := c.chat(ctx, http.DefaultClient, c.base(), "hello")
			Expect(status).To(Equal(200), body)
		}

		By("starting its parent again: it is in quarantine still")
		Expect(syscall.Kill(c.pids()["parent-use1-0"], syscall.SIGKILL)).To(Succeed())
		metrics := func() (string, error) { return page(c.env()["MRGC_METRICS_USE1_0"]) }
		Eventually(ctx, metrics, "20s", "100ms").Should(ContainSubstring(`mrgc_parent_quarantined{instance="use1-0",region="use1"} 1`))

		write(last)
		Eventually(ctx, state, "20s", "200ms").Should(MatchRegexp(`use1-0 .*quarantined`))
		Expect(c.wash(ctx, "use1-0").Passed).To(BeTrue())
		Eventually(ctx, state, "20s", "200ms").ShouldNot(ContainSubstring("quarantined"))
	}, NodeTimeout(4*time.Minute))

	It("after every request, in strict mode, costs what is reported here", func(ctx SpecContext) {
		c := startCluster("--regions", "use1", "--instances", "1", "--routers", "1", "--wash", "--ask=false")
		var before, strict []time.Duration
		ask := func(into *[]time.Duration) {
			began := time.Now()
			status, body := c.chat(ctx, http.DefaultClient, c.base(), "hello")
			Expect(status).To(Equal(200), body)
			*into = append(*into, time.Since(began))
		}
		for range 10 {
			ask(&before)
		}
		c.configure(func(text string) string { return text + "wash: {strict: true}\n" })
		Eventually(ctx, func() int { ask(&[]time.Duration{}); return len(c.washes("use1-0")) }, "30s", "200ms").Should(BeNumerically(">", 0))
		settled := len(c.washes("use1-0"))
		for range 10 {
			ask(&strict)
		}
		Eventually(ctx, func() int { return len(c.washes("use1-0")) }, "30s", "200ms").Should(BeNumerically(">=", settled+10))
		var took []time.Duration
		for _, w := range c.washes("use1-0") {
			Expect(w.Passed).To(BeTrue(), w.Reason)
			Expect(w.Trigger).To(Equal("strict"))
			took = append(took, w.took())
		}
		AddReportEntry("wash", fmt.Sprintf("one request after the other: p50 %s, p99 %s; in strict mode p50 %s, p99 %s, of which a wash takes p50 %s",
			percentile(before, 0.5), percentile(before, 0.99), percentile(strict, 0.5), percentile(strict, 0.99), percentile(took, 0.5)))
	}, NodeTimeout(4*time.Minute))
})

// page reads a page of a process that may be starting.
func page(url string) (string, error) {
	resp, err := http.Get(url) //nolint:gosec,noctx // a test's own
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	content, err := io.ReadAll(resp.Body)
	return string(content), err
}
