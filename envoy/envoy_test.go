package envoy_test

import (
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"

	"github.com/mrgc/mrgc/envoy"
	"github.com/mrgc/mrgc/envoy/envoytest"
	"github.com/mrgc/mrgc/internal/identity"
)

func TestEnvoy(t *testing.T) {
	RegisterFailHandler(Fail)
	RunSpecs(t, "envoy")
}

func config() envoy.Config {
	return envoy.Config{
		NodeID: "use1-envoy-0", Region: "use1", Zone: "use1-az1",
		Admin:           netip.MustParseAddrPort("127.0.0.1:9901"),
		RouterGRPC:      []netip.AddrPort{netip.MustParseAddrPort("127.0.0.1:9001"), netip.MustParseAddrPort("10.0.0.9:9001"), netip.MustParseAddrPort("10.0.1.9:9001")},
		RouterHTTP:      []netip.AddrPort{netip.MustParseAddrPort("127.0.0.1:9002")},
		CertificateFile: "/run/mrgc/tls.crt", KeyFile: "/run/mrgc/tls.key", TrustFile: "/run/mrgc/ca.crt",
	}
}

var _ = Describe("The bootstrap", func() {
	It("is this, and always the same", func() {
		got, err := envoy.Bootstrap(config())
		Expect(err).NotTo(HaveOccurred())
		again, err := envoy.Bootstrap(config())
		Expect(err).NotTo(HaveOccurred())
		Expect(again).To(Equal(got))
		if os.Getenv("UPDATE_GOLDEN") != "" {
			Expect(os.WriteFile("testdata/bootstrap.json", got, 0o600)).To(Succeed())
		}
		want, err := os.ReadFile("testdata/bootstrap.json")
		Expect(err).NotTo(HaveOccurred())
		Expect(string(got)).To(Equal(string(want)), "rewrite it with UPDATE_GOLDEN=1 go test ./envoy")
	})

	DescribeTable("is refused", func(breakIt func(*envoy.Config), want string) {
		c := config()
		breakIt(&c)
		_, err := envoy.Bootstrap(c)
		Expect(err).To(MatchError(ContainSubstring(want)))
	},
		Entry("without a node id", func(c *envoy.Config) { c.NodeID = "" }, "NodeID"),
		Entry("without a region", func(c *envoy.Config) { c.Region = "" }, "Region"),
		Entry("without a certificate", func(c *envoy.Config) { c.CertificateFile = "" }, "CertificateFile"),
		Entry("without a key", func(c *envoy.Config) { c.KeyFile = "" }, "KeyFile"),
		Entry("without trust", func(c *envoy.Config) { c.TrustFile = "" }, "TrustFile"),
		Entry("with an admin interface for all", func(c *envoy.Config) { c.Admin = netip.MustParseAddrPort("0.0.0.0:9901") }, "loopback"),
		Entry("without an admin interface", func(c *envoy.Config) { c.Admin = netip.AddrPort{} }, "loopback"),
		Entry("without routers", func(c *envoy.Config) { c.RouterGRPC = nil }, "RouterGRPC"),
		Entry("with a router without port", func(c *envoy.Config) { c.RouterHTTP[0] = netip.AddrPortFrom(c.RouterHTTP[0].Addr(), 0) }, "RouterHTTP"),
		Entry("with negative connections", func(c *envoy.Config) { c.MaxConnections = -1 }, "MaxConnections"),
	)

	Describe("as Envoy sees it", func() {
		var path string
		var text []byte
		BeforeEach(func() {
			dir := envoytest.NewCA(GinkgoTB()).Files(GinkgoTB(), identity.ID{Region: "use1", Role: identity.RoleEnvoy})
			c := config()
			c.CertificateFile = filepath.Join(dir, identity.CertificateFile)
			c.KeyFile = filepath.Join(dir, identity.KeyFile)
			c.TrustFile = filepath.Join(dir, identity.RootsFile)
			var err error
			text, err = envoy.Bootstrap(c)
			Expect(err).NotTo(HaveOccurred())
			path = filepath.Join(dir, "bootstrap.json")
		})

		It("is valid", func(ctx SpecContext) {
			Expect(os.WriteFile(path, text, 0o600)).To(Succeed())
			Expect(envoy.Validate(ctx, envoytest.Binary(GinkgoTB()), path)).To(Succeed())
		}, SpecTimeout(30*time.Second))

		It("is refused with Envoy's own words when it is not", func(ctx SpecContext) {
			bad := strings.Replace(string(text), `"DELTA_GRPC"`, `"CARRIER_PIGEON"`, 1)
			Expect(os.WriteFile(path, []byte(bad), 0o600)).To(Succeed())
			Expect(envoy.Validate(ctx, envoytest.Binary(GinkgoTB()), path)).To(MatchError(ContainSubstring("CARRIER_PIGEON")))
		}, SpecTimeout(30*time.Second))
	})

	It("cannot be checked without an Envoy", func(ctx SpecContext) {
		Expect(envoy.Validate(ctx, "/nowhere/envoy", "bootstrap.json")).To(MatchError(os.ErrNotExist))
	})
})

var _ = Describe("The command", func() {
	It("runs one worker that shares no memory with its neighbours", func() {
		cmd := envoy.Command("/opt/envoy", "/run/bootstrap.json", "--log-path", "x")
		Expect(cmd.Args).To(Equal([]string{
			"/opt/envoy", "-c", "/run/bootstrap.json", "--concurrency", "1", "--disable-hot-restart",
			"-l", "warning", "--component-log-level", "ext_proc:error", "--log-path", "x",
		}))
	})
})
