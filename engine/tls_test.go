package engine_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"math/big"
	"net"
	"net/http"
	"net/url"
	"time"

	. "github.com/onsi/gomega"

	"github.com/mrgc/mrgc/engine"
)

const (
	enclaveID = "spiffe://mrgc.internal/region/use1/instance/use1-0/enclave"
	parentID  = "spiffe://mrgc.internal/region/use1/instance/use1-0/parent"
	otherID   = "spiffe://mrgc.internal/region/use1/router"
)

// authority signs certificates for a test.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newAuthority() *authority {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	Expect(err).NotTo(HaveOccurred())
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	Expect(err).NotTo(HaveOccurred())
	cert, err := x509.ParseCertificate(der)
	Expect(err).NotTo(HaveOccurred())
	return &authority{cert: cert, key: key}
}

func (a *authority) pool() *x509.CertPool {
	pool := x509.NewCertPool()
	pool.AddCert(a.cert)
	return pool
}

// issue makes a certificate for a SPIFFE id, good for both sides.
func (a *authority) issue(id string) tls.Certificate {
	uri, err := url.Parse(id)
	Expect(err).NotTo(HaveOccurred())
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	Expect(err).NotTo(HaveOccurred())
	template := &x509.Certificate{
		SerialNumber: big.NewInt(2), NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(time.Hour),
		URIs: []*url.URL{uri}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, key.Public(), a.key)
	Expect(err).NotTo(HaveOccurred())
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

func (a *authority) server() *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS13, ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: a.pool(),
		Certificates: []tls.Certificate{a.issue("spiffe://mrgc.internal/region/use1/instance/use1-0/guard")},
	}
}

// client gives a client's side for an id; an empty one has no certificate.
func (a *authority) client(id string) *tls.Config {
	c := &tls.Config{MinVersion: tls.VersionTLS13, RootCAs: a.pool()}
	if id != "" {
		c.Certificates = []tls.Certificate{a.issue(id)}
	}
	return c
}

// roleByURI tells callers apart as the real guard does, by their certificate.
func roleByURI(r *http.Request) engine.Role {
	if r.TLS == nil || len(r.TLS.VerifiedChains) == 0 || len(r.TLS.PeerCertificates[0].URIs) != 1 {
		return engine.RoleNone
	}
	switch r.TLS.PeerCertificates[0].URIs[0].String() {
	case enclaveID:
		return engine.RoleEnclave
	case parentID:
		return engine.RoleParent
	default:
		return engine.RoleNone
	}
}
