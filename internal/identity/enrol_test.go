package identity_test

import (
	"context"
	"net"
	"path/filepath"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	"github.com/onsi/gomega/gleak"

	"github.com/mrgc/mrgc/internal/identity"
	"github.com/mrgc/mrgc/standin/devca"
)

var enclave = identity.ID{Region: "use1", Instance: "use1-0", Role: identity.RoleEnclave}

var _ = Describe("An enclave's identity", func() {
	BeforeEach(func() {
		DeferCleanup(func(before []gleak.Goroutine) { Eventually(gleak.Goroutines).ShouldNot(gleak.HaveLeaked(before)) }, gleak.Goroutines())
	})

	listen := func(serve func(context.Context, net.Listener) error) (path string) {
		GinkgoHelper()
		path = filepath.Join(GinkgoT().TempDir(), "s")
		l, err := net.Listen("unix", path)
		Expect(err).NotTo(HaveOccurred())
		ctx, stop := context.WithCancel(context.Background())
		ended := make(chan error, 1)
		go func() { ended <- serve(ctx, l) }()
		DeferCleanup(func() { stop(); Eventually(ended).Should(Receive(BeNil())) })
		return path
	}
	// relayTo is a parent's relay that has an authority's token for id.
	relayTo := func(ca *devca.Authority, id identity.ID) func(context.Context) (net.Conn, error) {
		GinkgoHelper()
		token, err := ca.Grant(id)
		Expect(err).NotTo(HaveOccurred())
		authority := listen(ca.Serve)
		relay := listen(func(ctx context.Context, l net.Listener) error { return identity.Relay(ctx, l, authority, token) })
		return func(ctx context.Context) (net.Conn, error) { return (&net.Dialer{}).DialContext(ctx, "unix", relay) }
	}

	It("comes by its parent's relay, without a secret of its own, and is good for TLS", func(ctx SpecContext) {
		ca := newAuthority()
		source, err := identity.Enrol(ctx, relayTo(ca, enclave), identity.RoleEnclave, ca.RootPEM())
		Expect(err).NotTo(HaveOccurred())
		Expect(source.ID()).To(Equal(enclave))
		other, _ := fromFiles(ca, guard)
		clientErr, serverErr := handshake(source.ClientTLS(only(guard)), other.ServerTLS(only(enclave)))
		Expect(clientErr).NotTo(HaveOccurred())
		Expect(serverErr).NotTo(HaveOccurred())
	})

	It("is not taken from another authority, whatever roots that one sends", func(ctx SpecContext) {
		_, err := identity.Enrol(ctx, relayTo(newAuthority(), enclave), identity.RoleEnclave, newAuthority().RootPEM())
		Expect(err).To(MatchError(ContainSubstring("another authority")))
	})

	It("is not taken for another role", func(ctx SpecContext) {
		ca := newAuthority()
		_, err := identity.Enrol(ctx, relayTo(ca, guard), identity.RoleEnclave, ca.RootPEM())
		Expect(err).To(MatchError(ContainSubstring("not for the role of enclave")))
	})

	It("needs roots", func(ctx SpecContext) {
		_, err := identity.Enrol(ctx, relayTo(newAuthority(), enclave), identity.RoleEnclave, nil)
		Expect(err).To(MatchError(ContainSubstring("no certificate among the trusted roots")))
	})

	It("is refused when the authority is not there", func(ctx SpecContext) {
		relay := listen(func(ctx context.Context, l net.Listener) error { return identity.Relay(ctx, l, "/nowhere", "t") })
		dial := func(ctx context.Context) (net.Conn, error) { return (&net.Dialer{}).DialContext(ctx, "unix", relay) }
		_, err := identity.Enrol(ctx, dial, identity.RoleEnclave, newAuthority().RootPEM())
		Expect(err).To(MatchError(ContainSubstring("no answer from the certificate authority")))
	})
})
