package xds

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
)

const (
	// tenantSecret is the name of the certificate that tenants see.
	tenantSecret = "tenant-server"
	// tenantClientSecret is that of the CAs whose certificates they may show.
	tenantClientSecret = "tenant-clients"
)

// certificate is the tenants' listener's certificate chain and key in PEM.
type certificate struct {
	chain, key []byte
}

// newCertificate checks that chain and key belong together, and copies them.
func newCertificate(certPEM, keyPEM []byte) (certificate, error) {
	if _, err := tls.X509KeyPair(certPEM, keyPEM); err != nil {
		return certificate{}, fmt.Errorf("tenant certificate: %w", err)
	}
	return certificate{chain: bytes.Clone(certPEM), key: bytes.Clone(keyPEM)}, nil
}

func (c certificate) isZero() bool { return c.chain == nil }

// secret is what SDS serves. Envoy takes a new one up without closing a
// connection.
func (c certificate) secret() *tlsv3.Secret {
	return &tlsv3.Secret{Name: tenantSecret, Type: &tlsv3.Secret_TlsCertificate{TlsCertificate: &tlsv3.TlsCertificate{
		CertificateChain: inline(c.chain),
		PrivateKey:       inline(c.key),
	}}}
}

// clientCA is the CAs whose certificates tenants may show, in PEM; nil: none are asked
// for.
type clientCA []byte

// newClientCA checks that there is nothing but certificates, at least one.
func newClientCA(caPEM []byte) (clientCA, error) {
	n := 0
	for rest := bytes.TrimSpace(caPEM); len(rest) > 0; n++ {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil || block.Type != "CERTIFICATE" {
			return nil, errors.New("CA of tenants' certificates: want PEM with CERTIFICATE alone")
		}
		if _, err := x509.ParseCertificate(block.Bytes); err != nil {
			return nil, fmt.Errorf("CA of tenants' certificates: %w", err)
		}
		rest = bytes.TrimSpace(rest)
	}
	if n == 0 {
		return nil, errors.New("CA of tenants' certificates: there is no certificate")
	}
	return bytes.Clone(caPEM), nil
}

func (c clientCA) secret() *tlsv3.Secret {
	return &tlsv3.Secret{Name: tenantClientSecret, Type: &tlsv3.Secret_ValidationContext{
		ValidationContext: &tlsv3.CertificateValidationContext{TrustedCa: inline(c)},
	}}
}

func inline(content []byte) *corev3.DataSource {
	return &corev3.DataSource{Specifier: &corev3.DataSource_InlineBytes{InlineBytes: content}}
}
