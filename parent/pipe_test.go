package parent_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"io"
	"net"
	"net/http"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"

	"github.com/mrgc/mrgc/internal/identity"
	"github.com/mrgc/mrgc/internal/vsock"
)

// dialEngine connects to the guard as the enclave does, by way of the parent.
func (in *instance) dialEngine(ctx context.Context) *tls.Conn {
	GinkgoHelper()
	raw, err := vsock.Dial(ctx, in.relayAddress())
	Expect(err).NotTo(HaveOccurred())
	DeferCleanup(func() { _ = raw.Close() })
	config := in.source(enclaveID).ClientTLS(func(id identity.ID) bool { return id == guardID })
	config.NextProtos = []string{"http/1.1"}
	conn := tls.Client(raw, config)
	Expect(conn.HandshakeContext(ctx)).To(Succeed())
	return conn
}

// expectEcho sends text to the guard and wants it back.
func expectEcho(conn *tls.Conn, text string) {
	GinkgoHelper()
	client := http.Client{Transport: oneConn{conn}}
	resp, err := client.Post("https://guard/echo", "text/plain", bytes.NewBufferString(text))
	Expect(err).NotTo(HaveOccurred())
	defer resp.Body.Close()
	Expect(readAll(resp)).To(Equal(text), "%d bytes came back changed", len(text))
}

// oneConn is a transport that keeps its one connection open.
type oneConn struct{ conn net.Conn }

func (t oneConn) RoundTrip(req *http.Request) (*http.Response, error) {
	written := make(chan error, 1)
	go func() { written <- req.Write(t.conn) }()
	resp, err := http.ReadResponse(bufio.NewReader(t.conn), req)
	if err != nil {
		return nil, err
	}
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return nil, err
	}
	resp.Body = io.NopCloser(bytes.NewReader(body))
	return resp, <-written
}

// expectClosed wants the other side to have hung up.
func expectClosed(conn net.Conn) {
	GinkgoHelper()
	Expect(conn.SetReadDeadline(time.Now().Add(eventually))).To(Succeed())
	_, err := conn.Read(make([]byte, 1))
	Expect(err).To(HaveOccurred())
	Expect(err).NotTo(MatchError(ContainSubstring("timeout")))
}

var _ = Describe("The way to the engine", func() {
	It("carries the enclave's TLS both ways, which ends in the guard", func(ctx SpecContext) {
		in := start()
		conn := in.dialEngine(ctx)
		state := conn.ConnectionState()
		peer, ok := identity.Peer(&state)
		Expect(ok).To(BeTrue())
		Expect(peer).To(Equal(guardID))
		expectEcho(conn, "hello")
		expectEcho(conn, string(bytes.Repeat([]byte("0123456789abcdef"), 1<<16)))
	}, NodeTimeout(specTimeout))

	It("carries several connections, each its own", func(ctx SpecContext) {
		in := start()
		one, two := in.dialEngine(ctx), in.dialEngine(ctx)
		expectEcho(one, "one")
		Expect(one.Close()).To(Succeed())
		expectEcho(two, "two")
	}, NodeTimeout(specTimeout))

	It("is closed at the guard when the enclave hangs up", func(ctx SpecContext) {
		in := start()
		in.eventuallyRegistered(ctx, healthy())
		before := in.guard.open.Load() // the parent's own, for probes
		conn := in.dialEngine(ctx)
		expectEcho(conn, "hello")
		Expect(in.guard.open.Load()).To(Equal(before + 1))
		Expect(conn.NetConn().Close()).To(Succeed())
		Eventually(ctx, in.guard.open.Load).Should(Equal(before))
	}, NodeTimeout(specTimeout))

	It("is closed at the enclave when the guard hangs up", func(ctx SpecContext) {
		in := start()
		conn := in.dialEngine(ctx)
		in.guard.stop()
		expectClosed(conn)
	}, NodeTimeout(specTimeout))

	It("is closed at the enclave when the guard cannot be dialled, and open to the next", func(ctx SpecContext) {
		in := start()
		in.guard.away.Store(true)
		conn, err := vsock.Dial(ctx, in.relayAddress())
		Expect(err).NotTo(HaveOccurred())
		defer conn.Close()
		expectClosed(conn)
		in.guard.away.Store(false)
		expectEcho(in.dialEngine(ctx), "hello")
	}, NodeTimeout(specTimeout))
})
