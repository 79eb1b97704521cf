package image_test

import (
	"crypto/ed25519"
	"encoding/json"
	"encoding/pem"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"

	"github.com/mrgc/mrgc/enclave/image"
	"github.com/mrgc/mrgc/internal/attest"
	"github.com/mrgc/mrgc/internal/dsse"
	"github.com/mrgc/mrgc/internal/eif"
	"github.com/mrgc/mrgc/standin/devca"
)

func TestImage(t *testing.T) {
	RegisterFailHandler(Fail)
	RunSpecs(t, "enclave/image")
}

// build compiles one of the enclave's programs as the Makefile says, from the
// sources in a folder.
func build(dir, name string, env ...string) []byte {
	GinkgoHelper()
	out := filepath.Join(GinkgoT().TempDir(), "program")
	makefile, err := os.ReadFile("../../Makefile")
	Expect(err).NotTo(HaveOccurred())
	var command string
	for line := range strings.Lines(string(makefile)) {
		if rest, ok := strings.CutPrefix(line, "ENCLAVE_BUILD := "); ok {
			command = strings.ReplaceAll(strings.TrimSpace(rest), "$(GO)", "go")
		}
	}
	Expect(command).To(ContainSubstring("go build -trimpath"))
	cmd := exec.Command("/bin/sh", "-c", command+" -o "+out+" ./cmd/"+name)
	cmd.Dir, cmd.Env = dir, append(os.Environ(), env...)
	output, err := cmd.CombinedOutput()
	Expect(err).NotTo(HaveOccurred(), string(output))
	content, err := os.ReadFile(out)
	Expect(err).NotTo(HaveOccurred())
	return content
}

// config is an image's of two programs.
func config(initProgram, enclave []byte) image.Config {
	GinkgoHelper()
	ca, err := devca.New(time.Unix(1_800_000_000, 0))
	Expect(err).NotTo(HaveOccurred())
	return image.Config{
		Kernel: []byte("kernel"), Modules: map[string][]byte{"1-nsm.ko.xz": []byte("nsm"), "0-vsock.ko.xz": []byte("vsock")},
		Init: initProgram, Enclave: enclave, Model: "m", TenantsKey: tenantsKey(), IdentityRoots: ca.RootPEM(), Name: "n", Version: "1",
	}
}

func engineHosts(name string) []byte {
	GinkgoHelper()
	text, err := json.Marshal([]attest.Host{{Name: name, PCRs: attest.PCRs{4: attest.ExtendedPCR([]byte(name)), 12: make([]byte, 48)}}})
	Expect(err).NotTo(HaveOccurred())
	return text
}

func tenantsKey() []byte {
	GinkgoHelper()
	_, key, err := ed25519.GenerateKey(nil)
	Expect(err).NotTo(HaveOccurred())
	_, public, err := dsse.MarshalKey(key)
	Expect(err).NotTo(HaveOccurred())
	return public
}

var _ = Describe("The enclave's image", Ordered, func() {
	var program []byte
	BeforeAll(func() { program = build("../..", "mrgc-enclave-init") })

	It("is the same of the same parts, in whatever order they come", func() {
		c := config(program, program)
		first, err := image.Build(c)
		Expect(err).NotTo(HaveOccurred())
		file, err := first.Encode()
		Expect(err).NotTo(HaveOccurred())
		for range 20 { // maps have another order each time
			again, err := image.Build(c)
			Expect(err).NotTo(HaveOccurred())
			Expect(again.Encode()).To(Equal(file))
		}
	})

	DescribeTable("measures", func(change func(*image.Config)) {
		c := config(program, program)
		was, err := image.Build(c)
		Expect(err).NotTo(HaveOccurred())
		change(&c)
		is, err := image.Build(c)
		Expect(err).NotTo(HaveOccurred())
		Expect(is.PCRs()[0]).NotTo(Equal(was.PCRs()[0]))
	},
		Entry("the kernel", func(c *image.Config) { c.Kernel = []byte("kerneL") }),
		Entry("the command line", func(c *image.Config) { c.CommandLine = "debug" }),
		Entry("the modules", func(c *image.Config) { c.Modules["2-more.ko.xz"] = []byte("more") }),
		Entry("the model", func(c *image.Config) { c.Model = "other" }),
		Entry("who says who the tenants are", func(c *image.Config) { c.TenantsKey = tenantsKey() }),
		Entry("who says who the guard is", func(c *image.Config) { c.IdentityRoots = config(program, program).IdentityRoots }),
		Entry("on which hosts the engine may run", func(c *image.Config) { c.EngineHosts = engineHosts("a") }),
		Entry("which KMS is asked", func(c *image.Config) { c.KMSRegion = "us-east-1" }),
		Entry("whose fleet it is of", func(c *image.Config) {
			c.KMSRegion, c.Fleet = "us-east-1", image.Fleet{Name: "prod", KMSKey: "arn:key", Table: "arn:table"}
		}),
		Entry("where the parent is", func(c *image.Config) { c.ParentCID = 2 }),
	)

	It("boots by the first ramdisk, and serves by the second", func() {
		built, err := image.Build(config(program, program))
		Expect(err).NotTo(HaveOccurred())
		Expect(built.Ramdisks).To(HaveLen(2))
		Expect(string(built.Ramdisks[0])).To(And(ContainSubstring("init\x00"), ContainSubstring("modules/0-vsock.ko.xz\x00")))
		Expect(string(built.Ramdisks[1])).To(ContainSubstring(
			"-listen\nvsock://:5000\n-engine\nvsock://3:5001\n-nsm\ndevice:/dev/nsm\n-identity\nvsock://3:5003\n-identity-roots\n/etc/mrgc/identity-roots\n" +
				"-tenants-key\n/etc/mrgc/tenants.pub\n-model\nm\n-mode\nnitro\n"))
		Expect(string(built.Metadata)).To(ContainSubstring(`"ImageName":"n"`))
	})

	It("says that the host is attested when it sees to that", func() {
		c := config(program, program)
		c.EngineHosts = engineHosts("a")
		built, err := image.Build(c)
		Expect(err).NotTo(HaveOccurred())
		Expect(string(built.Ramdisks[1])).To(And(
			ContainSubstring("-mode\nnitro+attested-host\n-engine-hosts\n/etc/mrgc/engine-hosts.json\n"), ContainSubstring(string(c.EngineHosts))))
	})

	DescribeTable("is not built", func(reason string, change func(*image.Config)) {
		c := config(program, program)
		change(&c)
		_, err := image.Build(c)
		Expect(err).To(MatchError(ContainSubstring(reason)))
	},
		Entry("without a kernel", "no kernel", func(c *image.Config) { c.Kernel = nil }),
		Entry("with hosts of any kind", "PCR4 is missing", func(c *image.Config) { c.EngineHosts = []byte(`[{"name":"a","pcrs":{}}]`) }),
		Entry("without a model", "no model", func(c *image.Config) { c.Model = "" }),
		Entry("of a fleet whose key anybody could name", "a fleet needs", func(c *image.Config) {
			c.KMSRegion, c.Fleet = "us-east-1", image.Fleet{Name: "prod", Table: "arn:table"}
		}),
		Entry("of a fleet without KMS", "a fleet needs", func(c *image.Config) {
			c.Fleet = image.Fleet{Name: "prod", KMSKey: "arn:key", Table: "arn:table"}
		}),
		Entry("with a model that would be two arguments", "no spaces", func(c *image.Config) { c.Model = "m\n-kms-roots\n/etc/mrgc/identity-roots" }),
		Entry("without whom tenants are signed by", "verifies tenants", func(c *image.Config) { c.TenantsKey = nil }),
		Entry("without roots", "no certificate in PEM", func(c *image.Config) {
			c.IdentityRoots = pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: []byte("x")})
		}),
		Entry("with a script for a program", "mrgc-enclave: no program of Linux", func(c *image.Config) { c.Enclave = []byte("#!/bin/sh\n") }),
		Entry("with a program that needs a loader", "not static", func(c *image.Config) { c.Init = dynamic() }),
		Entry("with a module elsewhere", "ramdisk", func(c *image.Config) { c.Modules["../init"] = []byte("x") }),
	)
})

// dynamic is a program that needs a loader: this machine's shell.
func dynamic() []byte {
	GinkgoHelper()
	content, err := os.ReadFile("/bin/sh")
	Expect(err).NotTo(HaveOccurred())
	return content
}

var _ = Describe("A build", func() {
	// Another folder, as on another machine; the compiler is go.mod's.
	It("measures the same wherever the sources are", func() {
		copied := filepath.Join(GinkgoT().TempDir(), "elsewhere")
		Expect(os.CopyFS(copied, sources{os.DirFS("../..")})).To(Succeed())
		c := config(build("../..", "mrgc-enclave-init"), build("../..", "mrgc-enclave"))
		here, err := image.Build(c)
		Expect(err).NotTo(HaveOccurred())
		var anew []string
		if os.Getenv("MRGC_TEST_LONG") != "" { // nothing is taken from what was compiled before
			anew = []string{"GOCACHE=" + GinkgoT().TempDir()}
		}
		c.Init, c.Enclave = build(copied, "mrgc-enclave-init", anew...), build(copied, "mrgc-enclave", anew...)
		there, err := image.Build(c)
		Expect(err).NotTo(HaveOccurred())
		Expect(there.PCRs()).To(Equal(here.PCRs()))

		file, err := here.Encode()
		Expect(err).NotTo(HaveOccurred())
		Expect(eif.Decode(file)).To(Equal(here))
	})
})
