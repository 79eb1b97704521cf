//go:build linux

package nitrocli_test

import (
	"context"
	"encoding/json"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	"github.com/onsi/gomega/gexec"

	"github.com/mrgc/mrgc/parent/nitrocli"
)

func TestNitroCLI(t *testing.T) {
	RegisterFailHandler(Fail)
	RunSpecs(t, "parent/nitrocli")
}

var program string

var _ = SynchronizedBeforeSuite(func() []byte {
	path, err := gexec.Build("github.com/mrgc/mrgc/standin/softnitrocli")
	Expect(err).NotTo(HaveOccurred())
	return []byte(path)
}, func(path []byte) { program = string(path) })

var _ = SynchronizedAfterSuite(func() {}, gexec.CleanupBuildArtifacts)

// described is an enclave as nitro-cli tells of it.
type described struct {
	EnclaveName, EnclaveID, State      string
	ProcessID, NumberOfCPUs, MemoryMiB int
	EnclaveCID                         uint32
}

var _ = Describe("Run", func() {
	var c nitrocli.Config
	BeforeEach(func() {
		dir := GinkgoT().TempDir()
		eif := filepath.Join(dir, "enclave.eif")
		Expect(os.WriteFile(eif, nil, 0o600)).To(Succeed())
		GinkgoT().Setenv("SOFTNITROCLI_DIR", dir)
		GinkgoT().Setenv("SOFTNITROCLI_COMMAND", `["sleep", "600"]`)
		c = nitrocli.Config{
			Program: program, EIF: eif, CID: 17, CPUs: 2, MemoryMiB: 1024, Poll: 20 * time.Millisecond,
			Log: slog.New(slog.NewTextHandler(GinkgoWriter, nil)),
		}
		DeferCleanup(func() {
			for _, e := range list() {
				Expect(exec.Command(program, "terminate-enclave", "--enclave-id", e.EnclaveID).Run()).To(Succeed())
			}
		})
	})

	// run runs the enclave until stop is called, and gives how that ended.
	run := func() (stop context.CancelFunc, ended chan error) {
		ctx, cancel := context.WithCancel(context.Background())
		DeferCleanup(cancel)
		ended = make(chan error, 1)
		go func() { ended <- nitrocli.Run(ctx, c) }()
		return cancel, ended
	}

	It("stays while its enclave runs, and terminates it in the end", func() {
		stop, ended := run()
		Eventually(list, "10s").Should(ConsistOf(And(
			HaveField("EnclaveName", "mrgc-17"), HaveField("EnclaveCID", uint32(17)), HaveField("NumberOfCPUs", 2), HaveField("MemoryMiB", 1024))))
		Consistently(ended, "200ms").ShouldNot(Receive())
		stop()
		Eventually(ended, "10s").Should(Receive(BeNil()))
		Expect(list()).To(BeEmpty())
	})

	It("ends with an error when its enclave ends by itself", func() {
		_, ended := run()
		Eventually(list, "10s").Should(HaveLen(1))
		process, err := os.FindProcess(list()[0].ProcessID)
		Expect(err).NotTo(HaveOccurred())
		Expect(process.Kill()).To(Succeed())
		Eventually(ended, "10s").Should(Receive(MatchError(MatchRegexp(`^nitro enclave i-\S+ has ended$`))))
	})

	It("terminates what was left behind in its place, and no other", func() {
		start := func(name, cid string) {
			Expect(exec.Command(program, "run-enclave", "--enclave-name", name, "--eif-path", c.EIF, "--enclave-cid", cid, "--cpu-count", "2", "--memory", "512").Run()).To(Succeed())
		}
		start("mrgc-17", "17")
		start("somebody-elses", "18")
		left := list()
		stop, ended := run()
		Eventually(list, "10s").Should(ContainElement(And(HaveField("EnclaveCID", uint32(17)), HaveField("MemoryMiB", 1024))))
		Expect(list()).To(HaveLen(2))
		stop()
		Eventually(ended, "10s").Should(Receive(BeNil()))
		Expect(list()).To(ConsistOf(BeElementOf(left)))
		Expect(list()[0].EnclaveName).To(Equal("somebody-elses"))
	})

	DescribeTable("says why there is no enclave", func(change func(), matches string) {
		change()
		Expect(nitrocli.Run(context.Background(), c)).To(MatchError(MatchRegexp(matches)))
		Expect(list()).To(BeEmpty())
	},
		Entry("without memory to give", func() { GinkgoT().Setenv("SOFTNITROCLI_MEMORY_MIB", "512") }, `run-enclave: exit status 1: .*\[ E27 \] Insufficient memory`),
		Entry("without its image", func() { c.EIF += "x" }, `run-enclave: exit status 1: .*\[ E19 \]`),
		Entry("without nitro-cli", func() { c.Program = "/nowhere/nitro-cli" }, `/nowhere/nitro-cli describe-enclaves: .*no such file`),
		Entry("with the instance's own CID", func() { c.CID = 3 }, `CID 3: want 4 or more`),
		Entry("without an image named", func() { c.EIF = "" }, `no image`),
		Entry("without CPUs", func() { c.CPUs = 0 }, `0 CPUs`),
		Entry("with hardly any memory", func() { c.MemoryMiB = 63 }, `63 MiB`),
	)
})

// list is what runs.
func list() (all []described) {
	GinkgoHelper()
	out, err := exec.Command(program, "describe-enclaves").Output()
	Expect(err).NotTo(HaveOccurred())
	Expect(json.Unmarshal(out, &all)).To(Succeed())
	for _, e := range all {
		Expect(e.State).To(Equal("RUNNING"))
	}
	return all
}
