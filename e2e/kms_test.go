package e2e_test

import (
	"bytes"
	"context"
	"encoding/json"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	"github.com/onsi/gomega/gbytes"
	"github.com/onsi/gomega/gexec"

	"github.com/mrgc/mrgc/internal/attest"
	"github.com/mrgc/mrgc/internal/audit"
	"github.com/mrgc/mrgc/standin/softkms"
)

// connectWithKey runs another `mrgc connect`, with the tenant's KMS key, and gives
// its endpoint. Its first endpoint is that region's.
func (c *cluster) connectWithKey(ctx context.Context, region string, more ...string) (base string) {
	GinkgoHelper()
	const script = `set -e; source "$1"; source "$2"; exec "$3" connect --listen 127.0.0.1:0 --kms-key "$MRGC_KMS_KEY" \
		--endpoint "$4" --ca "$MRGC_CA" --releases "$MRGC_RELEASES" --trust-development-root "$MRGC_DEVELOPMENT_ROOT" "${@:5}"`
	command := exec.CommandContext(ctx, "bash", append([]string{
		"-c", script, "bash", c.envFile(), filepath.Join(c.stateDir, "kms.env"), filepath.Join(root(), "bin", "mrgc"), c.envoys()[region],
	}, more...)...)
	command.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + GinkgoT().TempDir()}
	return connectBy(command)
}

// connect runs another `mrgc connect`, with more flags, and gives its endpoint.
func (c *cluster) connect(ctx context.Context, more ...string) (base string) {
	GinkgoHelper()
	env := c.env()
	args := append([]string{
		"connect", "--listen", "127.0.0.1:0", "--endpoint", c.envoys()["use1"], "--ca", env["MRGC_CA"],
		"--releases", env["MRGC_RELEASES"], "--trust-development-root", env["MRGC_DEVELOPMENT_ROOT"],
	}, more...)
	return connectBy(exec.CommandContext(ctx, filepath.Join(root(), "bin", "mrgc"), args...))
}

// connectBy runs a command that serves tenants, until the test is over.
func connectBy(command *exec.Cmd) (base string) {
	GinkgoHelper()
	session, err := gexec.Start(command, GinkgoWriter, GinkgoWriter)
	Expect(err).NotTo(HaveOccurred())
	DeferCleanup(func() {
		session.Interrupt()
		Eventually(session, stopTimeout).Should(gexec.Exit())
	})
	Eventually(session.Err, "20s").Should(gbytes.Say(`base_url=http://127\.0\.0\.1:\d+/v1`))
	_, address, _ := strings.Cut(string(session.Err.Contents()), "base_url=")
	base, _, _ = strings.Cut(address, "/v1")
	return base
}

// kmsEvents are the calls of KMS so far.
func (c *cluster) kmsEvents() (events []softkms.Event) {
	GinkgoHelper()
	log, err := os.ReadFile(filepath.Join(c.stateDir, "logs", "kms.log"))
	Expect(err).NotTo(HaveOccurred())
	for line := range bytes.Lines(log) {
		var event softkms.Event
		Expect(json.Unmarshal(line, &event)).To(Succeed())
		events = append(events, event)
	}
	return events
}

// mrgc runs a command, and gives its standard output.
func (c *cluster) mrgc(args ...string) string {
	GinkgoHelper()
	out, err := exec.Command(filepath.Join(root(), "bin", "mrgc"), args...).Output()
	Expect(err).NotTo(HaveOccurred())
	return string(out)
}

// audit runs `mrgc audit` on a process's log.
func (c *cluster) audit(command, process string, more ...string) string {
	GinkgoHelper()
	return c.mrgc(append([]string{"audit", command, filepath.Join(c.stateDir, "audit", process+".log")}, more...)...)
}

func show(c *cluster, process, event string) string {
	GinkgoHelper()
	return c.audit("show", process, "--event", event)
}

var _ = Describe("A KMS key of the tenant's own", func() {
	It("opens each request by one data key, which KMS releases to the measured enclave of either region", func(ctx SpecContext) {
		engine := newToldEngine()
		engine.says(`{"object":"chat.completion","choices":[]}`)
		c := startCluster("--regions", "use1,use2", "--instances", "1", "--engine-url", engine.server.URL, "--model-name", "told", "--ask=false")
		Expect(c.kmsEvents()).To(BeEmpty())
		content, err := os.ReadFile(c.env()["MRGC_RELEASES"])
		Expect(err).NotTo(HaveOccurred())
		releases, err := attest.ParseReleases(content)
		Expect(err).NotTo(HaveOccurred())

		for _, region := range []string{"use1", "use2"} {
			base := c.connectWithKey(ctx, region)
			before := len(c.kmsEvents())
			began := time.Now()
			status, body := c.chat(ctx, http.DefaultClient, base, "hello")
			took := time.Since(began)
			Expect(status).To(Equal(http.StatusOK), body)
			Expect(body).To(ContainSubstring("chat.completion"))
			AddReportEntry("kms", region+": the first request took "+took.Round(time.Millisecond).String())

			calls := c.kmsEvents()[before:]
			Expect(calls).To(HaveLen(2), "one to make the data key, one to release it")
			made, released := calls[0], calls[1]
			Expect(made.Action).To(Equal("kms:GenerateDataKey"))
			Expect(made.Principal).To(HaveSuffix(":role/dev"))
			Expect(released.Action).To(Equal("kms:Decrypt"))
			Expect(released.Principal).To(HaveSuffix(":role/mrgc-gpu-instance"))
			Expect(released.PCR0).To(Equal(releases[0].PCRs[0].String()), "to the measured enclave")
			Expect(released.Context).To(Equal(made.Context))
			Expect(released.Context).To(HaveKeyWithValue("mrgc:tenant", "dev"))
			Expect(made.Error + released.Error).To(BeEmpty())
		}

		By("without it nobody asks KMS")
		before := len(c.kmsEvents())
		status, body := c.chat(ctx, http.DefaultClient, c.base(), "hello")
		Expect(status).To(Equal(http.StatusOK), body)
		Expect(c.kmsEvents()).To(HaveLen(before))

		By("each instance's audit log has its own, and verifies")
		events := c.kmsEvents()
		for i, instance := range []string{"use1-0", "use2-0"} {
			show := func() string { return c.audit("show", "parent-"+instance, "--event", audit.KeyReleased) }
			Eventually(ctx, show, "10s").Should(ContainSubstring(`"request":"` + events[2*i+1].Context["mrgc:request-id"] + `"`))
			Expect(strings.Count(show(), "\n")).To(Equal(1))
			Expect(c.audit("verify", "parent-"+instance)).To(MatchRegexp(`1 engine_host_trusted\n +1 key_released\nhead 2:[0-9a-f]{64}\n`))
		}
		Expect(show(c, "router-use1", audit.EnclaveRelease)).To(And(ContainSubstring(`"instance":"use1-0"`), ContainSubstring(`"instance":"use2-0"`),
			ContainSubstring(releases[0].PCRs[0].String())))
	})
})

var _ = Describe("The manifest of releases", func() {
	It("is followed by routers, which say which instance runs another program, and go on", func(ctx SpecContext) {
		engine := newToldEngine()
		c := startCluster("--regions", "use1", "--instances", "2", "--engine-url", engine.server.URL, "--model-name", "told", "--ask=false")
		router := c.env()["MRGC_ADMIN_USE1"]
		Eventually(ctx, func() string { return get(ctx, router+"/metrics") }, "20s").Should(And(
			ContainSubstring(`mrgc_enclave_trusted{instance="use1-0"} 1`), ContainSubstring(`mrgc_enclave_release{instance="use1-1"} 1`)))

		By("a manifest that trusts another build only")
		content, err := os.ReadFile(c.env()["MRGC_RELEASES"])
		Expect(err).NotTo(HaveOccurred())
		releases, err := attest.ParseReleases(content)
		Expect(err).NotTo(HaveOccurred())
		releases[0].PCRs[0] = attest.ExtendedPCR([]byte("another build"))
		content, err = json.Marshal(releases)
		Expect(err).NotTo(HaveOccurred())
		Expect(os.WriteFile(filepath.Join(c.stateDir, "other.json"), content, 0o600)).To(Succeed())
		c.mrgc("releases", "sign", "--key", filepath.Join(c.stateDir, "releases-signing.key"), "--releases", filepath.Join(c.stateDir, "other.json"),
			"--out", filepath.Join(c.stateDir, "releases.signed.json"))
		Eventually(ctx, func() string { return get(ctx, router+"/metrics") }, "30s", "200ms").Should(And(
			ContainSubstring(`mrgc_enclave_trusted{instance="use1-0"} 0`), ContainSubstring(`mrgc_enclave_trusted{instance="use1-1"} 0`)))
		Expect(get(ctx, router+"/releases")).To(ContainSubstring("match no trusted release"))
		Expect(show(c, "router-use1", audit.DocumentRefused)).To(ContainSubstring(`"instance":"use1-0"`))
		Expect(show(c, "router-use1", audit.Manifest)).To(ContainSubstring(`"version":"2"`))

		By("clients that follow it send nothing there, and others go on: no router decides for them")
		Eventually(ctx, func() int { status, _ := c.chat(ctx, http.DefaultClient, c.base(), "hello"); return status }, "10s", "100ms").Should(Equal(http.StatusBadGateway))
		_, body := c.chat(ctx, http.DefaultClient, c.base(), "hello")
		Expect(body).To(And(ContainSubstring("no_trusted_recipient"), ContainSubstring("match no trusted release")))
		others := c.connect(ctx) // by releases that are not signed, and do not change
		status, body := c.chat(ctx, http.DefaultClient, others, "hello")
		Expect(status).To(Equal(http.StatusOK), body)
	})
})
