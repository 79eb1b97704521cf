package seal

import (
	"crypto/hpke"
	"crypto/subtle"
	"fmt"
	"io"
	"slices"
	"time"
)

// Limits are what one service wants below the protocol's own limits.
type Limits struct {
	MaxPlaintextBytes int           // 0, or above it: [MaxPlaintextBytes]
	MaxLifetime       time.Duration // 0, or above it: [MaxLifetime]
}

func (l Limits) plaintextBytes() int {
	if l.MaxPlaintextBytes <= 0 {
		return MaxPlaintextBytes
	}
	return min(l.MaxPlaintextBytes, MaxPlaintextBytes)
}

func (l Limits) lifetime() time.Duration {
	if l.MaxLifetime <= 0 {
		return MaxLifetime
	}
	return min(l.MaxLifetime, MaxLifetime)
}

// Opened is a request that its recipient has opened: all of it, up to a verified
// final chunk. It is not known to be the first of its id until [ReplaySet.Add]
// has said so, nor to be the tenant's until the credential has been checked.
type Opened struct {
	Operation Operation
	Model     string
	Tenant    string
	Size      string // as it was bound; nothing here knows what it means
	RequestID RequestID
	Expiry    time.Time
	KeyID     KeyID // the recipient key that opened it
	Payload   Payload

	plaintext  []byte // the payload's memory
	dek        []byte
	transcript transcript
}

// Wipe clears DEK and payload. Responses that Respond gave go on; they have
// keys, and a Wipe, of their own.
func (o *Opened) Wipe() {
	clear(o.plaintext)
	clear(o.dek)
	o.Payload, o.plaintext, o.dek = Payload{}, nil, nil
}

// Open opens the envelope whose prologue is p, for the headers that came with
// it. body is what p was read from; Open reads it to its end.
//
// The order is: what the headers and the clock say ([ErrMalformed],
// [ErrExpired], [ErrNotRecipient]), then the framing and size of all chunks
// ([ErrMalformed], [ErrTooLarge], or body's own error), then cryptography, of
// which every failure is [ErrOpen]. So a public-key operation is spent only on a
// complete envelope, and memory is bounded by the limit throughout.
//
// A request that is sealed by a data key of KMS needs [RecipientKey.OpenWith];
// here it is [ErrNoKMS].
func (k *RecipientKey) Open(now time.Time, p *Prologue, h Headers, body io.Reader, limits Limits) (*Opened, error) {
	return k.OpenWith(nil, now, p, h, body, limits)
}

// OpenWith is Open, also for recipients of [TypeKMS]: for one of these it calls
// decrypt, once, where cryptography begins, and passes its error on, wrapped.
func (k *RecipientKey) OpenWith(decrypt DecryptDataKey, now time.Time, p *Prologue, h Headers, body io.Reader, limits Limits) (*Opened, error) {
	b, err := p.bound(h)
	if err != nil {
		return nil, err
	}
	expiry := fromUnixSeconds(p.expiry)
	if left := expiry.Sub(now); left <= 0 || left > limits.lifetime() {
		return nil, ErrExpired
	}
	own := slices.IndexFunc(p.stanzas, func(s stanza) bool { return s.id == k.id })
	if own < 0 {
		return nil, ErrNotRecipient
	}
	if kind := p.stanzas[own].kind; kind != k.claims.Type && kind != TypeKMS {
		return nil, malformed("sealed by type %s to a key of type %s", kind, k.claims.Type)
	}
	ciphertext, err := readCiphertext(body, limits.plaintextBytes())
	if err != nil {
		return nil, err
	}

	dek, err := k.unwrap(p.stanzas[own], b, decrypt)
	if err != nil {
		return nil, err
	}
	opened := &Opened{
		Operation: p.operation, Model: h.Model, Tenant: h.Tenant, Size: h.Size,
		RequestID: p.requestID, Expiry: expiry, KeyID: k.id,
		dek: dek, transcript: b.transcript(p.raw),
	}
	if err := opened.decrypt(p.commitment[:], ciphertext); err != nil {
		clear(ciphertext)
		opened.Wipe()
		return nil, err
	}
	return opened, nil
}

// unwrap gives the DEK.
func (k *RecipientKey) unwrap(s stanza, b *bound, decrypt DecryptDataKey) ([]byte, error) {
	if s.kind == TypeKMS {
		return unwrapByKMS(s, b, decrypt)
	}
	context, err := hpke.NewRecipient(s.enc, k.private, hpke.HKDFSHA256(), hpke.AES256GCM(), b.wrapInfo())
	if err != nil {
		return nil, ErrOpen
	}
	dek, err := context.Open(nil, s.wrapped)
	if err != nil || len(dek) != keySize {
		return nil, ErrOpen
	}
	return dek, nil
}

// decrypt checks the commitment, then the chunks, in ciphertext's own memory.
func (o *Opened) decrypt(commitment, ciphertext []byte) error {
	chunks, want, err := requestKeys(o.dek, o.transcript)
	if err != nil || subtle.ConstantTimeCompare(want, commitment) != 1 {
		return ErrOpen
	}
	plaintext := ciphertext[:0]
	for rest := ciphertext; len(rest) > 0; {
		n := min(len(rest), maxChunkPlaintext+tagSize)
		chunk, err := chunks.open(rest[:n], n == len(rest))
		if err != nil {
			return ErrOpen
		}
		plaintext = append(plaintext, chunk...)
		rest = rest[n:]
	}
	clear(ciphertext[len(plaintext):]) // moving chunks together leaves copies behind

	payload, ok := parsePayload(plaintext)
	if !ok {
		return ErrOpen
	}
	o.Payload, o.plaintext = payload, plaintext
	return nil
}

// readCiphertext reads the chunks up to the final one, which must end r, and
// gives their ciphertexts one after the other: every one but the last is full,
// so their borders are known.
func readCiphertext(r io.Reader, maxPlaintext int) ([]byte, error) {
	var (
		all    []byte
		header [chunkHeaderSize]byte
		size   int // of the plaintext
	)
	for final := false; !final; {
		if _, err := io.ReadFull(r, header[:]); err != nil {
			return nil, readError("chunks", err)
		}
		var length int
		var err error
		if final, length, err = parseChunkHeader(header); err != nil {
			return nil, err
		}
		if length <= tagSize || length > maxChunkPlaintext+tagSize || (!final && length < maxChunkPlaintext+tagSize) {
			return nil, malformed("chunk has %d bytes", length)
		}
		if size += length - tagSize; size > maxPlaintext {
			return nil, fmt.Errorf("%w: payload is over %d bytes", ErrTooLarge, maxPlaintext)
		}
		start := len(all)
		all = slices.Grow(all, length)[:start+length]
		if _, err := io.ReadFull(r, all[start:]); err != nil {
			return nil, readError("chunks", err)
		}
	}
	switch _, err := io.ReadFull(r, header[:1]); err {
	case io.EOF: // itself: an error that wraps it is a transport's, and no end
		return all, nil
	case nil:
		return nil, malformed("data after the final chunk")
	default:
		return nil, fmt.Errorf("read end of body: %w", err)
	}
}
