package seal

import (
	"crypto/sha256"
	"encoding/binary"
	"io"
	"slices"
	"time"
)

// MaxLifetime is how far ahead a request's expiry may lie when it is opened. It
// bounds what a [ReplaySet] must remember.
const MaxLifetime = 120 * time.Second

// Headers are the fields that travel next to the body, in clear, and are bound
// to it. On the enclave's side they are what was received.
type Headers struct {
	Model     string
	Tenant    string
	Affinity  string // may be empty
	Size      string // may be empty
	RequestID RequestID
	KeyIDs    []KeyID
}

const (
	version1 = 1
	suite1   = 1 // X-Wing, HKDF-SHA256, AES-256-GCM throughout

	prologueHeadSize = 1 + 1 + 1 + 16 + 8 + 2
	stanzaFixedSize  = 8 + 1 + 2 + 2                           // kid, type, two lengths
	stanzaSize       = stanzaFixedSize + encSize + wrappedSize // of an enclave or fleet recipient, the largest

	minRecipientsSize = 1 + stanzaFixedSize + 1 + kmsWrappedSize // one kms recipient with a data key of one byte
	maxRecipientsSize = 1 + MaxRecipients*stanzaSize
)

// bound are the values that the envelope is tied to.
type bound struct {
	Headers
	operation Operation
	expiry    uint64 // Unix seconds
}

func (b *bound) check() error {
	for _, name := range []struct {
		what, value string
		required    bool
	}{
		{"model", b.Model, true},
		{"tenant", b.Tenant, true},
		{"affinity", b.Affinity, false},
		{"size", b.Size, false},
	} {
		if name.required && name.value == "" {
			return malformed("%s is empty", name.what)
		}
		if err := checkName(name.what, name.value); err != nil {
			return err
		}
	}
	if !b.operation.known() {
		return malformed("%s is not known", b.operation)
	}
	if b.RequestID == (RequestID{}) {
		return malformed("request id is all zeros")
	}
	return checkKeyIDs(b.KeyIDs)
}

// encode gives the bound fields, each after its length, in the order of
// docs/protocol.md.
func (b *bound) encode() []byte {
	var ids []byte
	for _, id := range b.KeyIDs {
		ids = append(ids, id[:]...)
	}
	var out []byte
	for _, field := range [][]byte{
		{byte(b.operation)},
		[]byte(b.Model),
		[]byte(b.Tenant),
		[]byte(b.Affinity),
		[]byte(b.Size),
		b.RequestID[:],
		binary.BigEndian.AppendUint64(nil, b.expiry),
		ids,
	} {
		out = binary.BigEndian.AppendUint32(out, uint32(len(field)))
		out = append(out, field...)
	}
	return out
}

// wrapInfo is HPKE's info, the same for each recipient; HPKE itself adds the
// recipient's public key.
func (b *bound) wrapInfo() []byte { return b.wrapContext(labelWrap) }

// wrapContext ties a wrapped DEK to the bound fields.
func (b *bound) wrapContext(label string) []byte {
	digest := sha256.Sum256(b.encode())
	return append([]byte(label), digest[:]...)
}

// transcript is H for a body that starts with prologue, commitment excluded.
func (b *bound) transcript(prologue []byte) transcript {
	return sha256.Sum256(append(b.encode(), prologue...))
}

// stanza is one recipient's part of the prologue.
type stanza struct {
	id      KeyID
	kind    RecipientType
	enc     []byte // HPKE's encapsulated key, or KMS's encrypted data key
	wrapped []byte // the DEK
}

// check holds the rules of the stanza's type.
func (s *stanza) check() error {
	var right bool
	switch s.kind {
	case TypeEnclave, TypeFleet:
		right = len(s.enc) == encSize && len(s.wrapped) == wrappedSize
	case TypeKMS:
		right = len(s.enc) >= 1 && len(s.enc) <= maxDataKeySize && len(s.wrapped) == kmsWrappedSize
	default:
		return malformed("recipients of %s are not supported", s.kind)
	}
	if !right {
		return malformed("recipient's lengths %d and %d are not those of its type", len(s.enc), len(s.wrapped))
	}
	return nil
}

// recipientsSize is what the recipients take in the prologue.
func recipientsSize(stanzas []stanza) int {
	size := 1
	for _, s := range stanzas {
		size += stanzaFixedSize + len(s.enc) + len(s.wrapped)
	}
	return size
}

// appendPrologue gives all of the body that precedes the commitment.
func appendPrologue(dst []byte, b *bound, stanzas []stanza) []byte {
	dst = append(dst, version1, suite1, byte(b.operation))
	dst = append(dst, b.RequestID[:]...)
	dst = binary.BigEndian.AppendUint64(dst, b.expiry)
	dst = binary.BigEndian.AppendUint16(dst, uint16(recipientsSize(stanzas)))
	dst = append(dst, byte(len(stanzas)))
	for _, s := range stanzas {
		dst = append(dst, s.id[:]...)
		dst = append(dst, byte(s.kind))
		dst = binary.BigEndian.AppendUint16(dst, uint16(len(s.enc)))
		dst = append(dst, s.enc...)
		dst = binary.BigEndian.AppendUint16(dst, uint16(len(s.wrapped)))
		dst = append(dst, s.wrapped...)
	}
	return dst
}

// Prologue is the part of a body that precedes the chunks. What it says is not
// authenticated until [RecipientKey.Open] has opened the envelope.
type Prologue struct {
	operation  Operation
	requestID  RequestID
	expiry     uint64
	stanzas    []stanza
	raw        []byte // as received, without the commitment
	commitment [commitmentSize]byte
}

// KeyIDs are the recipients, in order, by which the holder of several keys
// picks one.
func (p *Prologue) KeyIDs() []KeyID {
	ids := make([]KeyID, len(p.stanzas))
	for i, s := range p.stanzas {
		ids[i] = s.id
	}
	return ids
}

// RequestID is the request's name.
func (p *Prologue) RequestID() RequestID { return p.requestID }

// ReadPrologue reads a body's prologue off r, not one byte more, and makes every
// check that needs no key. It reads 4.8 KB at most. Errors wrap [ErrMalformed]
// unless r failed.
func ReadPrologue(r io.Reader) (*Prologue, error) {
	raw := make([]byte, prologueHeadSize, prologueHeadSize+maxRecipientsSize)
	if _, err := io.ReadFull(r, raw); err != nil {
		return nil, readError("prologue", err)
	}
	p := &Prologue{}
	recipients, err := p.parseHead(raw)
	if err != nil {
		return nil, err
	}
	raw = raw[:prologueHeadSize+recipients]
	if _, err := io.ReadFull(r, raw[prologueHeadSize:]); err != nil {
		return nil, readError("recipients", err)
	}
	if err := p.parseRecipients(raw[prologueHeadSize:]); err != nil {
		return nil, err
	}
	if _, err := io.ReadFull(r, p.commitment[:]); err != nil {
		return nil, readError("commitment", err)
	}
	p.raw = raw
	return p, nil
}

// parseHead reads the fixed part and gives the length of the recipients' part,
// checked.
func (p *Prologue) parseHead(head []byte) (int, error) {
	c := cursor{rest: head}
	if v := c.uint8(); v != version1 {
		return 0, malformed("version %d is not supported", v)
	}
	if s := c.uint8(); s != suite1 {
		return 0, malformed("suite %d is not supported", s)
	}
	p.operation = Operation(c.uint8())
	p.requestID = RequestID(c.take(len(p.requestID)))
	p.expiry = c.uint64()
	recipients := int(c.uint16())
	switch {
	case !p.operation.known():
		return 0, malformed("%s is not known", p.operation)
	case p.expiry == 0 || p.expiry > maxUnixSeconds:
		return 0, malformed("expiry is not a time")
	case recipients < minRecipientsSize || recipients > maxRecipientsSize:
		return 0, malformed("recipients take %d bytes", recipients)
	}
	return recipients, nil
}

func (p *Prologue) parseRecipients(b []byte) error {
	c := cursor{rest: b}
	n := int(c.uint8())
	if n < 1 || n > MaxRecipients {
		return malformed("%d recipients, not 1 to %d", n, MaxRecipients)
	}
	for range n {
		id := c.take(len(KeyID{}))
		s := stanza{kind: RecipientType(c.uint8()), enc: c.take(int(c.uint16())), wrapped: c.take(int(c.uint16()))}
		if c.short {
			return malformed("recipients take less than their lengths say")
		}
		if err := s.check(); err != nil {
			return err
		}
		s.id = KeyID(id)
		p.stanzas = append(p.stanzas, s)
	}
	if len(c.rest) != 0 {
		return malformed("%d bytes after the last recipient", len(c.rest))
	}
	return checkKeyIDs(p.KeyIDs())
}

// bound joins what the prologue and the headers say, once they agree.
func (p *Prologue) bound(h Headers) (*bound, error) {
	if h.RequestID != p.requestID {
		return nil, malformed("request id in the headers is not the body's")
	}
	if !slices.Equal(h.KeyIDs, p.KeyIDs()) {
		return nil, malformed("recipients in the headers are not the body's")
	}
	b := &bound{Headers: h, operation: p.operation, expiry: p.expiry}
	return b, b.check()
}
