package seal

import (
	"bytes"
	"crypto/ed25519"
	"crypto/hpke"
	"crypto/sha256"
	"fmt"
	"slices"
	"time"

	"github.com/fxamacker/cbor/v2"
)

// Suite of version 1: the HPKE identifiers (RFC 9180 section 7, and
// draft-ietf-hpke-pq for the KEM) that every recipient's claims carry.
const (
	KEMMLKEM768X25519 uint16 = 0x647a // X-Wing
	KDFHKDFSHA256     uint16 = 0x0001
	AEADAES256GCM     uint16 = 0x0002

	publicKeySize = 1216 // X-Wing: ML-KEM-768 1184 + X25519 32
	encSize       = 1120 // X-Wing: ML-KEM-768 1088 + X25519 32
)

// Modes of an enclave: what protects the plaintext. docs/isolation.md says what
// each of them claims.
const (
	ModeProcess             = "process" // development: a process, protected by nothing
	ModeNitro               = "nitro"
	ModeNitroAttestedHost   = "nitro+attested-host"
	ModeNitroAttestedHostCC = "nitro+attested-host+gpu-cc"
)

// Modes are all of them, each of which keeps more from whoever runs the instance
// than the one before.
func Modes() []string {
	return []string{ModeProcess, ModeNitro, ModeNitroAttestedHost, ModeNitroAttestedHostCC}
}

// Claims are what a recipient says of itself. They mean nothing until an
// attestation document whose user data is their hash has been verified.
type Claims struct {
	Type           RecipientType
	KEM, KDF, AEAD uint16
	PublicKey      []byte // HPKE public key, 1216 bytes
	Model          string // the one model that the recipient serves
	ManifestSHA256 [32]byte
	Region         string // short name: use1
	Mode           string // one of the Mode constants
	NotBefore      time.Time
	NotAfter       time.Time // both in whole seconds, inclusive
	ReceiptKey     []byte    // Ed25519 public key that signs receipts; nil: none
}

// ValidAt says whether t is within the claims' validity. A client asks it for
// the request's expiry too, since that is when the request may still be opened.
func (c Claims) ValidAt(t time.Time) bool {
	return !t.Before(c.NotBefore) && !t.After(c.NotAfter)
}

// claimsMap is the wire form: a CBOR map with small integer keys.
type claimsMap struct {
	Type           RecipientType `cbor:"1,keyasint"`
	KEM            uint16        `cbor:"2,keyasint"`
	KDF            uint16        `cbor:"3,keyasint"`
	AEAD           uint16        `cbor:"4,keyasint"`
	PublicKey      []byte        `cbor:"5,keyasint"`
	Model          string        `cbor:"6,keyasint"`
	ManifestSHA256 []byte        `cbor:"7,keyasint"`
	Region         string        `cbor:"8,keyasint"`
	Mode           string        `cbor:"9,keyasint"`
	NotBefore      uint64        `cbor:"10,keyasint"`
	NotAfter       uint64        `cbor:"11,keyasint"`
	ReceiptKey     []byte        `cbor:"12,keyasint,omitempty"`
}

// maxClaimsBytes is above the largest claims that the rules below admit.
const maxClaimsBytes = 4096

// ParseClaims reads claims strictly: deterministic CBOR (RFC 8949 section
// 4.2.1) with exactly the known keys, known suite, type and mode, right lengths.
// Errors wrap [ErrMalformed].
func ParseClaims(raw []byte) (Claims, error) {
	if len(raw) > maxClaimsBytes {
		return Claims{}, malformed("claims have %d bytes, more than %d", len(raw), maxClaimsBytes)
	}
	var m claimsMap
	if err := decodeCBOR(raw, &m, cbor.ExtraDecErrorUnknownField); err != nil {
		return Claims{}, malformed("claims: %v", err)
	}
	// The bytes are what is hashed and attested. That they are the only
	// spelling of these claims also rules out missing keys and null values.
	again, err := encodeCBOR(m)
	if err != nil || !bytes.Equal(again, raw) {
		return Claims{}, malformed("claims are not in deterministic form, or lack a key")
	}
	if err := m.check(); err != nil {
		return Claims{}, err
	}
	return m.claims(), nil
}

// encode checks the claims and gives their wire form.
func (c Claims) encode() ([]byte, error) {
	m := claimsMap{
		Type: c.Type, KEM: c.KEM, KDF: c.KDF, AEAD: c.AEAD,
		PublicKey: c.PublicKey, Model: c.Model, ManifestSHA256: c.ManifestSHA256[:],
		Region: c.Region, Mode: c.Mode, ReceiptKey: c.ReceiptKey,
	}
	var err error
	if m.NotBefore, err = unixSeconds(c.NotBefore); err != nil {
		return nil, fmt.Errorf("claims: not before: %w", err)
	}
	if m.NotAfter, err = unixSeconds(c.NotAfter); err != nil {
		return nil, fmt.Errorf("claims: not after: %w", err)
	}
	if err := m.check(); err != nil {
		return nil, err
	}
	return encodeCBOR(m)
}

func (m *claimsMap) claims() Claims {
	return Claims{
		Type: m.Type, KEM: m.KEM, KDF: m.KDF, AEAD: m.AEAD,
		PublicKey: m.PublicKey, Model: m.Model, ManifestSHA256: [32]byte(m.ManifestSHA256),
		Region: m.Region, Mode: m.Mode, ReceiptKey: m.ReceiptKey,
		NotBefore: fromUnixSeconds(m.NotBefore), NotAfter: fromUnixSeconds(m.NotAfter),
	}
}

func (m *claimsMap) check() error {
	switch {
	case m.Type != TypeEnclave && m.Type != TypeFleet:
		return malformed("claims: recipients of %s are not supported", m.Type)
	case m.KEM != KEMMLKEM768X25519 || m.KDF != KDFHKDFSHA256 || m.AEAD != AEADAES256GCM:
		return malformed("claims: suite %#04x/%#04x/%#04x is not supported", m.KEM, m.KDF, m.AEAD)
	case len(m.PublicKey) != publicKeySize:
		return malformed("claims: public key has %d bytes, not %d", len(m.PublicKey), publicKeySize)
	case m.Model == "" || m.Region == "":
		return malformed("claims: model or region is empty")
	case len(m.ManifestSHA256) != sha256.Size:
		return malformed("claims: manifest hash has %d bytes, not %d", len(m.ManifestSHA256), sha256.Size)
	case !slices.Contains(Modes(), m.Mode):
		return malformed("claims: mode is not known")
	case m.NotBefore >= m.NotAfter || m.NotAfter > maxUnixSeconds:
		return malformed("claims: validity from %d to %d", m.NotBefore, m.NotAfter)
	case m.ReceiptKey != nil && len(m.ReceiptKey) != ed25519.PublicKeySize:
		return malformed("claims: receipt key has %d bytes, not %d", len(m.ReceiptKey), ed25519.PublicKeySize)
	}
	if err := checkName("claims: model", m.Model); err != nil {
		return err
	}
	return checkName("claims: region", m.Region)
}

// Recipient is a recipient as others see it: its claims, parsed, and the bytes
// that they came in.
type Recipient struct {
	raw    []byte
	claims Claims
	id     KeyID
	public hpke.PublicKey
}

// ParseRecipient reads a recipient's raw claims, as [ParseClaims] does, and its
// public key. Errors wrap [ErrMalformed].
func ParseRecipient(rawClaims []byte) (*Recipient, error) {
	claims, err := ParseClaims(rawClaims)
	if err != nil {
		return nil, err
	}
	public, err := hpke.MLKEM768X25519().NewPublicKey(claims.PublicKey)
	if err != nil {
		return nil, malformed("claims: public key: %v", err)
	}
	digest := sha256.Sum256(rawClaims)
	return &Recipient{
		raw:    bytes.Clone(rawClaims),
		claims: claims,
		id:     KeyID(digest[:8]),
		public: public,
	}, nil
}

// KeyID is the recipient's name in headers and envelopes.
func (r *Recipient) KeyID() KeyID { return r.id }

// Type is the claims' own.
func (r *Recipient) Type() RecipientType { return r.claims.Type }

// RawClaims are the claims' bytes, as they were received.
func (r *Recipient) RawClaims() []byte { return bytes.Clone(r.raw) }

// ClaimsDigest is the SHA-256 of the raw claims: the user data that the
// recipient's attestation document must carry.
func (r *Recipient) ClaimsDigest() [32]byte { return sha256.Sum256(r.raw) }

// Claims are the parsed claims.
func (r *Recipient) Claims() Claims {
	c := r.claims
	c.PublicKey, c.ReceiptKey = bytes.Clone(c.PublicKey), bytes.Clone(c.ReceiptKey)
	return c
}

// RecipientKey is a recipient with its private key. It is safe for concurrent
// use.
type RecipientKey struct {
	*Recipient
	private hpke.PrivateKey
}

// NewRecipientKey makes a key pair of [TypeEnclave] and the claims that go with it. It sets
// Type, KEM, KDF, AEAD and PublicKey itself; all else is the caller's.
func NewRecipientKey(claims Claims) (*RecipientKey, error) {
	private, err := hpke.MLKEM768X25519().GenerateKey()
	if err != nil {
		return nil, fmt.Errorf("make recipient key: %w", err)
	}
	return newRecipientKey(TypeEnclave, private, claims)
}

func newRecipientKey(kind RecipientType, private hpke.PrivateKey, claims Claims) (*RecipientKey, error) {
	claims.Type = kind
	claims.KEM, claims.KDF, claims.AEAD = KEMMLKEM768X25519, KDFHKDFSHA256, AEADAES256GCM
	claims.PublicKey = private.PublicKey().Bytes()
	raw, err := claims.encode()
	if err != nil {
		return nil, err
	}
	recipient, err := ParseRecipient(raw)
	if err != nil {
		return nil, err
	}
	return &RecipientKey{Recipient: recipient, private: private}, nil
}
