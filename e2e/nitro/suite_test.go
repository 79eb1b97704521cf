// Package nitro tests the enclave's image where it boots: in QEMU's nitro-enclave
// machine, with that machine's security module and vsock.
package nitro_test

import (
	"cmp"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	"github.com/onsi/gomega/gexec"

	"github.com/mrgc/mrgc/enclave/image"
	"github.com/mrgc/mrgc/internal/attest"
	"github.com/mrgc/mrgc/internal/credential"
	"github.com/mrgc/mrgc/internal/dsse"
	"github.com/mrgc/mrgc/internal/identity"
	"github.com/mrgc/mrgc/internal/tenant"
	"github.com/mrgc/mrgc/standin/devca"
)

func TestNitro(t *testing.T) {
	if missing := missingPart(); missing != "" {
		t.Skipf("no enclave is booted: %s is not there; say by %s where it is (docs/enclave.md)", missing, folderVariable)
	}
	RegisterFailHandler(Fail)
	RunSpecs(t, "e2e/nitro")
}

const (
	model      = "sim"
	tenantName = "acme"
	instanceID = "use1-0"

	// bootTimeout is for a machine that is emulated, and busy: it takes 5 to 20 s.
	bootTimeout = 2 * time.Minute
	stopTimeout = 30 * time.Second
)

// folderVariable names where the parts are that cannot be fetched by checksum
// (docs/enclave.md): a QEMU with the machine, a kernel with the drivers.
const folderVariable = "MRGC_NITRO_QEMU"

// parts is that folder.
func parts() string {
	return cmp.Or(os.Getenv(folderVariable), filepath.Join("..", "..", ".tools", "nitro-qemu"))
}

// missingPart names what is not there; empty: all is.
func missingPart() string {
	for _, name := range []string{"qemu-system-x86_64", "vhost-device-vsock", "vmlinuz", "modules", "firmware"} {
		if path := filepath.Join(parts(), name); !exists(path)() {
			return path
		}
	}
	return ""
}

func exists(path string) func() bool {
	return func() bool {
		_, err := os.Stat(path)
		return err == nil
	}
}

// root is the repository.
func root() string {
	GinkgoHelper()
	dir, err := filepath.Abs("../..")
	Expect(err).NotTo(HaveOccurred())
	return dir
}

// bin is a program that `make test-enclave` has built.
func bin(name string) string {
	GinkgoHelper()
	path := filepath.Join(root(), "bin", name)
	Expect(path).To(BeAnExistingFile(), "run this by `make test-enclave`")
	return path
}

// host is an instance without its enclave: what runs outside.
type host struct {
	dir       string
	authority *devca.Authority
	apiKey    credential.Key
	address   string // of the parent
	image     string
	measured  []attest.Release
}

// newHost builds an image for a cluster of its own, and starts what answers the
// enclave's connections: the certificate authority's socket, the hypervisor's
// heartbeat.
func newHost() *host {
	GinkgoHelper()
	dir, err := os.MkdirTemp("", "mrgc-") // a Unix socket's path is short
	Expect(err).NotTo(HaveOccurred())
	DeferCleanup(os.RemoveAll, dir)
	h := &host{dir: dir, image: filepath.Join(dir, "enclave.eif")}
	h.authority, err = devca.New(time.Now())
	Expect(err).NotTo(HaveOccurred())
	h.serve(h.path("ca.sock"), h.authority.Serve)
	h.serve(h.path("vm_9000"), answerHeartbeats)
	h.writeFiles()
	h.buildImage()
	return h
}

func (h *host) path(name string) string { return filepath.Join(h.dir, name) }

func (h *host) serve(path string, serve func(context.Context, net.Listener) error) {
	GinkgoHelper()
	listener, err := net.Listen("unix", path)
	Expect(err).NotTo(HaveOccurred())
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- serve(ctx, listener) }()
	DeferCleanup(func() {
		stop()
		Eventually(ended, stopTimeout).Should(Receive(BeNil()))
	})
}

// answerHeartbeats is the part of nitro-cli that waits until an enclave has
// booted.
func answerHeartbeats(ctx context.Context, listener net.Listener) error {
	stop := context.AfterFunc(ctx, func() { _ = listener.Close() })
	defer stop()
	for {
		conn, err := listener.Accept()
		if err != nil {
			return nil
		}
		beat := make([]byte, 1)
		if _, err := conn.Read(beat); err == nil && beat[0] == 0xb7 {
			_, _ = conn.Write(beat)
		}
		_ = conn.Close()
	}
}

func (h *host) writeFiles() {
	GinkgoHelper()
	var err error
	h.apiKey, err = credential.New(rand.Reader, tenantName)
	Expect(err).NotTo(HaveOccurred())
	_, key, err := ed25519.GenerateKey(nil)
	Expect(err).NotTo(HaveOccurred())
	_, public, err := dsse.MarshalKey(key)
	Expect(err).NotTo(HaveOccurred())
	signed, err := tenant.Sign(key, &tenant.List{Version: 1, ExpiresAt: time.Now().Add(time.Hour).UTC().Truncate(time.Second), Tenants: []tenant.Tenant{{
		Name:          tenantName,
		EdgeTokens:    tenant.Digests{credential.DigestOf(h.apiKey.EdgeToken())},
		EnclaveTokens: tenant.Digests{credential.DigestOf(h.apiKey.EnclaveToken())},
	}}})
	Expect(err).NotTo(HaveOccurred())
	for name, content := range map[string][]byte{
		"tenants.pub": public, "tenants.signed.json": signed, "ca.pem": h.authority.RootPEM(),
		"mrgc.yaml": fmt.Appendf(nil, "regions:\n  - {name: use1, aws_region: us-east-1}\nmodels:\n  - name: %q\n", model),
	} {
		Expect(os.WriteFile(h.path(name), content, 0o600)).To(Succeed())
	}
}

// commandLine is the image's, and what the clock of an emulated processor is: on
// a busy machine the kernel finds none by measuring, and stands still.
const commandLine = image.DefaultCommandLine + " tsc_early_khz=1000000 tsc=reliable"

// buildImage is what `make eif` does, for QEMU's number of the parent.
func (h *host) buildImage() {
	GinkgoHelper()
	folder := parts()
	cmd := exec.Command(bin("mrgc"), "image", "build", "--kernel", filepath.Join(folder, "vmlinuz"), "--modules", filepath.Join(folder, "modules"),
		"--init", bin("enclave/mrgc-enclave-init"), "--enclave", bin("enclave/mrgc-enclave"),
		"--model", model, "--tenants-key", h.path("tenants.pub"), "--identity-roots", h.path("ca.pem"), "--parent-cid", "2", "--command-line", commandLine, "--out", h.image)
	cmd.Stderr = GinkgoWriter
	said, err := cmd.Output()
	Expect(err).NotTo(HaveOccurred())
	h.measured, err = attest.ParseReleases(said)
	Expect(err).NotTo(HaveOccurred())
}

// grant is an environment that has an identity's token.
func (h *host) grant(variable string, role identity.Role, by *devca.Authority) string {
	GinkgoHelper()
	token, err := by.Grant(identity.ID{Region: "use1", Instance: instanceID, Role: role})
	Expect(err).NotTo(HaveOccurred())
	return variable + "=" + token
}

// startParts starts engine, guard and parent. The parent has the enclave's
// certificate signed by an authority at a path.
func (h *host) startParts(authority *devca.Authority, path string) {
	GinkgoHelper()
	guard := freeAddress()
	h.address = freeAddress()
	start(exec.Command(bin("mrgc"), "engine", "serve", "--kind", "sim", "--socket", h.path("engine.sock"), "--model-name", model))
	start(exec.Command(bin("mrgc"), "engine", "guard", "--listen", guard, "--upstream", "unix:"+h.path("engine.sock"), "--cache", "salt", "--identity", "unix:"+h.path("ca.sock")),
		h.grant("MRGC_IDENTITY_TOKEN", identity.RoleGuard, h.authority))
	start(exec.Command(bin("mrgc-parent"), "-config", h.path("mrgc.yaml"), "-zone", "use1-az1", "-listen", h.address, "-enclave", "unix:"+h.path("vm")+":5000",
		"-engine-relay", "unix:"+h.path("vm_5001"), "-identity-relay", "unix:"+h.path("vm_5003"), "-enclave-authority", "unix:"+path,
		"-guard", guard, "-store", "sqlite:"+h.path("fleet.db"), "-identity", "unix:"+h.path("ca.sock"), "-models", model,
		"-tenants", h.path("tenants.signed.json"), "-tenants-key", h.path("tenants.pub")),
		h.grant("MRGC_IDENTITY_TOKEN", identity.RoleParent, h.authority), h.grant("MRGC_ENCLAVE_IDENTITY_TOKEN", identity.RoleEnclave, authority))
	Eventually(exists(h.path("vm_5003")), bootTimeout).Should(BeTrue(), "the parent listens")
}

// boot starts the machine. Its console is in the file that is returned.
func (h *host) boot() (machine *gexec.Session, console string) {
	GinkgoHelper()
	folder := parts()
	console = h.path("console.log")
	start(exec.Command(filepath.Join(folder, "vhost-device-vsock"), "--vm", "guest-cid=4,uds-path="+h.path("vm")+",socket="+h.path("vhost.sock")))
	Eventually(exists(h.path("vhost.sock")), bootTimeout).Should(BeTrue(), "vhost-device-vsock listens")
	machine = start(exec.Command(filepath.Join(folder, "qemu-system-x86_64"),
		"-M", "nitro-enclave,vsock=c,id=mrgc,acpi=on", "-accel", "tcg", "-kernel", h.image, "-m", "512M",
		"-nographic", "-nodefaults", "-serial", "file:"+console, "-chardev", "socket,id=c,path="+h.path("vhost.sock"),
		"-no-reboot", "-L", filepath.Join(folder, "firmware")))
	DeferCleanup(func() {
		if CurrentSpecReport().Failed() {
			said, err := os.ReadFile(console)
			GinkgoWriter.Printf("the enclave's console (%v):\n%s\n", err, said)
		}
	})
	return machine, console
}

// start runs a program until the test is over.
func start(cmd *exec.Cmd, env ...string) *gexec.Session {
	GinkgoHelper()
	cmd.Env = append(os.Environ(), env...)
	session, err := gexec.Start(cmd, GinkgoWriter, GinkgoWriter)
	Expect(err).NotTo(HaveOccurred())
	DeferCleanup(func() {
		if session.ExitCode() < 0 {
			session.Terminate()
			Eventually(session, stopTimeout).Should(gexec.Exit())
		}
	})
	return session
}

func freeAddress() string {
	GinkgoHelper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	Expect(err).NotTo(HaveOccurred())
	defer l.Close()
	return l.Addr().String()
}
