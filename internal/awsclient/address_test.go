package awsclient_test

import (
	"testing"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"

	"github.com/mrgc/mrgc/internal/awsclient"
)

func TestAWSClient(t *testing.T) {
	RegisterFailHandler(Fail)
	RunSpecs(t, "internal/awsclient")
}

var _ = Describe("An address", func() {
	It("is a name, where it is, and what else is allowed", func() {
		at, err := awsclient.ParseAddress("t?region=us-east-1&endpoint=https://x&colour=red", "colour")
		Expect(err).NotTo(HaveOccurred())
		Expect(at.Name).To(Equal("t"))
		Expect(at.Region).To(Equal("us-east-1"))
		Expect(at.Endpoint).To(Equal("https://x"))
		Expect(at.Others).To(HaveKeyWithValue("colour", "red"))
	})

	DescribeTable("is refused with", func(text, why string) {
		_, err := awsclient.ParseAddress(text)
		Expect(err).To(MatchError(ContainSubstring(why)))
	},
		Entry("a setting that is not allowed", "t?colour=red", `unknown setting "colour": want region or endpoint`),
		Entry("a setting twice", "t?region=a&region=b", "region: want one value"),
		Entry("a setting without a value", "t?region=", "region: want one value"),
		Entry("what is no query", "t?region=%zz", "after the question mark"),
	)
})

// FuzzParseAddress: what is accepted says one thing for each setting, and nothing
// that was not allowed.
func FuzzParseAddress(f *testing.F) {
	for _, seed := range []string{"", "t", "t?region=us-east-1", "?endpoint=http://127.0.0.1:1&colour=%20", "t?region=a&region=b"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		at, err := awsclient.ParseAddress(text, "colour")
		if err != nil {
			return
		}
		for key, value := range at.Others {
			if value == "" || (key != "region" && key != "endpoint" && key != "colour") {
				t.Fatalf("%q: %s is %q", text, key, value)
			}
		}
		if at.Region != at.Others["region"] || at.Endpoint != at.Others["endpoint"] {
			t.Fatalf("%q: %+v", text, at)
		}
	})
}
