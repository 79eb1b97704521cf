package cms

import "bytes"

// Object identifiers, encoded.
var (
	oidEnvelopedData = []byte{0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x07, 0x03} // 1.2.840.113549.1.7.3
	oidData          = []byte{0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x07, 0x01} // 1.2.840.113549.1.7.1
	oidRSAESOAEP     = []byte{0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x07} // 1.2.840.113549.1.1.7
	oidMGF1          = []byte{0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x08} // 1.2.840.113549.1.1.8
	oidSHA256        = []byte{0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x02, 0x01} // 2.16.840.1.101.3.4.2.1
	oidAES256CBC     = []byte{0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x01, 0x2a} // 2.16.840.1.101.3.4.1.42
)

// version2 is of EnvelopedData with a recipient that is named by subject key
// identifier, and of that recipient (RFC 5652, sections 6.1 and 6.2.1).
var version2 = []byte{2}

// message is what a message says, in the message's own memory but for content,
// which may have come in pieces.
type message struct {
	encryptedKey []byte
	iv           []byte // 16 bytes
	content      []byte // whole blocks, one at least
}

// parse reads ContentInfo (RFC 5652, section 3).
func parse(raw []byte) (*message, error) {
	if len(raw) > MaxMessageBytes {
		return nil, malformed("%d bytes, more than %d", len(raw), MaxMessageBytes)
	}
	m := &message{}
	r := &reader{rest: raw}
	r.inside(tagSequence, func() {
		r.expect(tagOID, oidEnvelopedData, "content type")
		r.inside(tagExplicit0, func() {
			r.inside(tagSequence, func() { m.readEnvelopedData(r) })
		})
	})
	if r.err == nil && len(r.rest) > 0 {
		r.fail("%d bytes after the message", len(r.rest))
	}
	switch {
	case r.err != nil:
		return nil, r.err
	case len(m.iv) != blockSize:
		return nil, malformed("initialisation vector of %d bytes, not %d", len(m.iv), blockSize)
	case len(m.content) == 0 || len(m.content)%blockSize != 0:
		return nil, malformed("encrypted content of %d bytes, not of whole blocks", len(m.content))
	}
	return m, nil
}

// readEnvelopedData reads EnvelopedData's fields (RFC 5652, section 6.1).
func (m *message) readEnvelopedData(r *reader) {
	r.expect(tagInteger, version2, "version of the enveloped data")
	r.inside(tagSet, func() {
		r.inside(tagSequence, func() { m.readRecipient(r) })
	})
	r.inside(tagSequence, func() {
		r.expect(tagOID, oidData, "type of the encrypted content")
		r.inside(tagSequence, func() {
			r.expect(tagOID, oidAES256CBC, "content encryption algorithm")
			m.iv = r.value(tagOctetString)
		})
		m.content = r.octets0()
	})
}

// readRecipient reads KeyTransRecipientInfo's fields (RFC 5652, section 6.2.1).
// The identifier is not compared: whether the key is the right one is what
// decrypting finds out, and AWS does not document how it names one.
func (m *message) readRecipient(r *reader) {
	r.expect(tagInteger, version2, "version of the recipient")
	if id := r.value(tagImplicit0); r.err == nil && len(id) == 0 {
		r.fail("empty subject key identifier")
	}
	r.inside(tagSequence, func() {
		r.expect(tagOID, oidRSAESOAEP, "key encryption algorithm")
		r.inside(tagSequence, func() { // RSAES-OAEP-params, RFC 4055, section 4.1
			r.inside(tagExplicit0, func() { readSHA256(r) })
			r.inside(tagExplicit1, func() {
				r.inside(tagSequence, func() {
					r.expect(tagOID, oidMGF1, "mask generation function")
					readSHA256(r)
				})
			})
		})
	})
	m.encryptedKey = r.value(tagOctetString)
}

// readSHA256 takes the parameters as NULL, which KMS writes, or as absent: RFC
// 4055, section 2.1, has readers accept both.
func readSHA256(r *reader) {
	r.inside(tagSequence, func() {
		r.expect(tagOID, oidSHA256, "hash function")
		if len(r.rest) > 0 {
			r.expect(tagNull, nil, "parameters of the hash function")
		}
	})
}

// expect reads a value that can only be one.
func (r *reader) expect(tag byte, want []byte, what string) {
	if got := r.value(tag); r.err == nil && !bytes.Equal(got, want) {
		r.fail("%s is %x, not %x", what, got, want)
	}
}
