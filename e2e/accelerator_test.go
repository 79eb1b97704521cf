package e2e_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/credentials"
	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"

	"github.com/mrgc/mrgc/controller/accelerator"
	"github.com/mrgc/mrgc/internal/awsclient"
	"github.com/mrgc/mrgc/internal/fleet"
)

// accelerator opens the accelerator of a cluster as its operator would.
func (c *cluster) accelerator(ctx context.Context) *accelerator.Accelerator {
	GinkgoHelper()
	file, err := os.ReadFile(filepath.Join(c.stateDir, "accelerator.env"))
	Expect(err).NotTo(HaveOccurred())
	value := func(name string) string {
		found := regexp.MustCompile(`export ` + name + `=(\S+)`).FindSubmatch(file)
		Expect(found).NotTo(BeNil(), name)
		return string(found[1])
	}
	at, err := awsclient.ParseAddress(c.env()["MRGC_ACCELERATOR"])
	Expect(err).NotTo(HaveOccurred())
	at.Credentials = credentials.NewStaticCredentialsProvider(value("AWS_ACCESS_KEY_ID"), value("AWS_SECRET_ACCESS_KEY"), "")
	a, err := accelerator.Open(ctx, accelerator.Config{
		Settings: at.Settings, Listener: at.Name, Regions: map[string]fleet.Region{"us-east-1": "use1", "us-east-2": "use2"},
	})
	Expect(err).NotTo(HaveOccurred())
	DeferCleanup(a.Close)
	return a
}

// regionAt gives the region whose Envoy a new connection leads to, by its certificate.
func (c *cluster) regionAt(ctx context.Context, url string) string {
	GinkgoHelper()
	pem, err := os.ReadFile(c.env()["MRGC_CA"])
	Expect(err).NotTo(HaveOccurred())
	roots := x509.NewCertPool()
	Expect(roots.AppendCertsFromPEM(pem)).To(BeTrue())
	conn, err := (&tls.Dialer{Config: &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS13}}).DialContext(ctx, "tcp", strings.TrimPrefix(url, "https://"))
	Expect(err).NotTo(HaveOccurred())
	defer conn.Close()
	for _, name := range conn.(*tls.Conn).ConnectionState().PeerCertificates[0].DNSNames {
		if region, ok := strings.CutSuffix(name, ".mrgc.internal"); ok {
			return region
		}
	}
	Fail("the certificate names no region")
	return ""
}

var _ = Describe("mrgc up --accelerator", func() {
	It("leads tenants to the nearest region, sealed as ever, and elsewhere when its controllers are told to", func(ctx SpecContext) {
		c := startCluster("--accelerator", "--engine", "sim", "--regions", "use1,use2", "--instances", "1", "--routers", "1")
		env := c.env()
		nearUse1, nearUse2 := env["MRGC_ACCELERATOR_USE1"], env["MRGC_ACCELERATOR_USE2"]
		Expect(c.regionAt(ctx, nearUse1)).To(Equal("use1"))
		Expect(c.regionAt(ctx, nearUse2)).To(Equal("use2"))
		base := connectBy(exec.CommandContext(ctx, filepath.Join(root(), "bin", "mrgc"), "connect", "--listen", "127.0.0.1:0",
			"--endpoint", nearUse1, "--ca", env["MRGC_CA"], "--releases", env["MRGC_RELEASES"], "--trust-development-root", env["MRGC_DEVELOPMENT_ROOT"]))
		status, body := c.chat(ctx, http.DefaultClient, base, "through the accelerator")
		Expect(status).To(Equal(http.StatusOK), body)

		a := c.accelerator(ctx)
		order := func(kind string) func() error {
			return exec.Command(filepath.Join(root(), "bin", "mrgc"), "failover", kind, "use1", "--why", "e2e", "--state", env["MRGC_STATE"]).Run
		}
		Eventually(a.Groups).WithContext(ctx).WithTimeout(2 * time.Minute).WithPolling(500 * time.Millisecond).Should(HaveEach(HaveField("Healthy", 1)))
		Eventually(order("drain")).WithContext(ctx).WithTimeout(20*time.Second).WithPolling(200*time.Millisecond).Should(Succeed(), "once somebody leads")
		Eventually(a.Dials).WithContext(ctx).WithTimeout(30 * time.Second).WithPolling(200 * time.Millisecond).Should(HaveKeyWithValue(fleet.Region("use1"), 0))
		Eventually(c.regionAt).WithContext(ctx).WithArguments(nearUse1).WithTimeout(time.Minute).WithPolling(500*time.Millisecond).Should(Equal("use2"), "once it gets connections again")
		status, body = c.chat(ctx, http.DefaultClient, base, "over there")
		Expect(status).To(Equal(http.StatusOK), body)
		status, body = c.chat(ctx, http.DefaultClient, c.base(), "at the drained region's own door")
		Expect(status).To(Equal(http.StatusOK), body)
		Eventually(func() string { return get(ctx, env["MRGC_ADMIN_USE1"]+"/regions") }).WithContext(ctx).WithTimeout(10 * time.Second).Should(MatchRegexp(`"use1",[^}]*"drained": ?true`))

		Expect(order("restore")()).To(Succeed())
		Eventually(func() string { return get(ctx, env["MRGC_ADMIN_USE1"]+"/regions") }).WithContext(ctx).WithTimeout(10 * time.Second).ShouldNot(ContainSubstring("drained"))
	})
})
