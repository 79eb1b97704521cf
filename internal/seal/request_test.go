package seal_test

import (
	"bytes"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"io"
	"slices"
	"testing/iotest"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	"pgregory.net/rapid"

	"github.com/mrgc/mrgc/internal/seal"
)

func drawBytes(t *rapid.T, label string, maxLen int) []byte {
	return rapid.SliceOfN(rapid.Byte(), 0, maxLen).Draw(t, label)
}

var _ = Describe("A sealed request", func() {
	It("opens at every recipient as it was sealed", func() {
		keys := newKeys(seal.MaxRecipients)
		name := rapid.StringMatching(`[!-~]{1,40}`)
		rapid.Check(GinkgoT(), func(t *rapid.T) {
			to := rapid.SliceOfNDistinct(rapid.SampledFrom(keys), 1, seal.MaxRecipients,
				func(k *seal.RecipientKey) seal.KeyID { return k.KeyID() }).Draw(t, "recipients")
			req := testRequest()
			req.Operation = rapid.SampledFrom([]seal.Operation{seal.OpChatCompletions, seal.OpCompletions}).Draw(t, "operation")
			req.Tenant = name.Draw(t, "tenant")
			req.Affinity = rapid.StringMatching(`[!-~]{0,40}`).Draw(t, "affinity")
			req.Size = rapid.StringMatching(`[!-~]{0,40}`).Draw(t, "size")
			req.RequestID = seal.RequestID(rapid.SliceOfN(rapid.ByteMin(1), 16, 16).Draw(t, "id"))
			req.Payload = seal.Payload{
				Credential:  drawBytes(t, "credential", 100),
				CacheSecret: drawBytes(t, "cache secret", 100),
				Body:        bytes.Repeat([]byte("0123456789abcde"), rapid.IntRange(0, 4000).Draw(t, "body")),
			}
			sealed := mustSeal(req, to...)
			for _, key := range to {
				opened := mustOpen(key, sealed)
				Expect(opened.Operation).To(Equal(req.Operation))
				Expect(opened.Model).To(Equal(req.Model))
				Expect(opened.Tenant).To(Equal(req.Tenant))
				Expect(opened.Size).To(Equal(req.Size))
				Expect(opened.RequestID).To(Equal(req.RequestID))
				Expect(opened.Expiry).To(Equal(req.Expiry))
				Expect(opened.KeyID).To(Equal(key.KeyID()))
				Expect(bytes.Equal(opened.Payload.Credential, req.Payload.Credential)).To(BeTrue())
				Expect(bytes.Equal(opened.Payload.CacheSecret, req.Payload.CacheSecret)).To(BeTrue())
				Expect(bytes.Equal(opened.Payload.Body, req.Payload.Body)).To(BeTrue())
			}
		})
	})

	It("is as large as is known before anything is encrypted", func() {
		keys, kms := newKeys(seal.MaxRecipients), newFakeKMS()
		rapid.Check(GinkgoT(), func(t *rapid.T) {
			req := testRequest()
			req.Payload.Body = make([]byte, rapid.OneOf(
				rapid.IntRange(0, 6000), rapid.IntRange(16_000, 17_000), rapid.IntRange(0, 300_000)).Draw(t, "body"))
			req.Payload.Credential = drawBytes(t, "credential", 100)
			if rapid.Bool().Draw(t, "by a data key") {
				req.DataKey = &seal.DataKey{Plaintext: kms.key.Plaintext, Ciphertext: make([]byte, rapid.IntRange(1, seal.MaxDataKeySize).Draw(t, "data key"))}
			}
			prepared, err := seal.Prepare(req, recipients(keys[:rapid.IntRange(1, len(keys)).Draw(t, "recipients")]...))
			Expect(err).NotTo(HaveOccurred())
			sealed, err := prepared.Seal(rand.Reader)
			Expect(err).NotTo(HaveOccurred())
			Expect(sealed.Body).To(HaveLen(prepared.BodyBytes))
			Expect(sealed.Body).To(HaveCap(prepared.BodyBytes), "it grew, and left bytes behind")
			Expect(sealed.Headers).To(Equal(prepared.Headers))
		})
	})

	It("is refused before anything is encrypted when it cannot be sealed", func() {
		for what, change := range map[string]func(*seal.Request){
			"no tenant":             func(r *seal.Request) { r.Tenant = "" },
			"another model":         func(r *seal.Request) { r.Model = "another" },
			"too large a body":      func(r *seal.Request) { r.Payload.Body = make([]byte, seal.MaxPlaintextBytes) },
			"too long a credential": func(r *seal.Request) { r.Payload.Credential = make([]byte, 1<<16) },
			"half a data key": func(r *seal.Request) {
				r.DataKey = &seal.DataKey{Plaintext: make([]byte, 16), Ciphertext: make([]byte, 184)}
			},
			"no ciphertext of it": func(r *seal.Request) { r.DataKey = &seal.DataKey{Plaintext: make([]byte, 32)} },
		} {
			req := testRequest()
			change(&req)
			_, err := seal.Prepare(req, recipients(newKey()))
			Expect(err).To(Or(MatchError(seal.ErrMalformed), MatchError(seal.ErrTooLarge)), what)
		}
	})

	It("opens however the transport splits it", func() {
		key := newKey()
		sealed := mustSeal(testRequest(), key)
		r := iotest.DataErrReader(iotest.OneByteReader(bytes.NewReader(sealed.Body)))
		p, err := seal.ReadPrologue(r)
		Expect(err).NotTo(HaveOccurred())
		Expect(p.RequestID()).To(Equal(testRequest().RequestID))
		Expect(p.KeyIDs()).To(Equal([]seal.KeyID{key.KeyID()}))
		opened, err := key.Open(now(), p, sealed.Headers, r, seal.Limits{})
		Expect(err).NotTo(HaveOccurred())
		Expect(opened.Payload).To(Equal(testRequest().Payload))
	})

	It("leaves what follows the prologue unread", func() {
		sealed := mustSeal(testRequest(), newKey())
		r := bytes.NewReader(sealed.Body)
		_, err := seal.ReadPrologue(r)
		Expect(err).NotTo(HaveOccurred())
		prologue := seal.PrologueHeadSize + 1 + seal.StanzaSize + seal.CommitmentSize
		Expect(r.Len()).To(Equal(len(sealed.Body) - prologue))
	})

	It("hides the payload's size within its bucket, and the payload", func() {
		key := newKey()
		short, long := testRequest(), testRequest()
		long.Payload.Body = append(long.Payload.Body, bytes.Repeat([]byte(" "), 700)...)
		sealed := mustSeal(short, key)
		Expect(mustSeal(long, key).Body).To(HaveLen(len(sealed.Body)))
		Expect(bytes.Contains(sealed.Body, short.Payload.Credential)).To(BeFalse())
		Expect(bytes.Contains(sealed.Body, short.Payload.Body)).To(BeFalse())
	})

	DescribeTable("does not open when a bound field differs", func(want error, change func(*seal.Headers)) {
		keys := newKeys(2)
		sealed := mustSeal(testRequest(), keys...)
		h := sealed.Headers
		h.KeyIDs = slices.Clone(h.KeyIDs)
		change(&h)
		_, err := open(keys[0], h, sealed.Body)
		Expect(err).To(MatchError(want))
	},
		Entry("model", seal.ErrOpen, func(h *seal.Headers) { h.Model += "x" }),
		Entry("no model", seal.ErrMalformed, func(h *seal.Headers) { h.Model = "" }),
		Entry("tenant", seal.ErrOpen, func(h *seal.Headers) { h.Tenant = "other" }),
		Entry("no tenant", seal.ErrMalformed, func(h *seal.Headers) { h.Tenant = "" }),
		Entry("affinity", seal.ErrOpen, func(h *seal.Headers) { h.Affinity = "other" }),
		Entry("no affinity", seal.ErrOpen, func(h *seal.Headers) { h.Affinity = "" }),
		Entry("size", seal.ErrOpen, func(h *seal.Headers) { h.Size = "1/1" }),
		Entry("a byte moved from size to affinity", seal.ErrOpen, func(h *seal.Headers) {
			h.Affinity, h.Size = h.Affinity+h.Size[:1], h.Size[1:]
		}),
		Entry("a control character", seal.ErrMalformed, func(h *seal.Headers) { h.Tenant = "acme\n" }),
		Entry("request id", seal.ErrMalformed, func(h *seal.Headers) { h.RequestID[0]++ }),
		Entry("a recipient", seal.ErrMalformed, func(h *seal.Headers) { h.KeyIDs[1][0]++ }),
		Entry("a recipient missing", seal.ErrMalformed, func(h *seal.Headers) { h.KeyIDs = h.KeyIDs[:1] }),
		Entry("recipients in another order", seal.ErrMalformed, func(h *seal.Headers) { slices.Reverse(h.KeyIDs) }),
	)

	It("does not open when the body and a header change together", func() {
		key := newKey()
		sealed := mustSeal(testRequest(), key)
		body, h := bytes.Clone(sealed.Body), sealed.Headers
		body[3]++
		h.RequestID[0]++
		_, err := open(key, h, body)
		Expect(err).To(BeIdenticalTo(seal.ErrOpen))
	})

	It("does not open when any bit of the body differs", func() {
		key := newKey()
		sealed := mustSeal(testRequest(), key)
		rapid.Check(GinkgoT(), func(t *rapid.T) {
			bit := rapid.IntRange(0, 8*len(sealed.Body)-1).Draw(t, "bit")
			opened, err := open(key, sealed.Headers, flipped(sealed.Body, bit))
			Expect(err).To(HaveOccurred())
			Expect(opened).To(BeNil())
		})
		for i := range sealed.Body { // and each byte once
			_, err := open(key, sealed.Headers, flipped(sealed.Body, 8*i+i%8))
			Expect(err).To(HaveOccurred(), "byte %d", i)
		}
	})

	It("does not open when it is cut or continued", func() {
		key := newKey()
		sealed := mustSeal(testRequest(), key)
		for n := range sealed.Body {
			_, err := open(key, sealed.Headers, sealed.Body[:n])
			Expect(err).To(MatchError(seal.ErrMalformed), "%d bytes", n)
		}
		_, err := open(key, sealed.Headers, append(bytes.Clone(sealed.Body), 0))
		Expect(err).To(MatchError(seal.ErrMalformed))
	})

	It("does not open when chunks are swapped, dropped or repeated", func() {
		key := newKey()
		req := testRequest()
		req.Payload.Body = bytes.Repeat([]byte("x"), 60000)
		sealed := mustSeal(req, key)
		start := seal.PrologueHeadSize + 1 + seal.StanzaSize + seal.CommitmentSize
		const chunk = 3 + 16384 + 16
		prologue := sealed.Body[:start]
		first, second, rest := sealed.Body[start:start+chunk], sealed.Body[start+chunk:start+2*chunk], sealed.Body[start+2*chunk:]
		Expect(open(key, sealed.Headers, slices.Concat(prologue, first, second, rest))).NotTo(BeNil())
		for _, body := range [][]byte{
			slices.Concat(prologue, second, first, rest),
			slices.Concat(prologue, first, rest),
			slices.Concat(prologue, first, first, second, rest),
		} {
			_, err := open(key, sealed.Headers, body)
			Expect(err).To(BeIdenticalTo(seal.ErrOpen))
		}
	})

	It("fails to open in one way only, whatever the key-dependent reason", func() {
		keys := newKeys(2)
		sealed := mustSeal(testRequest(), keys[0])
		other := mustSeal(testRequest(), keys[0])
		stanza := seal.PrologueHeadSize + 1
		commitment := stanza + seal.StanzaSize
		chunks := commitment + seal.CommitmentSize
		badPadding, err := seal.SealPlaintext(rand.Reader, testRequest(), recipients(keys[0]), bytes.Repeat([]byte{1}, 1024))
		Expect(err).NotTo(HaveOccurred())

		for what, body := range map[string][]byte{
			"ML-KEM part of enc": flipped(sealed.Body, 8*(stanza+11)),
			"X25519 part of enc": flipped(sealed.Body, 8*(stanza+11+1100)),
			"low-order point": slices.Concat(sealed.Body[:stanza+11+1088], make([]byte, 32),
				sealed.Body[stanza+11+1120:]),
			"wrapped DEK":               flipped(sealed.Body, 8*(commitment-1)),
			"commitment":                flipped(sealed.Body, 8*commitment),
			"chunk":                     flipped(sealed.Body, 8*(chunks+3)),
			"tag":                       flipped(sealed.Body, 8*len(sealed.Body)-1),
			"chunks of another request": slices.Concat(sealed.Body[:chunks], other.Body[chunks:]),
			"commitment and chunks of another": slices.Concat(sealed.Body[:commitment],
				other.Body[commitment:]),
			"payload that does not parse": badPadding.Body,
		} {
			_, err := open(keys[0], sealed.Headers, body)
			Expect(err).To(BeIdenticalTo(seal.ErrOpen), what)
		}
	})

	It("does not open for a key that only has the same id", func() {
		// The envelope names the right id; the private key is another's.
		keys := newKeys(2)
		sealed := mustSeal(testRequest(), keys[0])
		impostor := seal.WithPrivateKeyOf(keys[0], keys[1])
		_, err := open(impostor, sealed.Headers, sealed.Body)
		Expect(err).To(BeIdenticalTo(seal.ErrOpen))
	})

	It("is refused by one who is no recipient", func() {
		keys := newKeys(2)
		sealed := mustSeal(testRequest(), keys[0])
		_, err := open(keys[1], sealed.Headers, sealed.Body)
		Expect(err).To(MatchError(seal.ErrNotRecipient))
	})

	DescribeTable("is opened only within its window",
		func(at time.Duration, limits seal.Limits, ok bool) {
			key := newKey()
			sealed := mustSeal(testRequest(), key) // expires a minute after now
			_, err := openLimited(key, sealed.Headers, sealed.Body, now().Add(at), limits)
			if ok {
				Expect(err).NotTo(HaveOccurred())
			} else {
				Expect(err).To(MatchError(seal.ErrExpired))
			}
		},
		Entry("in time", time.Duration(0), seal.Limits{}, true),
		Entry("at the last moment", time.Minute-1, seal.Limits{}, true),
		Entry("as it expires", time.Minute, seal.Limits{}, false),
		Entry("long after", 100*365*24*time.Hour, seal.Limits{}, false),
		Entry("as far ahead as allowed", -time.Minute, seal.Limits{}, true),
		Entry("further ahead", -time.Minute-1, seal.Limits{}, false),
		Entry("further ahead, under a limit above the protocol's", -time.Minute-1, seal.Limits{MaxLifetime: time.Hour}, false),
		Entry("as far ahead as a lower limit allows", time.Duration(0), seal.Limits{MaxLifetime: time.Minute}, true),
		Entry("further ahead than a lower limit", time.Duration(0), seal.Limits{MaxLifetime: time.Minute - 1}, false),
	)

	It("is refused above the limit before it is read in full", func() {
		key := newKey()
		req := testRequest()
		req.Payload.Body = make([]byte, 100000)
		sealed := mustSeal(req, key)
		size := seal.PaddedSize(8 + len(req.Payload.Credential) + len(req.Payload.CacheSecret) + len(req.Payload.Body))

		_, err := openLimited(key, sealed.Headers, sealed.Body, now(), seal.Limits{MaxPlaintextBytes: size})
		Expect(err).NotTo(HaveOccurred())

		r := bytes.NewReader(sealed.Body)
		p, err := seal.ReadPrologue(r)
		Expect(err).NotTo(HaveOccurred())
		_, err = key.Open(now(), p, sealed.Headers, r, seal.Limits{MaxPlaintextBytes: 40000})
		Expect(err).To(MatchError(seal.ErrTooLarge))
		Expect(len(sealed.Body) - r.Len()).To(BeNumerically("<", 40000))
	})

	It("has the transport's own error when that fails", func() {
		key := newKey()
		sealed := mustSeal(testRequest(), key)
		broken := errors.New("connection reset")
		for _, n := range []int{0, 100, 1300, len(sealed.Body)} {
			r := io.MultiReader(bytes.NewReader(sealed.Body[:n]), iotest.ErrReader(broken))
			p, err := seal.ReadPrologue(r)
			if err == nil {
				_, err = key.Open(now(), p, sealed.Headers, r, seal.Limits{})
			}
			Expect(err).To(MatchError(broken), "after %d bytes", n)
			Expect(err).NotTo(MatchError(seal.ErrMalformed))
		}
	})

	DescribeTable("has a malformed prologue", func(change func(body []byte) []byte) {
		sealed := mustSeal(testRequest(), newKeys(2)...)
		_, err := seal.ReadPrologue(bytes.NewReader(sealed.Body))
		Expect(err).NotTo(HaveOccurred(), "before the change")
		_, err = seal.ReadPrologue(bytes.NewReader(change(bytes.Clone(sealed.Body))))
		Expect(err).To(MatchError(seal.ErrMalformed))
	},
		Entry("of version 0", set(0, 0)),
		Entry("of version 2", set(0, 2)),
		Entry("of suite 2", set(1, 2)),
		Entry("of operation 0", set(2, 0)),
		Entry("of operation 3", set(2, 3)),
		Entry("with an expiry of 0", set(19, 0, 0, 0, 0, 0, 0, 0, 0)),
		Entry("with an expiry beyond the year 9999", set(19, 0, 0, 1)),
		Entry("with an expiry that is negative as an int64", set(19, 0xff)),
		Entry("with no recipients", set(29, 0)),
		Entry("with 5 recipients", set(29, 5)),
		Entry("with fewer recipients than bytes", set(29, 1)),
		Entry("with more recipients than bytes", set(29, 3)),
		Entry("with a recipients' length of 0", set(27, 0, 0)),
		Entry("with a recipients' length above the limit", set(27, 0xff, 0xff)),
		Entry("with a recipient of type 0", set(38, 0)),
		Entry("with a recipient of type 3 and type 1's lengths", set(38, 3)),
		Entry("with a recipient of type 4", set(38, 4)),
		Entry("with an enc of another length", set(39, 0, 1)),
		Entry("with a wrapped DEK of another length", set(39+2+1120, 0, 47)),
		Entry("with a recipient twice", func(b []byte) []byte {
			copy(b[30+seal.StanzaSize:], b[30:30+seal.StanzaSize])
			return b
		}),
	)

	// Each framing is whole, so that without its check it would fail later, as
	// ErrOpen or ErrTooLarge.
	DescribeTable("has malformed chunks", func(chunks []byte) {
		key := newKey()
		sealed := mustSeal(testRequest(), key)
		start := seal.PrologueHeadSize + 1 + seal.StanzaSize + seal.CommitmentSize
		_, err := open(key, sealed.Headers, slices.Concat(sealed.Body[:start], chunks))
		Expect(err).To(MatchError(seal.ErrMalformed))
	},
		Entry("with a final flag of 2", rawChunk(2, 100)),
		Entry("with no plaintext", rawChunk(1, 16)),
		Entry("with less than a tag", rawChunk(1, 15)),
		Entry("above 16 KiB", rawChunk(1, 16384+16+1)),
		Entry("short and not final", slices.Concat(rawChunk(0, 16384+15), rawChunk(1, 100))),
		Entry("none", nil),
	)

	DescribeTable("cannot be sealed", func(want error, change func(*seal.Request, *[]*seal.Recipient)) {
		req, to := testRequest(), recipients(newKey())
		change(&req, &to)
		_, err := seal.Seal(rand.Reader, req, to)
		Expect(err).To(MatchError(want))
	},
		Entry("to nobody", seal.ErrMalformed, func(_ *seal.Request, to *[]*seal.Recipient) { *to = nil }),
		Entry("to five", seal.ErrMalformed, func(_ *seal.Request, to *[]*seal.Recipient) { *to = recipients(newKeys(5)...) }),
		Entry("to one twice", seal.ErrMalformed, func(_ *seal.Request, to *[]*seal.Recipient) { *to = append(*to, (*to)[0]) }),
		Entry("for a model that the recipient does not serve", seal.ErrMalformed,
			func(req *seal.Request, _ *[]*seal.Recipient) { req.Model = "another" }),
		Entry("without a tenant", seal.ErrMalformed, func(req *seal.Request, _ *[]*seal.Recipient) { req.Tenant = "" }),
		Entry("with a space in a name", seal.ErrMalformed, func(req *seal.Request, _ *[]*seal.Recipient) { req.Affinity = "a b" }),
		Entry("with a name over 255 bytes", seal.ErrMalformed,
			func(req *seal.Request, _ *[]*seal.Recipient) { req.Size = string(bytes.Repeat([]byte("x"), 256)) }),
		Entry("without an operation", seal.ErrMalformed, func(req *seal.Request, _ *[]*seal.Recipient) { req.Operation = 0 }),
		Entry("without a request id", seal.ErrMalformed,
			func(req *seal.Request, _ *[]*seal.Recipient) { req.RequestID = seal.RequestID{} }),
		Entry("without an expiry", seal.ErrMalformed, func(req *seal.Request, _ *[]*seal.Recipient) { req.Expiry = time.Time{} }),
		Entry("with a credential over 64 KiB", seal.ErrTooLarge,
			func(req *seal.Request, _ *[]*seal.Recipient) { req.Payload.Credential = make([]byte, 65536) }),
		Entry("with a body over the limit", seal.ErrTooLarge,
			func(req *seal.Request, _ *[]*seal.Recipient) { req.Payload.Body = make([]byte, seal.MaxPlaintextBytes) }),
	)

	It("cannot be sealed without randomness", func() {
		_, err := seal.Seal(iotest.ErrReader(errors.New("no entropy")), testRequest(), recipients(newKey()))
		Expect(err).To(MatchError(ContainSubstring("no entropy")))
	})
})

// set gives a change that puts bytes at an offset of the body.
func set(at int, values ...byte) func([]byte) []byte {
	return func(b []byte) []byte {
		copy(b[at:], values)
		return b
	}
}

// rawChunk frames so many bytes of no meaning.
func rawChunk(final byte, length int) []byte {
	return append(binary.BigEndian.AppendUint16([]byte{final}, uint16(length)), make([]byte, length)...)
}

var _ = Describe("Wiping", func() {
	It("leaves nothing of an opened request", func() {
		key := newKey()
		req := testRequest()
		req.Payload.Body = bytes.Repeat([]byte("secret"), 9000) // several chunks, moved together
		opened := mustOpen(key, mustSeal(req, key))
		dek, plaintext := opened.DEK(), opened.Plaintext()
		Expect(bytes.Contains(plaintext, []byte("secretsecret"))).To(BeTrue())
		Expect(zero(plaintext[len(plaintext):cap(plaintext)])).To(BeTrue(), "copies behind the plaintext")
		opened.Wipe()
		Expect(zero(dek)).To(BeTrue())
		Expect(zero(plaintext[:cap(plaintext)])).To(BeTrue())
		Expect(opened.Payload).To(BeZero())
		_, err := opened.Respond(rand.Reader, io.Discard)
		Expect(err).To(HaveOccurred())
		opened.Wipe() // once more does no harm
	})

	It("leaves nothing of a payload or a DEK at the client", func() {
		req := testRequest()
		sealed := mustSeal(req, newKey())
		Expect(zero(sealed.DEK())).To(BeFalse())
		sealed.Wipe()
		Expect(zero(sealed.DEK())).To(BeTrue())
		body, credential, secret := req.Payload.Body, req.Payload.Credential, req.Payload.CacheSecret
		req.Payload.Wipe()
		Expect(zero(body) && zero(credential) && zero(secret)).To(BeTrue())
		Expect(req.Payload).To(BeZero())
	})
})

func zero(b []byte) bool {
	return len(bytes.Trim(b, "\x00")) == 0
}
