// Package attest verifies the attestation documents of Nitro Enclaves: it
// answers whether a document was signed under a pinned root, just now, by a
// security module that measured a known release, for the claims at hand.
//
// A caller holds a [Policy] (whom and what it trusts: its own choice, never a
// server's) and, for each document, what it expects of it:
//
//	releases, err := attest.ParseReleases(file)
//	policy := attest.Policy{
//		Roots:      []*x509.Certificate{attest.AWSRoot()},
//		Releases:   releases,
//		MinVersion: 7,
//	}
//	claimsHash := sha256.Sum256(claims)
//	doc, err := attest.Verify(raw, policy, attest.Expected{UserData: claimsHash[:], Region: "us-east-1"}, time.Now())
//
// The format is that of the AWS Nitro Enclaves attestation process
// (aws-nitro-enclaves-nsm-api, docs/attestation_process.md): a COSE_Sign1
// message (RFC 9052, section 4.2) over a CBOR map. This package is stricter
// than that page: one encoding of the signed message only (with or
// without its tag), ES384 only, P-384
// keys only, 48-byte PCRs only, and never a document of debug mode.
//
// It is a function of its arguments. It reads no clock and no file, opens no
// connection, and fetches no revocation list: leaf certificates live three
// hours, and [Policy.MaxAge] is far below that. It contains nothing that signs
// or makes a document, and it has no switch that skips a check. A document of
// the software NSM for development passes only when the caller puts that NSM's
// root into the policy.
package attest

import (
	"crypto/x509"
	"time"
)

// DefaultMaxAge is how old a document may be when the policy does not say.
const DefaultMaxAge = 5 * time.Minute

// MaxClockSkew is how far in the future a document's timestamp may lie, because
// the clock of whoever verifies it is behind.
const MaxClockSkew = 30 * time.Second

// Document is what a verified attestation document says. Only [Verify] makes
// one, so whoever holds a *Document holds one that was verified.
type Document struct {
	ModuleID  string    // the security module: "<instance id>-enc<16 hex digits>"
	Timestamp time.Time // when the module signed it, to the millisecond
	Digest    string    // always "SHA384"
	PCRs      PCRs

	// What the enclave put in: empty when it put in nothing.
	PublicKey []byte // at most 1024 bytes
	UserData  []byte // at most 512 bytes
	Nonce     []byte // at most 512 bytes

	// Region is the AWS region that the chain's regional certificate names
	// ("us-east-1"); empty when the chain names none.
	Region string
	// Release is the release of the policy that the PCRs match, the one with the
	// highest version when they match several. A caller that stores its version
	// as the next [Policy.MinVersion] never goes back.
	Release Release
}

// Policy is whom and what a verifier trusts.
type Policy struct {
	// Roots are the pinned roots: a document's chain begins with exactly one of
	// them. None is an error. Production trusts [AWSRoot] alone.
	Roots []*x509.Certificate
	// Releases are the measured releases: a document's PCRs must match at least
	// one. None is an error.
	Releases []Release
	// MinVersion is the lowest version of a release that is still acceptable.
	MinVersion uint64
	// MaxAge is how old a document may be. 0: [DefaultMaxAge].
	MaxAge time.Duration
}

// Expected is what a document must say, beyond the policy, to be the one that
// is asked for.
type Expected struct {
	// UserData must equal the document's. Empty: the document must have none, so
	// that a caller who forgets it is refused rather than fooled.
	UserData []byte
	// Nonce must equal the document's. Empty: not compared, for documents that
	// were made before the verifier asked.
	Nonce []byte
	// Region must equal the region of the certificate chain. Empty: not compared.
	Region string
}
