package dsse_test

import (
	"bytes"
	"crypto/ed25519"
	"encoding/base64"
	"encoding/json"
	"testing"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"

	"github.com/mrgc/mrgc/internal/dsse"
)

func TestDSSE(t *testing.T) {
	RegisterFailHandler(Fail)
	RunSpecs(t, "internal/dsse")
}

const kind = "application/vnd.mrgc.test+json"

func newKey(seed byte) ed25519.PrivateKey {
	return ed25519.NewKeyFromSeed(bytes.Repeat([]byte{seed}, ed25519.SeedSize))
}

func public(keys ...ed25519.PrivateKey) (all []ed25519.PublicKey) {
	for _, key := range keys {
		all = append(all, key.Public().(ed25519.PublicKey))
	}
	return all
}

var _ = Describe("A signed file", func() {
	payload := []byte(`{"a":"use1"}`)
	file, err := dsse.Sign(newKey(1), kind, payload)
	if err != nil {
		panic(err)
	}

	It("gives its payload, byte for byte, to whoever trusts the signer", func() {
		Expect(dsse.Open(public(newKey(1)), kind, file)).To(Equal(payload))
		Expect(dsse.Open(public(newKey(2), newKey(1)), kind, file)).To(Equal(payload))
	})

	It("is DSSE: another implementation could verify it", func() {
		var e struct {
			PayloadType string
			Payload     []byte
			Signatures  []struct{ Sig []byte }
		}
		Expect(json.Unmarshal(file, &e)).To(Succeed())
		message := append([]byte("DSSEv1 30 application/vnd.mrgc.test+json 12 "), payload...)
		Expect(ed25519.Verify(newKey(1).Public().(ed25519.PublicKey), message, e.Signatures[0].Sig)).To(BeTrue())
	})

	It("is not one that another key has signed, or for another purpose", func() {
		_, err := dsse.Open(public(newKey(2)), kind, file)
		Expect(err).To(MatchError(ContainSubstring("no signature is by a key that is trusted here")))
		_, err = dsse.Open(nil, kind, file)
		Expect(err).To(HaveOccurred())
		_, err = dsse.Open(public(newKey(1)), "application/vnd.mrgc.other+json", file)
		Expect(err).To(MatchError(ContainSubstring("the type is")))
		relabelled := bytes.Replace(file, []byte("vnd.mrgc.test"), []byte("vnd.mrgc.tesu"), 1)
		_, err = dsse.Open(public(newKey(1)), "application/vnd.mrgc.tesu+json", relabelled)
		Expect(err).To(MatchError(ContainSubstring("no signature")))
	})

	It("is refused with any bit of payload or signature changed", func() {
		var e map[string]any
		Expect(json.Unmarshal(file, &e)).To(Succeed())
		signature := e["signatures"].([]any)[0].(map[string]any)
		for _, field := range []struct {
			in   map[string]any
			name string
		}{{e, "payload"}, {signature, "sig"}} {
			was, err := base64.StdEncoding.DecodeString(field.in[field.name].(string))
			Expect(err).NotTo(HaveOccurred())
			for bit := range 8 * len(was) {
				changed := bytes.Clone(was)
				changed[bit/8] ^= 1 << (bit % 8)
				field.in[field.name] = changed
				spoilt, err := json.Marshal(e)
				Expect(err).NotTo(HaveOccurred())
				_, err = dsse.Open(public(newKey(1)), kind, spoilt)
				Expect(err).To(HaveOccurred(), "bit %d of %s", bit, field.name)
			}
			field.in[field.name] = was
		}
		again, err := json.Marshal(e)
		Expect(err).NotTo(HaveOccurred())
		Expect(dsse.Open(public(newKey(1)), kind, again)).To(Equal(payload), "as it was")
	})
})

var _ = Describe("Keys", func() {
	_, key, err := ed25519.GenerateKey(nil)
	if err != nil {
		panic(err)
	}
	private, public, err := dsse.MarshalKey(key)
	if err != nil {
		panic(err)
	}

	It("are read as they were written, two of those that verify too", func() {
		Expect(dsse.ParseSigningKey(private)).To(Equal(key))
		Expect(dsse.ParseVerificationKeys(public)).To(Equal([]ed25519.PublicKey{key.Public().(ed25519.PublicKey)}))
		_, another, err := dsse.MarshalKey(ed25519.NewKeyFromSeed(make([]byte, 32)))
		Expect(err).NotTo(HaveOccurred())
		Expect(dsse.ParseVerificationKeys(append(bytes.Clone(public), another...))).To(HaveLen(2))
	})

	It("are not taken for each other, and a secret is not repeated", func() {
		_, err := dsse.ParseVerificationKeys(private)
		Expect(err).To(MatchError(ContainSubstring("PRIVATE KEY where a PUBLIC KEY is wanted")))
		for _, bad := range [][]byte{public, nil, []byte("secret"), []byte("-----BEGIN PRIVATE KEY-----\nc2VjcmV0\n-----END PRIVATE KEY-----\n")} {
			_, err := dsse.ParseSigningKey(bad)
			Expect(err).To(MatchError(Not(Or(ContainSubstring("secret"), ContainSubstring("c2Vj")))))
		}
		_, err = dsse.ParseVerificationKeys(nil)
		Expect(err).To(HaveOccurred())
	})
})

// FuzzOpen looks for a file that opens and gives another payload than was signed.
func FuzzOpen(f *testing.F) {
	payload := []byte(`{"a":1}`)
	file, err := dsse.Sign(newKey(1), kind, payload)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(file)
	f.Add([]byte(`{"payloadType":"` + kind + `","payload":"","signatures":[]}`))
	f.Fuzz(func(t *testing.T, file []byte) {
		got, err := dsse.Open(public(newKey(1)), kind, file)
		if err == nil && !bytes.Equal(got, payload) {
			t.Fatalf("gives %q", got)
		}
	})
}
