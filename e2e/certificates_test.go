package e2e_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	"github.com/onsi/gomega/gbytes"
	"github.com/onsi/gomega/gexec"

	"github.com/mrgc/mrgc/client"
	"github.com/mrgc/mrgc/internal/api"
	"github.com/mrgc/mrgc/internal/tenant/tenanttest"
)

// tenantWith is a program of a tenant's, which may have a certificate.
func (c *cluster) tenantWith(certificate *tls.Certificate) *http.Client {
	GinkgoHelper()
	sealing := c.sealing(func(config *client.Config) {
		if certificate != nil {
			config.ClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return certificate, nil }
		}
	})
	return &http.Client{Transport: sealing}
}

// sealing is a client as a tenant's program has it.
func (c *cluster) sealing(change func(*client.Config)) *client.Client {
	GinkgoHelper()
	env := c.env()
	read := func(path string) []byte {
		content, err := os.ReadFile(path)
		Expect(err).NotTo(HaveOccurred())
		return content
	}
	config := client.Config{Endpoints: strings.Split(env["MRGC_ENDPOINTS"], ","), RootCAs: x509.NewCertPool()}
	Expect(config.RootCAs.AppendCertsFromPEM(read(env["MRGC_CA"]))).To(BeTrue())
	var err error
	config.Policy.Releases, err = client.ParseReleases(read(env["MRGC_RELEASES"]))
	Expect(err).NotTo(HaveOccurred())
	block, _ := pem.Decode(read(env["MRGC_DEVELOPMENT_ROOT"]))
	config.Policy.DevelopmentRoot, err = x509.ParseCertificate(block.Bytes)
	Expect(err).NotTo(HaveOccurred())
	change(&config)
	sealing, err := client.New(config)
	Expect(err).NotTo(HaveOccurred())
	DeferCleanup(sealing.CloseIdleConnections)
	return sealing
}

// connectWith runs mrgc connect with a certificate, and gives its base URL.
func (c *cluster) connectWith(certificate *tls.Certificate) string {
	GinkgoHelper()
	dir := GinkgoT().TempDir()
	key, err := x509.MarshalPKCS8PrivateKey(certificate.PrivateKey)
	Expect(err).NotTo(HaveOccurred())
	for name, block := range map[string]*pem.Block{
		"tls.crt": {Type: "CERTIFICATE", Bytes: certificate.Certificate[0]}, "tls.key": {Type: "PRIVATE KEY", Bytes: key},
	} {
		Expect(os.WriteFile(filepath.Join(dir, name), pem.EncodeToMemory(block), 0o600)).To(Succeed())
	}
	env := c.env()
	session, err := gexec.Start(exec.Command(filepath.Join(root(), "bin", "mrgc"), "connect", "--listen", "127.0.0.1:0",
		"--endpoint", env["MRGC_ENDPOINTS"], "--ca", env["MRGC_CA"], "--releases", env["MRGC_RELEASES"], "--trust-development-root", env["MRGC_DEVELOPMENT_ROOT"],
		"--client-cert", filepath.Join(dir, "tls.crt"), "--client-key", filepath.Join(dir, "tls.key")), GinkgoWriter, GinkgoWriter)
	Expect(err).NotTo(HaveOccurred())
	DeferCleanup(func() { Eventually(session.Interrupt(), stopTimeout).Should(gexec.Exit()) })
	base := regexp.MustCompile(`base_url=(\S+)/v1`)
	Eventually(session.Err, "10s").Should(gbytes.Say(base.String()))
	return string(base.FindSubmatch(session.Err.Contents())[1])
}

// code asks with an API key, and gives the error's code, or nothing.
func (c *cluster) code(ctx context.Context, tenant *http.Client, key string) string {
	GinkgoHelper()
	return c.codeAt(ctx, tenant, "https://mrgc", key)
}

func (c *cluster) codeAt(ctx context.Context, tenant *http.Client, base, key string) string {
	GinkgoHelper()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, base+"/v1/chat/completions",
		bytes.NewReader([]byte(`{"model":"told","messages":[{"role":"user","content":"who am I?"}]}`)))
	Expect(err).NotTo(HaveOccurred())
	req.Header.Set("Authorization", "Bearer "+key)
	resp, err := tenant.Do(req)
	Expect(err).NotTo(HaveOccurred())
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	Expect(err).NotTo(HaveOccurred())
	if resp.StatusCode == http.StatusOK {
		return ""
	}
	return api.ParseError(resp.StatusCode, body).Code
}

var _ = Describe("A tenant with a certificate", func() {
	It("is let in by it and its key together, and by neither alone; a signature takes it away", func(ctx SpecContext) {
		engine := newToldEngine()
		issuer := tenanttest.NewIssuer(GinkgoTB(), "clients")
		ca := filepath.Join(GinkgoT().TempDir(), "clients.pem")
		Expect(os.WriteFile(ca, issuer.PEM(), 0o600)).To(Succeed())
		c := startCluster("--regions", "use1", "--instances", "1", "--engine-url", engine.server.URL, "--model-name", "told", "--ask=false", "--tenant-client-ca", ca)
		const san = "uri:spiffe://acme.example/agent"
		key := c.tenants("add", "acme", "--san", san, "--certificate-only")
		other := c.tenants("add", "other")
		c.signTenants()

		end := time.Now().Add(time.Hour)
		with, without := c.tenantWith(issuer.Certificate(GinkgoTB(), end, san)), c.tenantWith(nil)
		stranger := c.tenantWith(issuer.Certificate(GinkgoTB(), end, "dns:acme.example"))
		Eventually(ctx, func() string { return c.code(ctx, with, key) }, "20s").Should(BeEmpty())
		Expect(c.code(ctx, without, key)).To(Equal("invalid_api_key"), "its key alone")
		Expect(c.codeAt(ctx, http.DefaultClient, c.base(), key)).To(Equal("invalid_api_key"), "likewise")
		Expect(c.codeAt(ctx, http.DefaultClient, c.connectWith(issuer.Certificate(GinkgoTB(), end, san)), key)).To(BeEmpty(), "through mrgc connect")
		Expect(c.code(ctx, stranger, key)).To(Equal("invalid_api_key"), "another certificate")
		Expect(c.code(ctx, with, other)).To(Equal("invalid_api_key"), "another tenant's key")
		Expect(c.code(ctx, without, other)).To(BeEmpty(), "who has no certificate needs none")

		By("another key of its name: Envoy knows the certificate, and the enclave not the key")
		forged := "mrgc-acme-" + strings.TrimPrefix(other, "mrgc-other-")
		Expect(c.code(ctx, with, forged)).To(Equal("invalid_api_key"))

		c.tenants("revoke", "acme")
		c.signTenants()
		Eventually(ctx, func() string { return c.code(ctx, with, key) }, "20s").Should(Equal("invalid_api_key"))
	}, NodeTimeout(2*time.Minute))
})
