package tenanttest

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/mrgc/mrgc/internal/tenant"
)

// Issuer is a CA of tenants' certificates.
type Issuer struct {
	certificate *x509.Certificate
	key         *ecdsa.PrivateKey
}

// NewIssuer makes one.
func NewIssuer(tb testing.TB, name string) *Issuer {
	tb.Helper()
	i := &Issuer{}
	i.certificate, i.key = certify(tb, nil, &x509.Certificate{
		Subject: pkix.Name{CommonName: name}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
		NotAfter: time.Now().Add(time.Hour),
	})
	return i
}

func certify(tb testing.TB, by *Issuer, template *x509.Certificate) (*x509.Certificate, *ecdsa.PrivateKey) {
	tb.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		tb.Fatal(err)
	}
	template.SerialNumber, template.NotBefore = big.NewInt(time.Now().UnixNano()), time.Now().Add(-2*time.Hour)
	parent, signer := template, key
	if by != nil {
		parent, signer = by.certificate, by.key
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, key.Public(), signer)
	if err != nil {
		tb.Fatal(err)
	}
	certificate, err := x509.ParseCertificate(der)
	if err != nil {
		tb.Fatal(err)
	}
	return certificate, key
}

// PEM is its own certificate, as a file has it.
func (i *Issuer) PEM() []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: i.certificate.Raw})
}

// Certificate issues a client's that ends at a time and has these names.
func (i *Issuer) Certificate(tb testing.TB, end time.Time, sans ...tenant.SAN) *tls.Certificate {
	tb.Helper()
	template := &x509.Certificate{
		NotAfter: end, KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}
	for _, san := range sans {
		if name, is := strings.CutPrefix(string(san), "dns:"); is {
			template.DNSNames = append(template.DNSNames, name)
			continue
		}
		u, err := url.Parse(strings.TrimPrefix(string(san), "uri:"))
		if err != nil {
			tb.Fatal(err)
		}
		template.URIs = append(template.URIs, u)
	}
	certificate, key := certify(tb, i, template)
	return &tls.Certificate{Certificate: [][]byte{certificate.Raw}, PrivateKey: key}
}
