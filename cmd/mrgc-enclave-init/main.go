//go:build linux

// Mrgc-enclave-init is the first process of an enclave. It makes a kernel that
// has just booted into what mrgc-enclave needs, or ends, and the enclave with
// it; then it becomes mrgc-enclave.
//
// All that it goes by is in the image, hence measured. It takes nothing from its
// arguments and its environment, which the kernel fills with what of its command
// line it does not know.
package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

const (
	program   = "/mrgc-enclave"
	arguments = "/etc/mrgc/arguments"  // one a line
	parentCID = "/etc/mrgc/parent-cid" // decimal
	modules   = "/modules"             // kernel modules, loaded by order of their names
)

// bootTimeout is for what the kernel does in the background.
const bootTimeout = 20 * time.Second

func main() {
	// As a process of anybody else it would only mount things.
	if os.Getpid() != 1 {
		fmt.Fprintln(os.Stderr, "mrgc-enclave-init: it starts an enclave, as its process 1")
		os.Exit(2)
	}
	err := boot()
	fmt.Fprintln(os.Stderr, "mrgc-enclave-init:", err)
	os.Exit(1) // upon which the kernel panics, and the enclave is over
}

// boot returns only with what went wrong.
func boot() error {
	ctx, cancel := context.WithTimeout(context.Background(), bootTimeout)
	defer cancel()
	steps := []struct {
		name string
		do   func(context.Context) error
	}{
		{"mount", mount},
		{"console", openConsole},
		{"modules", loadModules},
		{"devices", waitForDevices},
		{"entropy", checkEntropy},
		{"heartbeat", tellParent},
	}
	for _, step := range steps {
		if err := step.do(ctx); err != nil {
			return fmt.Errorf("%s: %w", step.name, err)
		}
	}
	content, err := os.ReadFile(arguments)
	if err != nil {
		return err
	}
	args, err := parseArguments(content)
	if err != nil {
		return err
	}
	// A panic's stacks would show arguments on the console (internal/lockdown).
	return fmt.Errorf("run %s: %w", program, unix.Exec(program, append([]string{program}, args...), []string{"GOTRACEBACK=none"}))
}

func parseArguments(content []byte) ([]string, error) {
	text, ended := strings.CutSuffix(string(content), "\n")
	if !ended {
		return nil, fmt.Errorf("%s: the last line has no end", arguments)
	}
	args := strings.Split(text, "\n")
	for n, arg := range args {
		if arg == "" {
			return nil, fmt.Errorf("%s: line %d is empty", arguments, n+1)
		}
	}
	return args, nil
}

func mount(context.Context) error {
	const harmless = unix.MS_NOSUID | unix.MS_NOEXEC
	for _, m := range []struct {
		kind, at string
		flags    uintptr
	}{
		{"proc", "/proc", harmless | unix.MS_NODEV}, {"sysfs", "/sys", harmless | unix.MS_NODEV}, {"devtmpfs", "/dev", harmless},
	} {
		if err := os.MkdirAll(m.at, 0o755); err != nil {
			return err
		}
		if err := unix.Mount(m.kind, m.at, m.kind, m.flags, ""); err != nil {
			return fmt.Errorf("%s: %w", m.at, err)
		}
	}
	return nil
}

// openConsole gives standard output and error somewhere to go. Only debug mode
// shows an enclave's console to its parent.
func openConsole(context.Context) error {
	fd, err := unix.Open("/dev/console", unix.O_RDWR, 0)
	if err != nil {
		return err
	}
	for standard := range 3 {
		if err := unix.Dup2(fd, standard); err != nil {
			return err
		}
	}
	if fd > 2 {
		return unix.Close(fd)
	}
	return nil
}

// loadModules loads the image's modules and lets no other come after them. An
// image whose kernel has all of it built in has none.
func loadModules(context.Context) error {
	paths, err := filepath.Glob(modules + "/*") // sorted
	if err != nil {
		return err
	}
	for _, path := range paths {
		if err := loadModule(path); err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
	}
	err = os.WriteFile("/proc/sys/kernel/modules_disabled", []byte("1"), 0)
	if errors.Is(err, os.ErrNotExist) { // a kernel without modules
		return nil
	}
	return err
}

func loadModule(path string) error {
	file, err := os.Open(path)
	if err != nil {
		return err
	}
	defer file.Close()
	flags := 0
	if filepath.Ext(path) != ".ko" {
		flags = unix.MODULE_INIT_COMPRESSED_FILE
	}
	return unix.FinitModule(int(file.Fd()), "", flags)
}

func waitForDevices(ctx context.Context) error {
	for _, path := range []string{"/dev/nsm", "/dev/vsock"} {
		if err := until(ctx, func() error {
			var stat unix.Stat_t
			if err := unix.Stat(path, &stat); err != nil {
				return fmt.Errorf("%s: %w", path, err)
			}
			if stat.Mode&unix.S_IFMT != unix.S_IFCHR {
				return fmt.Errorf("%s is no device", path)
			}
			return nil
		}); err != nil {
			return err
		}
	}
	return nil
}

// checkEntropy waits until the kernel's generator is ready, and has been fed by
// the security module: an enclave has no other source that its parent does not
// control (AWS, "Nitro Enclaves image bootstrap": rng_current is nsm-hwrng).
func checkEntropy(ctx context.Context) error {
	return until(ctx, func() error {
		current, err := os.ReadFile("/sys/devices/virtual/misc/hw_random/rng_current")
		if err != nil {
			return err
		}
		if source := string(bytes.TrimSpace(current)); source != "nsm-hwrng" {
			return fmt.Errorf("the kernel's source is %q, not the security module", source)
		}
		_, err = unix.Getrandom(make([]byte, 1), unix.GRND_NONBLOCK)
		return err
	})
}

// until tries again until it works, or ctx ends.
func until(ctx context.Context, try func() error) error {
	for {
		err := try()
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("gave up after %s: %w", bootTimeout, err)
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// The heartbeat that tells the parent's hypervisor tools that an enclave has
// booted (aws-nitro-enclaves-sdk-bootstrap, init/init.c): without it they stop
// the enclave.
const (
	heartbeatPort = 9000
	heartbeat     = 0xb7
)

func tellParent(context.Context) error {
	content, err := os.ReadFile(parentCID)
	if err != nil {
		return err
	}
	cid, err := strconv.ParseUint(strings.TrimSpace(string(content)), 10, 32)
	if err != nil {
		return fmt.Errorf("%s: %w", parentCID, err)
	}
	fd, err := unix.Socket(unix.AF_VSOCK, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	for _, option := range []int{unix.SO_RCVTIMEO, unix.SO_SNDTIMEO} {
		if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, option, &unix.Timeval{Sec: 5}); err != nil {
			return err
		}
	}
	if err := unix.Connect(fd, &unix.SockaddrVM{CID: uint32(cid), Port: heartbeatPort}); err != nil {
		return fmt.Errorf("connect to CID %d, port %d: %w", cid, heartbeatPort, err)
	}
	beat := []byte{heartbeat}
	if _, err := unix.Write(fd, beat); err != nil {
		return err
	}
	if n, err := unix.Read(fd, beat); err != nil || n != 1 || beat[0] != heartbeat {
		return fmt.Errorf("the heartbeat was not answered: %w", errors.Join(err, fmt.Errorf("got % x", beat[:max(n, 0)])))
	}
	return nil
}
