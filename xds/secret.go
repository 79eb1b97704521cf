package xds

import (
	"bytes"
	"crypto/tls"
	"fmt"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
)

// tenantSecret is the name of the certificate that tenants see.
const tenantSecret = "tenant-server"

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

func inline(content []byte) *corev3.DataSource {
	return &corev3.DataSource{Specifier: &corev3.DataSource_InlineBytes{InlineBytes: content}}
}
