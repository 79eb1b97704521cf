// Package dsse is signed files: DSSE 1.0 envelopes (Dead Simple Signing
// Envelope, secure-systems-lab) with Ed25519. What is signed is the payload's
// bytes as they are, together with their type, so that nothing needs to be made
// canonical, and what was signed for one purpose does not pass for another.
//
//	file, err := dsse.Sign(key, "application/vnd.example+json", payload)
//	payload, err := dsse.Open(keys, "application/vnd.example+json", file)
//
// Nothing of a payload is looked at before its signature has verified. The
// package is part of the measured enclave: it imports the standard library only,
// and does no I/O.
package dsse

import (
	"bytes"
	"crypto/ed25519"
	"encoding/json"
	"errors"
	"fmt"
	"io"
)

// MaxBytes bounds a file before anything of it is parsed.
const MaxBytes = 64 << 20

// maxSignatures bounds how many signatures are tried: two while a signing key
// is replaced.
const maxSignatures = 4

type envelope struct {
	PayloadType string      `json:"payloadType"`
	Payload     []byte      `json:"payload"`
	Signatures  []signature `json:"signatures"`
}

type signature struct {
	Sig []byte `json:"sig"`
}

// preAuthentication is DSSE's PAE: what is signed.
func preAuthentication(payloadType string, payload []byte) []byte {
	return append(fmt.Appendf(nil, "DSSEv1 %d %s %d ", len(payloadType), payloadType, len(payload)), payload...)
}

// Sign gives a signed file, a line of JSON.
func Sign(key ed25519.PrivateKey, payloadType string, payload []byte) ([]byte, error) {
	out, err := json.Marshal(envelope{
		PayloadType: payloadType, Payload: payload,
		Signatures: []signature{{Sig: ed25519.Sign(key, preAuthentication(payloadType, payload))}},
	})
	if err != nil {
		return nil, err
	}
	return append(out, '\n'), nil
}

// Open gives a signed file's payload, if it is of that type and one of keys has
// signed it.
func Open(keys []ed25519.PublicKey, payloadType string, file []byte) ([]byte, error) {
	if len(file) > MaxBytes {
		return nil, fmt.Errorf("larger than %d bytes", MaxBytes)
	}
	dec := json.NewDecoder(bytes.NewReader(file))
	dec.DisallowUnknownFields()
	var e envelope
	if err := dec.Decode(&e); err != nil {
		return nil, err
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return nil, errors.New("data after the end")
	}
	if e.PayloadType != payloadType {
		return nil, fmt.Errorf("the type is %.64q, want %s", e.PayloadType, payloadType)
	}
	message := preAuthentication(payloadType, e.Payload)
	for _, s := range e.Signatures[:min(len(e.Signatures), maxSignatures)] {
		for _, key := range keys {
			if ed25519.Verify(key, message, s.Sig) {
				return e.Payload, nil
			}
		}
	}
	return nil, errors.New("no signature is by a key that is trusted here")
}
