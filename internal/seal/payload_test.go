package seal_test

import (
	"bytes"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	"pgregory.net/rapid"

	"github.com/mrgc/mrgc/internal/seal"
)

var _ = Describe("A payload", func() {
	It("comes back as it was encoded", func() {
		rapid.Check(GinkgoT(), func(t *rapid.T) {
			p := seal.Payload{
				Credential:  drawBytes(t, "credential", 300),
				CacheSecret: drawBytes(t, "cache secret", 300),
				Body:        drawBytes(t, "body", 5000),
			}
			encoded, err := seal.EncodePayload(&p)
			Expect(err).NotTo(HaveOccurred())
			Expect(encoded).To(HaveCap(len(encoded)), "one allocation, so that nothing is left behind")
			got, ok := seal.ParsePayload(encoded)
			Expect(ok).To(BeTrue())
			Expect(bytes.Equal(got.Credential, p.Credential)).To(BeTrue())
			Expect(bytes.Equal(got.CacheSecret, p.CacheSecret)).To(BeTrue())
			Expect(bytes.Equal(got.Body, p.Body)).To(BeTrue())
		})
	})

	It("is padded to few sizes, at little cost", func() {
		rapid.Check(GinkgoT(), func(t *rapid.T) {
			n := rapid.IntRange(0, seal.MaxPlaintextBytes).Draw(t, "n")
			padded := seal.PaddedSize(n)
			Expect(padded).To(BeNumerically(">=", n))
			Expect(padded).To(BeNumerically("<=", seal.MaxPlaintextBytes))
			Expect(seal.PaddedSize(padded)).To(Equal(padded), "a bucket is its own bucket")
			if n > 4096 {
				Expect(float64(padded-n) / float64(n)).To(BeNumerically("<=", 0.0625))
			}
			Expect(seal.PaddedSize(n + 1)).To(BeNumerically(">=", padded))
		})
		sizes := map[int]bool{}
		for n := 0; n <= 1<<20; n++ {
			sizes[seal.PaddedSize(n)] = true
		}
		Expect(len(sizes)).To(BeNumerically("<", 200), "below 1 MiB")
	})

	DescribeTable("has the padded sizes that the specification lists", func(n, padded int) {
		Expect(seal.PaddedSize(n)).To(Equal(padded))
	},
		Entry(nil, 8, 1024), Entry(nil, 1024, 1024), Entry(nil, 1025, 2048), Entry(nil, 2049, 4096),
		Entry(nil, 4096, 4096), Entry(nil, 4097, 4352), Entry(nil, 10000, 10240), Entry(nil, 65536, 65536),
		Entry(nil, 65537, 67584), Entry(nil, 1000000, 1015808), Entry(nil, 1<<24, 1<<24),
	)

	DescribeTable("is refused", func(change func([]byte) []byte) {
		p := testRequest().Payload
		encoded, err := seal.EncodePayload(&p)
		Expect(err).NotTo(HaveOccurred())
		_, ok := seal.ParsePayload(change(encoded))
		Expect(ok).To(BeFalse())
	},
		Entry("empty", func([]byte) []byte { return nil }),
		Entry("with padding that is not zero", func(b []byte) []byte { b[len(b)-1] = 1; return b }),
		Entry("with padding missing", func(b []byte) []byte { return b[:len(b)-1] }),
		Entry("with too much padding", func(b []byte) []byte { return append(b, make([]byte, 1024)...) }),
		Entry("with a credential longer than all", func(b []byte) []byte { b[0] = 0xff; return b }),
		Entry("with a body longer than all", set(2+14+2+16, 0xff, 0xff, 0xff, 0xff)),
		Entry("with a body that swallows the padding", set(2+14+2+16, 0, 0, 0x7f, 0xff)),
	)
})
