package identity

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"
)

// Names of the files in a directory that holds an identity.
const (
	CertificateFile = "tls.crt" // chain in PEM, leaf first
	KeyFile         = "tls.key" // PKCS #8 in PEM
	RootsFile       = "ca.crt"  // trusted roots in PEM
)

// Source is a process's own certificate and the roots that it trusts.
type Source struct {
	id    ID
	roots *x509.CertPool
	files string                                  // directory to reload from; empty when the key lives in memory only
	dial  func(context.Context) (net.Conn, error) // to the authority that renews it; nil: nobody does

	mu       sync.Mutex
	cert     *tls.Certificate // guarded by mu
	modified time.Time        // guarded by mu: of the certificate file when it was read
}

// Open gets an identity from where address says:
//
//	dir:PATH   the files tls.crt, tls.key and ca.crt, as SPIRE's helper or a
//	           secrets mount writes them; a new certificate is taken up when
//	           tls.crt changes, without a restart
//	unix:PATH  a certificate authority on a Unix socket, which signs a key that
//	           is made here and never leaves this process (see [Request]);
//	           token says which identity this process may have
func Open(ctx context.Context, address, token string) (*Source, error) {
	if dir, ok := strings.CutPrefix(address, "dir:"); ok {
		return fromFiles(dir)
	}
	if path, ok := strings.CutPrefix(address, "unix:"); ok {
		return request(ctx, path, token)
	}
	return nil, fmt.Errorf("identity %q: want dir:PATH or unix:PATH", address)
}

func fromFiles(dir string) (*Source, error) {
	rootsPEM, err := os.ReadFile(filepath.Join(dir, RootsFile))
	if err != nil {
		return nil, fmt.Errorf("read trusted roots: %w", err)
	}
	cert, modified, err := readFiles(dir)
	if err != nil {
		return nil, err
	}
	s, err := newSource(cert, rootsPEM)
	if err != nil {
		return nil, fmt.Errorf("identity in %s: %w", dir, err)
	}
	s.files, s.modified = dir, modified
	return s, nil
}

func readFiles(dir string) (*tls.Certificate, time.Time, error) {
	info, err := os.Stat(filepath.Join(dir, CertificateFile))
	if err != nil {
		return nil, time.Time{}, fmt.Errorf("read identity: %w", err)
	}
	cert, err := tls.LoadX509KeyPair(filepath.Join(dir, CertificateFile), filepath.Join(dir, KeyFile))
	if err != nil {
		return nil, time.Time{}, fmt.Errorf("read identity in %s: %w", dir, err)
	}
	return &cert, info.ModTime(), nil
}

func newSource(cert *tls.Certificate, rootsPEM []byte) (*Source, error) {
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(rootsPEM) {
		return nil, errors.New("no certificate among the trusted roots")
	}
	id, err := Of(cert.Leaf)
	if err != nil {
		return nil, err
	}
	return &Source{id: id, roots: roots, cert: cert}, nil
}

// ID is the process's own identity.
func (s *Source) ID() ID { return s.id }

// certificate is the current one. A replacement that cannot be read, or that
// names someone else, is ignored: the one at hand goes on.
func (s *Source) certificate() *tls.Certificate {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.files == "" {
		return s.cert
	}
	info, err := os.Stat(filepath.Join(s.files, CertificateFile))
	if err != nil || info.ModTime().Equal(s.modified) {
		return s.cert
	}
	if cert, modified, err := readFiles(s.files); err == nil {
		if id, err := Of(cert.Leaf); err == nil && id == s.id {
			s.cert, s.modified = cert, modified
		}
	}
	return s.cert
}

// PublicKey is the key of the current certificate, as its SubjectPublicKeyInfo in DER.
func (s *Source) PublicKey() []byte { return s.certificate().Leaf.RawSubjectPublicKeyInfo }

// ServerTLS admits clients whose identity satisfies allow.
func (s *Source) ServerTLS(allow func(ID) bool) *tls.Config {
	return &tls.Config{
		MinVersion:       tls.VersionTLS13,
		ClientAuth:       tls.RequireAndVerifyClientCert,
		ClientCAs:        s.roots,
		GetCertificate:   func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return s.certificate(), nil },
		VerifyConnection: func(cs tls.ConnectionState) error { return admit(cs, allow) },
		NextProtos:       []string{"h2", "http/1.1"},
	}
}

// ClientTLS connects to servers whose identity satisfies expect.
func (s *Source) ClientTLS(expect func(ID) bool) *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS13,
		// The chain is verified below, and the SPIFFE id in place of a host name.
		InsecureSkipVerify: true, //nolint:gosec // see VerifyConnection
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			return s.certificate(), nil
		},
		VerifyConnection: func(cs tls.ConnectionState) error {
			if err := verifyChain(cs.PeerCertificates, s.roots); err != nil {
				return err
			}
			return admit(cs, expect)
		},
		NextProtos: []string{"h2", "http/1.1"},
	}
}

// DialTLS makes of dial, which connects to something that has no host and port,
// the function that an [http.Transport] of HTTP/1.1 takes as DialTLSContext. Further
// checks are asked once the server is who it should be.
func (s *Source) DialTLS(dial func(context.Context) (net.Conn, error), expect func(ID) bool, further ...func(tls.ConnectionState) error) func(ctx context.Context, network, addr string) (net.Conn, error) {
	config := s.ClientTLS(expect)
	config.NextProtos = []string{"http/1.1"}
	verify := config.VerifyConnection
	config.VerifyConnection = func(cs tls.ConnectionState) error {
		err := verify(cs)
		for _, check := range further {
			if err == nil {
				err = check(cs)
			}
		}
		return err
	}
	return func(ctx context.Context, _, _ string) (net.Conn, error) {
		raw, err := dial(ctx)
		if err != nil {
			return nil, err
		}
		conn := tls.Client(raw, config)
		if err := conn.HandshakeContext(ctx); err != nil {
			return nil, errors.Join(err, raw.Close())
		}
		return conn, nil
	}
}

func verifyChain(certs []*x509.Certificate, roots *x509.CertPool) error {
	if len(certs) == 0 {
		return errors.New("identity: the server sent no certificate")
	}
	intermediates := x509.NewCertPool()
	for _, cert := range certs[1:] {
		intermediates.AddCert(cert)
	}
	_, err := certs[0].Verify(x509.VerifyOptions{
		Roots:         roots,
		Intermediates: intermediates,
		KeyUsages:     []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	})
	return err
}

func admit(cs tls.ConnectionState, allow func(ID) bool) error {
	id, err := Of(cs.PeerCertificates[0])
	if err != nil {
		return err
	}
	if !allow(id) {
		return fmt.Errorf("identity %s is not admitted here", id)
	}
	return nil
}

// Peer is the identity at the other end of a connection that ServerTLS or
// ClientTLS has admitted.
func Peer(cs *tls.ConnectionState) (ID, bool) {
	if cs == nil || len(cs.PeerCertificates) == 0 {
		return ID{}, false
	}
	id, err := Of(cs.PeerCertificates[0])
	return id, err == nil
}
