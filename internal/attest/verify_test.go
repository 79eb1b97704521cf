package attest_test

import (
	"bytes"
	"crypto/elliptic"
	"crypto/x509"
	"slices"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"

	"github.com/mrgc/mrgc/internal/attest"
)

var _ = Describe("Verify", func() {
	It("returns what a valid document says", func() {
		raw, policy := newForge().document()
		doc, err := attest.Verify(raw, policy, expected(), signedAt)
		Expect(err).NotTo(HaveOccurred())
		Expect(doc).To(Equal(&attest.Document{
			ModuleID:  "i-0123456789abcdef0-enc0183d09086c24190",
			Timestamp: signedAt,
			Digest:    "SHA384",
			PCRs:      pcrs(),
			PublicKey: []byte("public key"),
			UserData:  []byte("hash of the claims"),
			Nonce:     []byte("nonce"),
			Region:    "us-east-1",
			Release:   release(1),
		}))
	})

	It("takes the message with tag 18, too", func() {
		raw, policy := newForge().document()
		_, err := attest.Verify(append([]byte{0xd2}, raw...), policy, expected(), signedAt)
		Expect(err).NotTo(HaveOccurred())
	})

	It("takes a document without optional fields", func() {
		f := newForge()
		delete(f.payload, "public_key")
		delete(f.payload, "user_data")
		f.payload["nonce"] = nil
		raw, policy := f.document()
		doc, err := attest.Verify(raw, policy, attest.Expected{}, signedAt)
		Expect(err).NotTo(HaveOccurred())
		Expect(doc.PublicKey).To(BeEmpty())
	})

	It("does not compare a nonce or a region that was not asked for", func() {
		raw, policy := newForge().document()
		_, err := attest.Verify(raw, policy, attest.Expected{UserData: expected().UserData}, signedAt)
		Expect(err).NotTo(HaveOccurred())
	})

	It("names no region for a chain without a regional certificate", func() {
		f := newForge()
		f.certs[regional].Subject.CommonName = "2f442bd2442676f0.zonal.us-east-1.aws.nitro-enclaves"
		raw, policy := f.document()
		doc, err := attest.Verify(raw, policy, attest.Expected{UserData: expected().UserData}, signedAt)
		Expect(err).NotTo(HaveOccurred())
		Expect(doc.Region).To(BeEmpty())
	})

	It("gives the matching release with the highest version", func() {
		raw, policy := newForge().document()
		other := release(9)
		other.PCRs[0] = attest.ExtendedPCR([]byte("another image"))
		policy.Releases = []attest.Release{release(3), release(5), release(4), other}
		policy.MinVersion = 4
		doc, err := attest.Verify(raw, policy, expected(), signedAt)
		Expect(err).NotTo(HaveOccurred())
		Expect(doc.Release).To(Equal(release(5)))
	})

	DescribeTable("refuses a message that", refuses,
		Entry("is empty", func(f *forge) { f.editMessage = func([]byte) []byte { return nil } }, "COSE_Sign1"),
		Entry("has another tag", func(f *forge) { f.editMessage = prefix(0xd1) }, "tag"),
		Entry("has tag 18 twice", func(f *forge) { f.editMessage = prefix(0xd2, 0xd2) }, "tag"),
		Entry("has a trailing byte", func(f *forge) { f.editMessage = suffix(0) }, "extraneous"),
		Entry("is too large", func(f *forge) { f.editMessage = suffix(make([]byte, 12<<10)...) }, "more than 12288"),
		Entry("has a fifth element", func(f *forge) {
			f.editMessage = func(m []byte) []byte { m[0] = 0x85; return append(m, 0xf6) }
		}, "COSE_Sign1"),
		Entry("is an array of indefinite length", func(f *forge) {
			f.editMessage = func(m []byte) []byte { m[0] = 0x9f; return append(m, 0xff) }
		}, "indefinite"),
		Entry("encodes a length in more bytes than it needs", func(f *forge) {
			f.editMessage = func(m []byte) []byte { return slices.Concat(m[:1], []byte{0x58, 0x04}, m[2:]) }
		}, "shortest form"),
		Entry("has a text string for a payload", func(f *forge) {
			f.editMessage = func(m []byte) []byte { m[7] ^= 0x20; return m }
		}, "not a byte string"),
		Entry("names another algorithm", func(f *forge) { f.protected = []byte{0xa1, 0x01, 0x26} }, "protected header"),
		Entry("has a critical header", func(f *forge) {
			f.protected = encode(map[int]any{1: -35, 2: []int{1}})
		}, "protected header"),
		Entry("has an unknown protected header", func(f *forge) {
			f.protected = encode(map[int]any{1: -35, 99: 0})
		}, "protected header"),
		Entry("has no protected header", func(f *forge) { f.protected = []byte{} }, "protected header"),
		Entry("has an unprotected header", func(f *forge) { f.unprotected = map[int]int{1: -35} }, "unprotected header"),
		Entry("has a null payload", func(f *forge) {
			f.editMessage = func(m []byte) []byte { return slices.Concat(m[:7], []byte{0xf6}, m[len(m)-98:]) }
		}, "no payload"),
		Entry("has a short signature", func(f *forge) { f.editSig = func(s []byte) []byte { return s[1:] } }, "signature of 95 bytes"),
		Entry("has another signature", func(f *forge) {
			f.editSig = func(s []byte) []byte { s[0] ^= 1; return s }
		}, "signature does not verify"),
		Entry("was signed with another key", func(f *forge) {
			f.payload["certificate"] = newForge().issue()[leaf].Raw
		}, "signature does not verify"),
	)

	DescribeTable("refuses a payload that", refuses,
		Entry("repeats a field", func(f *forge) {
			f.editPayload = func(p []byte) []byte {
				p[0]++
				return append(append(p, encode("digest")...), encode("SHA384")...)
			}
		}, "duplicate map key"),
		Entry("repeats a register in another encoding", func(f *forge) {
			f.editPayload = func(p []byte) []byte {
				short := append([]byte{0x0f, 0x58, 0x30}, make([]byte, 48)...)
				long := slices.Concat([]byte{0x18, 0x0f, 0x58, 0x30}, make([]byte, 48))
				p = bytes.Replace(p, append(encode("pcrs"), 0xb0), append(encode("pcrs"), 0xb1), 1)
				return bytes.Replace(p, short, slices.Concat(short, long), 1)
			}
		}, "duplicate map key"),
		Entry("has a trailing byte", func(f *forge) { f.editPayload = suffix(0) }, "extraneous"),
		Entry("is a map of indefinite length", func(f *forge) {
			f.editPayload = func(p []byte) []byte { p[0] = 0xbf; return append(p, 0xff) }
		}, "indefinite"),
		Entry("has an unknown field", func(f *forge) { f.payload["extra"] = 1 }, "unknown field"),
		Entry("spells a field in another case", func(f *forge) {
			delete(f.payload, "nonce")
			f.payload["Nonce"] = []byte("nonce")
		}, "unknown field"),
		Entry("has no module id", func(f *forge) { delete(f.payload, "module_id") }, "module_id"),
		Entry("uses another digest", func(f *forge) { f.payload["digest"] = "SHA512" }, "digest"),
		Entry("has no timestamp", func(f *forge) { delete(f.payload, "timestamp") }, "timestamp 0"),
		Entry("has a timestamp beyond int64", func(f *forge) { f.payload["timestamp"] = uint64(1 << 63) }, "out of range"),
		Entry("has a negative timestamp", func(f *forge) { f.payload["timestamp"] = -1 }, "timestamp"),
		Entry("has no registers", func(f *forge) { f.payload["pcrs"] = attest.PCRs{} }, "no pcrs"),
		Entry("has a register 32", func(f *forge) { withPCR(f, 32, make([]byte, 48)) }, "PCR32"),
		Entry("has a negative register", func(f *forge) { withPCR(f, -1, make([]byte, 48)) }, "pcrs"),
		Entry("has a register of 32 bytes", func(f *forge) { withPCR(f, 8, make([]byte, 32)) }, "PCR8 has 32 bytes"),
		Entry("has a register that is an array", func(f *forge) {
			f.payload["pcrs"] = map[int]any{0: make([]int, 4)}
		}, "not a byte string"),
		Entry("has an empty bundle", func(f *forge) { f.payload["cabundle"] = [][]byte{} }, "cabundle of 0"),
		Entry("has an overlong bundle", func(f *forge) { f.payload["cabundle"] = make([][]byte, 9) }, "cabundle of 9"),
		Entry("has a large certificate", func(f *forge) { f.payload["certificate"] = make([]byte, 1025) }, "1025 bytes"),
		Entry("has no certificate", func(f *forge) { f.payload["certificate"] = nil }, "certificate of 0 bytes"),
		Entry("has a certificate that is none", func(f *forge) { f.payload["certificate"] = []byte("x") }, "certificate: x509"),
		Entry("has a large public key", func(f *forge) { f.payload["public_key"] = make([]byte, 1025) }, "public_key"),
		Entry("has large user data", func(f *forge) { f.payload["user_data"] = make([]byte, 513) }, "user_data of 513"),
		Entry("has a large nonce", func(f *forge) { f.payload["nonce"] = make([]byte, 513) }, "nonce of 513"),
		Entry("has a text for user data", func(f *forge) { f.payload["user_data"] = "hash of the claims" }, "not a byte string"),
		Entry("has other user data", func(f *forge) { f.payload["user_data"] = []byte("hash of other claims") }, "user_data"),
		Entry("has no user data", func(f *forge) { f.payload["user_data"] = nil }, "user_data"),
		Entry("has another nonce", func(f *forge) { f.payload["nonce"] = []byte("other") }, "nonce"),
		Entry("has no nonce", func(f *forge) { f.payload["nonce"] = nil }, "nonce"),
		Entry("is from debug mode by PCR0", func(f *forge) { withPCR(f, 0, make([]byte, 48)) }, "PCR0 is all zero"),
		Entry("is from debug mode by PCR1", func(f *forge) { withPCR(f, 1, make([]byte, 48)) }, "PCR1 is all zero"),
		Entry("is from debug mode by PCR2", func(f *forge) { withPCR(f, 2, make([]byte, 48)) }, "PCR2 is all zero"),
		Entry("has no PCR0", func(f *forge) {
			p := pcrs()
			delete(p, 0)
			f.payload["pcrs"] = p
		}, "PCR0 is missing"),
		Entry("measures another image", func(f *forge) { withPCR(f, 0, attest.ExtendedPCR(nil)) }, "match no trusted release"),
		Entry("measures another role", func(f *forge) { withPCR(f, 3, attest.ExtendedPCR(nil)) }, "match no trusted release"),
		Entry("lacks a register that the release pins", func(f *forge) {
			p := pcrs()
			delete(p, 3)
			f.payload["pcrs"] = p
		}, "match no trusted release"),
	)

	DescribeTable("refuses a chain", refuses,
		Entry("under another root", func(f *forge) { f.rootReplaced = newForge().issue()[root] }, "not one that the policy pins"),
		Entry("under a root of the same name and key", func(f *forge) {
			other := newForge()
			other.keys = f.keys
			other.certs[root].SerialNumber.SetInt64(77)
			f.rootReplaced = other.issue()[root]
		}, "not one that the policy pins"),
		Entry("without its root", func(f *forge) { f.editBundle = func(b [][]byte) [][]byte { return b[1:] } }, "not one that the policy pins"),
		Entry("without a link", func(f *forge) {
			f.editBundle = func(b [][]byte) [][]byte { return slices.Delete(b, zonal, zonal+1) }
		}, "unknown authority"),
		Entry("out of order", func(f *forge) {
			f.editBundle = func(b [][]byte) [][]byte { b[regional], b[zonal] = b[zonal], b[regional]; return b }
		}, "in order"),
		Entry("with a link twice", func(f *forge) {
			f.editBundle = func(b [][]byte) [][]byte { return slices.Insert(b, zonal, b[zonal]) }
		}, "in order"),
		Entry("with a certificate that is not of the path", func(f *forge) {
			f.editBundle = func(b [][]byte) [][]byte { return append(b, newForge().issue()[zonal].Raw) }
		}, "in order"),
		Entry("whose link another key signed", func(f *forge) {
			other := newForge().issue()[regional].Raw
			f.editBundle = func(b [][]byte) [][]byte { b[regional] = other; return b }
		}, "certificate chain"),
		Entry("with an issuer that is no CA", func(f *forge) {
			c := f.certs[zonal]
			c.IsCA, c.MaxPathLen, c.MaxPathLenZero = false, -1, false
		}, "not a CA"),
		Entry("with an issuer without basic constraints", func(f *forge) {
			c := f.certs[zonal]
			c.BasicConstraintsValid, c.IsCA = false, false
		}, "not a CA"),
		Entry("with an issuer that may not sign", func(f *forge) {
			f.certs[zonal].KeyUsage = x509.KeyUsageCRLSign
		}, "sign certificates"),
		Entry("with an issuer that has no key usage", func(f *forge) { f.certs[zonal].KeyUsage = 0 }, "sign certificates"),
		Entry("longer than an issuer allows", func(f *forge) { f.certs[regional].MaxPathLen = 1 }, "too many intermediates"),
		Entry("with a leaf that is a CA", func(f *forge) {
			c := f.certs[leaf]
			c.IsCA, c.MaxPathLen, c.MaxPathLenZero = true, 0, true
		}, "leaf is a CA"),
		Entry("with a leaf that may not sign", func(f *forge) {
			f.certs[leaf].KeyUsage = x509.KeyUsageKeyAgreement
		}, "sign documents"),
		Entry("with an issuer on P-256", func(f *forge) { f.keys[zonal] = newKey(elliptic.P256()) }, "not on P-384"),
		Entry("with a leaf on P-256", func(f *forge) {
			f.keys[leaf] = newKey(elliptic.P256())
			f.editSig = func(s []byte) []byte { return append(make([]byte, 32), s...) }
		}, "not on P-384"),
		Entry("signed with another hash", func(f *forge) {
			f.certs[zonal].SignatureAlgorithm = x509.ECDSAWithSHA256
		}, "signed with ECDSA-SHA256"),
		Entry("that was not yet valid", func(f *forge) { f.certs[zonal].NotBefore = signedAt.Add(time.Second) }, "certificate chain"),
		Entry("that had expired", func(f *forge) { f.certs[leaf].NotAfter = signedAt.Add(-time.Second) }, "certificate chain"),
		Entry("whose root had expired", func(f *forge) { f.certs[root].NotAfter = signedAt.Add(-time.Second) }, "certificate chain"),
		Entry("of another region", func(f *forge) {
			f.certs[regional].Subject.CommonName = "2f442bd2442676f0.us-east-2.aws.nitro-enclaves"
		}, `names region "us-east-2", not "us-east-1"`),
		Entry("of no region", func(f *forge) { f.certs[regional].Subject.CommonName = "us-east-1" }, `names region ""`),
	)

	DescribeTable("looks at the clock",
		func(now time.Duration, maxAge time.Duration, reason string) {
			raw, policy := newForge().document()
			policy.MaxAge = maxAge
			_, err := attest.Verify(raw, policy, expected(), signedAt.Add(now))
			if reason == "" {
				Expect(err).NotTo(HaveOccurred())
				return
			}
			Expect(err).To(MatchError(ContainSubstring(reason)))
		},
		Entry("as old as is allowed", 5*time.Minute, time.Duration(0), ""),
		Entry("older", 5*time.Minute+time.Millisecond, time.Duration(0), "old, more than 5m0s"),
		Entry("older, and the policy allows it", time.Hour, time.Hour, ""),
		Entry("valid when signed, expired now", 2*time.Hour+time.Second, 24*time.Hour, "not now"),
		Entry("from as far in the future as is allowed", -30*time.Second, time.Duration(0), ""),
		Entry("from further in the future", -30*time.Second-time.Millisecond, time.Duration(0), "in the future"),
	)

	It("takes a leaf that is newer than a clock that is behind", func() {
		f := newForge()
		f.certs[leaf].NotBefore = signedAt
		raw, policy := f.document()
		_, err := attest.Verify(raw, policy, expected(), signedAt.Add(-20*time.Second))
		Expect(err).NotTo(HaveOccurred())
	})

	DescribeTable("refuses by policy",
		func(change func(*attest.Policy), reason string) {
			raw, policy := newForge().document()
			change(&policy)
			_, err := attest.Verify(raw, policy, expected(), signedAt)
			Expect(err).To(MatchError(ContainSubstring(reason)))
		},
		Entry("no root", func(p *attest.Policy) { p.Roots = nil }, "no root is pinned"),
		Entry("no release", func(p *attest.Policy) { p.Releases = nil }, "no release is trusted"),
		Entry("a release that pins nothing", func(p *attest.Policy) {
			p.Releases = append(p.Releases, attest.Release{Version: 1, Name: "any"})
		}, `release 1 ("any"): PCR0 is missing`),
		Entry("a release below the minimum", func(p *attest.Policy) { p.MinVersion = 2 }, "version 1, below the minimum version 2"),
	)

	It("refuses every change of a single byte", func() {
		raw, policy := newForge().document()
		for i := range raw {
			changed := bytes.Clone(raw)
			changed[i] ^= 1 << (i % 8)
			_, err := attest.Verify(changed, policy, expected(), signedAt)
			Expect(err).To(HaveOccurred(), "bit %d of byte %d", i%8, i)
		}
	})

	It("refuses every other value of the bytes that frame the payload", func() {
		raw, policy := newForge().document()
		for i := range 10 {
			for v := 1; v < 256; v++ {
				changed := bytes.Clone(raw)
				changed[i] ^= byte(v)
				_, err := attest.Verify(changed, policy, expected(), signedAt)
				Expect(err).To(HaveOccurred(), "byte %d", i)
			}
		}
	})

	It("refuses every document that was cut", func() {
		raw, policy := newForge().document()
		for n := range raw {
			_, err := attest.Verify(raw[:n], policy, expected(), signedAt)
			Expect(err).To(HaveOccurred(), "%d bytes", n)
		}
	})
})

// refuses checks that a document with one thing broken is refused for that.
func refuses(breakOneThing func(*forge), reason string) {
	f := newForge()
	breakOneThing(f)
	raw, policy := f.document()
	doc, err := attest.Verify(raw, policy, expected(), signedAt)
	Expect(err).To(MatchError(ContainSubstring(reason)))
	Expect(err).To(MatchError(HavePrefix("attestation document: ")))
	Expect(doc).To(BeNil())
}

func withPCR(f *forge, index int, value []byte) {
	p := pcrs()
	p[index] = value
	f.payload["pcrs"] = p
}

func prefix(b ...byte) func([]byte) []byte {
	return func(m []byte) []byte { return slices.Concat(b, m) }
}

func suffix(b ...byte) func([]byte) []byte {
	return func(m []byte) []byte { return slices.Concat(m, b) }
}
