package seal_test

import (
	"bytes"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"slices"
	"testing"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"

	"github.com/mrgc/mrgc/internal/seal"
)

// fakeKMS decrypts one data key, for one context, and counts.
type fakeKMS struct {
	key     seal.DataKey
	context map[string]string
	fail    error
	given   []byte // what it gave last
	asked   int
}

func newFakeKMS() *fakeKMS {
	k := &fakeKMS{key: seal.DataKey{Plaintext: make([]byte, 32), Ciphertext: make([]byte, 184)}}
	rand.Read(k.key.Plaintext)
	rand.Read(k.key.Ciphertext)
	return k
}

var errContext = errors.New("another context, or another ciphertext")

func (k *fakeKMS) decrypt(ciphertext []byte, context map[string]string) ([]byte, error) {
	k.asked++
	if k.fail != nil {
		return nil, k.fail
	}
	want := seal.EncryptionContext(testRequest().RequestID, testRequest().Tenant)
	if !bytes.Equal(ciphertext, k.key.Ciphertext) || len(context) != 2 ||
		context["mrgc:tenant"] != want["mrgc:tenant"] || context["mrgc:request-id"] != want["mrgc:request-id"] {
		return nil, errContext
	}
	k.context, k.given = context, bytes.Clone(k.key.Plaintext)
	return k.given, nil
}

func (k *fakeKMS) request() seal.Request {
	req := testRequest()
	req.DataKey = &k.key
	return req
}

func (k *fakeKMS) open(key *seal.RecipientKey, h seal.Headers, body []byte) (*seal.Opened, error) {
	return openWith(k.decrypt, key, h, body, now(), seal.Limits{})
}

var _ = Describe("A request by a data key of KMS", func() {
	It("opens at every recipient, by one call of KMS each, in the request's context", func() {
		kms, keys := newFakeKMS(), newKeys(seal.MaxRecipients)
		sealed := mustSeal(kms.request(), keys...)
		for i, key := range keys {
			opened, err := kms.open(key, sealed.Headers, sealed.Body)
			Expect(err).NotTo(HaveOccurred())
			Expect(opened.Payload).To(Equal(testRequest().Payload))
			Expect(opened.KeyID).To(Equal(key.KeyID()))
			Expect(kms.asked).To(Equal(i + 1))
			Expect(kms.context).To(Equal(map[string]string{"mrgc:tenant": "acme", "mrgc:request-id": "aa010203000000000000000000000000"}))
			Expect(kms.given).To(Equal(make([]byte, 32)), "the data key is wiped")
		}
	})

	It("is answered like any other", func() {
		kms, key := newFakeKMS(), newKey()
		sealed := mustSeal(kms.request(), key)
		opened, err := kms.open(key, sealed.Headers, sealed.Body)
		Expect(err).NotTo(HaveOccurred())
		wire := &bytes.Buffer{}
		w, err := opened.Respond(rand.Reader, wire)
		Expect(err).NotTo(HaveOccurred())
		Expect(w.WriteHead(okHead())).To(Succeed())
		_, err = w.Write([]byte("an answer"))
		Expect(err).NotTo(HaveOccurred())
		Expect(w.Close(okEnd())).To(Succeed())
		Expect(readAnswer(sealed, wire.Bytes())).To(BeEquivalentTo("an answer"))
	})

	It("does not open by the recipient's own key", func() {
		kms, key := newFakeKMS(), newKey()
		sealed := mustSeal(kms.request(), key)
		_, err := open(key, sealed.Headers, sealed.Body)
		Expect(err).To(MatchError(seal.ErrNoKMS))
	})

	It("holds neither the data key nor the payload in clear", func() {
		kms := newFakeKMS()
		sealed := mustSeal(kms.request(), newKey())
		Expect(bytes.Contains(sealed.Body, kms.key.Plaintext)).To(BeFalse())
		Expect(bytes.Contains(sealed.Body, sealed.DEK())).To(BeFalse())
		Expect(bytes.Contains(sealed.Body, testRequest().Payload.Body)).To(BeFalse())
	})

	It("passes KMS's error on", func() {
		kms, key := newFakeKMS(), newKey()
		sealed := mustSeal(kms.request(), key)
		kms.fail = errors.New("access denied")
		_, err := kms.open(key, sealed.Headers, sealed.Body)
		Expect(err).To(MatchError(kms.fail))
		Expect(err).NotTo(MatchError(seal.ErrOpen))
	})

	It("has KMS asked only for a complete envelope of its own, in time", func() {
		kms, keys := newFakeKMS(), newKeys(2)
		sealed := mustSeal(kms.request(), keys[0])
		_, err := kms.open(keys[0], sealed.Headers, sealed.Body[:len(sealed.Body)-1])
		Expect(err).To(MatchError(seal.ErrMalformed))
		_, err = kms.open(keys[1], sealed.Headers, sealed.Body)
		Expect(err).To(MatchError(seal.ErrNotRecipient))
		_, err = openWith(kms.decrypt, keys[0], sealed.Headers, sealed.Body, now().Add(time.Hour), seal.Limits{})
		Expect(err).To(MatchError(seal.ErrExpired))
		Expect(kms.asked).To(BeZero())
	})

	It("does not open with any one byte changed", func() {
		kms, key := newFakeKMS(), newKey()
		sealed := mustSeal(kms.request(), key)
		for i := range sealed.Body {
			_, err := kms.open(key, sealed.Headers, flipped(sealed.Body, 8*i+i%8))
			Expect(err).To(HaveOccurred(), "byte %d", i)
		}
	})

	DescribeTable("does not open when a bound header differs",
		func(change func(*seal.Headers), want error) {
			kms, keys := newFakeKMS(), newKeys(2)
			sealed := mustSeal(kms.request(), keys...)
			h := sealed.Headers
			h.KeyIDs = slices.Clone(h.KeyIDs)
			change(&h)
			_, err := kms.open(keys[0], h, sealed.Body)
			Expect(err).To(MatchError(want))
		},
		Entry("model", func(h *seal.Headers) { h.Model += "x" }, seal.ErrOpen),
		Entry("tenant, which KMS's context names", func(h *seal.Headers) { h.Tenant = "other" }, errContext),
		Entry("affinity", func(h *seal.Headers) { h.Affinity = "other" }, seal.ErrOpen),
		Entry("size", func(h *seal.Headers) { h.Size = "1/1" }, seal.ErrOpen),
		Entry("request id", func(h *seal.Headers) { h.RequestID[0] ^= 1 }, seal.ErrMalformed),
		Entry("recipients", func(h *seal.Headers) { h.KeyIDs = h.KeyIDs[:1] }, seal.ErrMalformed),
	)

	It("does not open under another data key, though KMS gives one", func() {
		kms, key := newFakeKMS(), newKey()
		sealed := mustSeal(kms.request(), key)
		other := newFakeKMS()
		_, err := openWith(func([]byte, map[string]string) ([]byte, error) { return other.key.Plaintext, nil },
			key, sealed.Headers, sealed.Body, now(), seal.Limits{})
		Expect(err).To(BeIdenticalTo(seal.ErrOpen))
		_, err = openWith(func([]byte, map[string]string) ([]byte, error) { return make([]byte, 16), nil },
			key, sealed.Headers, sealed.Body, now(), seal.Limits{})
		Expect(err).To(BeIdenticalTo(seal.ErrOpen))
	})

	DescribeTable("is not made of a data key that is none",
		func(plaintext, ciphertext int) {
			req := testRequest()
			req.DataKey = &seal.DataKey{Plaintext: make([]byte, plaintext), Ciphertext: make([]byte, ciphertext)}
			_, err := seal.Seal(rand.Reader, req, recipients(newKey()))
			Expect(err).To(MatchError(seal.ErrMalformed))
		},
		Entry("of 16 bytes", 16, 184), Entry("without a ciphertext", 32, 0), Entry("with a large one", 32, seal.MaxDataKeySize+1),
	)

	DescribeTable("is refused before a key is used, with",
		func(change func(stanza []byte) []byte, reason string) {
			kms, key := newFakeKMS(), newKey()
			sealed := mustSeal(kms.request(), key)
			start := seal.PrologueHeadSize + 1
			end := start + seal.StanzaFixedSize + len(kms.key.Ciphertext) + seal.KMSWrappedSize
			stanza := change(bytes.Clone(sealed.Body[start:end]))
			body := slices.Concat(sealed.Body[:start], stanza, sealed.Body[end:])
			binary.BigEndian.PutUint16(body[start-3:], uint16(1+len(stanza)))
			_, err := kms.open(key, sealed.Headers, body)
			Expect(err).To(MatchError(seal.ErrMalformed))
			Expect(err).To(MatchError(ContainSubstring(reason)))
			Expect(kms.asked).To(BeZero())
		},
		Entry("the type fleet", func(s []byte) []byte { s[8] = 2; return s }, "not those of its type"),
		Entry("the type enclave", func(s []byte) []byte { s[8] = 1; return s }, "not those of its type"),
		Entry("no data key", func(s []byte) []byte {
			s[9], s[10] = 0, 0
			return slices.Delete(s, 11, 11+184)
		}, "recipients take"),
		Entry("a large data key", func(s []byte) []byte {
			binary.BigEndian.PutUint16(s[9:], seal.MaxDataKeySize+1)
			return slices.Insert(s, 11, make([]byte, seal.MaxDataKeySize+1-184)...)
		}, "not those of its type"),
		Entry("a wrapped DEK of another length", func(s []byte) []byte {
			s[len(s)-seal.KMSWrappedSize-1]--
			return s[:len(s)-1]
		}, "not those of its type"),
		Entry("an empty recipient", func([]byte) []byte { return nil }, "recipients take"),
	)
})

var _ = Describe("A replay set", func() {
	It("has what was added, until it is forgotten or has expired", func() {
		set, key, id := seal.NewReplaySet(10), seal.KeyID{1}, seal.RequestID{1}
		Expect(set.Has(key, id)).To(BeFalse())
		Expect(set.Add(key, id, now().Add(time.Minute), now())).To(Succeed())
		Expect(set.Has(key, id)).To(BeTrue())
		Expect(set.Has(seal.KeyID{2}, id)).To(BeFalse())
		set.Forget(key, id, now().Add(time.Minute))
		Expect(set.Has(key, id)).To(BeFalse())
		Expect(set.Add(key, id, now().Add(time.Minute), now())).To(Succeed())
		Expect(set.Add(key, seal.RequestID{2}, now().Add(3*time.Minute), now().Add(2*time.Minute))).To(Succeed())
		Expect(set.Has(key, id)).To(BeFalse())
	})
})

// FuzzOpenKMS looks for a body, other than the right one, that opens.
func FuzzOpenKMS(f *testing.F) {
	vectors, err := loadVectors()
	if err != nil {
		f.Fatal(err)
	}
	v := vectors[slices.IndexFunc(vectors, func(v vector) bool { return v.Request.DataKey != nil })]
	key, err := v.Recipients[0].key()
	if err != nil {
		f.Fatal(err)
	}
	h, err := v.Request.headers()
	if err != nil {
		f.Fatal(err)
	}
	valid := []byte(v.Request.Sealed)
	f.Add(valid)
	f.Add(flipped(valid, 8*40))
	at := time.Unix(v.Request.Expiry-1, 0)
	f.Fuzz(func(t *testing.T, body []byte) {
		opened, err := openWith(v.Request.DataKey.decrypt, key, h, body, at, seal.Limits{MaxPlaintextBytes: 1 << 20})
		if (err == nil) != bytes.Equal(body, valid) {
			t.Fatalf("opened: %v, error: %v", opened != nil, err)
		}
	})
}
