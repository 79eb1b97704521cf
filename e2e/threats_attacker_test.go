package e2e_test

import (
	"bufio"
	"bytes"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	"golang.org/x/sys/unix"
)

// What somebody with root on an instance has: its processes' memory, their core
// dumps, what waits in their sockets, what is on the wire, and files. Each tool says
// how much it has looked at, so that one that looks at nothing is seen.

// loot is what is looked for: what it is, and how it would look.
type loot map[string][]byte

// also adds a text, and the ways in which a program might have written it.
func (l loot) also(what, text string) loot {
	l[what] = []byte(text)
	l[what+", in hex"] = []byte(hex.EncodeToString([]byte(text)))
	for shift := range 3 { // where the text begins within base64's groups of three bytes
		coded := base64.StdEncoding.EncodeToString(append(make([]byte, shift), text...))
		// The first and last characters depend on what stands beside the text.
		l[fmt.Sprintf("%s, in base64 (%d)", what, shift)] = []byte(strings.TrimRight(coded, "=")[4 : len(coded)-4])
	}
	return l
}

// in names what of it is in b.
func (l loot) in(b []byte) (found []string) {
	for what, bytesOf := range l {
		if bytes.Contains(b, bytesOf) {
			found = append(found, what)
		}
	}
	return found
}

func (l loot) longest() (n int) {
	for _, bytesOf := range l {
		n = max(n, len(bytesOf))
	}
	return n
}

// found are the names of what was found, each once, and how many bytes were looked at.
type found struct {
	names []string
	bytes int64
}

func (f *found) add(names []string, n int) {
	f.bytes += int64(n)
	for _, name := range names {
		if !slices.Contains(f.names, name) {
			f.names = append(f.names, name)
		}
	}
}

// memoryOf looks through every readable mapping of a process.
func (l loot) memoryOf(pid int) (f found) {
	GinkgoHelper()
	overlap := l.longest()
	buffer := make([]byte, 4<<20+overlap)
	Expect(readMemory(pid, buffer, overlap, func(b []byte) { f.add(l.in(b), len(b)) })).To(Succeed())
	return f
}

// coreOf has a debugger write a core dump, and looks through that.
func (l loot) coreOf(pid int) (f found) {
	GinkgoHelper()
	path := filepath.Join(GinkgoT().TempDir(), "core")
	gdb := exec.Command("gdb", "-nx", "-batch", "-readnever", "-p", strconv.Itoa(pid), "-ex", "generate-core-file "+path)
	output, err := gdb.CombinedOutput()
	Expect(err).NotTo(HaveOccurred(), "%s", output)
	Expect(path).To(BeAnExistingFile(), "%s", output)
	defer os.Remove(path)
	core, err := os.Open(path)
	Expect(err).NotTo(HaveOccurred())
	defer core.Close()
	pieces := bufio.NewReaderSize(core, 4<<20)
	for overlap := l.longest(); ; {
		b, err := pieces.Peek(4 << 20)
		f.add(l.in(b), len(b))
		if err != nil {
			return f // the end
		}
		_, err = pieces.Discard(len(b) - overlap)
		Expect(err).NotTo(HaveOccurred())
	}
}

// queuesOf reads what waits in a process's sockets to be read, and leaves it there:
// each socket is duplicated from the process (pidfd_getfd(2)) and peeked at.
func (l loot) queuesOf(pid int) (f found) {
	GinkgoHelper()
	process, err := unix.PidfdOpen(pid, 0)
	Expect(err).NotTo(HaveOccurred())
	defer unix.Close(process)
	links, err := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", pid))
	Expect(err).NotTo(HaveOccurred())
	buffer := make([]byte, 1<<20)
	for _, link := range links {
		if to, err := os.Readlink(link); err != nil || !strings.HasPrefix(to, "socket:") {
			continue // closed meanwhile, or none
		}
		number, err := strconv.Atoi(filepath.Base(link))
		Expect(err).NotTo(HaveOccurred())
		socket, err := unix.PidfdGetfd(process, number, 0)
		if err != nil {
			continue // closed meanwhile
		}
		n, _, err := unix.Recvfrom(socket, buffer, unix.MSG_PEEK|unix.MSG_DONTWAIT)
		if err == nil && n > 0 {
			f.add(l.in(buffer[:n]), n)
		}
		_ = unix.Close(socket)
	}
	return f
}

// filesIn looks through a folder's files, and through those that its links lead to.
func (l loot) filesIn(dir string) (f found, files int) {
	GinkgoHelper()
	real, err := filepath.EvalSymlinks(dir)
	Expect(err).NotTo(HaveOccurred())
	Expect(filepath.WalkDir(real, func(path string, entry fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case entry.Type()&fs.ModeSymlink != 0:
			if at, err := os.Stat(path); err == nil && at.IsDir() {
				within, n := l.filesIn(path)
				f.add(within.names, int(within.bytes))
				files += n
			}
			return nil
		case !entry.Type().IsRegular():
			return nil
		}
		content, err := os.ReadFile(path)
		files++
		for _, what := range l.in(content) {
			f.add([]string{what + " in " + path}, 0)
		}
		f.bytes += int64(len(content))
		return err
	})).To(Succeed())
	return f, files
}

// wire is all of the machine's loopback traffic, as it passes.
type wire struct {
	loot loot
	done sync.WaitGroup

	mu      sync.Mutex
	exposed []int // guarded by mu: ports on which it is known to be in clear
	there   found // guarded by mu: on these
	other   found // guarded by mu: everywhere else
}

// listen sees loopback's packets until the spec ends. It takes CAP_NET_RAW.
func (l loot) listen(exposed ...int) *wire {
	GinkgoHelper()
	const allProtocols = 0x0300 // ETH_P_ALL in the network's order
	socket, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, allProtocols)
	Expect(err).NotTo(HaveOccurred())
	loopback, err := net.InterfaceByName("lo")
	Expect(err).NotTo(HaveOccurred())
	Expect(unix.Bind(socket, &unix.SockaddrLinklayer{Protocol: allProtocols, Ifindex: loopback.Index})).To(Succeed())
	Expect(unix.SetsockoptInt(socket, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 64<<20)).To(Succeed())
	Expect(unix.SetsockoptTimeval(socket, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Usec: 100_000})).To(Succeed())
	w := &wire{loot: l, exposed: exposed}
	stop := make(chan struct{})
	w.done.Go(func() {
		defer unix.Close(socket)
		packet := make([]byte, 1<<17)
		for {
			select {
			case <-stop:
				return
			default:
			}
			if n, _, err := unix.Recvfrom(socket, packet, 0); err == nil {
				w.see(packet[:n])
			}
		}
	})
	DeferCleanup(func() {
		close(stop)
		w.done.Wait()
	})
	return w
}

// see takes one packet: Ethernet, IPv4, TCP.
func (w *wire) see(packet []byte) {
	const ethernet, ipv4 = 14, 20
	if len(packet) < ethernet+ipv4+4 || packet[ethernet]>>4 != 4 || packet[ethernet+9] != syscall.IPPROTO_TCP {
		return
	}
	ports := packet[ethernet+4*int(packet[ethernet]&0x0f):]
	if len(ports) < 4 {
		return
	}
	from, to := int(binary.BigEndian.Uint16(ports)), int(binary.BigEndian.Uint16(ports[2:]))
	w.mu.Lock()
	defer w.mu.Unlock()
	into := &w.other
	if slices.Contains(w.exposed, from) || slices.Contains(w.exposed, to) {
		into = &w.there
	}
	into.add(w.loot.in(packet), len(packet))
}

// sofar is what passed on the exposed ports, and elsewhere.
func (w *wire) sofar() (there, other found) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.there, w.other
}
