package vsock_test

import (
	"context"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	"github.com/onsi/gomega/gleak"

	"github.com/mrgc/mrgc/internal/vsock"
)

func TestVsock(t *testing.T) {
	RegisterFailHandler(Fail)
	RunSpecs(t, "vsock")
}

// socketPath is short: a Unix socket's path holds some 100 bytes.
func socketPath() string {
	dir, err := os.MkdirTemp("", "vsock")
	Expect(err).NotTo(HaveOccurred())
	DeferCleanup(os.RemoveAll, dir)
	return filepath.Join(dir, "s")
}

// echo serves every connection what it sends, until the listener closes.
func echo(l net.Listener) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				_, _ = io.Copy(conn, conn)
			}()
		}
	}()
	DeferCleanup(func() {
		Expect(l.Close()).To(Succeed())
		Eventually(done).Should(BeClosed())
	})
}

func expectEcho(conn net.Conn) {
	GinkgoHelper()
	defer conn.Close()
	_, err := conn.Write([]byte("ping"))
	Expect(err).NotTo(HaveOccurred())
	got := make([]byte, 4)
	_, err = io.ReadFull(conn, got)
	Expect(err).NotTo(HaveOccurred())
	Expect(string(got)).To(Equal("ping"))
}

var _ = Describe("An address", func() {
	DescribeTable("is read and written", func(text, want string) {
		a, err := vsock.ParseAddress(text)
		Expect(err).NotTo(HaveOccurred())
		Expect(a.String()).To(Equal(want))
	},
		Entry(nil, "vsock://16:5000", "vsock://16:5000"),
		Entry(nil, "vsock://:5000", "vsock://2:5000"),
		Entry(nil, "unix:/run/a.sock", "unix:/run/a.sock"),
		Entry(nil, "unix:/run/a.vsock:5000", "unix:/run/a.vsock:5000"),
		Entry(nil, "unix:/run/a.vsock_5001", "unix:/run/a.vsock_5001"),
	)
	DescribeTable("is refused with the forms it could have", func(text string) {
		_, err := vsock.ParseAddress(text)
		Expect(err).To(MatchError(ContainSubstring("want vsock://CID:PORT, unix:PATH or unix:PATH:PORT")))
	},
		Entry(nil, ""), Entry(nil, "tcp://1.2.3.4:5"), Entry(nil, "vsock://16"), Entry(nil, "vsock://x:1"),
		Entry(nil, "vsock://1:99999999999"), Entry(nil, "unix:"), Entry(nil, "unix:/a:b"), Entry(nil, "unix::5000"),
	)
})

var _ = Describe("A Unix socket in place of vsock", func() {
	BeforeEach(func() {
		known := gleak.Goroutines()
		DeferCleanup(func() { Eventually(gleak.Goroutines).ShouldNot(gleak.HaveLeaked(known)) })
	})

	DescribeTable("carries bytes both ways", func(ctx SpecContext, suffix string) {
		address := "unix:" + socketPath() + suffix
		l, err := vsock.Listen(address)
		Expect(err).NotTo(HaveOccurred())
		echo(l)
		conn, err := vsock.Dial(ctx, address)
		Expect(err).NotTo(HaveOccurred())
		expectEcho(conn)
	},
		Entry("without a handshake", ""), Entry("with one", ":5000"),
	)

	It("is open to its owner alone", func() {
		path := socketPath()
		l, err := vsock.Listen("unix:" + path)
		Expect(err).NotTo(HaveOccurred())
		DeferCleanup(l.Close)
		info, err := os.Stat(path)
		Expect(err).NotTo(HaveOccurred())
		Expect(info.Mode().Perm()).To(Equal(os.FileMode(0o600)))
	})

	It("replaces a dead process's socket, and leaves a live one's", func() {
		path := socketPath()
		dead, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
		Expect(err).NotTo(HaveOccurred())
		dead.SetUnlinkOnClose(false)
		Expect(dead.Close()).To(Succeed())

		l, err := vsock.Listen("unix:" + path)
		Expect(err).NotTo(HaveOccurred())
		echo(l)
		_, err = vsock.Listen("unix:" + path)
		Expect(err).To(MatchError(ContainSubstring("another process listens there")))
	})

	It("refuses another port", func(ctx SpecContext) {
		path := socketPath()
		l, err := vsock.Listen("unix:" + path + ":5000")
		Expect(err).NotTo(HaveOccurred())
		echo(l)
		_, err = vsock.Dial(ctx, "unix:"+path+":5001")
		Expect(err).To(MatchError(ContainSubstring("no answer to CONNECT")))
	})

	DescribeTable("closes on whoever does not speak the handshake, and serves the next", func(ctx SpecContext, said string) {
		address := "unix:" + socketPath()
		l, err := vsock.Listen(address + ":5000")
		Expect(err).NotTo(HaveOccurred())
		echo(l)
		rude, err := vsock.Dial(ctx, address)
		Expect(err).NotTo(HaveOccurred())
		defer rude.Close()
		_, err = rude.Write([]byte(said))
		Expect(err).NotTo(HaveOccurred())
		n, err := rude.Read(make([]byte, 1))
		Expect(n).To(BeZero())
		Expect(err).To(HaveOccurred())

		polite, err := vsock.Dial(ctx, address+":5000")
		Expect(err).NotTo(HaveOccurred())
		expectEcho(polite)
	},
		Entry("HTTP", "GET / HTTP/1.1\r\n\r\n"), Entry("no line end", strings.Repeat("x", 64)), Entry("an empty line", "\n"),
	)

	It("serves others while a peer says nothing", func(ctx SpecContext) {
		address := "unix:" + socketPath()
		l, err := vsock.Listen(address + ":5000")
		Expect(err).NotTo(HaveOccurred())
		echo(l)
		silent, err := vsock.Dial(ctx, address)
		Expect(err).NotTo(HaveOccurred())
		defer silent.Close()
		conn, err := vsock.Dial(ctx, address+":5000")
		Expect(err).NotTo(HaveOccurred())
		expectEcho(conn)
	})

	It("gives up at the context's deadline when nobody answers the handshake", func(ctx SpecContext) {
		path := socketPath()
		l, err := net.Listen("unix", path) // accepts in the kernel, never answers
		Expect(err).NotTo(HaveOccurred())
		DeferCleanup(l.Close)
		short, cancel := context.WithTimeout(ctx, 1)
		defer cancel()
		_, err = vsock.Dial(short, "unix:"+path+":5000")
		Expect(err).To(HaveOccurred())
	})

	It("ends Accept when it is closed", func() {
		l, err := vsock.Listen("unix:" + socketPath() + ":5000")
		Expect(err).NotTo(HaveOccurred())
		Expect(l.Close()).To(Succeed())
		_, err = l.Accept()
		Expect(err).To(MatchError(net.ErrClosed))
		Expect(l.Close()).To(Succeed())
	})
})
