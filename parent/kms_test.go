package parent_test

import (
	"context"
	"errors"
	"io"
	"net"
	"path/filepath"
	"strings"
	"sync/atomic"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"

	"github.com/mrgc/mrgc/internal/api"
	"github.com/mrgc/mrgc/internal/vsock"
	"github.com/mrgc/mrgc/parent"
)

// withKMS has the parent carry connections to an echo that stands for KMS.
func withKMS(in *instance, credentials func(context.Context) (api.AWSCredentials, error)) func(*parent.Config) {
	return func(c *parent.Config) {
		echo, err := net.Listen("tcp", "127.0.0.1:0")
		Expect(err).NotTo(HaveOccurred())
		DeferCleanup(echo.Close)
		go func() {
			for {
				conn, err := echo.Accept()
				if err != nil {
					return
				}
				go func() {
					defer conn.Close()
					_, _ = io.Copy(conn, conn)
				}()
			}
		}()
		c.KMSRelay, err = vsock.Listen(in.kmsAddress())
		Expect(err).NotTo(HaveOccurred())
		DeferCleanup(func() { _ = c.KMSRelay.Close() }) // Run closes it too
		c.DialKMS = func(ctx context.Context) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "tcp", echo.Addr().String())
		}
		c.Credentials = credentials
		c.ProbeInterval = 50 * time.Millisecond
	}
}

func (in *instance) kmsAddress() string { return "unix:" + filepath.Join(in.dir, "v_5002") }

var _ = Describe("The way to KMS", func() {
	var in *instance
	var id atomic.Pointer[string] // of the credentials; nil: there are none

	BeforeEach(func() {
		in = surroundings()
		id.Store(new("AKIAFIRST"))
		config := in.config()
		withKMS(in, func(context.Context) (api.AWSCredentials, error) {
			held := id.Load()
			if held == nil {
				return api.AWSCredentials{}, errors.New("no role")
			}
			return api.AWSCredentials{AccessKeyID: *held, SecretAccessKey: "secret", SessionToken: "token"}, nil
		})(&config)
		in.run(config)
	})

	It("is a pipe of bytes", func(ctx SpecContext) {
		conn, err := vsock.Dial(ctx, in.kmsAddress())
		Expect(err).NotTo(HaveOccurred())
		DeferCleanup(conn.Close)
		text := strings.Repeat("ciphertext ", 1000)
		_, err = io.WriteString(conn, text)
		Expect(err).NotTo(HaveOccurred())
		back := make([]byte, len(text))
		_, err = io.ReadFull(conn, back)
		Expect(err).NotTo(HaveOccurred())
		Expect(string(back)).To(Equal(text))
	}, NodeTimeout(specTimeout))

	It("comes with credentials: at the enclave's start, when there are new ones, and when it is another enclave", func(ctx SpecContext) {
		Eventually(ctx, in.enclave.handedCredentials).Should(Equal([]string{"AKIAFIRST secret token"}))
		id.Store(new("AKIASECOND"))
		Eventually(ctx, in.enclave.handedCredentials).Should(Equal([]string{"AKIAFIRST secret token", "AKIASECOND secret token"}))
		in.enclave.stop()
		in.enclave.start()
		Eventually(ctx, in.enclave.handedCredentials).Should(Equal([]string{"AKIASECOND secret token"}))
	}, NodeTimeout(specTimeout))

	It("leaves an instance well that has no credentials", func(ctx SpecContext) {
		id.Store(nil)
		in.eventuallyRegistered(ctx, healthy())
	}, NodeTimeout(specTimeout))
})
