package cms

// Identifier octets (X.690, section 8.1.2).
const (
	tagInteger     = 0x02
	tagOctetString = 0x04
	tagNull        = 0x05
	tagOID         = 0x06
	tagSequence    = 0x30
	tagSet         = 0x31
	tagImplicit0   = 0x80 // [0], primitive
	tagExplicit0   = 0xa0 // [0], constructed
	tagExplicit1   = 0xa1 // [1], constructed
)

// reader takes BER values off the front of rest. After the first error, which
// it keeps, it reads nothing more. Nesting is that of the calls: no input makes
// it recurse deeper than the one shape is.
type reader struct {
	rest []byte
	err  error
}

func (r *reader) fail(format string, args ...any) {
	if r.err == nil {
		r.err = malformed(format, args...)
	}
}

// indefinite is the length of a value that ends with two zero bytes (X.690,
// section 8.1.3.6).
const indefinite = -1

// header reads an identifier, which must be tag, and a length. Definite lengths
// must be in their shortest form and within the input.
func (r *reader) header(tag byte) (length int) {
	if r.err != nil {
		return 0
	}
	if len(r.rest) < 2 {
		r.fail("ends where tag %#02x is expected", tag)
		return 0
	}
	if r.rest[0] != tag {
		r.fail("tag %#02x where %#02x is expected", r.rest[0], tag)
		return 0
	}
	first := r.rest[1]
	r.rest = r.rest[2:]
	switch {
	case first < 0x80:
		length = int(first)
	case first == 0x80:
		return indefinite
	default:
		n := int(first & 0x7f)
		if n > 2 || n > len(r.rest) { // MaxMessageBytes fits into two bytes
			r.fail("length of %d bytes", n)
			return 0
		}
		for _, b := range r.rest[:n] {
			length = length<<8 | int(b)
		}
		r.rest = r.rest[n:]
		if length < 0x80 || n == 2 && length < 0x100 {
			r.fail("length %d is not in its shortest form", length)
			return 0
		}
	}
	if length > len(r.rest) {
		r.fail("length %d, and %d bytes are left", length, len(r.rest))
		return 0
	}
	return length
}

// value reads a primitive value's contents, which have a definite length.
func (r *reader) value(tag byte) []byte {
	length := r.header(tag)
	if r.err == nil && length == indefinite {
		r.fail("primitive value of tag %#02x has an indefinite length", tag)
	}
	if r.err != nil {
		return nil
	}
	contents := r.rest[:length:length]
	r.rest = r.rest[length:]
	return contents
}

// inside has read read all that is in a constructed value, of definite or
// indefinite length.
func (r *reader) inside(tag byte, read func()) {
	length := r.header(tag)
	if r.err != nil {
		return
	}
	if length == indefinite {
		read()
		r.endOfContents(tag)
		return
	}
	after := r.rest[length:]
	r.rest = r.rest[:length]
	read()
	if r.err == nil && len(r.rest) > 0 {
		r.fail("%d bytes too many in tag %#02x", len(r.rest), tag)
	}
	r.rest = after
}

func (r *reader) endOfContents(tag byte) {
	switch {
	case r.err != nil:
	case len(r.rest) < 2 || r.rest[0] != 0 || r.rest[1] != 0:
		r.fail("tag %#02x does not end where it should", tag)
	default:
		r.rest = r.rest[2:]
	}
}

// octets0 reads an octet string with implicit tag [0], as one value or as
// pieces, each an octet string of its own (X.690, section 8.7.3). The pieces of
// pieces that BER would allow are refused.
func (r *reader) octets0() []byte {
	if r.err == nil && len(r.rest) > 0 && r.rest[0] == tagImplicit0 {
		return r.value(tagImplicit0)
	}
	var whole []byte
	r.inside(tagExplicit0, func() {
		for r.err == nil && len(r.rest) > 0 && r.rest[0] == tagOctetString {
			whole = append(whole, r.value(tagOctetString)...)
		}
	})
	return whole
}
