package enclave_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"sync/atomic"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"

	"github.com/mrgc/mrgc/enclave"
	"github.com/mrgc/mrgc/internal/api"
	"github.com/mrgc/mrgc/internal/attest"
	"github.com/mrgc/mrgc/internal/nsm"
	"github.com/mrgc/mrgc/standin/softnsm"
)

// guardHost is a guard on a host whose software NitroTPM vouches for what it is told
// to.
type guardHost struct {
	server *httptest.Server
	cert   *x509.Certificate
	module *softnsm.Module
	asked  atomic.Int64

	// vouches gives user data and nonce for those that are right.
	vouches func(userData, nonce []byte) ([]byte, []byte)
	fails   error
}

func newGuardHost(module *softnsm.Module) *guardHost {
	GinkgoHelper()
	g := &guardHost{module: module, vouches: func(u, n []byte) ([]byte, []byte) { return u, n }}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	Expect(err).NotTo(HaveOccurred())
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "guard"}, NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	Expect(err).NotTo(HaveOccurred())
	g.cert, err = x509.ParseCertificate(der)
	Expect(err).NotTo(HaveOccurred())
	g.server = httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodPost || r.URL.Path != api.PathHostAttestation {
			_, _ = io.WriteString(w, "engine")
			return
		}
		g.asked.Add(1)
		nonce, err := io.ReadAll(r.Body)
		if err == nil {
			err = g.fails
		}
		var document []byte
		if err == nil {
			userData, nonce := g.vouches(attest.VouchedKey(g.cert.RawSubjectPublicKeyInfo), nonce)
			document, err = g.module.Document(nsm.Request{UserData: userData, Nonce: nonce})
		}
		if err != nil {
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
			return
		}
		_, _ = w.Write(document)
	}))
	g.server.TLS = &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}}
	g.server.StartTLS()
	DeferCleanup(g.server.Close)
	return g
}

// dial connects without the check, or with it.
func (g *guardHost) dial(ctx context.Context, check func(tls.ConnectionState) error) (net.Conn, error) {
	d := tls.Dialer{Config: &tls.Config{InsecureSkipVerify: true, VerifyConnection: check}} //nolint:gosec // the guard's identity is another test's
	return d.DialContext(ctx, "tcp", g.server.Listener.Addr().String())
}

var _ = Describe("The engine's host", func() {
	var (
		root   *softnsm.Root
		policy attest.HostPolicy
	)
	image := func(name string) attest.PCRs {
		return attest.PCRs{4: attest.ExtendedPCR([]byte(name)), 12: make([]byte, 48)}
	}
	tpm := func(pcrs attest.PCRs) *softnsm.Module {
		GinkgoHelper()
		module, err := softnsm.New(softnsm.Config{Root: root, Region: "us-east-1", InstanceID: "i-0", Host: pcrs})
		Expect(err).NotTo(HaveOccurred())
		return module
	}
	BeforeEach(func() {
		var err error
		root, err = softnsm.NewRoot(time.Now())
		Expect(err).NotTo(HaveOccurred())
		policy = attest.HostPolicy{Roots: []*x509.Certificate{root.Certificate()}, Hosts: []attest.Host{{Name: "engine-1", PCRs: image("engine-1")}}}
	})
	check := func(g *guardHost) *enclave.EngineHost {
		GinkgoHelper()
		h, err := enclave.NewEngineHost(policy, func(ctx context.Context) (net.Conn, error) { return g.dial(ctx, nil) }, slog.New(slog.DiscardHandler))
		Expect(err).NotTo(HaveOccurred())
		return h
	}

	It("is asked once for each key, and then reached", func(ctx SpecContext) {
		g := newGuardHost(tpm(image("engine-1")))
		h := check(g)
		for range 3 {
			conn, err := g.dial(ctx, h.VerifyConnection)
			Expect(err).NotTo(HaveOccurred())
			Expect(conn.Close()).To(Succeed())
		}
		Expect(g.asked.Load()).To(BeEquivalentTo(1))
	})

	DescribeTable("is not reached when", func(ctx SpecContext, change func(g *guardHost), reason string) {
		g := newGuardHost(tpm(image("engine-1")))
		change(g)
		h := check(g)
		for range 2 {
			_, err := g.dial(ctx, h.VerifyConnection)
			Expect(err).To(MatchError(ContainSubstring(reason)))
		}
		Expect(g.asked.Load()).To(BeNumerically("<=", 1), "a failure is not asked for again at once")
	},
		Entry("it runs another image", func(g *guardHost) { g.module = tpm(image("engine-2")) }, "match no trusted host image"),
		Entry("its command line is another", func(g *guardHost) {
			pcrs := image("engine-1")
			pcrs[12] = attest.ExtendedPCR([]byte("init=/bin/sh"))
			g.module = tpm(pcrs)
		}, "match no trusted host image"),
		Entry("it vouches for another key: the guard is elsewhere", func(g *guardHost) {
			g.vouches = func(_, nonce []byte) ([]byte, []byte) { return attest.VouchedKey([]byte("another")), nonce }
		}, "user_data"),
		Entry("the document is of before", func(g *guardHost) {
			g.vouches = func(userData, _ []byte) ([]byte, []byte) { return userData, bytes.Repeat([]byte{1}, 32) }
		}, "nonce"),
		Entry("its document is under another root", func(g *guardHost) {
			other, err := softnsm.NewRoot(time.Now())
			Expect(err).NotTo(HaveOccurred())
			g.module, err = softnsm.New(softnsm.Config{Root: other, Region: "us-east-1", InstanceID: "i-0", Host: image("engine-1")})
			Expect(err).NotTo(HaveOccurred())
		}, "not one that the policy pins"),
		Entry("nothing vouches", func(g *guardHost) { g.fails = errors.New("no TPM here") }, "no TPM here"),
	)

	It("is asked again a second after it failed, and for another key", func(ctx SpecContext) {
		g := newGuardHost(tpm(image("engine-1")))
		g.fails = errors.New("busy")
		h := check(g)
		_, err := g.dial(ctx, h.VerifyConnection)
		Expect(err).To(MatchError(ContainSubstring("busy")))
		g.fails = nil
		enclave.ForgetFailure(h)
		conn, err := g.dial(ctx, h.VerifyConnection)
		Expect(err).NotTo(HaveOccurred())
		Expect(conn.Close()).To(Succeed())
		other := newGuardHost(tpm(image("engine-1")))
		_, err = other.dial(ctx, h.VerifyConnection)
		Expect(err).To(MatchError(ContainSubstring("user_data")), "the first guard's document says nothing of the second's key")
	})

	Describe("is told to the parent, for its audit log", func() {
		var (
			g    *guardHost
			h    *enclave.EngineHost
			r    *running
			past time.Duration
		)
		BeforeEach(func() {
			past = 0
			g = newGuardHost(tpm(image("engine-1")))
			policy.MaxAge = 24 * time.Hour
			h = check(g)
			began := time.Now()
			enclave.HostAt(h, func() time.Time { return began.Add(past) })
			r = start(says(`{}`), func(c *enclave.Config) { c.EngineHost = h })
		})
		dial := func(ctx context.Context, after time.Duration) error {
			past += after
			conn, err := g.dial(ctx, h.VerifyConnection)
			if err == nil {
				Expect(conn.Close()).To(Succeed())
			}
			return err
		}
		type step struct {
			Image, Reason string
			Refusals      int
		}
		told := func() (steps []step) {
			GinkgoHelper()
			key := sha256.Sum256(g.cert.RawSubjectPublicKeyInfo)
			for _, said := range askReleases(r, "", 0).Releases {
				Expect(said.Host.Key).To(Equal(hex.EncodeToString(key[:])))
				Expect(said.Time).To(BeTemporally("~", time.Now(), time.Hour))
				steps = append(steps, step{said.Host.Image, said.Error, int(said.Host.Refusals)})
			}
			return steps
		}

		It("when it is refused first, though it is again and again, and when it is trusted after", func(ctx SpecContext) {
			g.fails = errors.New(marker)
			for range 30 {
				Expect(dial(ctx, 10*time.Second)).To(MatchError(ContainSubstring(marker)))
			}
			Expect(told()).To(HaveExactElements(step{Reason: "the engine's host showed no attestation document", Refusals: 1}), "once, and not in the host's words")
			g.fails = nil
			Expect(dial(ctx, 10*time.Second)).To(Succeed())
			Expect(dial(ctx, 10*time.Second)).To(Succeed())
			Expect(told()[1:]).To(HaveExactElements(step{Image: "engine-1", Refusals: 29}))
		}, NodeTimeout(specTimeout))

		It("when the reason changes, but not more than once a minute", func(ctx SpecContext) {
			Expect(dial(ctx, 0)).To(Succeed())
			enclave.ForgetVouched(h)
			for i := range 18 {
				g.module = tpm(image(fmt.Sprint("engine-", 2+i)))
				Expect(dial(ctx, 10*time.Second)).To(MatchError(ContainSubstring("match no trusted host image")))
			}
			steps := told()
			Expect(len(steps)).To(BeNumerically(">", 1))
			Expect(steps).To(HaveExactElements(
				step{Image: "engine-1"},
				And(HaveField("Reason", ContainSubstring("match no trusted host image")), HaveField("Refusals", 1)),
				And(HaveField("Reason", Not(Equal(steps[1].Reason))), HaveField("Refusals", 6)),
				HaveField("Refusals", 6),
			))
		}, NodeTimeout(specTimeout))
	})

	It("is not checked by a policy that passes anything", func() {
		_, err := enclave.NewEngineHost(attest.HostPolicy{Roots: policy.Roots}, nil, nil)
		Expect(err).To(MatchError(ContainSubstring("no host image")))
	})
})
