package seal

import (
	"bytes"
	"crypto/ed25519"
	"encoding/hex"
	"fmt"
	"time"

	"github.com/fxamacker/cbor/v2"
)

// Receipt is what an enclave signs of a request that it has answered. Its fields
// are in two parts, by who vouches for them: what the enclave saw itself, and
// what its host told it, which whoever controls the host can make up.
//
// It travels as a COSE_Sign1 message (RFC 9052 section 4.2) by the receipt key of
// the recipient's claims. Only the claims' attestation gives it weight.
type Receipt struct {
	Enclave EnclaveVerified
	Host    HostAsserted
}

// EnclaveVerified is what the enclave itself has seen or computed.
type EnclaveVerified struct {
	ClaimsSHA256   [32]byte // of the recipient that opened the request: by their attestation, the enclave's release
	RequestID      RequestID
	Operation      Operation
	Model          string   // that the request is for
	RequestSHA256  [32]byte // of the JSON that was sealed
	Status         int      // of the answer, as in its Head
	ResponseSHA256 [32]byte // of all of the answer's data
	EndedAt        time.Time
	// SaltID is of the salt under which the engine was asked, and under which alone
	// it may find the prompt again; zero: it was not asked.
	SaltID SaltID
}

// SaltID tells cache salts apart, and nothing else of them (docs/protocol.md).
type SaltID [16]byte

// String is the id in hex.
func (s SaltID) String() string { return hex.EncodeToString(s[:]) }

// HostAsserted is what the enclave was told: by the engine that the host runs, or
// by the parent.
type HostAsserted struct {
	ModelVersion string // empty: not told
	PromptTokens int
	OutputTokens int
	LastWash     Wash // the last full wash before the request came; zero: none that the enclave was told of
	// Cache is what the guard made of the salt: "salt", "slots" or "none"; empty:
	// it did not say, or the engine was not asked.
	Cache string
}

// Wash names a full wash of an instance.
type Wash struct {
	ID      string // empty: none
	EndedAt time.Time
}

// Versions of a receipt. The second has a salt id, and may have the guard's word
// on the cache; a receipt without is of the first, so that each has one spelling
// and what was kept from before there were salts still verifies.
const (
	receiptPlain  = 1
	receiptSalted = 2
)

// receiptMap is the wire form of the signed payload, with small integer keys.
type receiptMap struct {
	Version uint8       `cbor:"1,keyasint"`
	Enclave enclavePart `cbor:"2,keyasint"`
	Host    hostPart    `cbor:"3,keyasint"`
}

type enclavePart struct {
	ClaimsSHA256   []byte    `cbor:"1,keyasint"`
	RequestID      []byte    `cbor:"2,keyasint"`
	Operation      Operation `cbor:"3,keyasint"`
	Model          string    `cbor:"4,keyasint"`
	RequestSHA256  []byte    `cbor:"5,keyasint"`
	Status         uint16    `cbor:"6,keyasint"`
	ResponseSHA256 []byte    `cbor:"7,keyasint"`
	EndedAt        uint64    `cbor:"8,keyasint"`
	SaltID         []byte    `cbor:"9,keyasint,omitempty"`
}

type hostPart struct {
	ModelVersion string `cbor:"1,keyasint"`
	PromptTokens uint32 `cbor:"2,keyasint"`
	OutputTokens uint32 `cbor:"3,keyasint"`
	WashID       string `cbor:"4,keyasint,omitempty"`
	WashEndedAt  uint64 `cbor:"5,keyasint,omitempty"`
	Cache        string `cbor:"6,keyasint,omitempty"`
}

// receiptHead is all of a receipt before its payload's length: tag 18, an array
// of four, the protected header {1: -8} (EdDSA, RFC 9053 section 2.2), and an
// empty unprotected header. There is no other.
var receiptHead = []byte{0xd2, 0x84, 0x43, 0xa1, 0x01, 0x27, 0xa0}

// signedReceipt gives the Sig_structure of RFC 9052 section 4.4.
func signedReceipt(payload []byte) ([]byte, error) {
	return encodeCBOR([]any{"Signature1", receiptHead[3:6], []byte{}, payload})
}

// Sign gives the receipt as it travels. Errors wrap [ErrMalformed].
func (r Receipt) Sign(key ed25519.PrivateKey) ([]byte, error) {
	m, err := r.wire()
	if err != nil {
		return nil, err
	}
	payload, err := encodeCBOR(m)
	if err != nil {
		return nil, err
	}
	return signReceiptPayload(payload, key)
}

func signReceiptPayload(payload []byte, key ed25519.PrivateKey) ([]byte, error) {
	signed, err := signedReceipt(payload)
	if err != nil {
		return nil, err
	}
	out, err := encodeCBOR([]any{payload, ed25519.Sign(key, signed)})
	if err != nil {
		return nil, err
	}
	return append(bytes.Clone(receiptHead), out[1:]...), nil // the two items, without their array's head
}

// VerifyReceipt reads a receipt that this recipient's enclave has signed, of a
// request that was sealed to it. It is strict: there is one spelling of each
// receipt. Every failure wraps [ErrMalformed] or is [ErrReceipt]. The claims'
// attestation, and whether request and answer are those of the receipt, are the
// caller's to check.
func (r *Recipient) VerifyReceipt(raw []byte) (Receipt, error) {
	if len(r.claims.ReceiptKey) != ed25519.PublicKeySize {
		return Receipt{}, fmt.Errorf("%w: the recipient's claims have no receipt key", ErrReceipt)
	}
	payload, signature, err := splitReceipt(raw)
	if err != nil {
		return Receipt{}, err
	}
	signed, err := signedReceipt(payload)
	if err != nil {
		return Receipt{}, malformed("receipt: %v", err)
	}
	if !ed25519.Verify(r.claims.ReceiptKey, signed, signature) {
		return Receipt{}, fmt.Errorf("%w: it is not signed by the recipient's receipt key", ErrReceipt)
	}
	receipt, err := parseReceipt(payload)
	if err != nil {
		return Receipt{}, err
	}
	e := receipt.Enclave
	switch {
	case e.ClaimsSHA256 != r.ClaimsDigest():
		return Receipt{}, fmt.Errorf("%w: it is of other claims", ErrReceipt)
	case e.Model != r.claims.Model:
		return Receipt{}, fmt.Errorf("%w: it is of another model than the claims", ErrReceipt)
	case e.EndedAt.Before(r.claims.NotBefore):
		return Receipt{}, fmt.Errorf("%w: it is older than the claims", ErrReceipt)
	}
	return receipt, nil
}

// splitReceipt takes a message apart without believing any of it.
func splitReceipt(raw []byte) (payload, signature []byte, err error) {
	if len(raw) > maxReceiptBytes {
		return nil, nil, malformed("receipt has %d bytes, more than %d", len(raw), maxReceiptBytes)
	}
	rest, ok := bytes.CutPrefix(raw, receiptHead)
	if !ok {
		return nil, nil, malformed("receipt is no COSE_Sign1 message by EdDSA")
	}
	var parts [][]byte
	array := append([]byte{0x82}, rest...) // an array of two
	if err := decodeCBOR(array, &parts, cbor.ExtraDecErrorNone); err != nil {
		return nil, nil, malformed("receipt: %v", err)
	}
	again, err := encodeCBOR(parts)
	if err != nil || !bytes.Equal(again, array) || len(parts[1]) != ed25519.SignatureSize {
		return nil, nil, malformed("receipt is not in deterministic form, or its signature has another length")
	}
	return parts[0], parts[1], nil
}

// parseReceipt reads a payload strictly, as [ParseClaims] does claims.
func parseReceipt(payload []byte) (Receipt, error) {
	var m receiptMap
	if err := decodeCBOR(payload, &m, cbor.ExtraDecErrorUnknownField); err != nil {
		return Receipt{}, malformed("receipt: %v", err)
	}
	again, err := encodeCBOR(m)
	if err != nil || !bytes.Equal(again, payload) {
		return Receipt{}, malformed("receipt is not in deterministic form, or lacks a key")
	}
	if err := m.check(); err != nil {
		return Receipt{}, err
	}
	return m.receipt(), nil
}

func (m *receiptMap) check() error {
	e := m.Enclave
	if err := (&headMap{Status: e.Status}).check(); err != nil {
		return err
	}
	switch {
	case m.Version != receiptPlain && m.Version != receiptSalted:
		return malformed("receipt has version %d", m.Version)
	case m.Version == receiptPlain && (len(e.SaltID) != 0 || m.Host.Cache != ""):
		return malformed("receipt of version %d has a salt", m.Version)
	case m.Version == receiptSalted && (len(e.SaltID) != len(SaltID{}) || allZero(e.SaltID)):
		return malformed("receipt of version %d has no salt id", m.Version)
	case len(e.ClaimsSHA256) != 32 || len(e.RequestSHA256) != 32 || len(e.ResponseSHA256) != 32 || len(e.RequestID) != 16:
		return malformed("receipt has a hash or an id of another length")
	case !e.Operation.known():
		return malformed("receipt's %s is not known", e.Operation)
	case e.Model == "" || checkName("model", e.Model) != nil:
		return malformed("receipt's model is no name")
	case e.EndedAt == 0 || e.EndedAt > maxUnixSeconds:
		return malformed("receipt has a time out of range")
	}
	return m.Host.check()
}

func (h *hostPart) check() error {
	switch {
	case checkName("version", h.ModelVersion) != nil || checkName("wash", h.WashID) != nil || checkName("cache", h.Cache) != nil:
		return malformed("receipt's version, wash or cache is no name")
	case h.WashEndedAt > maxUnixSeconds:
		return malformed("receipt has a time out of range")
	case (h.WashID == "") != (h.WashEndedAt == 0):
		return malformed("receipt has half a wash")
	case h.PromptTokens > maxTokens || h.OutputTokens > maxTokens:
		return malformed("receipt has token counts out of range")
	}
	return nil
}

// Check says whether a receipt can carry it. Errors wrap [ErrMalformed].
func (h HostAsserted) Check() error {
	_, err := h.wire()
	return err
}

func (h HostAsserted) wire() (hostPart, error) {
	if h.PromptTokens < 0 || h.PromptTokens > maxTokens || h.OutputTokens < 0 || h.OutputTokens > maxTokens {
		return hostPart{}, malformed("receipt has token counts out of range")
	}
	part := hostPart{ModelVersion: h.ModelVersion, PromptTokens: uint32(h.PromptTokens), OutputTokens: uint32(h.OutputTokens), WashID: h.LastWash.ID, Cache: h.Cache}
	if h.LastWash.ID != "" {
		var err error
		if part.WashEndedAt, err = unixSeconds(h.LastWash.EndedAt); err != nil {
			return hostPart{}, fmt.Errorf("receipt: wash: %w", err)
		}
	}
	return part, part.check()
}

func (r Receipt) wire() (receiptMap, error) {
	e := r.Enclave
	if e.Status < 0 || e.Status > 0xffff {
		return receiptMap{}, malformed("receipt's status is out of range")
	}
	host, err := r.Host.wire()
	if err != nil {
		return receiptMap{}, err
	}
	ended, err := unixSeconds(e.EndedAt)
	if err != nil {
		return receiptMap{}, fmt.Errorf("receipt: %w", err)
	}
	m := receiptMap{
		Version: receiptPlain,
		Enclave: enclavePart{
			ClaimsSHA256: e.ClaimsSHA256[:], RequestID: e.RequestID[:], Operation: e.Operation, Model: e.Model,
			RequestSHA256: e.RequestSHA256[:], Status: uint16(e.Status), ResponseSHA256: e.ResponseSHA256[:], EndedAt: ended,
		},
		Host: host,
	}
	if e.SaltID != (SaltID{}) {
		m.Version, m.Enclave.SaltID = receiptSalted, e.SaltID[:]
	}
	return m, m.check()
}

func (m *receiptMap) receipt() Receipt {
	e, h := m.Enclave, m.Host
	r := Receipt{
		Enclave: EnclaveVerified{
			ClaimsSHA256: [32]byte(e.ClaimsSHA256), RequestID: RequestID(e.RequestID), Operation: e.Operation, Model: e.Model,
			RequestSHA256: [32]byte(e.RequestSHA256), Status: int(e.Status), ResponseSHA256: [32]byte(e.ResponseSHA256),
			EndedAt: fromUnixSeconds(e.EndedAt),
		},
		Host: HostAsserted{ModelVersion: h.ModelVersion, PromptTokens: int(h.PromptTokens), OutputTokens: int(h.OutputTokens), Cache: h.Cache},
	}
	if len(e.SaltID) > 0 {
		r.Enclave.SaltID = SaltID(e.SaltID)
	}
	if h.WashID != "" {
		r.Host.LastWash = Wash{ID: h.WashID, EndedAt: fromUnixSeconds(h.WashEndedAt)}
	}
	return r
}
