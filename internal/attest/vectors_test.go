package attest_test

import (
	"bytes"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"os"
	"path/filepath"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"

	"github.com/mrgc/mrgc/internal/attest"
)

// Documents that others made: see testdata/README.md.
var _ = Describe("Vectors", func() {
	policy, ownTime := realPolicy()

	It("accepts the real document at its own time", func() {
		doc, err := attest.Verify(vector("aws-attestation-2023.cbor"), policy, attest.Expected{Region: "us-east-1"}, ownTime)
		Expect(err).NotTo(HaveOccurred())
		Expect(doc.ModuleID).To(Equal("i-020b6af9246d90e92-enc0183d09086c24190"))
		Expect(doc.Timestamp.Equal(ownTime)).To(BeTrue())
		Expect(doc.Region).To(Equal("us-east-1"))
		Expect(doc.Release).To(Equal(policy.Releases[0]))
		Expect(doc.PCRs[4]).To(Equal(attest.ExtendedPCR([]byte("i-020b6af9246d90e92"))), "PCR4 is the instance id's")
	})

	DescribeTable("refuses",
		func(file string, now time.Time, root *x509.Certificate, userData, reason string) {
			policy := policy
			policy.Roots = []*x509.Certificate{root}
			_, err := attest.Verify(vector(file), policy, attest.Expected{UserData: []byte(userData)}, now)
			Expect(err).To(MatchError(ContainSubstring(reason)))
		},
		Entry("the real document years later",
			"aws-attestation-2023.cbor", signedAt, attest.AWSRoot(), "", "valid from 2022-10-08"),
		Entry("the real document under another root",
			"aws-attestation-2023.cbor", ownTime, newForge().issue()[root], "", "not one that the policy pins"),
		Entry("a document of debug mode",
			"aws-attestation-debug-2023.cbor", time.UnixMilli(1665582606081), attest.AWSRoot(), "hello, world!", "PCR0 is all zero"),
		Entry("QEMU's unsigned document",
			"qemu-unsigned-attestation.cbor", time.UnixMilli(1795433289000), attest.AWSRoot(), "ud", "protected header"),
	)

	It("refuses the real document when its header says that it is unsigned", func() {
		// The fillers of QEMU's document in the right sizes: only ES384 in the
		// header is missing.
		raw := bytes.Replace(vector("aws-attestation-2023.cbor"), []byte{0x44, 0xa1, 0x01, 0x38, 0x22}, []byte{0x43, 0xa1, 0x01, 0x20}, 1)
		_, err := attest.Verify(raw, policy, attest.Expected{}, ownTime)
		Expect(err).To(MatchError(ContainSubstring("protected header")))
	})

	DescribeTable("say when they were made, verified or not", func(file string, at int64) {
		Expect(attest.ClaimedTime(vector(file))).To(BeTemporally("==", time.UnixMilli(at)))
	},
		Entry("the real document", "aws-attestation-2023.cbor", ownTime.UnixMilli()),
		Entry("a document of debug mode", "aws-attestation-debug-2023.cbor", int64(1665582606081)),
		Entry("QEMU's", "qemu-unsigned-attestation.cbor", int64(1795433289000)),
	)

	DescribeTable("that are none say nothing", func(raw []byte, reason string) {
		_, err := attest.ClaimedTime(raw)
		Expect(err).To(MatchError(ContainSubstring(reason)))
	},
		Entry("nothing", nil, "not a COSE_Sign1 message"),
		Entry("one that was cut", vector("aws-attestation-2023.cbor")[:2000], "not a COSE_Sign1 message"),
		Entry("one too large", make([]byte, 13<<10), "more than"),
		Entry("one of a TPM", vector("aws-nitrotpm-2026.cbor"), "payload"),
		Entry("one without a payload", []byte{0x84, 0x40, 0xa0, 0x40, 0x40}, "payload"),
		Entry("one without a time", []byte{0x84, 0x40, 0xa0, 0x41, 0xa0, 0x40}, "no time"),
	)

	It("embeds the root that AWS publishes", func() {
		sum := sha256.Sum256(attest.AWSRoot().Raw)
		Expect(hex.EncodeToString(sum[:])).To(Equal("641a0321a3e244efe456463195d606317ed7cdcc3c1756e09893f3c68f79bb5b"))
		Expect(attest.AWSRoot().Subject.CommonName).To(Equal("aws.nitro-enclaves"))
	})
})

// realPolicy accepts aws-attestation-2023.cbor, at the time that it returns.
func realPolicy() (attest.Policy, time.Time) {
	release := attest.Release{Version: 1, Name: "aws-attestation-2023", PCRs: attest.PCRs{
		0: unhex("f4d48b81a460c9916d1e685119074bf24660afd3e34fae9fca0a0d28d9d5599936332687e6f66fc890ac8cf150142d8b"),
		1: unhex("bcdf05fefccaa8e55bf2c8d6dee9e79bbff31e34bf28a99aa19e6b29c37ee80b214a414b7607236edf26fcb78654e63f"),
		2: unhex("d8f114da658de5481f8d9ec73907feb553560787522f705c92d7d96beed8e15e2aa611984e098c576832c292e8dc469a"),
		3: unhex("4a9329d69c836267b18abbf9f4a38889124490453419e426818626348d21f989dc930b1562682a9082887454e53425aa"),
	}}
	policy := attest.Policy{Roots: []*x509.Certificate{attest.AWSRoot()}, Releases: []attest.Release{release}}
	return policy, time.UnixMilli(1665651482136)
}

func vector(name string) []byte {
	b, err := os.ReadFile(filepath.Join("testdata", name))
	check(err)
	return b
}

func unhex(s string) attest.HexBytes {
	b, err := hex.DecodeString(s)
	check(err)
	return b
}
