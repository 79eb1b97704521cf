package seal_test

import (
	"bytes"
	"errors"
	"io"
	"testing"
	"time"

	"github.com/mrgc/mrgc/internal/seal"
)

// FuzzOpen looks for a body, other than the right one, that opens, and for one
// that makes ReadPrologue or Open panic.
func FuzzOpen(f *testing.F) {
	v, key, h := fixed(f)
	valid := []byte(v.Request.Sealed)
	f.Add(valid)
	f.Add(valid[:len(valid)-1])
	f.Add(flipped(valid, 29*8))
	f.Add(flipped(valid, 8*len(valid)-1))
	f.Add([]byte{})
	at := time.Unix(v.Request.Expiry-1, 0)
	f.Fuzz(func(t *testing.T, body []byte) {
		opened, err := openLimited(key, h, body, at, seal.Limits{MaxPlaintextBytes: 1 << 20})
		if (err == nil) != bytes.Equal(body, valid) {
			t.Fatalf("opened: %v, error: %v", opened != nil, err)
		}
	})
}

// FuzzParseClaims looks for claims with two spellings.
func FuzzParseClaims(f *testing.F) {
	_, key, _ := fixed(f)
	raw := key.RawClaims()
	f.Add(raw)
	f.Add(raw[:40])
	f.Add(flipped(raw, 3))
	f.Add([]byte{0xa0})
	f.Fuzz(func(t *testing.T, raw []byte) {
		recipient, err := seal.ParseRecipient(raw)
		if err != nil {
			if !errors.Is(err, seal.ErrMalformed) {
				t.Fatalf("error is not ErrMalformed: %v", err)
			}
			return
		}
		again, err := seal.EncodeClaims(recipient.Claims())
		if err != nil || !bytes.Equal(again, raw) {
			t.Fatalf("claims come back as %x (%v)", again, err)
		}
	})
}

// FuzzParsePayload looks for a payload with two spellings.
func FuzzParsePayload(f *testing.F) {
	v, _, _ := fixed(f)
	f.Add([]byte(v.Request.Plaintext))
	f.Add(make([]byte, 1024))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, plaintext []byte) {
		payload, ok := seal.ParsePayload(plaintext)
		if !ok {
			return
		}
		again, err := seal.EncodePayload(&payload)
		if err != nil || !bytes.Equal(again, plaintext) {
			t.Fatalf("payload comes back differently (%v)", err)
		}
	})
}

// FuzzParseKeyIDs looks for a header with two spellings.
func FuzzParseKeyIDs(f *testing.F) {
	f.Add("0001020304050607")
	f.Add("0001020304050607,ffffffffffffffff")
	f.Add(",")
	f.Fuzz(func(t *testing.T, header string) {
		ids, err := seal.ParseKeyIDs(header)
		if err == nil && seal.FormatKeyIDs(ids) != header {
			t.Fatalf("%q comes back as %q", header, seal.FormatKeyIDs(ids))
		}
	})
}

// FuzzResponseReader looks for bytes that read as a complete answer and are not
// one of the vector's.
func FuzzResponseReader(f *testing.F) {
	v, _, h := fixed(f)
	for _, response := range v.Responses {
		f.Add([]byte(response.Sealed))
		f.Add([]byte(response.Sealed[:len(response.Sealed)-1]))
		f.Add(flipped(response.Sealed, 8*41))
	}
	f.Fuzz(func(t *testing.T, wire []byte) {
		sealed := seal.ResumeSealed(v.Request.DEK, [32]byte(v.Request.Transcript), h.KeyIDs)
		_, err := io.ReadAll(sealed.OpenResponse(bytes.NewReader(wire)))
		if (err == nil) != bytes.Equal(wire, v.Responses[0].Sealed) {
			t.Fatalf("error: %v", err)
		}
	})
}

// FuzzResponseFrames looks for a frame, by an enclave that may be faulty, that
// makes the reader panic, or end well without an end.
func FuzzResponseFrames(f *testing.F) {
	f.Add([]byte{kindEnd, 0, 5, 0xa2, 1, 1, 2, 1}, true)
	f.Add([]byte{kindData, 0, 1, 'x'}, false)
	f.Add([]byte{kindError, 0, 2, '{', '}'}, true)
	f.Add([]byte{kindHead, 0, 1, 0xa0}, false)
	v, key, h := fixed(f)
	at := time.Unix(v.Request.Expiry-1, 0)
	f.Fuzz(func(t *testing.T, plaintext []byte, final bool) {
		if len(plaintext) > 16384 {
			return
		}
		opened, err := openLimited(key, h, v.Request.Sealed, at, seal.Limits{})
		if err != nil {
			t.Fatal(err)
		}
		wire := &bytes.Buffer{}
		w, err := opened.Respond(constant(3), wire)
		if err != nil {
			t.Fatal(err)
		}
		if err := w.WriteHead(okHead()); err != nil {
			t.Fatal(err)
		}
		if len(plaintext) < 512 { // most frames that a reader looks at
			plaintext = append(bytes.Clone(plaintext), make([]byte, 512-len(plaintext))...)
		}
		if err := w.WriteChunk(plaintext, final); err != nil {
			t.Fatal(err)
		}
		sealed := seal.ResumeSealed(v.Request.DEK, [32]byte(v.Request.Transcript), h.KeyIDs)
		_, err = io.ReadAll(sealed.OpenResponse(wire))
		if err == nil && (plaintext[0] != kindEnd || !final) {
			t.Fatalf("a frame of kind %d, final %t, ended the answer", plaintext[0], final)
		}
	})
}
