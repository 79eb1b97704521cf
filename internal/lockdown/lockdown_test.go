//go:build linux

package lockdown_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"testing"
	"unsafe"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	"golang.org/x/sys/unix"

	"github.com/mrgc/mrgc/internal/lockdown"
)

// lockEnv turns the test binary into a process that locks itself down, says
// what came of it, and panics.
const lockEnv = "LOCKDOWN_TEST"

func TestMain(m *testing.M) {
	if os.Getenv(overwriteEnv) != "" {
		freeSelf()
		return
	}
	if os.Getenv(deathEnv) != "" {
		sayDeathSignal()
		return
	}
	if os.Getenv(lockEnv) != "" {
		lockSelf("an argument that could be a prompt")
	}
	os.Exit(m.Run())
}

// overwriteEnv turns the test binary into a process that frees objects and says
// how many of them are in its memory still.
const overwriteEnv = "LOCKDOWN_TEST_OVERWRITE"

func freeSelf() {
	if os.Getenv(overwriteEnv) == "overwrite" {
		if err := lockdown.OverwriteFreed(); err != nil {
			fmt.Println(err)
			return
		}
	}
	found := make(chan []uintptr)
	go func() { found <- leave() }() // on a stack that is gone afterwards
	objects := <-found
	runtime.GC()
	runtime.GC()
	memory, err := os.Open("/proc/self/mem")
	if err != nil {
		fmt.Println(err)
		return
	}
	left := 0
	read := make([]byte, len(prompt))
	for _, at := range objects {
		if _, err := memory.ReadAt(read, int64(at)); err != nil {
			fmt.Println(err)
			return
		}
		if string(read) == prompt {
			left++
		}
	}
	runtime.KeepAlive(&kept)
	fmt.Printf("%d of %d %q", left, len(objects), os.Getenv("GODEBUG"))
}

// deathEnv turns the test binary into a process that has its memory overwritten, and
// says which signal it gets when its parent dies.
const deathEnv = "LOCKDOWN_TEST_DEATH"

func sayDeathSignal() {
	// Goroutines that keep threads to themselves, the first one, too, unless it is main's:
	// main goes on in another one then.
	held := make(chan struct{})
	for range 32 {
		go func() {
			runtime.LockOSThread()
			held <- struct{}{}
			select {}
		}()
	}
	for range 32 {
		<-held
	}
	if err := lockdown.OverwriteFreed(); err != nil {
		fmt.Println(err)
		return
	}
	runtime.LockOSThread()
	var signal int32
	if err := unix.Prctl(unix.PR_GET_PDEATHSIG, uintptr(unsafe.Pointer(&signal)), 0, 0, 0); err != nil {
		fmt.Println(err)
	}
	fmt.Print(unix.Signal(signal))
}

const prompt = "a prompt"

// kept has the runtime keep the pages on which objects are that are freed: it
// would put whole ones to other uses.
var kept [64][]byte

// leave makes objects that nothing refers to any more, and says where.
//
//go:noinline
func leave() []uintptr {
	at := make([]uintptr, len(kept))
	for i := range at {
		object := bytes.Repeat([]byte(prompt), 16)
		kept[i] = bytes.Repeat([]byte("a neighbour"), 12)
		at[i] = uintptr(unsafe.Pointer(&object[0]))
	}
	return at
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

var _ = Describe("Memory that is freed", func() {
	freed := func(ctx context.Context, how, settings string) string {
		GinkgoHelper()
		self, err := os.Executable()
		Expect(err).NotTo(HaveOccurred())
		cmd := exec.CommandContext(ctx, self)
		cmd.Env = append(os.Environ(), overwriteEnv+"="+how, "GODEBUG="+settings)
		output, err := cmd.CombinedOutput()
		Expect(err).NotTo(HaveOccurred())
		return string(output)
	}

	It("is overwritten, where the program asks for it", func(ctx SpecContext) {
		Expect(freed(ctx, "overwrite", "")).To(Equal(`0 of 64 "clobberfree=1"`))
	})

	It("is overwritten in a process that is still told of its parent's death", func(ctx SpecContext) {
		self, err := os.Executable()
		Expect(err).NotTo(HaveOccurred())
		cmd := exec.CommandContext(ctx, self)
		cmd.Env = append(os.Environ(), deathEnv+"=1", "GODEBUG=")
		cmd.SysProcAttr = &unix.SysProcAttr{Pdeathsig: unix.SIGTERM}
		runtime.LockOSThread() // whose end is the parent's
		defer runtime.UnlockOSThread()
		output, err := cmd.CombinedOutput()
		Expect(err).NotTo(HaveOccurred())
		Expect(string(output)).To(Equal("terminated"))
	})

	It("is overwritten beside what else the environment asks for", func(ctx SpecContext) {
		Expect(freed(ctx, "overwrite", "http2debug=0")).To(Equal(`0 of 64 "http2debug=0,clobberfree=1"`))
	})

	It("keeps much of what was in it otherwise", func(ctx SpecContext) {
		Expect(freed(ctx, "leave", "")).To(MatchRegexp(`^[1-9][0-9]? of 64 ""$`))
	})
})

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
