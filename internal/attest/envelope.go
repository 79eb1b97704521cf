package attest

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/x509"
	"errors"
	"fmt"

	"github.com/fxamacker/cbor/v2"
	"github.com/veraison/go-cose"
)

// maxDocumentSize bounds a document before anything is parsed. A security
// module's whole answer is at most 12 KiB (NSM_RESPONSE_MAX_SIZE).
const maxDocumentSize = 12 << 10

// signatureSize is an ES384 signature: r ‖ s (RFC 9053, section 2.1).
const signatureSize = 96

// tagSign1 is CBOR tag 18 in its only acceptable encoding.
const tagSign1 = 0xd2

// The two headers have one acceptable encoding each: {1: -35}, which is
// {alg: ES384}, and the empty map.
var (
	protectedES384   = []byte{0xa1, 0x01, 0x38, 0x22}
	unprotectedEmpty = []byte{0xa0}
)

// envelope is a COSE_Sign1 message (RFC 9052, section 4.2).
type envelope struct {
	_           struct{} `cbor:",toarray"`
	Protected   byteString
	Unprotected cbor.RawMessage
	Payload     byteString
	Signature   byteString
}

// parseEnvelope checks the bytes of both headers itself and accepts one
// encoding of a message only. COSE libraries normalise headers before they
// verify, and take what they do not know.
func parseEnvelope(raw []byte) (*envelope, error) {
	if len(raw) > maxDocumentSize {
		return nil, fmt.Errorf("%d bytes, more than %d", len(raw), maxDocumentSize)
	}
	body := raw
	if len(body) > 0 && body[0] == tagSign1 {
		body = body[1:]
	}
	dec, err := strictDecMode(cbor.IndefLengthForbidden)
	if err != nil {
		return nil, err
	}
	var e envelope
	if err := dec.Unmarshal(body, &e); err != nil {
		return nil, fmt.Errorf("not a COSE_Sign1 message: %w", err)
	}
	if !bytes.Equal(e.Protected, protectedES384) {
		return nil, fmt.Errorf("protected header is %x, not {alg: ES384} alone; an unsigned document of an emulator looks like this", []byte(e.Protected))
	}
	if !bytes.Equal(e.Unprotected, unprotectedEmpty) {
		return nil, errors.New("unprotected header is not empty")
	}
	if len(e.Payload) == 0 {
		return nil, errors.New("no payload")
	}
	if len(e.Signature) != signatureSize {
		return nil, fmt.Errorf("signature of %d bytes, not %d", len(e.Signature), signatureSize)
	}
	again, err := cbor.Marshal(e)
	if err != nil {
		return nil, fmt.Errorf("encode the message again: %w", err)
	}
	if !bytes.Equal(again, body) {
		return nil, errors.New("lengths are not encoded in the shortest form")
	}
	return &e, nil
}

// verifySignature says whether the leaf's key signed the payload. The message
// is put together from the constants that parseEnvelope compared with.
func (e *envelope) verifySignature(leaf *x509.Certificate) error {
	key, ok := leaf.PublicKey.(*ecdsa.PublicKey)
	if !ok {
		return errors.New("leaf certificate has no ECDSA key")
	}
	verifier, err := cose.NewVerifier(cose.AlgorithmES384, key)
	if err != nil {
		return fmt.Errorf("leaf certificate's key: %w", err)
	}
	msg := cose.Sign1Message{
		Headers:   cose.Headers{Protected: cose.ProtectedHeader{cose.HeaderLabelAlgorithm: cose.AlgorithmES384}},
		Payload:   e.Payload,
		Signature: e.Signature,
	}
	if err := msg.Verify(nil, verifier); err != nil {
		return fmt.Errorf("signature does not verify: %w", err)
	}
	return nil
}

// strictDecMode decodes CBOR without duplicate keys, tags, unknown fields, case
// folding or trailing bytes, and without indefinite lengths, unless maps and arrays
// may have them.
func strictDecMode(indefinite cbor.IndefLengthMode) (cbor.DecMode, error) {
	return cbor.DecOptions{
		DupMapKey:         cbor.DupMapKeyEnforcedAPF,
		IndefLength:       indefinite,
		TagsMd:            cbor.TagsForbidden,
		ExtraReturnErrors: cbor.ExtraDecErrorUnknownField,
		FieldNameMatching: cbor.FieldNameMatchingCaseSensitive,
		MaxNestedLevels:   4,
		MaxArrayElements:  16, // cabundle; the least that the library takes
		MaxMapPairs:       maxPCRs,
	}.DecMode()
}

// byteString is a CBOR byte string or null. The library would also take an
// array of small integers, and undefined.
type byteString []byte

// UnmarshalCBOR implements cbor.Unmarshaler.
func (b *byteString) UnmarshalCBOR(data []byte) error {
	const (
		majorByteString = 2
		indefinite      = 0x5f
		null            = 0xf6
	)
	if len(data) == 1 && data[0] == null {
		*b = nil
		return nil
	}
	if len(data) == 0 || data[0]>>5 != majorByteString || data[0] == indefinite {
		return errors.New("not a byte string in one piece")
	}
	return cbor.Unmarshal(data, (*[]byte)(b))
}
