//go:build linux

package lockdown_test

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"testing"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	"golang.org/x/sys/unix"

	"github.com/mrgc/mrgc/internal/lockdown"
)

// lockEnv turns the test binary into a process that locks itself down, says
// what came of it, and panics.
const lockEnv = "LOCKDOWN_TEST"

func TestMain(m *testing.M) {
	if os.Getenv(lockEnv) != "" {
		lockSelf("an argument that could be a prompt")
	}
	os.Exit(m.Run())
}

//go:noinline
func lockSelf(prompt string) {
	err := errors.Join(lockdown.NoDumps(), lockdown.Untraceable())
	var core unix.Rlimit
	err = errors.Join(err, unix.Getrlimit(unix.RLIMIT_CORE, &core))
	dumpable, prctlErr := unix.PrctlRetInt(unix.PR_GET_DUMPABLE, 0, 0, 0, 0)
	fmt.Println(errors.Join(err, prctlErr), core.Cur, core.Max, dumpable, len(prompt) > 0)
	panic("on purpose")
}

func TestLockdown(t *testing.T) {
	RegisterFailHandler(Fail)
	RunSpecs(t, "lockdown")
}

var _ = Describe("A process that is locked down", func() {
	It("dumps no core, cannot be traced, and panics without stacks when its environment says so", func(ctx SpecContext) {
		self, err := os.Executable()
		Expect(err).NotTo(HaveOccurred())
		cmd := exec.CommandContext(ctx, self)
		cmd.Env = append(os.Environ(), lockEnv+"=1", "GOTRACEBACK=none")
		output, err := cmd.CombinedOutput()
		Expect(err).To(HaveOccurred())
		Expect(string(output)).To(HavePrefix("<nil> 0 0 0 true\n"))
		Expect(string(output)).To(ContainSubstring("panic: on purpose"))
		Expect(string(output)).NotTo(ContainSubstring("lockSelf"))
	})
})
