package seal_test

import (
	"bytes"
	"crypto/sha256"
	"strings"
	"time"

	"github.com/fxamacker/cbor/v2"
	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	"pgregory.net/rapid"

	"github.com/mrgc/mrgc/internal/seal"
)

var _ = Describe("Claims", func() {
	It("come back as they were made", func() {
		key := newKey()
		rapid.Check(GinkgoT(), func(t *rapid.T) {
			from := rapid.Int64Range(1, 1<<37).Draw(t, "from")
			claims := seal.Claims{
				Model:     rapid.StringMatching(`[!-~]{1,255}`).Draw(t, "model"),
				Region:    rapid.StringMatching(`[!-~]{1,255}`).Draw(t, "region"),
				Mode:      rapid.SampledFrom([]string{"process", "nitro", "nitro+attested-host", "nitro+attested-host+gpu-cc"}).Draw(t, "mode"),
				NotBefore: time.Unix(from, 0).UTC(),
				NotAfter:  time.Unix(from+rapid.Int64Range(1, 1<<36).Draw(t, "for"), 0).UTC(),
			}
			copy(claims.ManifestSHA256[:], rapid.SliceOfN(rapid.Byte(), 32, 32).Draw(t, "manifest"))
			if rapid.Bool().Draw(t, "with receipt key") {
				claims.ReceiptKey = rapid.SliceOfN(rapid.Byte(), 32, 32).Draw(t, "receipt key")
			}
			made := seal.ReKey(key, claims)
			claims.Type, claims.PublicKey = seal.TypeEnclave, key.Claims().PublicKey
			claims.KEM, claims.KDF, claims.AEAD = 0x647a, 1, 2
			Expect(made.Claims()).To(Equal(claims))
			parsed, err := seal.ParseRecipient(made.RawClaims())
			Expect(err).NotTo(HaveOccurred())
			Expect(parsed.Claims()).To(Equal(claims))
			Expect(parsed.KeyID()).To(Equal(made.KeyID()))
		})
	})

	It("are named by the hash of their bytes", func() {
		key := newKey()
		digest := sha256.Sum256(key.RawClaims())
		Expect(key.ClaimsDigest()).To(Equal(digest))
		Expect(key.KeyID()).To(Equal(seal.KeyID(digest[:8])))
	})

	It("are the recipient's own, whatever a caller does to its copy", func() {
		key := newKey()
		clear(key.RawClaims())
		clear(key.Claims().PublicKey)
		raw := key.RawClaims()
		parsed, err := seal.ParseRecipient(raw)
		Expect(err).NotTo(HaveOccurred())
		clear(raw)
		Expect(parsed.ClaimsDigest()).To(Equal(key.ClaimsDigest()))
		Expect(parsed.Claims()).To(Equal(key.Claims()))
	})

	It("are valid from their first second to their last", func() {
		c := testClaims()
		Expect(c.ValidAt(c.NotBefore)).To(BeTrue())
		Expect(c.ValidAt(c.NotAfter)).To(BeTrue())
		Expect(c.ValidAt(c.NotBefore.Add(-1))).To(BeFalse())
		Expect(c.ValidAt(c.NotAfter.Add(1))).To(BeFalse())
	})

	It("parse only when no bit of their structure differs", func() {
		// A flipped bit in a value may give other claims, which have another id;
		// it never gives the same id, and never a panic.
		key := newKey()
		raw := key.RawClaims()
		for bit := range 8 * len(raw) {
			other, err := seal.ParseRecipient(flipped(raw, bit))
			if err == nil {
				Expect(other.KeyID()).NotTo(Equal(key.KeyID()))
				Expect(other.Claims()).NotTo(Equal(key.Claims()))
			} else {
				Expect(err).To(MatchError(seal.ErrMalformed))
			}
		}
		for n := range raw {
			_, err := seal.ParseClaims(raw[:n])
			Expect(err).To(MatchError(seal.ErrMalformed), "%d bytes", n)
		}
		_, err := seal.ParseClaims(append(raw, 0))
		Expect(err).To(MatchError(seal.ErrMalformed))
	})

	DescribeTable("are malformed with", func(change func(m map[int]any)) {
		var m map[int]any
		Expect(cbor.Unmarshal(newKey().RawClaims(), &m)).To(Succeed())
		Expect(seal.ParseRecipient(mustCBOR(m))).NotTo(BeNil(), "before the change")
		change(m)
		_, err := seal.ParseRecipient(mustCBOR(m))
		Expect(err).To(MatchError(seal.ErrMalformed))
	},
		Entry("an unknown key", func(m map[int]any) { m[13] = 1 }),
		Entry("a key missing", func(m map[int]any) { delete(m, 7) }),
		Entry("a null", func(m map[int]any) { m[8] = nil }),
		Entry("a value of another kind", func(m map[int]any) { m[6] = []byte("model") }),
		Entry("type 0", func(m map[int]any) { m[1] = 0 }),
		Entry("type kms, which is of envelopes only", func(m map[int]any) { m[1] = 3 }),
		Entry("a type beyond 8 bits", func(m map[int]any) { m[1] = 257 }),
		Entry("another KEM", func(m map[int]any) { m[2] = 0x20 }),
		Entry("another KDF", func(m map[int]any) { m[3] = 2 }),
		Entry("another AEAD", func(m map[int]any) { m[4] = 1 }),
		Entry("a short public key", func(m map[int]any) { m[5] = make([]byte, 1215) }),
		Entry("a public key that is none", func(m map[int]any) { m[5] = bytes.Repeat([]byte{0xff}, 1216) }),
		Entry("no model", func(m map[int]any) { m[6] = "" }),
		Entry("a model that no header carries", func(m map[int]any) { m[6] = "a b" }),
		Entry("a model over 255 bytes", func(m map[int]any) { m[6] = strings.Repeat("x", 256) }),
		Entry("a short manifest hash", func(m map[int]any) { m[7] = make([]byte, 31) }),
		Entry("a long manifest hash", func(m map[int]any) { m[7] = make([]byte, 33) }),
		Entry("no region", func(m map[int]any) { m[8] = "" }),
		Entry("a region with a line break", func(m map[int]any) { m[8] = "use1\n" }),
		Entry("an unknown mode", func(m map[int]any) { m[9] = "sgx" }),
		Entry("no mode", func(m map[int]any) { m[9] = "" }),
		Entry("a negative time", func(m map[int]any) { m[10] = -1 }),
		Entry("validity that ends as it starts", func(m map[int]any) { m[11] = m[10] }),
		Entry("validity beyond the year 9999", func(m map[int]any) { m[11] = uint64(1) << 63 }),
		Entry("an empty receipt key", func(m map[int]any) { m[12] = []byte{} }),
		Entry("a short receipt key", func(m map[int]any) { m[12] = make([]byte, 31) }),
		Entry("more than 4 KiB", func(m map[int]any) { m[6] = strings.Repeat("x", 4096) }),
	)

	DescribeTable("have one spelling", func(respell func(raw []byte) []byte) {
		_, err := seal.ParseClaims(respell(newKey().RawClaims()))
		Expect(err).To(MatchError(seal.ErrMalformed))
	},
		Entry("no indefinite length", func(raw []byte) []byte {
			return append(append([]byte{0xbf}, raw[1:]...), 0xff)
		}),
		Entry("no length longer than needed", func(raw []byte) []byte {
			return append([]byte{0xb8, raw[0] & 0x1f}, raw[1:]...)
		}),
		Entry("no number longer than needed", func(raw []byte) []byte {
			return append([]byte{raw[0], 1, 0x18, 1}, raw[3:]...)
		}),
		Entry("no key twice", func(raw []byte) []byte {
			return append([]byte{raw[0] + 1, 1, 1}, raw[1:]...)
		}),
		Entry("no other order", func(raw []byte) []byte {
			// 1: type and 3: kdf are both "key 01": swap them.
			at := bytes.Index(raw, []byte{3, 1, 4, 2})
			out := append([]byte{raw[0], 3, 1}, raw[3:at]...)
			return append(append(out, 1, 1), raw[at+2:]...)
		}),
		Entry("no tag", func(raw []byte) []byte { return append([]byte{0xc1}, raw...) }),
	)

	DescribeTable("are not made with", func(change func(*seal.Claims)) {
		claims := testClaims()
		change(&claims)
		_, err := seal.NewRecipientKey(claims)
		Expect(err).To(MatchError(seal.ErrMalformed))
	},
		Entry("no model", func(c *seal.Claims) { c.Model = "" }),
		Entry("an unknown mode", func(c *seal.Claims) { c.Mode = "tdx" }),
		Entry("no start", func(c *seal.Claims) { c.NotBefore = time.Time{} }),
		Entry("no end", func(c *seal.Claims) { c.NotAfter = time.Time{} }),
		Entry("an end before the start", func(c *seal.Claims) { c.NotAfter = c.NotBefore.Add(-time.Hour) }),
		Entry("a short receipt key", func(c *seal.Claims) { c.ReceiptKey = []byte{1} }),
	)
})
