package seal_test

import (
	"bytes"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"testing"
	"time"

	"github.com/fxamacker/cbor/v2"
	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	"github.com/veraison/go-cose"
	"pgregory.net/rapid"

	"github.com/mrgc/mrgc/internal/seal"
)

// signer is a recipient that signs receipts.
func signer() (*seal.Recipient, ed25519.PrivateKey) {
	public, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		panic(err)
	}
	claims := testClaims()
	claims.ReceiptKey = public
	key, err := seal.NewRecipientKey(claims)
	if err != nil {
		panic(err)
	}
	return key.Recipient, private
}

func testReceipt(r *seal.Recipient) seal.Receipt {
	return seal.Receipt{
		Enclave: seal.EnclaveVerified{
			ClaimsSHA256: r.ClaimsDigest(), RequestID: seal.RequestID{7}, Operation: seal.OpCompletions, Model: r.Claims().Model,
			RequestSHA256: sha256.Sum256([]byte("request")), Status: 200, ResponseSHA256: sha256.Sum256([]byte("response")), EndedAt: now(),
			SaltID: seal.SaltID{1, 2, 3},
		},
		Host: seal.HostAsserted{
			ModelVersion: "v3", PromptTokens: 12, OutputTokens: 34, Cache: "salt",
			LastWash: seal.Wash{ID: "use1-0/2026-11-26T07:00:00.000000Z", EndedAt: now().Add(-time.Hour)},
		},
	}
}

func mustSign(r seal.Receipt, key ed25519.PrivateKey) []byte {
	GinkgoHelper()
	raw, err := r.Sign(key)
	Expect(err).NotTo(HaveOccurred())
	return raw
}

var _ = Describe("A receipt", func() {
	It("says what was signed", func() {
		recipient, key := signer()
		name := rapid.StringMatching(`[!-~]{1,40}`)
		rapid.Check(GinkgoT(), func(t *rapid.T) {
			want := testReceipt(recipient)
			want.Enclave.Status = rapid.IntRange(200, 599).Draw(t, "status")
			want.Enclave.EndedAt = want.Enclave.EndedAt.Add(time.Duration(rapid.IntRange(0, 86400).Draw(t, "later")) * time.Second)
			copy(want.Enclave.RequestSHA256[:], rapid.SliceOfN(rapid.Byte(), 32, 32).Draw(t, "request"))
			want.Host.PromptTokens, want.Host.OutputTokens = rapid.IntRange(0, 1<<31-1).Draw(t, "prompt"), rapid.IntRange(0, 1<<31-1).Draw(t, "output")
			want.Host.ModelVersion = rapid.OneOf(rapid.Just(""), name).Draw(t, "version")
			want.Host.LastWash = seal.Wash{}
			if rapid.Bool().Draw(t, "washed") {
				want.Host.LastWash = seal.Wash{ID: name.Draw(t, "wash"), EndedAt: now()}
			}
			copy(want.Enclave.SaltID[:], rapid.SliceOfN(rapid.Byte(), 16, 16).Draw(t, "salt"))
			want.Host.Cache = rapid.OneOf(rapid.Just(""), name).Draw(t, "cache")
			if rapid.Bool().Draw(t, "no salt") || want.Enclave.SaltID == (seal.SaltID{}) {
				want.Enclave.SaltID, want.Host.Cache = seal.SaltID{}, ""
			}
			raw, err := want.Sign(key)
			Expect(err).NotTo(HaveOccurred())
			got, err := recipient.VerifyReceipt(raw)
			Expect(err).NotTo(HaveOccurred())
			Expect(got).To(Equal(want))
		})
	})

	It("of the first version, from before there were salts, still says what was signed", func() {
		recipient, key := signer()
		want := testReceipt(recipient)
		want.Enclave.SaltID, want.Host.Cache = seal.SaltID{}, ""
		raw := mustSign(want, key)
		var m map[int]any
		Expect(cbor.Unmarshal(seal.ReceiptPayload(raw), &m)).To(Succeed())
		Expect(m[1]).To(BeEquivalentTo(1))
		Expect(m[2]).To(HaveLen(8))
		Expect(m[3]).To(HaveLen(5))
		Expect(recipient.VerifyReceipt(raw)).To(Equal(want))
	})

	It("is what others' COSE verifies", func() {
		recipient, key := signer()
		var message cose.Sign1Message
		Expect(message.UnmarshalCBOR(mustSign(testReceipt(recipient), key))).To(Succeed())
		verifier, err := cose.NewVerifier(cose.AlgorithmEdDSA, ed25519.PublicKey(recipient.Claims().ReceiptKey))
		Expect(err).NotTo(HaveOccurred())
		Expect(message.Verify(nil, verifier)).To(Succeed())
	})

	It("is refused with any bit changed, and cut or continued anywhere", func() {
		recipient, key := signer()
		raw := mustSign(testReceipt(recipient), key)
		refused := func(raw []byte) {
			GinkgoHelper()
			_, err := recipient.VerifyReceipt(raw)
			Expect(err).To(Or(MatchError(seal.ErrReceipt), MatchError(seal.ErrMalformed)))
		}
		for bit := range 8 * len(raw) {
			refused(flipped(raw, bit))
		}
		for n := range raw {
			refused(raw[:n])
		}
		refused(append(bytes.Clone(raw), 0))
	})

	DescribeTable("that its own enclave signed is refused when it is", func(reason string, change func(*seal.Receipt)) {
		recipient, key := signer()
		receipt := testReceipt(recipient)
		change(&receipt)
		_, err := recipient.VerifyReceipt(mustSign(receipt, key))
		Expect(err).To(And(MatchError(seal.ErrReceipt), MatchError(ContainSubstring(reason))))
	},
		Entry("of other claims", "other claims", func(r *seal.Receipt) { r.Enclave.ClaimsSHA256[0] ^= 1 }),
		Entry("of another model", "another model", func(r *seal.Receipt) { r.Enclave.Model += "x" }),
		Entry("older than the claims", "older than the claims", func(r *seal.Receipt) { r.Enclave.EndedAt = testClaims().NotBefore.Add(-time.Second) }),
	)

	It("is refused by another key, and by a recipient that signs none", func() {
		recipient, key := signer()
		other, otherKey := signer()
		_, err := recipient.VerifyReceipt(mustSign(testReceipt(recipient), otherKey))
		Expect(err).To(MatchError(seal.ErrReceipt))
		_, err = other.VerifyReceipt(mustSign(testReceipt(recipient), key))
		Expect(err).To(MatchError(seal.ErrReceipt))
		_, err = newKey().VerifyReceipt(mustSign(testReceipt(recipient), key))
		Expect(err).To(MatchError(ContainSubstring("no receipt key")))
	})

	DescribeTable("is not signed with", func(change func(*seal.Receipt)) {
		recipient, key := signer()
		receipt := testReceipt(recipient)
		change(&receipt)
		_, err := receipt.Sign(key)
		Expect(err).To(MatchError(seal.ErrMalformed))
	},
		Entry("no status", func(r *seal.Receipt) { r.Enclave.Status = 0 }),
		Entry("a status that no field holds", func(r *seal.Receipt) { r.Enclave.Status = 200 + 1<<16 }),
		Entry("no model", func(r *seal.Receipt) { r.Enclave.Model = "" }),
		Entry("no time", func(r *seal.Receipt) { r.Enclave.EndedAt = time.Time{} }),
		Entry("an operation that is not known", func(r *seal.Receipt) { r.Enclave.Operation = 9 }),
		Entry("a version with a space", func(r *seal.Receipt) { r.Host.ModelVersion = "v 3" }),
		Entry("a negative count", func(r *seal.Receipt) { r.Host.PromptTokens = -1 }),
		Entry("a wash without a time", func(r *seal.Receipt) { r.Host.LastWash.EndedAt = time.Time{} }),
		Entry("a cache without a salt", func(r *seal.Receipt) { r.Enclave.SaltID = seal.SaltID{} }),
		Entry("a cache with a space", func(r *seal.Receipt) { r.Host.Cache = "a b" }),
	)

	// What only a signer could send, and the strict reader must refuse all the same.
	DescribeTable("that is signed and malformed is refused:", func(change func(m map[int]any)) {
		recipient, key := signer()
		var m map[int]any
		Expect(cbor.Unmarshal(seal.ReceiptPayload(mustSign(testReceipt(recipient), key)), &m)).To(Succeed())
		for _, part := range []int{2, 3} {
			inner := map[int]any{}
			for k, v := range m[part].(map[any]any) {
				inner[int(k.(uint64))] = v
			}
			m[part] = inner
		}
		before := mustEncode(m)
		_, err := recipient.VerifyReceipt(seal.SignReceiptPayload(before, key))
		Expect(err).NotTo(HaveOccurred(), "the test itself changes nothing")
		change(m)
		_, err = recipient.VerifyReceipt(seal.SignReceiptPayload(mustEncode(m), key))
		Expect(err).To(MatchError(seal.ErrMalformed))
	},
		Entry("another version", func(m map[int]any) { m[1] = 3 }),
		Entry("the version without a salt", func(m map[int]any) { m[1] = 1 }),
		Entry("the version without a salt, with a cache", func(m map[int]any) { m[1] = 1; delete(m[2].(map[int]any), 9) }),
		Entry("no salt id", func(m map[int]any) { delete(m[2].(map[int]any), 9); delete(m[3].(map[int]any), 6) }),
		Entry("an empty salt id", func(m map[int]any) { m[2].(map[int]any)[9] = []byte{} }),
		Entry("a short salt id", func(m map[int]any) { m[2].(map[int]any)[9] = make([]byte, 15) }),
		Entry("a salt id of zeros", func(m map[int]any) { m[2].(map[int]any)[9] = make([]byte, 16) }),
		Entry("an empty cache", func(m map[int]any) { m[3].(map[int]any)[6] = "" }),
		Entry("a field too many", func(m map[int]any) { m[4] = 1 }),
		Entry("a field too many of the enclave's", func(m map[int]any) { m[2].(map[int]any)[10] = 1 }),
		Entry("a field too many of the host's", func(m map[int]any) { m[3].(map[int]any)[7] = 1 }),
		Entry("none of the host's", func(m map[int]any) { delete(m, 3) }),
		Entry("no hash of the request", func(m map[int]any) { delete(m[2].(map[int]any), 5) }),
		Entry("a short hash", func(m map[int]any) { m[2].(map[int]any)[7] = make([]byte, 31) }),
		Entry("a long id", func(m map[int]any) { m[2].(map[int]any)[2] = make([]byte, 17) }),
		Entry("a status that is none", func(m map[int]any) { m[2].(map[int]any)[6] = 600 }),
		Entry("an operation that is none", func(m map[int]any) { m[2].(map[int]any)[3] = 3 }),
		Entry("a null for a text", func(m map[int]any) { m[3].(map[int]any)[1] = nil }),
		Entry("a wash of no time", func(m map[int]any) { delete(m[3].(map[int]any), 5) }),
		Entry("a time of no wash", func(m map[int]any) { delete(m[3].(map[int]any), 4) }),
		Entry("a time beyond the year 9999", func(m map[int]any) { m[2].(map[int]any)[8] = 253402300800 }),
		Entry("token counts out of range", func(m map[int]any) { m[3].(map[int]any)[2] = 1 << 31 }),
	)
})

func mustEncode(v any) []byte {
	GinkgoHelper()
	mode, err := cbor.CoreDetEncOptions().EncMode()
	Expect(err).NotTo(HaveOccurred())
	raw, err := mode.Marshal(v)
	Expect(err).NotTo(HaveOccurred())
	return raw
}

// FuzzVerifyReceipt looks for a receipt, other than the right one, that holds.
func FuzzVerifyReceipt(f *testing.F) {
	recipient, key := signer()
	valid, err := testReceipt(recipient).Sign(key)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(valid)
	f.Add(valid[:len(valid)-1])
	f.Add([]byte{0xd2, 0x84, 0x43, 0xa1, 0x01, 0x27, 0xa0})
	f.Fuzz(func(t *testing.T, raw []byte) {
		_, err := recipient.VerifyReceipt(raw)
		if (err == nil) != bytes.Equal(raw, valid) {
			t.Fatalf("error: %v", err)
		}
		if err != nil && !errors.Is(err, seal.ErrReceipt) && !errors.Is(err, seal.ErrMalformed) {
			t.Fatalf("error of another class: %v", err)
		}
	})
}

// FuzzParseReceipt looks for a payload with two spellings, which a signer could
// send.
func FuzzParseReceipt(f *testing.F) {
	recipient, key := signer()
	valid, err := testReceipt(recipient).Sign(key)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(seal.ReceiptPayload(valid))
	f.Add([]byte{0xa0})
	f.Fuzz(func(t *testing.T, payload []byte) {
		receipt, err := seal.ParseReceiptPayload(payload)
		if err != nil {
			return
		}
		again, err := receipt.Sign(key)
		if err != nil || !bytes.Equal(seal.ReceiptPayload(again), payload) {
			t.Fatalf("payload comes back as %x (%v)", again, err)
		}
	})
}
