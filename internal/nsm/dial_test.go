package nsm_test

import (
	"context"
	"errors"
	"go/build"
	"io/fs"
	"net"
	"path/filepath"
	"syscall"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	"github.com/onsi/gomega/gleak"

	"github.com/mrgc/mrgc/internal/nsm"
)

var _ = Describe("Dial", func() {
	DescribeTable("refuses the address", func(address string) {
		_, err := nsm.Dial(address)
		Expect(err).To(MatchError(ContainSubstring("want unix:PATH")))
	},
		Entry("empty", ""),
		Entry("without a path", "unix:"),
		Entry("without a device", "device:"),
		Entry("of another kind", "tcp:localhost:1"),
		Entry("of a bare path", "/run/nsm.sock"),
	)
})

var _ = Describe("A module on a Unix socket", func() {
	BeforeEach(func() {
		before := gleak.Goroutines()
		DeferCleanup(func() { Eventually(gleak.Goroutines).ShouldNot(gleak.HaveLeaked(before)) })
	})

	It("asks and returns the document", func(ctx SpecContext) {
		asked := make(chan nsm.Request, 1)
		module := serve(func(conn net.Conn) {
			message, err := nsm.ReadFrame(conn, nsm.MaxRequest)
			if err != nil {
				return
			}
			request, err := nsm.DecodeRequest(message)
			if err != nil {
				return
			}
			asked <- request
			answer(conn, "the document", "")
		})
		want := nsm.Request{UserData: []byte("u"), Nonce: []byte("n"), PublicKey: []byte("p")}
		document, err := module.Attest(ctx, want)
		Expect(err).NotTo(HaveOccurred())
		Expect(document).To(Equal([]byte("the document")))
		Expect(asked).To(Receive(Equal(want)))
	})

	It("returns the module's refusal", func(ctx SpecContext) {
		module := serve(func(conn net.Conn) {
			_, _ = nsm.ReadFrame(conn, nsm.MaxRequest)
			answer(conn, "", nsm.InternalError)
		})
		_, err := module.Attest(ctx, nsm.Request{})
		Expect(err).To(MatchError(nsm.InternalError))
	})

	It("asks nobody for what is too large", func(ctx SpecContext) {
		module := serve(func(net.Conn) {})
		_, err := module.Attest(ctx, nsm.Request{Nonce: make([]byte, nsm.MaxNonce+1)})
		Expect(err).To(MatchError(nsm.InputTooLarge))
	})

	It("says when the connection ends early", func(ctx SpecContext) {
		module := serve(func(conn net.Conn) { _, _ = nsm.ReadFrame(conn, nsm.MaxRequest) })
		_, err := module.Attest(ctx, nsm.Request{})
		Expect(err).To(MatchError(ContainSubstring("read message length")))
	})

	It("says when nobody listens", func(ctx SpecContext) {
		module, err := nsm.Dial("unix:" + filepath.Join(GinkgoT().TempDir(), "none.sock"))
		Expect(err).NotTo(HaveOccurred())
		_, err = module.Attest(ctx, nsm.Request{})
		Expect(err).To(MatchError(fs.ErrNotExist))
	})

	It("stops waiting when its context ends", func(ctx SpecContext) {
		ctx2, cancel := context.WithCancelCause(ctx)
		module := serve(func(conn net.Conn) {
			_, _ = nsm.ReadFrame(conn, nsm.MaxRequest)
			cancel(errors.New("enough"))
			_, _ = conn.Read(make([]byte, 1)) // until the client hangs up
		})
		_, err := module.Attest(ctx2, nsm.Request{})
		Expect(err).To(MatchError(context.Canceled))
	})
})

var _ = Describe("A module that is a device", func() {
	It("says when there is none, or it is something else", func(ctx SpecContext) {
		module, err := nsm.Dial("device:" + filepath.Join(GinkgoT().TempDir(), "nsm"))
		Expect(err).NotTo(HaveOccurred())
		_, err = module.Attest(ctx, nsm.Request{})
		Expect(err).To(MatchError(fs.ErrNotExist))

		module, err = nsm.Dial("device:/dev/null")
		Expect(err).NotTo(HaveOccurred())
		_, err = module.Attest(ctx, nsm.Request{})
		Expect(err).To(MatchError(syscall.ENOTTY))
		_, err = module.Attest(ctx, nsm.Request{Nonce: make([]byte, nsm.MaxNonce+1)})
		Expect(err).To(MatchError(nsm.InputTooLarge))
	})
})

var _ = Describe("The package", func() {
	// It is part of the measured enclave, where a key that signs documents must
	// not exist: nothing from crypto, and no library but the CBOR codec.
	It("imports nothing that signs", func() {
		pkg, err := build.ImportDir(".", 0)
		Expect(err).NotTo(HaveOccurred())
		Expect(pkg.Imports).NotTo(BeEmpty())
		Expect([]string{
			"context", "encoding/binary", "errors", "fmt", "io", "net", "os", "runtime", "strings", "time", "unsafe",
			"github.com/fxamacker/cbor/v2", "golang.org/x/sys/unix",
		}).To(ContainElements(pkg.Imports))
	})
})

// serve answers one connection, and returns the module that makes it.
func serve(handle func(net.Conn)) nsm.Module {
	GinkgoHelper()
	path := filepath.Join(GinkgoT().TempDir(), "nsm.sock")
	l, err := net.Listen("unix", path)
	Expect(err).NotTo(HaveOccurred())
	done := make(chan struct{})
	go func() {
		defer close(done)
		conn, err := l.Accept()
		if err != nil {
			return
		}
		defer conn.Close()
		handle(conn)
	}()
	DeferCleanup(func() {
		l.Close()
		<-done
	})
	module, err := nsm.Dial("unix:" + path)
	Expect(err).NotTo(HaveOccurred())
	return module
}

func answer(conn net.Conn, document string, code nsm.ErrorCode) {
	message, err := nsm.EncodeResponse([]byte(document))
	if code != "" {
		message, err = nsm.EncodeError(code)
	}
	if err == nil {
		_ = nsm.WriteFrame(conn, message)
	}
}
