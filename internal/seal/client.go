package seal

import (
	"bytes"
	"crypto/hpke"
	"fmt"
	"io"
	"slices"
	"time"
)

// Request is what a client seals.
type Request struct {
	Operation Operation
	Model     string // as the recipients' claims name it
	Tenant    string
	Affinity  string // opaque key of a conversation's prefix; may be empty
	Size      string // bucketed sizes, for routing; may be empty
	RequestID RequestID
	Expiry    time.Time // parts of a second are dropped; at most [MaxLifetime] ahead
	Payload   Payload   // stays the caller's, to wipe too
	// DataKey, when set, makes every recipient one of [TypeKMS]: only who has KMS
	// decrypt it can open the request. It must be fresh, and made with
	// [EncryptionContext] of this request. It stays the caller's, to wipe too.
	DataKey *DataKey
}

// Sealed is a request on its way, with what is needed to open the answer. The
// same body may be sent more than once, since recipients run it once each.
type Sealed struct {
	Body    []byte
	Headers Headers // to send next to the body, unchanged

	dek        []byte
	transcript transcript
}

// Prepared is a request that is ready to be sealed: what travels beside its body is
// known, and how large that will be, so that headers can go ahead of it.
type Prepared struct {
	Headers   Headers // to send next to the body, unchanged
	BodyBytes int     // how large the body will be

	request    Request
	bound      *bound
	recipients []*Recipient
}

// Prepare checks a request to one to [MaxRecipients] recipients, whose attestation must
// have been verified. It encrypts nothing. What the request points to, the payload
// first of all, must stay as it is until [Prepared.Seal] has returned. Errors wrap
// [ErrMalformed] or [ErrTooLarge].
func Prepare(req Request, recipients []*Recipient) (*Prepared, error) {
	b, err := req.bound(recipients)
	if err != nil {
		return nil, fmt.Errorf("seal: %w", err)
	}
	plaintext, err := req.Payload.paddedBytes()
	if err != nil {
		return nil, fmt.Errorf("seal: payload: %w", err)
	}
	if req.DataKey != nil {
		if err := req.DataKey.check(); err != nil {
			return nil, fmt.Errorf("seal: %w", err)
		}
	}
	size := prologueHeadSize + 1 + len(recipients)*req.stanzaBytes() + commitmentSize +
		plaintext + chunkCount(plaintext)*(chunkHeaderSize+tagSize)
	return &Prepared{Headers: b.Headers, BodyBytes: size, request: req, bound: b, recipients: recipients}, nil
}

// Seal seals the request. Each call makes another envelope of one request id, so there
// is to be one. rand gives the DEK and must be cryptographically secure. Errors are
// rand's, or those of a recipient's key that cannot be sealed to.
func (p *Prepared) Seal(rand io.Reader) (*Sealed, error) {
	plaintext, err := p.request.Payload.encode()
	if err != nil {
		return nil, fmt.Errorf("seal: payload: %w", err)
	}
	defer clear(plaintext)

	sealed := &Sealed{Headers: p.Headers, dek: make([]byte, keySize)}
	if _, err := io.ReadFull(rand, sealed.dek); err != nil {
		return nil, fmt.Errorf("seal: draw key: %w", err)
	}
	wrap, err := p.request.wrapper(rand, p.bound)
	if err == nil {
		err = sealed.encrypt(p.bound, p.recipients, wrap, plaintext)
	}
	if err != nil {
		sealed.Wipe()
		return nil, fmt.Errorf("seal: %w", err)
	}
	return sealed, nil
}

// Seal is [Prepare] and [Prepared.Seal] in one.
func Seal(rand io.Reader, req Request, recipients []*Recipient) (*Sealed, error) {
	prepared, err := Prepare(req, recipients)
	if err != nil {
		return nil, err
	}
	return prepared.Seal(rand)
}

// bound checks the request against its recipients.
func (req *Request) bound(recipients []*Recipient) (*bound, error) {
	b := &bound{
		Headers: Headers{
			Model: req.Model, Tenant: req.Tenant, Affinity: req.Affinity, Size: req.Size,
			RequestID: req.RequestID,
		},
		operation: req.Operation,
	}
	var err error
	if b.expiry, err = unixSeconds(req.Expiry); err != nil {
		return nil, fmt.Errorf("expiry: %w", err)
	}
	for _, r := range recipients {
		if r.claims.Model != req.Model {
			return nil, malformed("recipient %s serves another model", r.id)
		}
		b.KeyIDs = append(b.KeyIDs, r.id)
	}
	return b, b.check()
}

// wrapFunc wraps a DEK for a recipient.
type wrapFunc func(dek []byte, r *Recipient) (stanza, error)

func (req *Request) wrapper(rand io.Reader, b *bound) (wrapFunc, error) {
	if req.DataKey == nil {
		return wrapToKey(b.wrapInfo()), nil
	}
	return req.DataKey.wrapper(rand, b)
}

// wrapToKey wraps DEKs to the recipients' own keys.
func wrapToKey(info []byte) wrapFunc {
	return func(dek []byte, r *Recipient) (stanza, error) {
		enc, sender, err := hpke.NewSender(r.public, hpke.HKDFSHA256(), hpke.AES256GCM(), info)
		if err != nil {
			return stanza{}, err
		}
		wrapped, err := sender.Seal(nil, dek)
		return stanza{id: r.id, kind: r.claims.Type, enc: enc, wrapped: wrapped}, err
	}
}

// stanzaBytes is what each recipient takes in the prologue.
func (req *Request) stanzaBytes() int {
	if req.DataKey == nil {
		return stanzaSize
	}
	return stanzaFixedSize + len(req.DataKey.Ciphertext) + kmsWrappedSize
}

// chunkCount is how many chunks a request's plaintext of n bytes takes.
func chunkCount(n int) int { return (n + maxChunkPlaintext - 1) / maxChunkPlaintext }

// encrypt writes the body: prologue, commitment, chunks.
func (s *Sealed) encrypt(b *bound, recipients []*Recipient, wrap wrapFunc, plaintext []byte) error {
	stanzas := make([]stanza, len(recipients))
	for i, r := range recipients {
		var err error
		if stanzas[i], err = wrap(s.dek, r); err != nil {
			return fmt.Errorf("recipient %s: %w", r.id, err)
		}
	}

	count := chunkCount(len(plaintext))
	size := prologueHeadSize + recipientsSize(stanzas) + commitmentSize +
		len(plaintext) + count*(chunkHeaderSize+tagSize)
	body := appendPrologue(make([]byte, 0, size), b, stanzas)
	s.transcript = b.transcript(body)
	chunks, commitment, err := requestKeys(s.dek, s.transcript)
	if err != nil {
		return err
	}
	body = append(body, commitment...)
	for i := range count {
		chunk := plaintext[i*maxChunkPlaintext:]
		final := len(chunk) <= maxChunkPlaintext
		body = chunks.appendChunk(body, chunk[:min(len(chunk), maxChunkPlaintext)], final)
	}
	s.Body = body
	return nil
}

// OpenResponse opens the answer to the request, which is read off r as the
// returned reader is read. It may be called again for another attempt's answer.
func (s *Sealed) OpenResponse(r io.Reader) *ResponseReader {
	return &ResponseReader{
		r:          r,
		dek:        bytes.Clone(s.dek),
		transcript: s.transcript,
		keyIDs:     slices.Clone(s.Headers.KeyIDs),
	}
}

// Wipe clears the DEK. Answers cannot be opened after it; readers that
// OpenResponse gave before are not affected.
func (s *Sealed) Wipe() { clear(s.dek) }
