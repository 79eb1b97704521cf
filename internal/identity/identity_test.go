package identity_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"io"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"testing"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	"github.com/onsi/gomega/gleak"

	"github.com/mrgc/mrgc/internal/identity"
	"github.com/mrgc/mrgc/standin/devca"
)

func TestIdentity(t *testing.T) {
	RegisterFailHandler(Fail)
	RunSpecs(t, "identity")
}

var (
	router = identity.ID{Region: "use1", Role: identity.RoleRouter}
	parent = identity.ID{Region: "use1", Instance: "use1-0", Role: identity.RoleParent}
	guard  = identity.ID{Region: "use1", Instance: "use1-0", Role: identity.RoleGuard}
)

func only(want identity.ID) func(identity.ID) bool {
	return func(id identity.ID) bool { return id == want }
}

func newAuthority() *devca.Authority {
	GinkgoHelper()
	ca, err := devca.New(time.Now())
	Expect(err).NotTo(HaveOccurred())
	return ca
}

// fromFiles writes an identity to a new directory and opens it.
func fromFiles(ca *devca.Authority, id identity.ID) (*identity.Source, string) {
	GinkgoHelper()
	dir := GinkgoT().TempDir()
	Expect(ca.WriteFiles(dir, id, time.Now())).To(Succeed())
	source, err := identity.Open(context.Background(), "dir:"+dir, "")
	Expect(err).NotTo(HaveOccurred())
	return source, dir
}

// handshake connects a client and a server over a pipe, lets the server say
// one byte, and returns each side's error.
func handshake(client, server *tls.Config) (clientErr, serverErr error) {
	near, far := net.Pipe()
	done := make(chan error, 1)
	go func() {
		conn := tls.Server(far, server)
		err := conn.Handshake()
		if err == nil {
			_, err = conn.Write([]byte{1})
		}
		done <- err
		_ = far.Close()
	}()
	conn := tls.Client(near, client)
	_, clientErr = io.ReadFull(conn, make([]byte, 1))
	_ = near.Close()
	return clientErr, <-done
}

var _ = Describe("A SPIFFE id", func() {
	DescribeTable("survives being written and read", func(id identity.ID, text string) {
		Expect(id.String()).To(Equal(text))
		read, err := identity.Parse(text)
		Expect(err).NotTo(HaveOccurred())
		Expect(read).To(Equal(id))
	},
		Entry(nil, router, "spiffe://mrgc.internal/region/use1/router"),
		Entry(nil, parent, "spiffe://mrgc.internal/region/use1/instance/use1-0/parent"),
	)
	DescribeTable("is refused", func(text string) {
		_, err := identity.Parse(text)
		Expect(err).To(HaveOccurred())
	},
		Entry("another trust domain", "spiffe://example.org/region/use1/router"),
		Entry("no role", "spiffe://mrgc.internal/region/use1"),
		Entry("an unknown role", "spiffe://mrgc.internal/region/use1/king"),
		Entry("a router with an instance", "spiffe://mrgc.internal/region/use1/instance/a/router"),
		Entry("a parent without one", "spiffe://mrgc.internal/region/use1/parent"),
		Entry("a path that climbs", "spiffe://mrgc.internal/region/use1/instance/a%2f../parent"),
		Entry("a longer path", "spiffe://mrgc.internal/region/use1/instance/a/parent/x"),
	)
	It("is none on a certificate with two", func() {
		_, err := identity.Of(&x509.Certificate{URIs: []*url.URL{router.URL(), parent.URL()}})
		Expect(err).To(MatchError(ContainSubstring("exactly one URI")))
	})
})

var _ = Describe("A connection", func() {
	var ca *devca.Authority
	BeforeEach(func() { ca = newAuthority() })

	It("is admitted when both sides are who the other expects", func() {
		client, _ := fromFiles(ca, router)
		server, _ := fromFiles(ca, parent)
		clientErr, serverErr := handshake(client.ClientTLS(only(parent)), server.ServerTLS(only(router)))
		Expect(clientErr).NotTo(HaveOccurred())
		Expect(serverErr).NotTo(HaveOccurred())
	})

	It("is refused by a server that expects someone else", func() {
		client, _ := fromFiles(ca, guard)
		server, _ := fromFiles(ca, parent)
		clientErr, serverErr := handshake(client.ClientTLS(only(parent)), server.ServerTLS(only(router)))
		Expect(serverErr).To(MatchError(ContainSubstring("guard is not admitted here")))
		Expect(clientErr).To(HaveOccurred())
	})

	It("is refused by a client that expects someone else", func() {
		client, _ := fromFiles(ca, router)
		server, _ := fromFiles(ca, guard)
		clientErr, _ := handshake(client.ClientTLS(only(parent)), server.ServerTLS(only(router)))
		Expect(clientErr).To(MatchError(ContainSubstring("guard is not admitted here")))
	})

	It("is refused by both sides under another authority", func() {
		other := newAuthority()
		client, _ := fromFiles(other, router)
		server, _ := fromFiles(ca, parent)
		clientErr, _ := handshake(client.ClientTLS(only(parent)), server.ServerTLS(only(router)))
		Expect(clientErr).To(MatchError(ContainSubstring("unknown authority")))

		trusting := client.ClientTLS(only(parent))
		trusting.VerifyConnection = nil // a client that does not look: the server still does
		_, serverErr := handshake(trusting, server.ServerTLS(only(router)))
		Expect(serverErr).To(HaveOccurred())
	})

	It("is refused without a client certificate, and below TLS 1.3", func() {
		client, _ := fromFiles(ca, router)
		server, _ := fromFiles(ca, parent)
		anonymous := client.ClientTLS(only(parent))
		anonymous.GetClientCertificate = nil
		_, serverErr := handshake(anonymous, server.ServerTLS(only(router)))
		Expect(serverErr).To(MatchError(ContainSubstring("didn't provide a certificate")))

		old := client.ClientTLS(only(parent))
		old.MinVersion, old.MaxVersion = tls.VersionTLS12, tls.VersionTLS12
		_, serverErr = handshake(old, server.ServerTLS(only(router)))
		Expect(serverErr).To(MatchError(ContainSubstring("unsupported versions")))
	})
})

var _ = Describe("An identity in files", func() {
	It("takes up a new certificate, and keeps the old one when the new one is broken or someone else's", func() {
		ca := newAuthority()
		server, dir := fromFiles(ca, parent)
		config := server.ServerTLS(only(router))
		current := func() []byte {
			cert, err := config.GetCertificate(nil)
			Expect(err).NotTo(HaveOccurred())
			return cert.Certificate[0]
		}
		first := current()
		touch := func(age time.Duration) {
			Expect(os.Chtimes(filepath.Join(dir, identity.CertificateFile), time.Time{}, time.Now().Add(age))).To(Succeed())
		}

		Expect(ca.WriteFiles(dir, parent, time.Now())).To(Succeed())
		touch(time.Second)
		second := current()
		Expect(second).NotTo(Equal(first))

		Expect(ca.WriteFiles(dir, guard, time.Now())).To(Succeed())
		touch(2 * time.Second)
		Expect(current()).To(Equal(second))

		Expect(os.WriteFile(filepath.Join(dir, identity.CertificateFile), []byte("no PEM"), 0o600)).To(Succeed())
		touch(3 * time.Second)
		Expect(current()).To(Equal(second))
	})

	It("is written for its owner alone", func() {
		_, dir := fromFiles(newAuthority(), parent)
		info, err := os.Stat(filepath.Join(dir, identity.KeyFile))
		Expect(err).NotTo(HaveOccurred())
		Expect(info.Mode().Perm()).To(Equal(os.FileMode(0o600)))
	})

	DescribeTable("is an error that names what is missing", func(file string) {
		ca := newAuthority()
		dir := GinkgoT().TempDir()
		Expect(ca.WriteFiles(dir, parent, time.Now())).To(Succeed())
		Expect(os.Remove(filepath.Join(dir, file))).To(Succeed())
		_, err := identity.Open(context.Background(), "dir:"+dir, "")
		Expect(err).To(MatchError(ContainSubstring(file)))
	},
		Entry(nil, identity.CertificateFile), Entry(nil, identity.KeyFile), Entry(nil, identity.RootsFile),
	)
})

var _ = Describe("An identity from the development CA", func() {
	var (
		ca     *devca.Authority
		socket string
	)
	BeforeEach(func() {
		known := gleak.Goroutines()
		ca = newAuthority()
		dir, err := os.MkdirTemp("", "ca")
		Expect(err).NotTo(HaveOccurred())
		socket = filepath.Join(dir, "s")
		listener, err := net.Listen("unix", socket)
		Expect(err).NotTo(HaveOccurred())
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan error, 1)
		go func() { done <- ca.Serve(ctx, listener) }()
		DeferCleanup(func() {
			cancel()
			Eventually(done).Should(Receive(BeNil()))
			Expect(os.RemoveAll(dir)).To(Succeed())
			Eventually(gleak.Goroutines).ShouldNot(gleak.HaveLeaked(known))
		})
	})

	It("is the one that the token was granted, with a new key each time", func(ctx SpecContext) {
		token, err := ca.Grant(parent)
		Expect(err).NotTo(HaveOccurred())
		first, err := identity.Open(ctx, "unix:"+socket, token)
		Expect(err).NotTo(HaveOccurred())
		Expect(first.ID()).To(Equal(parent))
		second, err := identity.Open(ctx, "unix:"+socket, token)
		Expect(err).NotTo(HaveOccurred())
		key := func(s *identity.Source) any {
			cert, err := s.ServerTLS(only(router)).GetCertificate(nil)
			Expect(err).NotTo(HaveOccurred())
			return cert.Leaf.PublicKey
		}
		Expect(key(first)).NotTo(Equal(key(second)))

		client, _ := fromFiles(ca, router)
		clientErr, serverErr := handshake(client.ClientTLS(only(parent)), first.ServerTLS(only(router)))
		Expect(clientErr).NotTo(HaveOccurred())
		Expect(serverErr).NotTo(HaveOccurred())
	})

	It("is refused without a granted token", func(ctx SpecContext) {
		_, err := identity.Open(ctx, "unix:"+socket, "guess")
		Expect(err).To(MatchError(ContainSubstring("not one that this cluster granted")))
	})

	DescribeTable("is refused for garbage", func(ctx SpecContext, said string) {
		conn, err := net.Dial("unix", socket)
		Expect(err).NotTo(HaveOccurred())
		defer conn.Close()
		_, err = conn.Write([]byte(said + "\n"))
		Expect(err).NotTo(HaveOccurred())
		answer, err := io.ReadAll(conn)
		Expect(err).NotTo(HaveOccurred())
		Expect(string(answer)).To(ContainSubstring(`"error"`))
		Expect(string(answer)).NotTo(ContainSubstring(`"chain"`))
	},
		Entry("no JSON", "hello"), Entry("another type", `{"token": 7}`), Entry("no token", `{"csr": "AAAA"}`),
	)

	It("is refused for a broken certificate request", func(ctx SpecContext) {
		token, err := ca.Grant(parent)
		Expect(err).NotTo(HaveOccurred())
		conn, err := net.Dial("unix", socket)
		Expect(err).NotTo(HaveOccurred())
		defer conn.Close()
		_, err = conn.Write([]byte(`{"token":"` + token + `","csr":"AAAA"}` + "\n"))
		Expect(err).NotTo(HaveOccurred())
		answer, err := io.ReadAll(conn)
		Expect(err).NotTo(HaveOccurred())
		Expect(string(answer)).To(ContainSubstring("bad certificate request"))
	})
})

var _ = Describe("Open", func() {
	It("says which forms it knows", func(ctx SpecContext) {
		_, err := identity.Open(ctx, "/etc/tls", "")
		Expect(err).To(MatchError(ContainSubstring("want dir:PATH or unix:PATH")))
	})
})
