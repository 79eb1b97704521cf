package attest

import (
	"crypto/x509"
	_ "embed" // for the root certificate
	"encoding/pem"
	"errors"
	"fmt"
)

//go:embed aws-nitro-root-g1.pem
var awsRootPEM []byte

// AWSRoot returns the root G1 of the AWS Nitro Enclaves PKI, which is part of
// the binary. SHA-256 of the certificate:
// 641a0321a3e244efe456463195d606317ed7cdcc3c1756e09893f3c68f79bb5b.
func AWSRoot() *x509.Certificate {
	root, err := ParseRoot(awsRootPEM)
	if err != nil {
		panic("attest: embedded root: " + err.Error()) // no input reaches this; a test parses it
	}
	return root
}

// ParseRoot reads a root to pin from PEM: exactly one certificate, a CA with a
// P-384 key.
func ParseRoot(data []byte) (*x509.Certificate, error) {
	block, rest := pem.Decode(data)
	if block == nil || block.Type != "CERTIFICATE" {
		return nil, errors.New("root: no PEM block of type CERTIFICATE")
	}
	if next, _ := pem.Decode(rest); next != nil {
		return nil, errors.New("root: more than one PEM block")
	}
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("root: %w", err)
	}
	if err := checkCertificate(cert, true); err != nil {
		return nil, fmt.Errorf("root %q: %w", cert.Subject.CommonName, err)
	}
	return cert, nil
}
