package attest_test

import (
	"bytes"
	"fmt"
	"slices"
	"time"

	"github.com/fxamacker/cbor/v2"
	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"

	"github.com/mrgc/mrgc/internal/attest"
)

// Every single-field mutation of the real documents: whatever is signed by AWS
// cannot be signed again, so each of them must be refused, whichever rule sees
// it first. That each rule holds by itself is what the forged documents of
// verify_test.go show.
var _ = Describe("A real document", func() {
	policy, ownTime := realPolicy()
	accepted := func(raw []byte, userData string) error {
		_, err := attest.Verify(raw, policy, attest.Expected{UserData: []byte(userData)}, ownTime)
		return err
	}

	It("passes as it is, taken apart and put together again", func() {
		raw := vector("aws-attestation-2023.cbor")
		again := parse(raw).encode()
		Expect(again).To(Equal(raw), "else the mutations below differ in more than one field")
		Expect(accepted(again, "")).To(Succeed())
	})

	It("is refused with any one field changed", func() {
		mutants := mutations(vector("aws-attestation-2023.cbor"))
		Expect(len(mutants)).To(BeNumerically(">", 150))
		for name, raw := range mutants {
			Expect(accepted(raw, "")).NotTo(Succeed(), name)
		}
	})

	It("is refused with a byte changed", func() {
		raw := vector("aws-attestation-2023.cbor")
		for i := 0; i < len(raw); i += 3 { // each costs a verification; a forged one is tried byte by byte
			changed := bytes.Clone(raw)
			changed[i] ^= 1 << (i % 8)
			Expect(accepted(changed, "")).NotTo(Succeed(), "bit %d of byte %d", i%8, i)
		}
	})

	It("is refused with any one byte missing, or one more", func() {
		raw := vector("aws-attestation-2023.cbor")
		for i := range raw {
			Expect(accepted(slices.Delete(bytes.Clone(raw), i, i+1), "")).NotTo(Succeed(), "without byte %d", i)
			Expect(accepted(slices.Insert(bytes.Clone(raw), i, raw[i]), "")).NotTo(Succeed(), "byte %d twice", i)
		}
	})

	DescribeTable("does not become acceptable by any change of a field, when it is",
		func(file, userData string, at time.Time) {
			for name, raw := range mutations(vector(file)) {
				policy := policy
				policy.Releases = []attest.Release{policy.Releases[0]}
				_, err := attest.Verify(raw, policy, attest.Expected{UserData: []byte(userData)}, at)
				Expect(err).To(HaveOccurred(), name)
			}
		},
		Entry("of debug mode", "aws-attestation-debug-2023.cbor", "hello, world!", time.UnixMilli(1665582606081)),
		Entry("QEMU's, without a signature", "qemu-unsigned-attestation.cbor", "ud", time.UnixMilli(1795433289000)),
	)
})

// item is a CBOR value whose parts are kept in the order of their bytes: the
// library would sort a map's keys.
type item struct {
	name     string
	raw      []byte // of a leaf; nil: it has parts
	major    byte   // of one with parts: 4 array, 5 map
	parts    []*item
	wrapped  *item // a byte string that holds CBOR
	original []byte
}

// parse takes a message apart: the four elements of COSE_Sign1, the payload's
// members, the registers and the certificates.
func parse(raw []byte) *item {
	message := split("message", raw)
	payload := message.parts[2]
	var inside []byte
	check(cbor.Unmarshal(payload.raw, &inside))
	payload.wrapped = split("payload", inside)
	return message
}

// split takes an array or a map apart, and what is inside of it.
func split(name string, raw []byte) *item {
	it := &item{name: name, major: raw[0] >> 5, original: raw}
	if it.major != 4 && it.major != 5 {
		it.raw = raw
		return it
	}
	n := int(raw[0] & 31)
	rest := raw[1:]
	if n == 24 {
		n, rest = int(raw[1]), raw[2:]
	} else if n > 24 {
		panic("a longer array or map than any here")
	}
	if it.major == 5 {
		n *= 2
	}
	for i := range n {
		var part cbor.RawMessage
		var err error
		rest, err = cbor.UnmarshalFirst(rest, &part)
		check(err)
		it.parts = append(it.parts, split(fmt.Sprintf("%s[%d]", name, i), part))
	}
	if len(rest) > 0 {
		panic("data after the last part")
	}
	return it
}

func (it *item) encode() []byte {
	switch {
	case it.wrapped != nil:
		return encode(it.wrapped.encode())
	case it.raw != nil:
		return it.raw
	}
	n := len(it.parts)
	if it.major == 5 {
		n /= 2
	}
	out := head(it.major, n)
	for _, part := range it.parts {
		out = append(out, part.encode()...)
	}
	return out
}

// head is a CBOR head in its shortest form (RFC 8949, section 3).
func head(major byte, n int) []byte {
	if n < 24 {
		return []byte{major<<5 | byte(n)}
	}
	return []byte{major<<5 | 24, byte(n)}
}

// mutations are all single-field changes of a document, by name: every element,
// member, register and certificate changed, emptied, of another type, left out,
// given twice, and put in the place of its neighbour.
func mutations(raw []byte) map[string][]byte {
	all := map[string][]byte{}
	var visit func(message, it *item)
	message := parse(raw)
	note := func(name string) { all[name] = message.encode() }
	visit = func(message, it *item) {
		if it.wrapped != nil {
			visit(message, it.wrapped)
		}
		step := 1
		if it.major == 5 && it.raw == nil {
			step = 2 // a member is a key and a value
		}
		for i := 0; i < len(it.parts); i += step {
			at, whole := it.parts[i].name, it.parts
			member := whole[i : i+step]
			it.parts = slices.Concat(whole[:i], whole[i+step:])
			note(at + " left out")
			it.parts = slices.Concat(whole[:i], member, whole[i:])
			note(at + " twice")
			if next := i + step; next < len(whole) {
				it.parts = slices.Concat(whole[:i], whole[next:next+step], member, whole[next+step:])
				note(at + " swapped with the next")
			}
			it.parts = whole
		}
		for _, part := range it.parts {
			before := *part
			for name, value := range changes(part) {
				*part = item{name: part.name, raw: value}
				if !bytes.Equal(value, before.original) {
					note(part.name + " " + name)
				}
			}
			*part = before
			visit(message, part)
		}
	}
	visit(message, message)
	return all
}

// changes are other values in a field's place.
func changes(it *item) map[string][]byte {
	values := map[string][]byte{
		"null": {0xf6}, "zero": {0x00}, "false": {0xf4}, "an empty byte string": {0x40}, "an empty text": {0x60},
		"an empty array": {0x80}, "an empty map": {0xa0}, "tagged": append([]byte{0xc1}, it.original...),
		"in an array": append([]byte{0x81}, it.original...), "in a byte string": encode(it.original),
	}
	var text string
	var octets []byte
	var number uint64
	switch raw := it.original; {
	case cbor.Unmarshal(raw, &octets) == nil && len(octets) > 0 && raw[0]>>5 == 2:
		values["zeroed"] = encode(make([]byte, len(octets)))
		values["shorter"] = encode(octets[:len(octets)-1])
		values["longer"] = encode(append(bytes.Clone(octets), 0))
		values["with its first bit flipped"] = encode(flip(octets, 0))
		values["with its last bit flipped"] = encode(flip(octets, len(octets)-1))
		values["as text"] = append([]byte{raw[0] | 0x20}, raw[1:]...)
	case cbor.Unmarshal(raw, &text) == nil && text != "" && raw[0]>>5 == 3:
		values["another text"] = encode(text + "x")
		values["upper case"] = encode(string(bytes.ToUpper([]byte(text))))
		values["as bytes"] = append([]byte{raw[0] &^ 0x20}, raw[1:]...)
	case cbor.Unmarshal(raw, &number) == nil && raw[0]>>5 == 0:
		values["one more"] = encode(number + 1)
		values["negative"] = append([]byte{raw[0] | 0x20}, raw[1:]...)
	}
	return values
}

func flip(b []byte, at int) []byte {
	changed := bytes.Clone(b)
	changed[at] ^= 0x80
	return changed
}
