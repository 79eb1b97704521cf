package seal

import (
	"encoding/binary"
	"math/bits"
)

// MaxPlaintextBytes is the most that an envelope can carry, padding included.
const MaxPlaintextBytes = 16 << 20

// Payload is what an envelope hides.
type Payload struct {
	Credential  []byte // proves the tenant to the enclave; at most 65535 bytes
	CacheSecret []byte // the tenant's share of the prefix cache's salt; at most 65535 bytes
	Body        []byte // the request's JSON
}

// Wipe clears the payload's bytes.
func (p *Payload) Wipe() {
	clear(p.Credential)
	clear(p.CacheSecret)
	clear(p.Body)
	*p = Payload{}
}

// payloadOverhead is the size of the three length fields.
const payloadOverhead = 2 + 2 + 4

// paddedBytes is how large the padded plaintext is.
func (p *Payload) paddedBytes() (int, error) {
	if len(p.Credential) > 0xffff || len(p.CacheSecret) > 0xffff || len(p.Body) > MaxPlaintextBytes {
		return 0, ErrTooLarge
	}
	size := payloadOverhead + len(p.Credential) + len(p.CacheSecret) + len(p.Body)
	if size > MaxPlaintextBytes {
		return 0, ErrTooLarge
	}
	return paddedSize(size), nil
}

// encode gives the padded plaintext, in a buffer that is the caller's to clear.
func (p *Payload) encode() ([]byte, error) {
	size, err := p.paddedBytes()
	if err != nil {
		return nil, err
	}
	b := make([]byte, 0, size)
	b = binary.BigEndian.AppendUint16(b, uint16(len(p.Credential)))
	b = append(b, p.Credential...)
	b = binary.BigEndian.AppendUint16(b, uint16(len(p.CacheSecret)))
	b = append(b, p.CacheSecret...)
	b = binary.BigEndian.AppendUint32(b, uint32(len(p.Body)))
	b = append(b, p.Body...)
	return b[:cap(b)], nil
}

// parsePayload is the inverse of encode and accepts nothing else. The payload
// shares plaintext's memory.
func parsePayload(plaintext []byte) (Payload, bool) {
	c := cursor{rest: plaintext}
	p := Payload{
		Credential:  c.take(int(c.uint16())),
		CacheSecret: c.take(int(c.uint16())),
		Body:        c.take(int(c.uint32())),
	}
	size := len(plaintext) - len(c.rest)
	if c.short || paddedSize(size) != len(plaintext) || !allZero(c.rest) {
		return Payload{}, false
	}
	return p, true
}

// paddedSize is the bucket for a plaintext of n bytes: a power of two from 1 to
// 4 KiB, above that Padmé (Nikitin et al., "Reducing Metadata Leakage from
// Encrypted Files and Communication with PURBs", PoPETs 2019(4), algorithm 1):
// a floating-point number whose mantissa is as long as its exponent, rounded up.
// It adds at most 6.25 %.
func paddedSize(n int) int {
	switch {
	case n <= 1024:
		return 1024
	case n <= 4096:
		return 1 << bits.Len(uint(n-1))
	}
	exponent := bits.Len(uint(n)) - 1
	mantissa := bits.Len(uint(exponent))
	mask := 1<<(exponent-mantissa) - 1
	return (n + mask) &^ mask
}

func allZero(b []byte) bool {
	var all byte
	for _, v := range b {
		all |= v
	}
	return all == 0
}

// cursor takes fields off the front of rest. Once a field does not fit, short is
// set and every further field is empty.
type cursor struct {
	rest  []byte
	short bool
}

func (c *cursor) take(n int) []byte {
	if c.short || n > len(c.rest) {
		c.short = true
		return nil
	}
	field := c.rest[:n:n]
	c.rest = c.rest[n:]
	return field
}

func (c *cursor) uint8() uint8 {
	if b := c.take(1); b != nil {
		return b[0]
	}
	return 0
}

func (c *cursor) uint16() uint16 {
	if b := c.take(2); b != nil {
		return binary.BigEndian.Uint16(b)
	}
	return 0
}

func (c *cursor) uint32() uint32 {
	if b := c.take(4); b != nil {
		return binary.BigEndian.Uint32(b)
	}
	return 0
}

func (c *cursor) uint64() uint64 {
	if b := c.take(8); b != nil {
		return binary.BigEndian.Uint64(b)
	}
	return 0
}
