package engine_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"syscall"
	"unsafe"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	"golang.org/x/sys/unix"

	"github.com/mrgc/mrgc/engine"
	"github.com/mrgc/mrgc/engine/supervisor"
)

// Users and a group that nobody else has.
const (
	guardUser   = 61701
	parentUser  = 61702
	engineGroup = 61703
)

// connects says whether a user, of groups beside its own, can connect to a socket.
func connects(socket string, user int, groups ...int) bool {
	GinkgoHelper()
	result := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // and never unlocks: the thread, which alone becomes the user, ends with it
		result <- connectAs(socket, user, groups)
	}()
	err := <-result
	if !errors.Is(err, unix.EACCES) {
		Expect(err).NotTo(HaveOccurred())
	}
	return err == nil
}

func connectAs(socket string, user int, groups []int) error {
	ids := make([]uint32, len(groups)+1)
	for i, group := range groups {
		ids[i] = uint32(group)
	}
	// As a raw call it is for this thread alone.
	if _, _, errno := unix.RawSyscall(unix.SYS_SETGROUPS, uintptr(len(groups)), uintptr(unsafe.Pointer(&ids[0])), 0); errno != 0 {
		return fmt.Errorf("setgroups: %w", errno)
	}
	if err := errors.Join(unix.Setfsgid(user), unix.Setfsuid(user)); err != nil {
		return err
	}
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(fd) }()
	return unix.Connect(fd, &unix.SockaddrUnix{Name: socket})
}

var _ = Describe("An engine's socket", func() {
	// In a folder as systemd makes it for the unit: RuntimeDirectoryMode=0710.
	folder := func() string {
		GinkgoHelper()
		if os.Getuid() != 0 {
			Skip("other users' eyes take root")
		}
		dir := shortDir()
		Expect(os.Chown(dir, 0, engineGroup)).To(Succeed())
		Expect(os.Chmod(dir, 0o710|os.ModeSetgid)).To(Succeed()) // what is made in it is the group's, as it is its user's in the unit
		return dir
	}
	It("of its supervisor, which restarts it, is its user's alone or its group's as well", func(ctx SpecContext) {
		for _, group := range []bool{false, true} {
			dir := folder()
			control := filepath.Join(dir, "c.sock")
			s := supervise(ctx, func(c *supervisor.Config) { c.Control, c.GroupSocket = control, group })
			Expect(s.socket).To(BeAnExistingFile())
			Expect(connects(control, guardUser, engineGroup)).To(Equal(group))
			Expect(connects(control, parentUser)).To(BeFalse())
			Expect(os.Chmod(dir, 0o711|os.ModeSetgid)).To(Succeed()) // as if the folder kept nobody out
			Expect(connects(control, parentUser)).To(BeFalse())
			Expect(connects(control, guardUser, engineGroup)).To(Equal(group))
		}
	})

	for name, configure := range engines {
		It("is its user's alone in "+name+", or its group's, whose only other member is the guard", Label("model"), func() {
			for _, group := range []bool{false, true} {
				config := engine.Config{Socket: filepath.Join(folder(), "e.sock"), Model: "m", GroupSocket: group}
				configure(&config)
				startEngine(config)
				info, err := os.Stat(config.Socket)
				Expect(err).NotTo(HaveOccurred())
				Expect(info.Sys().(*syscall.Stat_t).Gid).To(BeEquivalentTo(engineGroup))
				Expect(connects(config.Socket, guardUser, engineGroup)).To(Equal(group))
				Expect(connects(config.Socket, parentUser)).To(BeFalse())
			}
		})
	}
})
