package seal_test

import (
	"strings"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	"pgregory.net/rapid"

	"github.com/mrgc/mrgc/internal/seal"
)

var _ = Describe("Names", func() {
	It("of recipients survive the header", func() {
		rapid.Check(GinkgoT(), func(t *rapid.T) {
			ids := rapid.SliceOfNDistinct(rapid.Custom(func(t *rapid.T) seal.KeyID {
				return seal.KeyID(rapid.SliceOfN(rapid.Byte(), 8, 8).Draw(t, "id"))
			}), 1, seal.MaxRecipients, rapid.ID).Draw(t, "ids")
			Expect(seal.ParseKeyIDs(seal.FormatKeyIDs(ids))).To(Equal(ids))
		})
	})

	const a, b = "00112233445566aa", "00112233445566bb"
	DescribeTable("of recipients are refused", func(header string) {
		ids, err := seal.ParseKeyIDs(header)
		Expect(err).To(MatchError(seal.ErrMalformed))
		Expect(ids).To(BeNil())
	},
		Entry("when there are none", ""),
		Entry("in upper case", strings.ToUpper(a)),
		Entry("too short", a[:14]),
		Entry("too long", a+"00"),
		Entry("not hex", "g"+a[1:]),
		Entry("with a space", a+", "+b),
		Entry("with an empty one", a+","),
		Entry("twice", a+","+b+","+a),
		Entry("five of them", "0000000000000001,0000000000000002,0000000000000003,0000000000000004,0000000000000005"),
		Entry("a great many", strings.Repeat(a+",", 100000)),
	)

	It("of requests survive the header", func() {
		id := seal.RequestID{1, 2, 0xab}
		Expect(id.String()).To(Equal("0102ab" + strings.Repeat("0", 26)))
		Expect(seal.ParseRequestID(id.String())).To(Equal(id))
		for _, bad := range []string{"", "0102", strings.ToUpper(id.String()), id.String() + "00", " " + id.String()} {
			_, err := seal.ParseRequestID(bad)
			Expect(err).To(MatchError(seal.ErrMalformed), bad)
		}
	})

	It("of operations", func() {
		Expect(seal.OpChatCompletions.String()).To(Equal("chat.completions"))
		Expect(seal.OpChatCompletions.Path()).To(Equal("/v1/chat/completions"))
		Expect(seal.OpCompletions.String()).To(Equal("completions"))
		Expect(seal.OpCompletions.Path()).To(Equal("/v1/completions"))
		Expect(seal.Operation(9).String()).To(Equal("operation(9)"))
		Expect(seal.Operation(9).Path()).To(BeEmpty())
	})
})
