package softnsm

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"time"
)

// RootName is the common name of every root of this package.
const RootName = "MRGC DEVELOPMENT ROOT, NOT AWS"

// authorityLifetime is how long roots and intermediate certificates last.
// Leaves are renewed; a development cluster does not outlive this.
const authorityLifetime = 365 * 24 * time.Hour

// Root is a development root. Its key cannot be had from it, nor stored.
type Root struct{ authority }

// NewRoot makes a root with a key of its own, valid from slightly before now.
func NewRoot(now time.Time) (*Root, error) {
	a, err := issue(authority{}, now, authorityLifetime, func(c *x509.Certificate) {
		c.Subject = pkix.Name{CommonName: RootName, Organization: []string{"MRGC"}}
	})
	if err != nil {
		return nil, fmt.Errorf("software NSM root: %w", err)
	}
	return &Root{a}, nil
}

// PEM returns the certificate, which is what a verifier has to trust.
func (r *Root) PEM() []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: r.cert.Raw})
}

// Certificate returns the certificate.
func (r *Root) Certificate() *x509.Certificate { return r.cert }

// authority is a certificate and its key.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

// backdating lets clocks that are slightly behind see a new certificate as valid.
const backdating = time.Minute

// issue makes a key on P-384 and a certificate for it, a CA unless edit says
// otherwise, signed by parent, or by itself when parent is empty.
func issue(parent authority, now time.Time, lifetime time.Duration, edit func(*x509.Certificate)) (authority, error) {
	key, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		return authority{}, err
	}
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		return authority{}, err
	}
	template := &x509.Certificate{
		SerialNumber:          serial,
		NotBefore:             now.Add(-backdating),
		NotAfter:              now.Add(lifetime),
		BasicConstraintsValid: true,
		IsCA:                  true,
		MaxPathLen:            -1,
		KeyUsage:              x509.KeyUsageCertSign,
	}
	edit(template)
	if parent.cert == nil {
		parent = authority{cert: template, key: key}
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent.cert, key.Public(), parent.key)
	if err != nil {
		return authority{}, err
	}
	cert, err := x509.ParseCertificate(der)
	return authority{cert: cert, key: key}, err
}
