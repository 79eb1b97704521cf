package attest

import (
	"bytes"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"fmt"
	"time"
)

// Host is one measured image of the instances on which engines run: an attestable
// AMI (EC2 User Guide, "Attestable AMIs"). All of its registers are compared. They
// are of the TCG's PC Client profile, the UAPI group's registry for unified kernel
// images, and in the SHA-384 bank:
//
//	4   what the firmware started: the unified kernel image, in which kernel,
//	    command line and the root file system's dm-verity hash are
//	7   Secure Boot: whether it is on, and by whose keys
//	12  command lines and extensions from beside the image, which would change
//	    what it does; zero when there were none
//
// PCR4 alone would pass an image whose command line was overridden.
type Host struct {
	Name string `json:"name"` // for people, and receipts
	PCRs PCRs   `json:"pcrs"` // PCR4, not zero, and PCR12 or PCR7
}

func (h Host) validate() error {
	if h.Name == "" {
		return errors.New("name is missing")
	}
	if err := h.PCRs.validate(); err != nil {
		return err
	}
	image, ok := h.PCRs[4]
	switch {
	case !ok:
		return errors.New("PCR4 is missing, without which any image passes")
	case bytes.Equal(image, make([]byte, pcrSize)):
		return errors.New("PCR4 is all zero: nothing was measured")
	case h.PCRs[12] == nil && h.PCRs[7] == nil:
		return errors.New("neither PCR12 nor PCR7 is there, without which the image's command line can be another")
	}
	return nil
}

// VouchedKey is the user data by which an instance's NitroTPM vouches for the key of
// an engine's guard, which is given as its SubjectPublicKeyInfo in DER (RFC 5280,
// section 4.1): the guard's process has made it, so who holds it runs there.
func VouchedKey(publicKey []byte) []byte {
	sum := sha256.Sum256(append([]byte("mrgc engine guard 1\n"), publicKey...))
	return sum[:]
}

// HostPolicy is which instances a verifier trusts.
type HostPolicy struct {
	// Roots are as in [Policy]: NitroTPM's documents end in the same one.
	Roots []*x509.Certificate
	// Hosts are the images: a document must match at least one. None is an error.
	Hosts []Host
	// MaxAge is how old a document may be. 0: [DefaultMaxAge].
	MaxAge time.Duration
}

// Validate says what keeps anything from being verified by it.
func (p HostPolicy) Validate() error {
	if len(p.Roots) == 0 {
		return errors.New("no root is pinned; production pins AWSRoot")
	}
	if len(p.Hosts) == 0 {
		return errors.New("no host image is trusted")
	}
	for i, h := range p.Hosts {
		if err := h.validate(); err != nil {
			return fmt.Errorf("host image %d (%q): %w", i, h.Name, err)
		}
	}
	return nil
}

// ParseHosts reads a JSON array of host images as strictly as [ParseReleases] does:
//
//	[{"name": "engine-2026-11", "pcrs": {"4": "1a1f…", "12": "0000…"}}]
func ParseHosts(data []byte) ([]Host, error) {
	var hosts []Host
	if err := decodeStrictly(data, &hosts); err != nil {
		return nil, fmt.Errorf("host images: %w", err)
	}
	if err := (HostPolicy{Roots: []*x509.Certificate{AWSRoot()}, Hosts: hosts}).Validate(); err != nil {
		return nil, fmt.Errorf("host images: %w", err)
	}
	return hosts, nil
}

// VerifyHost checks a document of an instance's NitroTPM as [Verify] does an
// enclave's, and returns which of the policy's images runs there. (Without Region
// in what is expected, the region is not compared; without a nonce, whoever has
// root on such an instance once can show its documents for as long as MaxAge.)
func VerifyHost(raw []byte, p HostPolicy, want Expected, now time.Time) (Host, error) {
	host, err := verifyHost(raw, p, want, now)
	if err != nil {
		return Host{}, fmt.Errorf("the host's attestation document: %w", err)
	}
	return host, nil
}

func verifyHost(raw []byte, p HostPolicy, want Expected, now time.Time) (Host, error) {
	if err := p.Validate(); err != nil {
		return Host{}, fmt.Errorf("policy: %w", err)
	}
	doc, err := authentic(raw, ofHost, p.Roots, p.MaxAge, now)
	if err != nil {
		return Host{}, err
	}
	if err := want.check(doc); err != nil {
		return Host{}, err
	}
	for _, h := range p.Hosts {
		if h.PCRs.matches(doc.PCRs) {
			return h, nil
		}
	}
	return Host{}, fmt.Errorf("PCRs match no trusted host image (PCR4 %s, PCR7 %s, PCR12 %s)", doc.PCRs[4], doc.PCRs[7], doc.PCRs[12])
}
