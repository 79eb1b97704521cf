package e2e_test

import (
	"bytes"
	"context"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"

	"github.com/mrgc/mrgc/internal/api"
	"github.com/mrgc/mrgc/internal/credential"
	"github.com/mrgc/mrgc/internal/seal"
	"github.com/mrgc/mrgc/internal/vsock"
)

// tenants runs `mrgc tenants` on the cluster's list, as its operator, and gives
// what it says to standard error.
func (c *cluster) tenants(args ...string) string {
	GinkgoHelper()
	cmd := exec.Command(filepath.Join(root(), "bin", "mrgc"), append([]string{"tenants", "--file", filepath.Join(c.stateDir, "tenants.json")}, args...)...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	Expect(cmd.Run()).To(Succeed(), "%s", &stderr)
	return strings.TrimSpace(stderr.String())
}

func (c *cluster) signTenants() {
	GinkgoHelper()
	c.tenants("sign", "--key", filepath.Join(c.stateDir, "tenants-signing.key"), "--out", filepath.Join(c.stateDir, "tenants.signed.json"))
}

// as is the same forger with another tenant's key.
func (f *forger) as(key string) *forger {
	GinkgoHelper()
	other := *f
	var err error
	other.key, err = credential.Parse(key)
	Expect(err).NotTo(HaveOccurred())
	return &other
}

// at is the same forger in front of another region's Envoy.
func (f *forger) at(url string) *forger {
	other := *f
	other.url = url
	return &other
}

// outcome sends a good request and gives where it was served, or the code of the
// error, which the enclave's is in sealed form.
func (f *forger) outcome(ctx context.Context) string {
	GinkgoHelper()
	sealed := f.seal(f.chat("are you there?"), nil)
	return f.outcomeOf(f.send(ctx, f.letter(sealed)), sealed)
}

func (f *forger) outcomeOf(r reply, sealed *seal.Sealed) string {
	GinkgoHelper()
	if r.status != http.StatusOK {
		return api.ParseError(r.status, r.body).Code
	}
	status, body := r.opened(sealed)
	if status != http.StatusOK {
		return "sealed " + api.ParseError(status, body).Code
	}
	return r.header.Get(api.HeaderServed)
}

// insideOf asks an instance's enclave over its vsock, past Envoy, picker and
// parent: as a host could that obeys no rule.
func (f *forger) insideOf(ctx context.Context, c *cluster, instance string) string {
	GinkgoHelper()
	socket := filepath.Join(c.stateDir, "run", instance+".vsock")
	transport := &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return vsock.Dial(ctx, "unix:"+socket+":5000")
	}}
	direct := f.at("http://enclave")
	direct.http = &http.Client{Transport: transport}
	return direct.outcome(ctx)
}

var _ = Describe("Tenants' rules", func() {
	It("hold everywhere, without the picker, and follow the list within seconds", func(ctx SpecContext) {
		engine := newToldEngine()
		c := startCluster("--regions", "use1,use2", "--instances", "1", "--engine-url", engine.server.URL, "--model-name", "told", "--ask=false")
		dev := c.newForger(ctx)
		Expect(dev.recipients).To(HaveLen(2), "use1's and use2's, to which everything here is sealed")
		home, other := dev.as(c.tenants("add", "home", "--regions", "use1")), dev.as(c.tenants("add", "other", "--models", "another"))
		Expect(home.outcome(ctx)).To(Equal("invalid_api_key"), "nothing is signed yet")
		began := time.Now()
		c.signTenants()
		Eventually(ctx, func() string { return home.outcome(ctx) }, "20s", "20ms").Should(HavePrefix("127.0.0.1:"))
		AddReportEntry("tenants", "a new tenant is served "+since(began).String()+" after its list was signed")
		Eventually(ctx, func() string { return home.insideOf(ctx, c, "use1-0") }, "20s").Should(BeEmpty(), "served, and by no Envoy")
		Eventually(ctx, func() string { return home.insideOf(ctx, c, "use2-0") }, "20s").Should(Equal("sealed region_not_allowed"))
		Expect(other.insideOf(ctx, c, "use1-0")).To(Equal("sealed model_not_found"))
		here := home.outcome(ctx)
		stranger := home.as(c.env()["OPENAI_API_KEY"])
		stranger.key, _ = credential.New(zeroReader{}, "home")

		rules := func() {
			GinkgoHelper()
			for range 10 {
				Expect(home.outcome(ctx)).To(Equal(here))
			}
			Expect(home.at(c.envoys()["use2"]).outcome(ctx)).To(Equal("region_not_allowed"))
			Expect(other.outcome(ctx)).To(Equal("model_not_found"))
			Expect(stranger.outcome(ctx)).To(Equal("invalid_api_key"))
		}
		By("with the picker")
		rules()

		By("without it, and then without the one instance of the region that is allowed")
		c.signal("router-", syscall.SIGSTOP)
		DeferCleanup(func() { c.signal("router-", syscall.SIGCONT) })
		rules()
		Expect(c.session.Command.Process.Signal(syscall.SIGSTOP)).To(Succeed(), "nothing is started again")
		DeferCleanup(func() { _ = c.session.Command.Process.Signal(syscall.SIGCONT) })
		c.signal("parent-use1-0", syscall.SIGKILL)
		Eventually(ctx, func() string { return dev.outcome(ctx) }, "30s").Should(And(HavePrefix("127.0.0.1:"), Not(Equal(here))), "others go on in use2")
		for range 10 {
			Expect(home.outcome(ctx)).To(Equal("unavailable"))
		}
		Expect(c.session.Command.Process.Signal(syscall.SIGCONT)).To(Succeed())
		c.signal("router-", syscall.SIGCONT)
		Eventually(func() string { return home.outcome(ctx) }, "30s").Should(Equal(here))

		By("revoking the tenant")
		before, err := os.ReadFile(filepath.Join(c.stateDir, "tenants.signed.json"))
		Expect(err).NotTo(HaveOccurred())
		began = time.Now()
		c.tenants("revoke", "home")
		c.signTenants()
		Eventually(ctx, func() string { return home.outcome(ctx) }, "20s", "5ms").Should(Equal("invalid_api_key"))
		atEdge := since(began)
		Eventually(ctx, func() string { return home.insideOf(ctx, c, "use1-0") }, "20s", "5ms").Should(Equal("sealed invalid_api_key"))
		AddReportEntry("tenants", "a tenant is refused "+atEdge.String()+" after `mrgc tenants revoke` began at the edge, and after "+since(began).String()+" in the enclave")

		By("every router having seen it")
		logs, err := filepath.Glob(filepath.Join(c.stateDir, "logs", "router-*.log"))
		Expect(err).NotTo(HaveOccurred())
		Expect(logs).To(HaveLen(4), "two of each region")
		logged := func(path string) string {
			log, _ := os.ReadFile(path)
			return string(log)
		}
		for _, path := range logs {
			Eventually(logged, "20s").WithArguments(path).Should(ContainSubstring(`msg="list of tenants" version=3`))
		}

		By("the list before it coming back")
		Expect(os.WriteFile(filepath.Join(c.stateDir, "tenants.signed.json"), before, 0o600)).To(Succeed())
		for _, path := range logs {
			Eventually(logged, "20s").WithArguments(path).Should(ContainSubstring("an older list of tenants"))
		}
		Expect(home.outcome(ctx)).To(Equal("invalid_api_key"))
		Expect(home.insideOf(ctx, c, "use1-0")).To(Equal("sealed invalid_api_key"))
		Expect(dev.outcome(ctx)).To(HavePrefix("127.0.0.1:"))
	})
})

// zeroReader draws a key that nobody has.
type zeroReader struct{}

func (zeroReader) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}
