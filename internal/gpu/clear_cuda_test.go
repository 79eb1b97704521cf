//go:build cgo && nvml

package gpu_test

import (
	"bufio"
	"errors"
	"fmt"
	"math"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"

	"github.com/mrgc/mrgc/internal/gpu"
)

// What the test binary is, by its first argument, beside the test.
const (
	asPlant      = "as=plant"      // fills all of the GPU's free memory with the canary, says how much, and waits to be killed
	asSupervisor = "as=supervisor" // supervises asPlant, at the control socket of its second argument
	asClear      = "as=clear"      // clears all GPUs, as mrgc engine clear-gpu does, but for its patience
)

func TestMain(m *testing.M) {
	as := ""
	if len(os.Args) > 1 {
		as = os.Args[1]
	}
	switch as {
	case asPlant:
		plantAndWait()
	case asSupervisor:
		supervise(os.Args[2])
	case asClear:
		clearAndSay()
	default:
		os.Exit(m.Run())
	}
}

func plantAndWait() {
	taken, err := gpu.TakeMemory(0, math.MaxUint64)
	if err == nil {
		err = taken.Plant(canary)
	}
	if err != nil {
		fmt.Println("failed:", err)
		return
	}
	fmt.Println("planted", taken.Bytes())
	<-make(chan struct{})
}

// needed is how much of the GPU's memory has to be covered: the rest is the
// driver's, and the contexts'.
const needed = 0.9

var _ = Describe("A GPU's memory", Serial, func() {
	BeforeEach(func() {
		taken, err := gpu.TakeMemory(0, 2<<20)
		if errors.Is(err, gpu.ErrNone) {
			Skip(err.Error())
		}
		Expect(err).NotTo(HaveOccurred())
		Expect(taken.GiveBack()).To(Succeed())
	})

	It("is searched, and a canary in it found, overwritten, and missed if it is not overwritten", func() {
		taken, err := gpu.TakeMemory(0, 4<<30)
		Expect(err).NotTo(HaveOccurred())
		defer func() { Expect(taken.GiveBack()).To(Succeed()) }()
		Expect(taken.Plant(canary)).To(Succeed())
		planted, err := taken.Search(canary)
		Expect(err).NotTo(HaveOccurred())
		Expect(taken.Bytes()).To(BeEquivalentTo(4 << 30))
		Expect(planted.CanaryHits).To(Equal(taken.Bytes()/gpu.PlantedEvery), "the search finds what is there")
		Expect(planted.DirtyBytes).To(Equal(taken.Bytes()))

		Expect(taken.ClearWithoutOverwriting(canary)).To(MatchError(ContainSubstring("not zero after they were overwritten")))
		cleared, err := taken.Clear(canary)
		Expect(err).NotTo(HaveOccurred())
		Expect(cleared.CanaryHits).To(Equal(planted.CanaryHits), "it was still there")
		Expect(cleared.ClearedBytes).To(Equal(taken.Bytes()))
		after, err := taken.Search(canary)
		Expect(err).NotTo(HaveOccurred())
		Expect(after.DirtyBytes + after.CanaryHits).To(BeZero())
	})

	It("holds nothing of a process that was killed, and is cleared", func(ctx SpecContext) {
		self, err := os.Executable()
		Expect(err).NotTo(HaveOccurred())
		cmd := exec.CommandContext(ctx, self, asPlant)
		out, err := cmd.StdoutPipe()
		Expect(err).NotTo(HaveOccurred())
		Expect(cmd.Start()).To(Succeed())
		DeferCleanup(func() {
			_ = cmd.Process.Kill()
			_ = cmd.Wait()
		})
		said, err := bufio.NewReader(out).ReadString('\n')
		Expect(err).NotTo(HaveOccurred())
		var planted uint64
		_, err = fmt.Sscanf(said, "planted %d", &planted)
		Expect(err).NotTo(HaveOccurred(), said)
		Expect(cmd.Process.Signal(syscall.SIGKILL)).To(Succeed())
		_ = cmd.Wait()

		began := time.Now()
		var cleared gpu.Cleared
		Eventually(ctx, func(g Gomega) { // the driver takes a moment to have the memory back
			cleared, err = gpu.Clear(0, canary)
			g.Expect(err).NotTo(HaveOccurred())
			g.Expect(cleared.ClearedBytes).To(BeNumerically(">=", planted*99/100))
		}, "3m", "1s").Should(Succeed())
		Expect(cleared.CanaryHits).To(BeZero())
		Expect(cleared.Coverage()).To(BeNumerically(">", needed))
		AddReportEntry("clear", fmt.Sprintf("%.1f GiB planted, killed; %.1f of %.1f GiB searched, overwritten and read back in %s: canary %d times, %d bytes not zero",
			gib(planted), gib(cleared.ClearedBytes), gib(cleared.TotalBytes), strings.TrimSpace(time.Since(began).Round(100*time.Millisecond).String()), cleared.CanaryHits, cleared.DirtyBytes))
	}, NodeTimeout(8*time.Minute))
})

func gib(n uint64) float64 { return float64(n) / (1 << 30) }
