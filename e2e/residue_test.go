package e2e_test

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
)

// holds says whether a child's memory holds a marker.
func (c *cluster) holds(child, marker string) bool {
	GinkgoHelper()
	found, scanned, err := scanMemory(c.pids()[child], []byte(marker))
	if errors.Is(err, fs.ErrPermission) {
		Skip("reading another process's memory takes root")
	}
	Expect(err).NotTo(HaveOccurred(), child)
	Expect(scanned).To(BeNumerically(">", 4<<20), "%s: the scan reads the heap", child)
	return found
}

// expectNoCores wants children that leave no core, also where the machine is set up to
// write them: its administrator's limit may be lifted only by root.
func (c *cluster) expectNoCores(children ...string) {
	GinkgoHelper()
	for _, child := range children {
		limits, err := os.ReadFile(fmt.Sprintf("/proc/%d/limits", c.pids()[child]))
		if errors.Is(err, fs.ErrPermission) {
			Skip("reading the limits of a process that cannot be traced takes root")
		}
		Expect(err).NotTo(HaveOccurred(), child)
		Expect(string(limits)).To(MatchRegexp(`(?m)^Max core file size +0 +0 `), child)
	}
}

var _ = Describe("A request", func() {
	It("leaves nothing in its enclave's memory, nor in the parent's, soon after it has ended", func(ctx SpecContext) {
		engine := newToldEngine()
		c := startCluster("--regions", "use1", "--instances", "1", "--engine-url", engine.server.URL, "--model-name", "told", "--ask=false")
		const enclave, parent = "enclave-use1-0", "parent-use1-0"
		c.expectNoCores(enclave, parent, "guard-use1-0", "router-use1")
		var longest time.Duration
		for round := range 12 {
			asked, answered := "asked"+rand.Text(), "answered"+rand.Text()
			long := strings.Repeat("a longer request ", []int{0, 300, 20_000}[round%3])
			reached, leave := make(chan struct{}), make(chan struct{})
			engine.does(func(w http.ResponseWriter, r *http.Request) {
				_, _ = io.Copy(io.Discard, r.Body)
				close(reached)
				select {
				case <-leave:
				case <-r.Context().Done():
				}
				w.Header().Set("Content-Type", "application/json")
				_, _ = fmt.Fprintf(w, `{"object":"chat.completion","choices":[%q,%q]}`, answered, long)
			})
			done := make(chan string, 1)
			go func() {
				status, body, err := c.tryChat(ctx, http.DefaultClient, c.base(), asked+long, 1)
				done <- fmt.Sprintf("%d %v %t", status, err, strings.Contains(body, answered))
			}()
			Eventually(ctx, reached, "20s").Should(BeClosed())
			Expect(c.holds(enclave, asked)).To(BeTrue(), "while it runs the enclave holds it, and the scan finds it")
			close(leave)
			Expect(<-done).To(Equal("200 <nil> true"))

			ended := time.Now()
			for _, marker := range []string{asked, answered} {
				Eventually(ctx, func() bool { return c.holds(enclave, marker) }, "20s", "50ms").Should(BeFalse(), "round %d: %s", round, marker)
				Expect(c.holds(parent, marker)).To(BeFalse())
			}
			longest = max(longest, time.Since(ended))
		}
		AddReportEntry("residue", fmt.Sprintf("12 requests: both markers were gone %s after an answer at the latest, time to scan included", longest.Round(time.Millisecond)))
	}, NodeTimeout(3*time.Minute))

	It("gets a receipt that verifies, and is of no other answer", func(ctx SpecContext) {
		engine := newToldEngine()
		engine.says(`{"object":"chat.completion","choices":[],"usage":{"prompt_tokens":3,"completion_tokens":4}}`)
		c := startCluster("--regions", "use1", "--instances", "1", "--engine-url", engine.server.URL, "--model-name", "told", "--ask=false")
		dir := GinkgoT().TempDir()
		base := c.connect(ctx, "--receipts", dir, "--require-receipt")
		status, body := c.chat(ctx, http.DefaultClient, base, "hello")
		Expect(status).To(Equal(http.StatusOK), body)
		files, err := filepath.Glob(filepath.Join(dir, "*.json"))
		Expect(err).NotTo(HaveOccurred())
		Expect(files).To(HaveLen(1))
		answer, other := filepath.Join(dir, "answer"), filepath.Join(dir, "other")
		Expect(os.WriteFile(answer, []byte(body), 0o600)).To(Succeed())
		Expect(os.WriteFile(other, []byte(body+" "), 0o600)).To(Succeed())

		verify := []string{
			"verify-receipt", files[0], "--releases", filepath.Join(c.stateDir, "releases.signed.json"),
			"--releases-key", filepath.Join(c.stateDir, "releases-signing.pub"), "--trust-development-root", c.env()["MRGC_DEVELOPMENT_ROOT"],
		}
		printed := c.mrgc(append(verify, "--response", answer)...)
		for _, line := range []string{
			`release +1 \(local build\) +attested`, `request +` + strings.TrimSuffix(filepath.Base(files[0]), ".json") + ` +enclave-verified`,
			`output tokens +4 +host-asserted`, `last wash +none .* +host-asserted`,
			`cache salt +[0-9a-f]{32} +enclave-verified`, `cache kept apart by +none +host-asserted`,
		} {
			Expect(printed).To(MatchRegexp(`(?m)^` + line + `$`))
		}
		program := filepath.Join(root(), "bin", "mrgc")
		output, err := exec.CommandContext(ctx, program, append(verify, "--response", other)...).CombinedOutput()
		Expect(err).To(HaveOccurred())
		Expect(string(output)).To(ContainSubstring("the receipt is of another one"))
	}, NodeTimeout(time.Minute))
})
