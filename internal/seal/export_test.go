package seal

import (
	"crypto/ed25519"
	"crypto/hpke"
	"io"
)

// What tests reach inside: to make envelopes and answers that the package would
// not, and to see that secrets are gone.

// Sizes of the format, as docs/protocol.md states them.
const (
	PrologueHeadSize     = prologueHeadSize
	StanzaSize           = stanzaSize
	StanzaFixedSize      = stanzaFixedSize
	KMSWrappedSize       = kmsWrappedSize
	MaxDataKeySize       = maxDataKeySize
	CommitmentSize       = commitmentSize
	ResponsePrologueSize = responsePrologueSize
)

// RecipientKeyFromPrivate makes the recipient for an X-Wing private key.
func RecipientKeyFromPrivate(private []byte, claims Claims) (*RecipientKey, error) {
	key, err := hpke.MLKEM768X25519().NewPrivateKey(private)
	if err != nil {
		return nil, err
	}
	return newRecipientKey(TypeEnclave, key, claims)
}

// SealPlaintext seals a plaintext that need not be a padded payload.
func SealPlaintext(rand io.Reader, req Request, recipients []*Recipient, plaintext []byte) (*Sealed, error) {
	b, err := req.bound(recipients)
	if err != nil {
		return nil, err
	}
	s := &Sealed{Headers: b.Headers, dek: make([]byte, keySize)}
	if _, err := io.ReadFull(rand, s.dek); err != nil {
		return nil, err
	}
	wrap, err := req.wrapper(rand, b)
	if err != nil {
		return nil, err
	}
	return s, s.encrypt(b, recipients, wrap, plaintext)
}

// ResumeSealed is the client's state after sealing.
func ResumeSealed(dek []byte, h [32]byte, ids []KeyID) *Sealed {
	return &Sealed{Headers: Headers{KeyIDs: ids}, dek: dek, transcript: h}
}

func (o *Opened) DEK() []byte          { return o.dek }
func (o *Opened) Transcript() [32]byte { return o.transcript }
func (o *Opened) Plaintext() []byte    { return o.plaintext }
func (s *Sealed) DEK() []byte          { return s.dek }

func (r *ResponseReader) DEK() []byte    { return r.dek }
func (r *ResponseReader) Buffer() []byte { return r.buf }
func (w *ResponseWriter) Frame() []byte  { return w.frame[:cap(w.frame)] }

// Commitment is the one that the opened envelope carries.
func (o *Opened) Commitment() []byte {
	_, commitment, err := requestKeys(o.dek, o.transcript)
	if err != nil {
		return nil
	}
	return commitment
}

// WriteFrame writes any frame, marked final or not.
func (w *ResponseWriter) WriteFrame(kind byte, data []byte, final bool) error {
	return w.WriteChunk(appendFrame(nil, frameKind(kind), data), final)
}

// WriteChunk writes any plaintext as a chunk.
func (w *ResponseWriter) WriteChunk(plaintext []byte, final bool) error {
	wire := append([]byte(nil), w.prologue...)
	w.prologue = nil
	_, err := w.w.Write(w.chunks.appendChunk(wire, plaintext, final))
	return err
}

var (
	ParsePayload  = parsePayload
	PaddedSize    = paddedSize
	AppendFrame   = appendFrame
	EncodePayload = (*Payload).encode
	EncodeCBOR    = encodeCBOR
	EncodeClaims  = Claims.encode
)

// WithPrivateKeyOf is a recipient that holds another's private key.
func WithPrivateKeyOf(recipient, other *RecipientKey) *RecipientKey {
	return &RecipientKey{Recipient: recipient.Recipient, private: other.private}
}

// ReKey is key's private key under other claims; it panics on bad ones.
func ReKey(key *RecipientKey, claims Claims) *RecipientKey {
	again, err := newRecipientKey(key.claims.Type, key.private, claims)
	if err != nil {
		panic(err)
	}
	return again
}

// ReceiptPayload is what a receipt signs.
func ReceiptPayload(raw []byte) []byte {
	payload, _, err := splitReceipt(raw)
	if err != nil {
		panic(err)
	}
	return payload
}

// ParseReceiptPayload is parseReceipt.
func ParseReceiptPayload(payload []byte) (Receipt, error) { return parseReceipt(payload) }

// SignReceiptPayload signs whatever it is given.
func SignReceiptPayload(payload []byte, key ed25519.PrivateKey) []byte {
	raw, err := signReceiptPayload(payload, key)
	if err != nil {
		panic(err)
	}
	return raw
}
