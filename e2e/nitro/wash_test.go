package nitro_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httputil"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	"github.com/onsi/gomega/gexec"

	"github.com/mrgc/mrgc/internal/api"
	"github.com/mrgc/mrgc/internal/attest"
	"github.com/mrgc/mrgc/internal/identity"
	"github.com/mrgc/mrgc/internal/nsm"
	"github.com/mrgc/mrgc/internal/seal"
	"github.com/mrgc/mrgc/internal/vsock"
	"github.com/mrgc/mrgc/standin/softnsm"
)

// washer is an instance whose parent starts its enclaves: by `mrgc enclave run`, which
// asks a stand-in of nitro-cli, which boots them in QEMU.
type washer struct {
	*host
	nitroCLI string
	root     *softnsm.Root
}

// environment is nitro-cli's.
func (w *washer) environment() []string {
	return []string{"SOFTNITROCLI_DIR=" + w.path("nitro-cli"), `SOFTNITROCLI_COMMAND=["sh", "` + w.path("boot.sh") + `", "{cid}", "{eif}"]`}
}

// bootScript boots an image of a CID: both programs are one group of processes, which
// ends as one. All machines have the parent's relays.
const bootScript = `set -e
cd %[1]q
for port in 5001 5003; do ln -sf parent_$port vm$1_$port; done
ln -sf vm_9000 vm$1_9000
rm -f vm$1 vm$1.vhost
%[2]q/vhost-device-vsock --vm guest-cid=$1,uds-path=%[1]s/vm$1,socket=vm$1.vhost &
while [ ! -e vm$1.vhost ]; do sleep 0.05; done
exec %[2]q/qemu-system-x86_64 -M nitro-enclave,vsock=c,id=mrgc$1,acpi=on -accel tcg -kernel "$2" -m 512M \
	-nographic -nodefaults -serial file:vm$1.console -chardev socket,id=c,path=vm$1.vhost -no-reboot -L %[2]q/firmware
`

// machines are the enclaves that run: their processes by CID.
func (w *washer) machines() map[int]int {
	GinkgoHelper()
	cmd := exec.Command(w.nitroCLI, "describe-enclaves")
	cmd.Env = append(os.Environ(), w.environment()...)
	said, err := cmd.Output()
	Expect(err).NotTo(HaveOccurred())
	var all []struct{ EnclaveCID, ProcessID int }
	Expect(json.Unmarshal(said, &all)).To(Succeed())
	by := map[int]int{}
	for _, e := range all {
		by[e.EnclaveCID] = e.ProcessID
	}
	return by
}

// cids are those of places 0 and 1.
var cids = []int{10, 11}

// notarise stands between the parent and an enclave. QEMU's module shows registers and
// signs nothing, so that no parent would take a fresh enclave's word: here a development
// root signs what it shows. All else passes as it is.
func (w *washer) notarise(cid int, module *softnsm.Module) {
	GinkgoHelper()
	target := fmt.Sprintf("unix:%s:5000", w.path(fmt.Sprintf("vm%d", cid)))
	proxy := &httputil.ReverseProxy{
		Rewrite:       func(r *httputil.ProxyRequest) { r.Out.URL.Scheme, r.Out.URL.Host = "http", "enclave" },
		FlushInterval: -1,
		Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return vsock.Dial(ctx, target)
		}},
		ModifyResponse: func(resp *http.Response) error {
			if resp.Request.URL.Path != "/recipients" || resp.StatusCode != http.StatusOK {
				return nil
			}
			var offered api.Recipients
			if err := json.NewDecoder(resp.Body).Decode(&offered); err != nil {
				return err
			}
			_ = resp.Body.Close()
			for i, one := range offered.Recipients {
				pcrs, userData := unsigned(one.Attestation)
				var err error
				if offered.Recipients[i].Attestation, err = module.DocumentOf(pcrs, nsm.Request{UserData: userData}); err != nil {
					return err
				}
			}
			body, err := json.Marshal(offered)
			resp.Body, resp.ContentLength = io.NopCloser(bytes.NewReader(body)), int64(len(body))
			resp.Header.Set("Content-Length", fmt.Sprint(len(body)))
			return err
		},
		ErrorHandler: func(rw http.ResponseWriter, _ *http.Request, _ error) { rw.WriteHeader(http.StatusBadGateway) }, // there is no enclave there yet
	}
	listener, err := vsock.Listen(fmt.Sprintf("unix:%s:5000", w.path(fmt.Sprintf("signed%d", cid))))
	Expect(err).NotTo(HaveOccurred())
	server := &http.Server{Handler: proxy, ReadHeaderTimeout: time.Minute}
	ended := make(chan error, 1)
	go func() { ended <- server.Serve(listener) }()
	DeferCleanup(func() {
		Expect(server.Close()).To(Succeed())
		Eventually(ended, stopTimeout).Should(Receive())
	})
}

func newWasher() *washer {
	GinkgoHelper()
	w := &washer{host: newHost()}
	var err error
	w.nitroCLI, err = gexec.Build("github.com/mrgc/mrgc/standin/softnitrocli")
	Expect(err).NotTo(HaveOccurred())
	w.root, err = softnsm.NewRoot(time.Now())
	Expect(err).NotTo(HaveOccurred())
	module, err := softnsm.New(softnsm.Config{Root: w.root, Region: "us-east-1"})
	Expect(err).NotTo(HaveOccurred())
	for _, cid := range cids {
		w.notarise(cid, module)
	}
	DeferCleanup(func() {
		if CurrentSpecReport().Failed() {
			for _, cid := range cids {
				said, err := os.ReadFile(w.path(fmt.Sprintf("vm%d.console", cid)))
				GinkgoWriter.Printf("enclave %d's console (%v):\n%s\n", cid, err, said)
			}
		}
		Expect(w.machines()).To(BeEmpty(), "the parent's end is its enclaves'")
	})
	folder, err := filepath.Abs(parts())
	Expect(err).NotTo(HaveOccurred())
	Expect(os.Mkdir(w.path("nitro-cli"), 0o700)).To(Succeed())
	Expect(os.WriteFile(w.path("boot.sh"), fmt.Appendf(nil, bootScript, w.dir, folder), 0o600)).To(Succeed())
	w.startParent()
	return w
}

func (w *washer) startParent() {
	GinkgoHelper()
	releases, err := json.Marshal(w.measured)
	Expect(err).NotTo(HaveOccurred())
	content, err := os.ReadFile(bin("mrgc"))
	Expect(err).NotTo(HaveOccurred())
	for name, content := range map[string][]byte{
		"root.pem": w.root.PEM(), "releases.json": releases, "model.sha256": fmt.Appendf(nil, "%x  %s\n", sha256.Sum256(content), bin("mrgc")),
	} {
		Expect(os.WriteFile(w.path(name), content, 0o600)).To(Succeed())
	}
	for _, args := range [][]string{
		{"releases", "keygen", "--out", w.path("signing")},
		{"releases", "sign", "--key", w.path("signing.key"), "--releases", w.path("releases.json"), "--out", w.path("releases.signed.json")},
	} {
		said, err := exec.Command(bin("mrgc"), args...).CombinedOutput()
		Expect(err).NotTo(HaveOccurred(), string(said))
	}
	command, err := json.Marshal(append(append([]string{"env"}, w.environment()...),
		bin("mrgc"), "enclave", "run", "--nitro-cli", w.nitroCLI, "--eif", w.image, "--cid", "1{place}", "--cpus", "1", "--memory-mib", "512"))
	Expect(err).NotTo(HaveOccurred())
	guard := freeAddress()
	w.address = freeAddress()
	start(exec.Command(bin("mrgc"), "engine", "serve", "--kind", "sim", "--profile", "h100-llama-8b", "--socket", w.path("engine.sock"), "--model-name", model))
	start(exec.Command(bin("mrgc"), "engine", "guard", "--listen", guard, "--upstream", "unix:"+w.path("engine.sock"), "--cache", "salt", "--identity", "unix:"+w.path("ca.sock")),
		w.grant("MRGC_IDENTITY_TOKEN", identity.RoleGuard, w.authority))
	start(exec.Command(bin("mrgc-parent"), "-config", w.path("mrgc.yaml"), "-zone", "use1-az1", "-listen", w.address, "-enclave", "unix:"+w.path("signed1{place}")+":5000",
		"-engine-relay", "unix:"+w.path("parent_5001"), "-identity-relay", "unix:"+w.path("parent_5003"), "-enclave-authority", "unix:"+w.path("ca.sock"),
		"-guard", guard, "-store", "sqlite:"+w.path("fleet.db"), "-state", "sqlite:"+w.path("state.db"), "-identity", "unix:"+w.path("ca.sock"), "-models", model,
		"-tenants", w.path("tenants.signed.json"), "-tenants-key", w.path("tenants.pub"), "-enclave-command", string(command),
		"-releases", w.path("releases.signed.json"), "-releases-key", w.path("signing.pub"), "-trust-development-root", w.path("root.pem"), "-model-sums", w.path("model.sha256"),
		"-wash-note", w.path("wash.json")),
		w.grant("MRGC_IDENTITY_TOKEN", identity.RoleParent, w.authority), w.grant("MRGC_ENCLAVE_IDENTITY_TOKEN", identity.RoleEnclave, w.authority))
}

// attested checks a recipient's document as a client that trusts the development root
// does, and gives its recipient.
func (w *washer) attested(one api.Recipient) *seal.Recipient {
	GinkgoHelper()
	hash := sha256.Sum256(one.Claims)
	_, err := attest.Verify(one.Attestation, attest.Policy{Roots: []*x509.Certificate{w.root.Certificate()}, Releases: w.measured},
		attest.Expected{UserData: hash[:]}, time.Now())
	Expect(err).NotTo(HaveOccurred())
	recipient, err := seal.ParseRecipient(one.Claims)
	Expect(err).NotTo(HaveOccurred())
	return recipient
}

// row is a wash as `mrgc wash show` prints it.
type row struct {
	ID, Reason string
	Passed     bool
	Steps      []struct {
		Name, Detail string
		Passed       bool
		Duration     time.Duration `json:"duration_ns"`
	}
}

func (w *washer) rows() (all []row) {
	GinkgoHelper()
	said, err := exec.Command(bin("mrgc"), "wash", "show", instanceID, "--state", "sqlite:"+w.path("state.db"), "-o", "json").Output()
	Expect(err).NotTo(HaveOccurred())
	Expect(json.Unmarshal(said, &all)).To(Succeed())
	return all
}

// ended says whether a process has; one that nobody has waited for has no command line.
func ended(pid int) bool {
	line, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	return err != nil || len(line) == 0
}

// washTimeout is for two machines that are emulated beside each other.
const washTimeout = 4 * time.Minute

var _ = Describe("An instance whose enclave is a machine", func() {
	It("is washed three times under requests: each time a fresh machine with the same image attests another key", func(ctx SpecContext) {
		w := newWasher()
		envoy, router := w.as(identity.RoleEnvoy), w.as(identity.RoleRouter)
		recipient := w.attested(w.recipient(envoy))
		Eventually(saidOn(w.path(fmt.Sprintf("vm%d.console", cids[0]))), bootTimeout, "50ms").Should(ContainSubstring("list of tenants")) // that the parent has brought
		keys, machines := map[string]bool{recipient.KeyID().String(): true}, map[int]bool{}
		var present int
		for _, present = range w.machines() {
			machines[present] = true
		}
		Expect(machines).To(HaveLen(1))

		asking, stop := context.WithCancel(ctx)
		defer stop()
		asked, over := 0, make(chan struct{})
		go func() {
			defer close(over)
			defer GinkgoRecover()
			for asking.Err() == nil {
				head, body, _ := w.ask(envoy, w.attested(w.recipient(envoy)))
				Expect(head.Status).To(Equal(http.StatusOK), body)
				asked++
			}
		}()
		for i := range 3 {
			resp, err := router.Post("https://"+w.address+api.PathWash, "", nil)
			Expect(err).NotTo(HaveOccurred())
			Expect(resp.Body.Close()).To(Succeed())
			Expect(resp.StatusCode).To(Equal(http.StatusAccepted))
			Eventually(ctx, w.rows, washTimeout, "1s").Should(HaveLen(i + 1))
			one := w.rows()[0]
			Expect(one.Passed).To(BeTrue(), one.Reason)
			Expect(one.Steps).To(HaveLen(6))
			for _, step := range one.Steps {
				Expect(step.Passed).To(BeTrue(), step.Detail)
				AddReportEntry("wash", fmt.Sprintf("%s: %s: %s", step.Name, step.Duration.Round(time.Millisecond), step.Detail))
			}

			key := w.attested(w.recipient(envoy)).KeyID().String()
			Expect(keys).NotTo(HaveKey(key), "a fresh key")
			keys[key] = true
			Expect(ended(present)).To(BeTrue(), "the old machine is gone")
			now := w.machines()
			Expect(now).To(HaveLen(1))
			for _, present = range now {
				Expect(machines).NotTo(HaveKey(present), "a fresh machine")
				machines[present] = true
			}
		}
		stop()
		Eventually(over, washTimeout).Should(BeClosed())
		Expect(asked).To(BeNumerically(">", 3))
		AddReportEntry("wash", fmt.Sprintf("%d requests meanwhile, none failed", asked))
		for _, cid := range cids {
			said, err := os.ReadFile(w.path(fmt.Sprintf("vm%d.console", cid)))
			Expect(err).NotTo(HaveOccurred())
			Expect(strings.Contains(string(said), prompt)).To(BeFalse())
		}
	}, NodeTimeout(15*time.Minute))
})
