package credential_test

import (
	"bytes"
	"crypto/rand"
	"fmt"
	"strings"
	"testing"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	"pgregory.net/rapid"

	"github.com/mrgc/mrgc/internal/credential"
)

func TestCredential(t *testing.T) {
	RegisterFailHandler(Fail)
	RunSpecs(t, "credential")
}

var _ = Describe("An API key", func() {
	var key credential.Key
	BeforeEach(func() {
		var err error
		key, err = credential.New(rand.Reader, "acme-7")
		Expect(err).NotTo(HaveOccurred())
	})

	It("survives being written and read, for every tenant name", func() {
		rapid.Check(GinkgoT(), func(t *rapid.T) {
			tenant := rapid.StringMatching(`[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?`).Draw(t, "tenant")
			seed := rapid.SliceOfN(rapid.Byte(), 32, 32).Draw(t, "seed")
			made, err := credential.New(bytes.NewReader(seed), tenant)
			if err != nil {
				t.Fatal(err)
			}
			read, err := credential.Parse(made.Text())
			if err != nil || read != made || read.Tenant() != tenant {
				t.Fatalf("%s: read as %v, %v", made.Text(), read, err)
			}
		})
	})

	It("gives four secrets that differ", func() {
		seen := map[string]bool{}
		for _, secret := range [][]byte{key.EdgeToken(), key.EnclaveToken(), key.CacheSecret(), key.AffinitySecret()} {
			Expect(len(secret)).To(BeNumerically(">=", 32))
			seen[string(secret)] = true
			Expect(key.Text()).NotTo(ContainSubstring(string(secret)))
		}
		Expect(seen).To(HaveLen(4))
	})

	It("derives other secrets for another tenant with the same random bytes", func() {
		seed := bytes.Repeat([]byte{7}, 32)
		one, err := credential.New(bytes.NewReader(seed), "one")
		Expect(err).NotTo(HaveOccurred())
		two, err := credential.New(bytes.NewReader(seed), "two")
		Expect(err).NotTo(HaveOccurred())
		Expect(one.EdgeToken()).NotTo(Equal(two.EdgeToken()))
		Expect(one.EnclaveToken()).NotTo(Equal(two.EnclaveToken()))
	})

	It("hides its secret when it is printed", func() {
		for _, verb := range []string{"%v", "%s", "%+v"} {
			Expect(fmt.Sprintf(verb, key)).To(Equal("mrgc-acme-7-…"))
		}
	})

	DescribeTable("is refused, without being repeated, when it is not one",
		func(mangle func(string) string) {
			text := mangle(key.Text())
			_, err := credential.Parse(text)
			Expect(err).To(MatchError(ContainSubstring("not an MRGC API key")))
			if len(text) > 8 {
				Expect(err.Error()).NotTo(ContainSubstring(text[len(text)-8:]))
			}
		},
		Entry("empty", func(string) string { return "" }),
		Entry("another vendor's", func(s string) string { return "sk-" + s }),
		Entry("cut", func(s string) string { return s[:len(s)-1] }),
		Entry("too long", func(s string) string { return s + "A" }),
		Entry("no tenant", func(s string) string { return "mrgc-" + s[len(s)-43:] }),
		Entry("tenant in capitals", func(s string) string { return strings.Replace(s, "acme", "ACME", 1) }),
		Entry("outside the alphabet", func(s string) string { return s[:len(s)-1] + "+" }),
	)

	DescribeTable("is not made for a bad tenant name", func(tenant string) {
		_, err := credential.New(rand.Reader, tenant)
		Expect(err).To(MatchError(ContainSubstring("tenant name")))
	},
		Entry("empty", ""), Entry("dash at the end", "a-"), Entry("capital", "Acme"),
		Entry("line break", "a\nb"), Entry("too long", strings.Repeat("a", 64)),
	)

	It("is not made without randomness", func() {
		_, err := credential.New(bytes.NewReader(nil), "acme")
		Expect(err).To(MatchError(ContainSubstring("draw an API key")))
	})
})

var _ = Describe("A stored token", func() {
	It("is written in hex", func() {
		digest := credential.DigestOf([]byte("token"))
		read, err := credential.ParseDigest(digest.String())
		Expect(err).NotTo(HaveOccurred())
		Expect(read).To(Equal(digest))
		_, err = credential.ParseDigest(digest.String()[2:])
		Expect(err).To(MatchError(ContainSubstring("64 hex digits")))
	})
})
