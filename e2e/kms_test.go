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
	"github.com/mrgc/mrgc/standin/softkms"
)

// connectWithKey runs another `mrgc connect`, with the tenant's KMS key, and gives
// its endpoint. Its first endpoint is that region's.
func (c *cluster) connectWithKey(ctx context.Context, region string) (base string) {
	GinkgoHelper()
	const script = `set -e; source "$1"; source "$2"; exec "$3" connect --listen 127.0.0.1:0 --kms-key "$MRGC_KMS_KEY" \
		--endpoint "$4" --ca "$MRGC_CA" --releases "$MRGC_RELEASES" --trust-development-root "$MRGC_DEVELOPMENT_ROOT"`
	command := exec.CommandContext(ctx, "bash", "-c", script, "bash", c.envFile(), filepath.Join(c.stateDir, "kms.env"),
		filepath.Join(root(), "bin", "mrgc"), c.envoys()[region])
	command.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + GinkgoT().TempDir()}
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
	})
})
