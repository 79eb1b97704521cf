package attest

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
)

// chain is a document's certificates in the order of trust: the root first, the
// leaf that signed the document last. AWS's is root, region, zone, instance,
// enclave.
type chain []*x509.Certificate

func parseChain(bundle []byteString, leaf byteString) (chain, error) {
	c := make(chain, 0, len(bundle)+1)
	for i, der := range append(slices.Clip(bundle), leaf) {
		name := fmt.Sprintf("cabundle[%d]", i)
		if i == len(bundle) {
			name = "certificate"
		}
		if len(der) == 0 || len(der) > maxCertificate {
			return nil, fmt.Errorf("%s of %d bytes, not 1 to %d", name, len(der), maxCertificate)
		}
		cert, err := x509.ParseCertificate(der)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		if err := checkCertificate(cert, i < len(bundle)); err != nil {
			return nil, fmt.Errorf("%s (%s): %w", name, cert.Subject.CommonName, err)
		}
		c = append(c, cert)
	}
	return c, nil
}

// checkCertificate holds the rules that crypto/x509 is lenient about: it takes
// a CA of X.509 version 1, or without key usage, and a leaf that is a CA.
func checkCertificate(cert *x509.Certificate, ca bool) error {
	key, ok := cert.PublicKey.(*ecdsa.PublicKey)
	if !ok || key.Curve != elliptic.P384() {
		return errors.New("key is not on P-384")
	}
	if cert.SignatureAlgorithm != x509.ECDSAWithSHA384 {
		return fmt.Errorf("signed with %s, not %s", cert.SignatureAlgorithm, x509.ECDSAWithSHA384)
	}
	if cert.Version != 3 {
		return fmt.Errorf("X.509 version %d, not 3", cert.Version)
	}
	isCA := cert.BasicConstraintsValid && cert.IsCA
	switch {
	case ca && !isCA:
		return errors.New("not a CA, but it issues the next certificate")
	case ca && cert.KeyUsage&x509.KeyUsageCertSign == 0:
		return errors.New("key usage does not allow it to sign certificates")
	case !ca && isCA:
		return errors.New("the leaf is a CA")
	case !ca && cert.KeyUsage&x509.KeyUsageDigitalSignature == 0:
		return errors.New("key usage does not allow it to sign documents")
	}
	return nil
}

func (c chain) leaf() *x509.Certificate { return c[len(c)-1] }

// verify checks the path from one of the roots to the leaf, in exactly the
// order given, at the time of signing, and that every certificate is still
// valid at now.
func (c chain) verify(roots []*x509.Certificate, signed, now time.Time) error {
	if !slices.ContainsFunc(roots, c[0].Equal) {
		return fmt.Errorf("root certificate %q is not one that the policy pins", c[0].Subject.CommonName)
	}
	opts := x509.VerifyOptions{
		Roots:         x509.NewCertPool(),
		Intermediates: x509.NewCertPool(),
		CurrentTime:   signed,
		KeyUsages:     []x509.ExtKeyUsage{x509.ExtKeyUsageAny},
	}
	opts.Roots.AddCert(c[0])
	for _, cert := range c[1 : len(c)-1] {
		opts.Intermediates.AddCert(cert)
	}
	paths, err := c.leaf().Verify(opts)
	if err != nil {
		return fmt.Errorf("certificate chain: %w", err)
	}
	if !slices.ContainsFunc(paths, c.isReverseOf) {
		return errors.New("certificate chain: the bundle is not the path from root to leaf, in order and without more")
	}
	// A document may be from slightly after now (MaxClockSkew), and then its
	// certificates may be too: what counts is the later of the two times.
	if signed.After(now) {
		now = signed
	}
	for _, cert := range c {
		if now.Before(cert.NotBefore) || now.After(cert.NotAfter) {
			return fmt.Errorf("certificate chain: %q is valid from %s to %s, not now",
				cert.Subject.CommonName, cert.NotBefore.Format(time.RFC3339), cert.NotAfter.Format(time.RFC3339))
		}
	}
	return nil
}

// isReverseOf compares with a path of crypto/x509, which has the leaf first.
func (c chain) isReverseOf(path []*x509.Certificate) bool {
	if len(path) != len(c) {
		return false
	}
	for i, cert := range path {
		if !cert.Equal(c[len(c)-1-i]) {
			return false
		}
	}
	return true
}

// region reads "us-east-1" from the common name of the certificate that the
// root issued: "2f442bd2442676f0.us-east-1.aws.nitro-enclaves". The root issues
// to regions only, so no instance can claim another one's.
func (c chain) region() string {
	if len(c) < 3 {
		return ""
	}
	name, ok := strings.CutSuffix(c[1].Subject.CommonName, ".aws.nitro-enclaves")
	if !ok {
		return ""
	}
	_, region, _ := strings.Cut(name, ".")
	if strings.Contains(region, ".") {
		return ""
	}
	return region
}
