//go:build cgo && nvml

package gpu_test

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"

	"github.com/mrgc/mrgc/engine/supervisor"
	"github.com/mrgc/mrgc/internal/gpu"
)

// shortPatience is for memory that does not come back.
const shortPatience = 15 * time.Second

func clearAndSay() {
	all, err := gpu.ClearAllWithin(context.Background(), shortPatience)
	if err == nil {
		err = json.NewEncoder(os.Stdout).Encode(all)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func supervise(control string) {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	if err := supervisor.Run(ctx, supervisor.Config{
		Command: []string{os.Args[0], asPlant}, Control: control, Clear: []string{os.Args[0], asClear},
	}); err != nil {
		fmt.Println("failed:", err)
	}
}

var _ = Describe("An engine that fills the GPU", Serial, func() {
	It("is restarted, and its GPU cleared meanwhile, unless somebody else has some of it", func(ctx SpecContext) {
		_, all, err := gpu.Free(0)
		if errors.Is(err, gpu.ErrNone) {
			Skip(err.Error())
		}
		Expect(err).NotTo(HaveOccurred())
		held, err := gpu.TakeMemory(0, all/5) // on this goroutine until it is given back
		Expect(err).NotTo(HaveOccurred())
		given := false
		giveBack := func() error { given = true; return held.GiveBack() }
		defer func() {
			if !given {
				_ = giveBack()
			}
		}()

		self, err := os.Executable()
		Expect(err).NotTo(HaveOccurred())
		dir, err := os.MkdirTemp("", "mrgc")
		Expect(err).NotTo(HaveOccurred())
		DeferCleanup(os.RemoveAll, dir)
		control := filepath.Join(dir, "control.sock")
		cmd := exec.Command(self, asSupervisor, control)
		cmd.Stderr = GinkgoWriter
		out, err := cmd.StdoutPipe()
		Expect(err).NotTo(HaveOccurred())
		Expect(cmd.Start()).To(Succeed())
		DeferCleanup(func() {
			_ = cmd.Process.Signal(syscall.SIGTERM)
			_ = cmd.Wait()
		})
		said := bufio.NewReader(out)
		planted := func() (bytes uint64) {
			GinkgoHelper()
			line, err := said.ReadString('\n')
			Expect(err).NotTo(HaveOccurred())
			_, err = fmt.Sscanf(line, "planted %d", &bytes)
			Expect(err).NotTo(HaveOccurred(), line)
			return bytes
		}
		first := planted()

		By("clearing while another process has a fifth: that fails, and the engine is started again")
		_, err = supervisor.Restart(ctx, control)
		Expect(err).To(MatchError(ContainSubstring("a process has the rest still")))
		second := planted()
		Expect(second).To(BeNumerically(">=", first*99/100))
		Expect(giveBack()).To(Succeed())

		By("clearing when the engine alone had some")
		began := time.Now()
		done, err := supervisor.Restart(ctx, control)
		Expect(err).NotTo(HaveOccurred())
		Expect(done.GPUs).NotTo(BeEmpty())
		cleared := done.GPUs[0]
		Expect(cleared.ClearedBytes).To(BeNumerically(">=", second*99/100))
		Expect(cleared.Coverage()).To(BeNumerically(">", needed))
		Expect(cleared.CanaryHits).To(BeZero())
		AddReportEntry("restart", fmt.Sprintf("%.1f GiB planted by the engine; restart took %s: stopped in %s (killed: %t), %d GPUs cleared in %s, started in %s; of GPU 0 %.1f of %.1f GiB overwritten and read back as zeros, %d bytes were not zero before",
			gib(second), time.Since(began).Round(time.Millisecond), done.Stopped.Round(time.Millisecond), done.Killed, len(done.GPUs), done.Cleared.Round(time.Millisecond), done.Started.Round(time.Microsecond),
			gib(cleared.ClearedBytes), gib(cleared.TotalBytes), cleared.DirtyBytes))

		By("having a new engine that has all of the GPU")
		third := planted()
		Expect(third).To(BeNumerically(">", second+all/10), "what was held is the engine's, too")
		AddReportEntry("after", fmt.Sprintf("the new engine has planted %.1f of %.1f GiB", gib(third), gib(all)))
	}, NodeTimeout(150*time.Second))
})
