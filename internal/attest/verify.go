package attest

import (
	"crypto/subtle"
	"crypto/x509"
	"errors"
	"fmt"
	"time"
)

// Verify checks a document by every rule of this package and returns what it
// says. The error names the first rule that is broken; there is no partial
// result. raw is not kept.
//
// Certificates must be valid both when the document was signed and at now, and
// the document must be no older than the policy's MaxAge at now.
func Verify(raw []byte, p Policy, want Expected, now time.Time) (*Document, error) {
	doc, err := verify(raw, p, want, now)
	if err != nil {
		return nil, fmt.Errorf("attestation document: %w", err)
	}
	return doc, nil
}

func verify(raw []byte, p Policy, want Expected, now time.Time) (*Document, error) {
	if err := p.validate(); err != nil {
		return nil, fmt.Errorf("policy: %w", err)
	}
	doc, err := authentic(raw, ofEnclave, p.Roots, p.MaxAge, now)
	if err != nil {
		return nil, err
	}
	if err := checkImage(doc.PCRs); err != nil {
		return nil, err
	}
	if doc.Release, err = p.match(doc.PCRs); err != nil {
		return nil, err
	}
	if err := want.check(doc); err != nil {
		return nil, err
	}
	return doc, nil
}

// authentic is what a document says that was signed under one of the roots, just
// now, by a module of the kind.
func authentic(raw []byte, kind moduleKind, roots []*x509.Certificate, maxAge time.Duration, now time.Time) (*Document, error) {
	msg, err := parseEnvelope(raw)
	if err != nil {
		return nil, err
	}
	pl, err := parsePayload(msg.Payload, kind)
	if err != nil {
		return nil, fmt.Errorf("payload: %w", err)
	}
	chain, err := parseChain(pl.CABundle, pl.Certificate)
	if err != nil {
		return nil, err
	}
	// The signature comes before the chain because it is one verification, not
	// four: what was tampered with is refused at a quarter of the price.
	if err := msg.verifySignature(chain.leaf()); err != nil {
		return nil, err
	}
	doc := pl.document(kind)
	doc.Region = chain.region()
	if err := chain.verify(roots, doc.Timestamp, now); err != nil {
		return nil, err
	}
	return doc, checkFresh(doc.Timestamp, now, maxAge)
}

func (p Policy) validate() error {
	if len(p.Roots) == 0 {
		return errors.New("no root is pinned; production pins AWSRoot")
	}
	if len(p.Releases) == 0 {
		return errors.New("no release is trusted")
	}
	for i, r := range p.Releases {
		if err := r.validate(); err != nil {
			return fmt.Errorf("release %d (%q): %w", i, r.Name, err)
		}
	}
	return nil
}

// match finds the acceptable release with the highest version.
func (p Policy) match(pcrs PCRs) (Release, error) {
	var best, tooOld Release
	for _, r := range p.Releases {
		switch {
		case !r.PCRs.matches(pcrs):
		case r.Version < p.MinVersion:
			tooOld = r
		case r.Version > best.Version:
			best = r
		}
	}
	switch {
	case best.Version > 0:
		return best, nil
	case tooOld.Version > 0:
		return Release{}, fmt.Errorf("the enclave runs release %q, version %d, below the minimum version %d",
			tooOld.Name, tooOld.Version, p.MinVersion)
	default:
		return Release{}, fmt.Errorf("PCRs match no trusted release (PCR0 %s); the enclave runs another image, role or account, or the policy is older than the image", pcrs[0])
	}
}

func checkFresh(signed, now time.Time, maxAge time.Duration) error {
	if maxAge == 0 {
		maxAge = DefaultMaxAge
	}
	age := now.Sub(signed)
	if age < -MaxClockSkew {
		return fmt.Errorf("timestamp %s is %s in the future; check this machine's clock", signed.Format(time.RFC3339), -age)
	}
	if age > maxAge {
		return fmt.Errorf("timestamp %s is %s old, more than %s", signed.Format(time.RFC3339), age.Round(time.Second), maxAge)
	}
	return nil
}

// check compares without telling by its time where the first difference is.
func (want Expected) check(doc *Document) error {
	if subtle.ConstantTimeCompare(want.UserData, doc.UserData) != 1 {
		return errors.New("user_data is not what was expected: the document belongs to other claims")
	}
	if len(want.Nonce) > 0 && subtle.ConstantTimeCompare(want.Nonce, doc.Nonce) != 1 {
		return errors.New("nonce is not the one that was sent: the document was made for another challenge")
	}
	if want.Region != "" && want.Region != doc.Region {
		return fmt.Errorf("certificate chain names region %q, not %q", doc.Region, want.Region)
	}
	return nil
}
