package size_test

import (
	"bytes"
	"encoding/json"
	"math"
	"strings"
	"testing"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	"pgregory.net/rapid"

	"github.com/mrgc/mrgc/internal/size"
)

func TestSize(t *testing.T) {
	RegisterFailHandler(Fail)
	RunSpecs(t, "size")
}

// of measures a request's JSON.
func of(request string) string {
	GinkgoHelper()
	var fields map[string]json.RawMessage
	Expect(json.Unmarshal([]byte(request), &fields)).To(Succeed())
	return size.Of(fields).String()
}

// text is a prompt of so many bytes, inside of JSON's quotes.
func text(n int) string { return strings.Repeat("a", n) }

var _ = Describe("The size of a request", func() {
	DescribeTable("in tokens of its prompt is", func(request, want string) {
		Expect(of(request)).To(Equal(want + "/1024"))
	},
		Entry("never below the smallest bucket", `{}`, "64"),
		Entry("a fourth of its bytes", `{"prompt":"`+text(256)+`"}`, "64"),
		Entry("rounded up to a token, and that to a power of two", `{"prompt":"`+text(257)+`"}`, "128"),
		Entry("a power of two when it is one", `{"prompt":"`+text(4*512)+`"}`, "512"),
		Entry("never above the largest bucket", `{"prompt":"`+text(5<<20)+`"}`, "1048576"),
		Entry("all texts of all messages, the roles too", `{"messages":[{"role":"system","content":"`+text(126)+`"},{"role":"user","content":[{"type":"text","text":"`+text(117)+`"}]}]}`, "128"),
		Entry("the tools", `{"messages":[],"tools":[{"function":{"description":"`+text(300)+`"}}]}`, "128"),
		Entry("the names in a tool's schema", `{"tools":[{"parameters":{"properties":{"`+text(300)+`":{}}}}]}`, "128"),
		Entry("what a tool calls a picture, which engines read as text", `{"tools":[{"data":{"url":"`+text(300)+`"}}]}`, "128"),
		Entry("a schema for the answer, its numbers and marks too", `{"response_format":{"enum":[1`+strings.Repeat(",23", 90)+`]}}`, "128"),
		Entry("a schema without its white space", `{"response_format":{`+strings.Repeat(" \n\t", 300)+`"a":1}}`, "64"),
		Entry("a schema's bytes of UTF-8, not of escapes", `{"tools":["`+strings.Repeat(`\u0061\n`, 126)+`"]}`, "64"),
		Entry("tools, schema and messages together", `{"messages":["`+text(100)+`"],"tools":["`+text(100)+`"],"response_format":"`+text(100)+`"}`, "128"),
		Entry("what follows the gap", `{"prompt":"`+text(200)+`","suffix":"`+text(200)+`"}`, "128"),
		Entry("every prompt of a list", `{"prompt":["`+text(200)+`","`+text(200)+`"]}`, "128"),
		Entry("every token of a list", `{"prompt":[1`+strings.Repeat(",-20e5", 64)+`]}`, "128"),
		Entry("no numbers in messages", `{"messages":[1`+strings.Repeat(",2", 64)+`]}`, "64"),
		Entry("no names of members", `{"messages":[{"`+text(300)+`":"", "x" : ""}]}`, "64"),
		Entry("nothing of the other members", `{"user":"`+text(300)+`","stop":["`+text(300)+`"],"Prompt":"`+text(300)+`"}`, "64"),
		Entry("nothing of a picture", `{"messages":[{"image_url":{"url":"data:`+text(300)+`"}}]}`, "64"),
		Entry("nothing of a sound or a file", `{"messages":[{"data": "`+text(300)+`"},{"file_data" :"`+text(300)+`"}]}`, "64"),
		Entry("nothing of a picture whose name is escaped", `{"messages":[{"\u0075rl":"`+text(300)+`"}]}`, "64"),
		Entry("the text beside a picture", `{"messages":[{"url":"x","text":"`+text(300)+`"}]}`, "128"),
		Entry("the text after media that are no string", `{"messages":[{"data":null},"`+text(300)+`"]}`, "128"),
		Entry("the text inside of what only has such a name", `{"messages":[{"data":{"text":"`+text(300)+`"},"url":["`+text(1)+`"]}]}`, "128"),
		Entry("the bytes of UTF-8, not of escapes", `{"prompt":"`+strings.Repeat(`\u0061\n`, 128)+`"}`, "64"),
		Entry("two bytes for what has two", `{"prompt":"`+strings.Repeat(`\u00e9`, 129)+`"}`, "128"),
		Entry("three bytes for what has three", `{"prompt":"`+strings.Repeat(`\u20ac`, 86)+`"}`, "128"),
		Entry("four bytes for a pair", `{"prompt":"`+strings.Repeat(`\ud83d\ude00`, 64)+`"}`, "64"),
		Entry("three bytes for half a pair", `{"prompt":"`+strings.Repeat(`\ud83d`, 86)+`"}`, "128"),
		Entry("texts with quotes and backslashes", `{"prompt":["\\","`+strings.Repeat(`\"`, 256)+`"]}`, "128"),
	)

	DescribeTable("in tokens of its answer is", func(request, want string) {
		Expect(of(request)).To(Equal("64/" + want))
	},
		Entry("what is usual, unless it is said", `{"max_tokens":null}`, "1024"),
		Entry("never below the smallest bucket", `{"max_tokens":1}`, "64"),
		Entry("a power of two when it is one", `{"max_tokens":4096}`, "4096"),
		Entry("rounded up", `{"max_tokens":4097}`, "8192"),
		Entry("never above the largest bucket", `{"max_tokens":1048577}`, "1048576"),
		Entry("never above it, however large", `{"max_tokens":123456789012345678901234567890}`, "1048576"),
		Entry("the limit's newer name", `{"max_completion_tokens":100}`, "128"),
		Entry("the larger of two limits", `{"max_completion_tokens":100,"max_tokens":200}`, "256"),
		Entry("the usual for what is no number of tokens", `{"max_tokens":-1,"max_completion_tokens":"100"}`, "1024"),
		Entry("the usual for zero", `{"max_tokens":0}`, "1024"),
		Entry("the usual for a fraction", `{"max_tokens":100.0}`, "1024"),
		Entry("the usual for very negative ones", `{"max_tokens":-123456789012345678901234567890}`, "1024"),
	)

	It("is measured as encoding/json reads it", func() {
		rapid.Check(GinkgoT(), func(t *rapid.T) {
			literal := rapid.SliceOfN(rapid.OneOf(
				rapid.SampledFrom([]string{`\"`, `\\`, `\/`, `\n`, `\ud83d`, `\ude00`, `\uD83D\uDE00`, `\u00E9`, `\u0000`, `u0061`, "é", "€", "😀", `": "`, "[{,:1"}),
				rapid.StringMatching(`[a-z ]{0,20}`),
			), 0, 60).Draw(t, "text")
			joined := strings.ReplaceAll(strings.Join(literal, ""), `": "`, "")
			var read string
			if err := json.Unmarshal([]byte(`"`+joined+`"`), &read); err != nil {
				t.Fatal(err)
			}
			got := size.Of(map[string]json.RawMessage{"prompt": json.RawMessage(`["` + joined + `"]`)})
			if want := size.Round((len(read)+3)/4, size.DefaultOutput); got != want {
				t.Fatalf("%d bytes in %q: %v, want %v", len(read), joined, got, want)
			}
		})
	})
})

var _ = Describe("A bucket", func() {
	It("is a power of two, bounded, monotone, and never below what it stands for, up to the largest", func() {
		rapid.Check(GinkgoT(), func(t *rapid.T) {
			n := rapid.OneOf(rapid.IntRange(-10, 3*size.Max), rapid.Int()).Draw(t, "tokens")
			more := rapid.IntRange(0, size.Max).Draw(t, "more")
			got := size.Round(n, n)
			if got.Prompt != got.Output || got.Prompt < size.Min || got.Prompt > size.Max || got.Prompt&(got.Prompt-1) != 0 {
				t.Fatalf("%d: %v", n, got)
			}
			if n <= size.Max && got.Prompt < n || got.Prompt > size.Min && got.Prompt/2 >= n {
				t.Fatalf("%d is not in %v", n, got)
			}
			if n < math.MaxInt-more && size.Round(n+more, 0).Prompt < got.Prompt {
				t.Fatalf("%d is larger than %d, and its bucket smaller", n+more, n)
			}
		})
	})

	It("is all that a request of its size shows", func() {
		rapid.Check(GinkgoT(), func(t *rapid.T) {
			exponent := rapid.IntRange(6, 12).Draw(t, "exponent")
			least := 1<<(exponent-1) + 1
			if exponent == 6 {
				least = 1
			}
			in := func(name string) int { return rapid.IntRange(least, 1<<exponent).Draw(t, name) }
			shown := func(prompt string, output int) string {
				return size.Of(map[string]json.RawMessage{"prompt": []byte(`"` + prompt + `"`), "max_tokens": mustJSON(output)}).String()
			}
			one := shown(text(4*in("one prompt")), in("one output"))
			other := shown(strings.Repeat("é", 2*in("other prompt")), in("other output"))
			if one != other {
				t.Fatalf("%s and %s differ", one, other)
			}
		})
	})

	It("grows with a text that is added to", func() {
		rapid.Check(GinkgoT(), func(t *rapid.T) {
			messages := rapid.SliceOfN(rapid.StringN(0, 200, -1), 1, 8).Draw(t, "messages")
			last := 0
			for n := range messages {
				got := size.Of(map[string]json.RawMessage{"messages": mustJSON(messages[:n+1])})
				if got.Prompt < last {
					t.Fatalf("%d messages: %d, one less: %d", n+1, got.Prompt, last)
				}
				last = got.Prompt
			}
		})
	})
})

func mustJSON(v any) json.RawMessage {
	raw, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	return raw
}

var _ = Describe("A size as it is written", func() {
	It("is read back", func() {
		rapid.Check(GinkgoT(), func(t *rapid.T) {
			b := size.Round(rapid.IntRange(0, 2*size.Max).Draw(t, "prompt"), rapid.IntRange(0, 2*size.Max).Draw(t, "output"))
			read, err := size.Parse(b.String())
			if err != nil || read != b {
				t.Fatalf("%s: %v, %v", b, read, err)
			}
		})
	})

	DescribeTable("is refused as", func(text string) {
		_, err := size.Parse(text)
		Expect(err).To(MatchError(ContainSubstring("want prompt/output")))
	},
		Entry("nothing", ""), Entry("one number", "64"), Entry("three numbers", "64/64/64"), Entry("no number", "64/x"),
		Entry("a number that is no power of two", "64/100"), Entry("a number below the smallest", "32/64"),
		Entry("a number above the largest", "2097152/64"), Entry("a second spelling", "064/64"), Entry("a sign", "+64/64"),
		Entry("a space", "64/ 64"), Entry("negative", "-64/64"), Entry("an overflow", "64/99999999999999999999"),
	)
})

// FuzzOf looks for a request that makes Of panic, never end, or leave the buckets.
func FuzzOf(f *testing.F) {
	for _, seed := range []string{
		`{"prompt":"a\ud83d\ude00","max_tokens":100}`, `{"messages":[{"role":"user","content":[{"type":"image_url","image_url":{"url":"data:x"}}]}]}`,
		`{"prompt":[[1,-2e3],"x"]}`, `{"tools":[{"data":null},"\""],"suffix":"\\"}`, `{"tools":[{"parameters":{"properties":{"url":{"default":"é"}}}}],"response_format":{ "a" : [ 1 ] }}`, `{"prompt":"\u12","max_tokens":1e999}`,
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, request []byte) {
		// Even of what is not JSON: whoever calls it may have a bug.
		loose := size.Of(map[string]json.RawMessage{"prompt": request, "messages": request, "tools": request, "response_format": request, "max_tokens": request})
		var fields map[string]json.RawMessage
		if json.Unmarshal(request, &fields) != nil {
			fields = nil
		}
		for _, b := range []size.Buckets{loose, size.Of(fields)} {
			if read, err := size.Parse(b.String()); err != nil || read != b {
				t.Fatalf("%v: %v", b, err)
			}
		}
		var compact bytes.Buffer
		if bytes.IndexByte(request, '\\') >= 0 || json.Compact(&compact, request) != nil {
			return
		}
		for _, name := range []string{"tools", "response_format"} { // none of it can hide, whatever it is called
			got, want := size.Of(map[string]json.RawMessage{name: request}), size.Round((compact.Len()+3)/4, size.DefaultOutput)
			if got != want {
				t.Fatalf("%s of %d bytes: %v, want %v", name, compact.Len(), got, want)
			}
		}
	})
}

func BenchmarkOf(b *testing.B) {
	fields := map[string]json.RawMessage{"messages": mustJSON([]string{strings.Repeat("a line of a long prompt\n", 10_000)})}
	b.SetBytes(int64(len(fields["messages"])))
	b.ReportAllocs()
	for b.Loop() {
		size.Of(fields)
	}
}
