package cms_test

import (
	"bytes"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha1"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/pem"
	"math/big"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"

	"github.com/mrgc/mrgc/internal/cms"
	"github.com/mrgc/mrgc/standin/softkms"
)

func TestCMS(t *testing.T) {
	RegisterFailHandler(Fail)
	RunSpecs(t, "internal/cms")
}

// Where the fields of the vector lie; what is between them is the shape.
var (
	keyIDAt        = span{33, 65}
	encryptedKeyAt = span{131, 387}
	ivAt           = span{415, 431}
	contentAt      = span{435, 483}
)

type span struct{ from, to int }

func (s span) has(i int) bool { return i >= s.from && i < s.to }

var _ = Describe("Open", func() {
	raw, key := vector("kms-recipient-cms.ber"), vectorKey()

	It("opens what KMS wrote", func() {
		Expect(open(raw, key)).To(Equal("3be82c440f06cb4d44c4c2ec3bf30d472407d3a9125aa4c1842b98f6bdd26e41"))
	})

	It("leaves the message as it was", func() {
		again := bytes.Clone(raw)
		open(again, key)
		Expect(again).To(Equal(raw))
	})

	It("refuses every change of a bit of the shape, as malformed", func() {
		for i := range raw {
			if keyIDAt.has(i) || encryptedKeyAt.has(i) || ivAt.has(i) || contentAt.has(i) {
				continue
			}
			for bit := range 8 {
				_, err := cms.Open(flipped(raw, i, bit), key)
				Expect(err).To(MatchError(cms.ErrMalformed), "bit %d of byte %d", bit, i)
			}
		}
	})

	It("refuses every cut, and every byte more, as malformed", func() {
		for n := range raw {
			_, err := cms.Open(raw[:n], key)
			Expect(err).To(MatchError(cms.ErrMalformed), "%d bytes", n)
		}
		for _, more := range [][]byte{{0}, {0, 0}, raw} {
			_, err := cms.Open(slices.Concat(raw, more), key)
			Expect(err).To(MatchError(cms.ErrMalformed))
		}
	})

	It("gives one error for all that depends on the key", func() {
		other := newKey()
		_, err := cms.Open(raw, other)
		Expect(err).To(BeIdenticalTo(cms.ErrOpen), "another key")
		for i := encryptedKeyAt.from; i < encryptedKeyAt.to; i += 16 {
			_, err := cms.Open(flipped(raw, i, 0), key)
			Expect(err).To(BeIdenticalTo(cms.ErrOpen), "byte %d of the encrypted key", i)
		}
		for i := contentAt.to - 32; i < contentAt.to; i++ { // the padding, and the block that it is chained to
			_, err := cms.Open(flipped(raw, i, 7), key)
			Expect(err).To(BeIdenticalTo(cms.ErrOpen), "byte %d of the content", i)
		}
	})

	It("does not authenticate, as the package says", func() {
		want, err := cms.Open(raw, key)
		Expect(err).NotTo(HaveOccurred())
		got, err := cms.Open(flipped(raw, ivAt.from, 0), key)
		Expect(err).NotTo(HaveOccurred())
		Expect(got[0]).To(Equal(want[0] ^ 1))
		Expect(got[1:]).To(Equal(want[1:]))
	})

	DescribeTable("refuses",
		func(change func(m []byte) []byte, reason string) {
			_, err := cms.Open(change(bytes.Clone(raw)), key)
			Expect(err).To(MatchError(cms.ErrMalformed))
			Expect(err).To(MatchError(ContainSubstring(reason)))
		},
		Entry("nothing", func([]byte) []byte { return nil }, "ends where"),
		Entry("what is too large", func(m []byte) []byte { return append(m, make([]byte, cms.MaxMessageBytes)...) }, "more than 8192"),
		Entry("another type of message", replace("2a864886f70d010703", "2a864886f70d010702"), "content type"),
		Entry("another version", replace("3080020102", "3080020100"), "version of the enveloped data"),
		Entry("a recipient by issuer and serial number", replace("020102"+"8020", "020100"+"8020"), "version of the recipient"),
		Entry("another key encryption", replace("2a864886f70d010107", "2a864886f70d010101"), "key encryption algorithm"),
		Entry("OAEP with another hash", replace("300d06096086480165030402010500"+"a11c", "300d06096086480165030402020500"+"a11c"), "hash function"),
		Entry("another mask generation", replace("2a864886f70d010108", "2a864886f70d010109"), "mask generation function"),
		Entry("another cipher", replace("60864801650304012a", "608648016503040102"), "content encryption algorithm"),
		Entry("another type of content", replace("2a864886f70d010701", "2a864886f70d010706"), "type of the encrypted content"),
		Entry("a length in a longer form", replace("30800201", "30800281"), "length"),
		Entry("two recipients", func(m []byte) []byte {
			recipient := slices.Clone(m[24:387])
			return slices.Concat(m[:20], []byte{0x31, 0x82, 0x02, 0xd6}, recipient, recipient, m[387:])
		}, "bytes too many"),
		Entry("an identifier of no bytes", func(m []byte) []byte {
			m = slices.Delete(m, keyIDAt.from, keyIDAt.to)
			m[32] = 0
			m[22], m[23] = 0x01, 0x6b-32
			m[26], m[27] = 0x01, 0x67-32
			return m
		}, "empty subject key identifier"),
		Entry("a content that is not of whole blocks", func(m []byte) []byte {
			m[434] = 47
			return slices.Delete(m, 482, 483)
		}, "whole blocks"),
		Entry("no content", func(m []byte) []byte { return slices.Delete(m, 433, 483) }, "whole blocks"),
		Entry("a short initialisation vector", func(m []byte) []byte {
			m[401], m[414] = 28, 15
			return slices.Delete(m, 430, 431)
		}, "initialisation vector of 15"),
	)

	It("opens content in pieces, and with definite lengths", func() {
		content := raw[contentAt.from:contentAt.to]
		pieces := slices.Concat(raw[:433], []byte{0x04, 17}, content[:17], []byte{0x04, 31}, content[17:], raw[483:])
		Expect(open(pieces, key)).To(Equal(open(raw, key)))
		primitive := slices.Concat(raw[:431], []byte{0x80, 48}, content, raw[485:])
		Expect(open(primitive, key)).To(Equal(open(raw, key)))
	})

	It("opens what the stand-in writes, which differs from KMS's in what is drawn only", func() {
		key := newKey()
		for _, n := range []int{0, 1, 15, 16, 31, 32, 4096} {
			plaintext := make([]byte, n)
			rand.Read(plaintext)
			message, err := softkms.EncryptFor(&key.PublicKey, plaintext)
			Expect(err).NotTo(HaveOccurred())
			Expect(open(message, key)).To(Equal(hex.EncodeToString(plaintext)))
			if n != 32 {
				continue
			}
			Expect(message).To(HaveLen(len(raw)))
			for i := range raw {
				if !keyIDAt.has(i) && !encryptedKeyAt.has(i) && !ivAt.has(i) && !contentAt.has(i) {
					Expect(message[i]).To(Equal(raw[i]), "byte %d", i)
				}
			}
		}
	})
})

var _ = Describe("Beside openssl", func() {
	var openssl, dir string
	key := newKey()
	plaintext := []byte("a data key of thirty-two bytes..")

	BeforeEach(func() {
		var err error
		if openssl, err = exec.LookPath("openssl"); err != nil {
			Skip("no openssl on this machine")
		}
		dir = GinkgoT().TempDir()
		write(dir, "key.pem", pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(key)}))
		write(dir, "plaintext", plaintext)
	})
	run := func(args ...string) {
		GinkgoHelper()
		out, err := exec.Command(openssl, args...).CombinedOutput()
		Expect(err).NotTo(HaveOccurred(), string(out))
	}

	It("openssl opens what the stand-in writes", func() {
		message, err := softkms.EncryptFor(&key.PublicKey, plaintext)
		Expect(err).NotTo(HaveOccurred())
		write(dir, "message", message)
		run("cms", "-decrypt", "-binary", "-inform", "DER", "-in", filepath.Join(dir, "message"), "-inkey", filepath.Join(dir, "key.pem"), "-out", filepath.Join(dir, "opened"))
		Expect(os.ReadFile(filepath.Join(dir, "opened"))).To(Equal(plaintext))
	})

	DescribeTable("opens what openssl writes",
		func(more ...string) {
			write(dir, "cert.pem", certificate(key))
			args := []string{"cms", "-encrypt", "-binary", "-outform", "DER", "-aes256", "-keyid", "-in", filepath.Join(dir, "plaintext"), "-out", filepath.Join(dir, "message")}
			args = append(args, more...)
			run(append(args, "-recip", filepath.Join(dir, "cert.pem"), "-keyopt", "rsa_padding_mode:oaep", "-keyopt", "rsa_oaep_md:sha256", "-keyopt", "rsa_mgf1_md:sha256")...)
			message, err := os.ReadFile(filepath.Join(dir, "message"))
			Expect(err).NotTo(HaveOccurred())
			Expect(open(message, key)).To(Equal(hex.EncodeToString(plaintext)))
		},
		Entry("with definite lengths"),
		Entry("with indefinite lengths", "-stream"),
	)
})

// FuzzOpen checks that nothing panics, that every error is of a class, and that
// opening does not write to the message.
func FuzzOpen(f *testing.F) {
	raw, key := vector("kms-recipient-cms.ber"), vectorKey()
	f.Add(raw)
	f.Add(slices.Concat(raw[:431], []byte{0x80, 48}, raw[contentAt.from:contentAt.to], raw[485:]))
	f.Fuzz(func(t *testing.T, message []byte) {
		before := bytes.Clone(message)
		plaintext, err := cms.Open(message, key)
		if !bytes.Equal(before, message) {
			t.Fatal("the message was written to")
		}
		if (plaintext == nil) == (err == nil) {
			t.Fatalf("plaintext %x and error %v", plaintext, err)
		}
	})
}

func BenchmarkOpen(b *testing.B) {
	raw, key := vector("kms-recipient-cms.ber"), vectorKey()
	for b.Loop() {
		if _, err := cms.Open(raw, key); err != nil {
			b.Fatal(err)
		}
	}
}

func open(message []byte, key *rsa.PrivateKey) string {
	GinkgoHelper()
	plaintext, err := cms.Open(message, key)
	Expect(err).NotTo(HaveOccurred())
	return hex.EncodeToString(plaintext)
}

func flipped(raw []byte, at, bit int) []byte {
	changed := bytes.Clone(raw)
	changed[at] ^= 1 << bit
	return changed
}

// replace changes the first place in hex.
func replace(from, to string) func([]byte) []byte {
	a, b := unhex(from), unhex(to)
	return func(m []byte) []byte {
		Expect(bytes.Contains(m, a)).To(BeTrue(), "%x", a)
		return bytes.Replace(m, a, b, 1)
	}
}

func unhex(s string) []byte {
	b, err := hex.DecodeString(s)
	check(err)
	return b
}

func vector(name string) []byte {
	b, err := os.ReadFile(filepath.Join("testdata", name))
	check(err)
	return b
}

func vectorKey() *rsa.PrivateKey {
	block, _ := pem.Decode(vector("kms-recipient-cms.key.pem"))
	if key, err := x509.ParsePKCS1PrivateKey(block.Bytes); err == nil {
		return key
	}
	key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	check(err)
	return key.(*rsa.PrivateKey)
}

func newKey() *rsa.PrivateKey {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	check(err)
	return key
}

// certificate names the key by an identifier, as -keyid wants.
func certificate(key *rsa.PrivateKey) []byte {
	id := sha1.Sum(x509.MarshalPKCS1PublicKey(&key.PublicKey))
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test"}, SubjectKeyId: id[:],
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	check(err)
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}

func write(dir, name string, content []byte) {
	GinkgoHelper()
	Expect(os.WriteFile(filepath.Join(dir, name), content, 0o600)).To(Succeed())
}

// check serves fuzz tests and benchmarks, too, so it does not use Gomega.
func check(err error) {
	if err != nil {
		panic(err)
	}
}
