package nsm

import (
	"errors"
	"fmt"

	"github.com/fxamacker/cbor/v2"
)

// Limits of the real module, in bytes.
const (
	MaxUserData  = 512
	MaxNonce     = 512
	MaxPublicKey = 1024
	MaxRequest   = 0x1000 // NSM_REQUEST_MAX_SIZE
	MaxResponse  = 0x3000 // NSM_RESPONSE_MAX_SIZE
)

// ErrorCode is why a module refuses, by the names of the real one's ErrorCode.
type ErrorCode string

// The codes that an attestation request can meet.
const (
	InvalidArgument ErrorCode = "InvalidArgument" // the request is malformed
	InputTooLarge   ErrorCode = "InputTooLarge"   // a field of the request is too large
	InternalError   ErrorCode = "InternalError"   // the module failed
)

// Error implements error.
func (c ErrorCode) Error() string { return "security module refuses: " + string(c) }

// The wire form is Rust's externally tagged enums in CBOR: a map of one entry,
// whose key is the variant's name.
type (
	requestMessage struct {
		Attestation *attestationRequest `cbor:"Attestation"`
	}
	attestationRequest struct {
		UserData  []byte `cbor:"user_data"`
		Nonce     []byte `cbor:"nonce"`
		PublicKey []byte `cbor:"public_key"`
	}
	responseMessage struct {
		Attestation *attestationResponse `cbor:"Attestation,omitempty"`
		Error       ErrorCode            `cbor:"Error,omitempty"`
	}
	attestationResponse struct {
		Document []byte `cbor:"document"`
	}
)

// EncodeRequest encodes an attestation request. It returns [InputTooLarge],
// wrapped, for what no module would take.
func EncodeRequest(r Request) ([]byte, error) {
	if err := r.checkSizes(); err != nil {
		return nil, err
	}
	return cbor.Marshal(requestMessage{Attestation: &attestationRequest{r.UserData, r.Nonce, r.PublicKey}})
}

// DecodeRequest is the module's side of [EncodeRequest]. It returns
// [InvalidArgument] or [InputTooLarge], wrapped, for anything but an
// attestation request.
func DecodeRequest(message []byte) (Request, error) {
	var m requestMessage
	if err := decode(message, MaxRequest, &m); err != nil {
		return Request{}, fmt.Errorf("%w: %w", InvalidArgument, err)
	}
	if m.Attestation == nil {
		return Request{}, fmt.Errorf("%w: not an attestation request", InvalidArgument)
	}
	r := Request(*m.Attestation)
	return r, r.checkSizes()
}

// EncodeResponse encodes a module's answer.
func EncodeResponse(document []byte) ([]byte, error) {
	return cbor.Marshal(responseMessage{Attestation: &attestationResponse{document}})
}

// EncodeError encodes a module's refusal.
func EncodeError(code ErrorCode) ([]byte, error) {
	return cbor.Marshal(responseMessage{Error: code})
}

// DecodeResponse returns the document in a module's answer, or the [ErrorCode]
// of its refusal.
func DecodeResponse(message []byte) (document []byte, err error) {
	var m responseMessage
	if err := decode(message, MaxResponse, &m); err != nil {
		return nil, fmt.Errorf("response: %w", err)
	}
	switch {
	case m.Error != "" && m.Attestation != nil:
		return nil, errors.New("response: both a document and an error")
	case m.Error != "":
		return nil, m.Error
	case m.Attestation == nil || len(m.Attestation.Document) == 0:
		return nil, errors.New("response: no document")
	}
	return m.Attestation.Document, nil
}

func (r Request) checkSizes() error {
	for _, f := range []struct {
		name string
		b    []byte
		max  int
	}{
		{"user_data", r.UserData, MaxUserData},
		{"nonce", r.Nonce, MaxNonce},
		{"public_key", r.PublicKey, MaxPublicKey},
	} {
		if len(f.b) > f.max {
			return fmt.Errorf("%w: %s of %d bytes, at most %d", InputTooLarge, f.name, len(f.b), f.max)
		}
	}
	return nil
}

// decode is strict: no duplicate or unknown fields, no indefinite lengths, no
// tags, no trailing bytes.
func decode(message []byte, limit int, into any) error {
	if len(message) > limit {
		return fmt.Errorf("%d bytes, at most %d", len(message), limit)
	}
	dec, err := cbor.DecOptions{
		DupMapKey:         cbor.DupMapKeyEnforcedAPF,
		IndefLength:       cbor.IndefLengthForbidden,
		TagsMd:            cbor.TagsForbidden,
		ExtraReturnErrors: cbor.ExtraDecErrorUnknownField,
		FieldNameMatching: cbor.FieldNameMatchingCaseSensitive,
		MaxNestedLevels:   4,
	}.DecMode()
	if err != nil {
		return err
	}
	return dec.Unmarshal(message, into)
}
