package enclave_test

import (
	"bytes"
	"crypto/rand"
	"encoding/json"
	"io"
	"net/http"
	"slices"
	"strings"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	"pgregory.net/rapid"

	"github.com/mrgc/mrgc/enclave"
	"github.com/mrgc/mrgc/internal/api"
	"github.com/mrgc/mrgc/internal/seal"
	"github.com/mrgc/mrgc/internal/size"
)

// declared sets the size that a request declares.
func declared(size string) func(*seal.Request) {
	return func(req *seal.Request) { req.Size = size }
}

var _ = Describe("A request's declared size", func() {
	long := saying(`"` + strings.Repeat("a", 300) + `"`)

	DescribeTable("is refused when the request has another", func(body, size, want string) {
		r := start(says(`{}`))
		a := r.ask(body, declared(size))
		r.expectSealedRefusal(a, http.StatusBadRequest, "size_mismatch")
		Expect(a.body).To(And(ContainSubstring(`\"`+want+`\"`), ContainSubstring("leave the header out")))
		Expect(a.used).To(BeEmpty())
		Expect(r.engine.calls()).To(BeEmpty())
	},
		Entry("a smaller prompt", long, "64/1024", "128/1024"),
		Entry("a larger prompt", chat, "128/1024", "64/1024"),
		Entry("a smaller answer", with(`"max_tokens":2000`), "64/1024", "64/2048"),
		Entry("a larger answer", with(`"max_completion_tokens":10`), "64/128", "64/64"),
		Entry("no size", chat, "small", "64/1024"),
		Entry("another spelling", chat, "064/1024", "64/1024"),
		Entry("something long", chat, strings.Repeat("9", 255), "64/1024"),
	)

	It("may be left out", func() {
		r := start(says(`{}`))
		Expect(r.ask(long, declared("")).head.Status).To(Equal(http.StatusOK))
	})

	It("is not compared before the tenant is known", func() {
		r := start(says(`{}`))
		a := r.ask(chat, declared("128/1024"), func(req *seal.Request) { req.Payload.Credential = nil })
		r.expectSealedRefusal(a, http.StatusUnauthorized, "invalid_api_key")
	})
})

// Pieces of what engines say.
const (
	reported   = `"usage":{"prompt_tokens":70,"completion_tokens":300,"total_tokens":370}`
	delta      = `data: {"choices":[{"delta":{"content":"x"}}],"usage":null}` + "\n\n"
	usageEvent = `data: {"id":"1","choices":[],` + reported + `}` + "\n\n"
	done       = "data: [DONE]\n\n"
)

// theirs is the exact figures and the buckets of what pieces report.
var theirs = seal.End{PromptTokens: 70, OutputTokens: 300}

const theirBuckets = "128/512"

var _ = Describe("What an answer has used", func() {
	DescribeTable("is told the tenant exactly, and the parent in buckets",
		func(request, said, passed string) {
			r := start(says(said))
			a := r.ask(request)
			Expect(a.err).NotTo(HaveOccurred())
			Expect(a.body).To(Equal(passed))
			Expect(used(a.end)).To(Equal(theirs))
			Expect(a.used).To(Equal(theirBuckets))
		},
		Entry("of an answer in one piece", chat, `{"choices":[],`+reported+`}`, `{"choices":[],`+reported+`}`),
		Entry("spelled in another way", chat, `{ "usage" : {"completion_tokens":300, "prompt_tokens":70} }`, `{ "usage" : {"completion_tokens":300, "prompt_tokens":70} }`),
		Entry("of a long answer", chat, `{"text":"`+strings.Repeat("x", 100_000)+`",`+reported+`}`, `{"text":"`+strings.Repeat("x", 100_000)+`",`+reported+`}`),
		Entry("of one that has more of that name", chat,
			`{"text":"\"usage\":{\"prompt_tokens\":1}",`+reported+`,"top":{"usage":-0.5,"usage":"x"},"a":["usage"],"usage":{"prompt_tokens":2}}`,
			`{"text":"\"usage\":{\"prompt_tokens\":1}",`+reported+`,"top":{"usage":-0.5,"usage":"x"},"a":["usage"],"usage":{"prompt_tokens":2}}`),
		Entry("of a stream, though the tenant did not ask", stream, delta+usageEvent+done, delta+done),
		Entry("of a stream that ends as if on Windows", stream, strings.ReplaceAll(delta+usageEvent+done, "\n", "\r\n"), strings.ReplaceAll(delta+done, "\n", "\r\n")),
		Entry("of a stream whose tenant asked", withUsage, delta+usageEvent+done, delta+usageEvent+done),
		Entry("of a stream that reports it with its last words", stream,
			`data: {"choices":[{}],`+reported+"}\n\n"+done, `data: {"choices":[{}],`+reported+"}\n\n"+done),
	)

	DescribeTable("is estimated for the parent when the engine does not report it",
		func(request, said, want string) {
			r := start(says(said))
			a := r.ask(request)
			Expect(a.err).NotTo(HaveOccurred())
			Expect(a.body).To(Equal(said))
			Expect(used(a.end)).To(BeZero())
			Expect(a.used).To(Equal(want))
		},
		Entry("at all", chat, `{"text":"`+strings.Repeat("x", 4*200)+`"}`, "64/256"),
		Entry("as a number", chat, `{"usage":{"prompt_tokens":"70","completion_tokens":300}}`, "64/64"),
		Entry("wholly", chat, `{"usage":{"prompt_tokens":700}}`, "64/64"),
		Entry("as what can be", chat, `{"usage":{"prompt_tokens":-700,"completion_tokens":3000}}`, "64/64"),
		Entry("within bounds", chat, `{"usage":{"prompt_tokens":3000000000,"completion_tokens":300}}`, "64/64"),
		Entry("whole", chat, `{"usage":{"prompt_tokens":700,"completion_tokens":3000`, "64/64"),
		Entry("near its end", chat, `{`+reported+`,"x":"`+strings.Repeat("x", 5000)+`"}`, "64/2048"),
		Entry("in a stream", stream, strings.Repeat(delta, 200)+done, "64/256"),
	)

	It("is estimated for an answer that broke off", func() {
		r := start(says(strings.Repeat(delta, 200)))
		a := r.ask(stream)
		expectBrokenOff(a)
		Expect(a.used).To(Equal("64/256"))
	})

	It("is nothing when the engine gives an error, whatever that says", func() {
		r := start(func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(http.StatusInternalServerError)
			_, _ = io.WriteString(w, `{"error":{"message":"m"},`+reported+`}`)
		})
		Expect(r.ask(stream).used).To(BeEmpty())
	})

	It("does not say which rule the enclave has rejected a request by", func() {
		r := start(says(`{}`))
		a := r.ask(chat, func(req *seal.Request) { req.Payload.Credential = nil })
		r.expectSealedRefusal(a, http.StatusUnauthorized, "invalid_api_key")
		Expect(a.outcome).To(Equal("rejected"))
	})

	It("is nothing when the request is refused", func() {
		r := start(says(`{}`))
		resp := r.send(r.post(r.seal("no JSON")))
		_ = readAll(resp)
		Expect(resp.Trailer.Values(api.HeaderUsage)).To(BeEmpty())
		Expect(resp.Header).NotTo(HaveKey(api.HeaderUsage))
	})
})

var _ = Describe("What has become of a request", func() {
	status := func(code int) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(code)
			_, _ = io.WriteString(w, `{"error":{"message":"`+marker+`"}}`)
		}
	}
	DescribeTable("is told in a word, though the answer is sealed", func(request string, engine http.HandlerFunc, want string) {
		Expect(start(engine).ask(request).outcome).To(Equal(want))
	},
		Entry("served", chat, says(`{}`), ""),
		Entry("served as a stream", stream, says(done), ""),
		Entry("the engine failed", chat, status(500), "failed"),
		Entry("the engine failed a stream", stream, status(503), "failed"),
		Entry("the engine would not", chat, status(400), "refused"),
		Entry("the engine stopped midway", stream, says(delta), "failed"),
		Entry("the engine broke off before it answered", chat, writesRaw("", true), "failed"),
		Entry("the engine's end cannot be told from a cut", chat, writesRaw(okLine+"Connection: close\r\n\r\n{}", true), "failed"),
		Entry("rejected before the engine was asked", "no JSON", says(`{}`), "rejected"),
	)
})

const withUsage = `{"model":"` + model + `","stream":true,"messages":[],"stream_options":{"include_usage":true}}`

var _ = Describe("A stream's options", func() {
	DescribeTable("reach the engine", func(fields, want string) {
		r := start(says(done))
		r.ask(with(fields))
		Expect(r.engine.calls()).To(HaveExactElements(HaveField("Body", MatchJSON(with(want)))))
	},
		Entry("with the order to report usage", `"stream":true`, `"stream":true,"stream_options":{"include_usage":true}`),
		Entry("with it in place of its contrary", `"stream":true,"stream_options":{"include_usage":false,"continuous_usage_stats":true}`,
			`"stream":true,"stream_options":{"include_usage":true}`),
		Entry("with it in place of null", `"stream":true,"stream_options":null`, `"stream":true,"stream_options":{"include_usage":true}`),
		Entry("with it in place of an order that is null", `"stream":true,"stream_options":{"include_usage":null}`, `"stream":true,"stream_options":{"include_usage":true}`),
		Entry("as they are when they have it", `"stream":true,"stream_options":{"include_usage":true,"continuous_usage_stats":true}`,
			`"stream":true,"stream_options":{"include_usage":true,"continuous_usage_stats":true}`),
		Entry("as they are when the engine will refuse them", `"stream":true,"stream_options":{"include_usage":1}`, `"stream":true,"stream_options":{"include_usage":1}`),
		Entry("as they are when they are no object", `"stream":true,"stream_options":[]`, `"stream":true,"stream_options":[]`),
		Entry("as they are when nothing is streamed", `"stream":false,"stream_options":{}`, `"stream":false,"stream_options":{}`),
		Entry("not at all when nothing is streamed", `"stream":false`, `"stream":false`),
	)
})

// slowly gives what an engine says in pieces.
type slowly struct{ pieces []string }

func (s *slowly) Read(p []byte) (int, error) {
	if len(s.pieces) == 0 {
		return 0, io.EOF
	}
	n := copy(p, s.pieces[0])
	if s.pieces[0] = s.pieces[0][n:]; s.pieces[0] == "" {
		s.pieces = s.pieces[1:]
	}
	return n, nil
}

var _ = Describe("Events", func() {
	It("pass unchanged and in order however they arrive, but for the one of usage", func() {
		key, err := seal.NewRecipientKey(seal.Claims{
			Model: model, Region: "use1", Mode: seal.ModeProcess, NotBefore: time.Unix(1, 0), NotAfter: time.Unix(1000, 0),
		})
		Expect(err).NotTo(HaveOccurred())
		// passed gives what the tenant gets to read.
		passed := func(pieces []string, usageAsked bool, wait time.Duration) string {
			req := seal.Request{Operation: seal.OpChatCompletions, Model: model, Tenant: tenant, Expiry: time.Unix(60, 0), RequestID: seal.RequestID{1}}
			sealed, err := seal.Seal(rand.Reader, req, []*seal.Recipient{key.Recipient})
			Expect(err).NotTo(HaveOccurred())
			body := bytes.NewReader(sealed.Body)
			prologue, err := seal.ReadPrologue(body)
			Expect(err).NotTo(HaveOccurred())
			opened, err := key.Open(time.Unix(2, 0), prologue, sealed.Headers, body, seal.Limits{})
			Expect(err).NotTo(HaveOccurred())
			var wire bytes.Buffer
			answer, err := opened.Respond(rand.Reader, &wire)
			Expect(err).NotTo(HaveOccurred())
			Expect(answer.WriteHead(seal.Head{Status: 200})).To(Succeed())
			Expect(enclave.CopyEvents(answer, &slowly{pieces: slices.Clone(pieces)}, usageAsked, wait)).To(Succeed())
			read, err := io.ReadAll(sealed.OpenResponse(&wire))
			Expect(err).NotTo(HaveOccurred())
			return string(read)
		}
		event := rapid.SampledFrom([]string{
			delta, usageEvent, strings.ReplaceAll(usageEvent, "\n", "\r\n"), ": a comment\n\n", "\n", "event: x\nid: 1\n\n",
			"data: {\"choices\":[],\"usage\":null}\n\n", "data: {\"choices\":null," + reported + "}\n\n", "data: {" + reported + "}\n\n",
			"data: {\"choices\":[{}]," + reported + "}\n\n", "data: \"choices\":[]," + reported + "\n\n", "other: {\"choices\":[]," + reported + "}\n\n",
			"data: " + strings.Repeat("x", 40_000) + "\n\n", "data: {\"choices\":[{\"text\":\"" + strings.ReplaceAll(usageEvent[:20], `"`, `\"`) + "\"}]}\n\n",
		})
		rapid.Check(GinkgoT(), func(t *rapid.T) {
			said, want := "", ""
			for _, one := range rapid.SliceOfN(event, 0, 10).Draw(t, "events") {
				said += one
				if strings.TrimRight(one, "\r\n") != strings.TrimRight(usageEvent, "\n") {
					want += one
				}
			}
			said, want = said+done, want+done
			var pieces []string
			for rest := said; rest != ""; {
				n := min(len(rest), rapid.OneOf(rapid.IntRange(1, 20), rapid.IntRange(1, 50_000)).Draw(t, "piece"))
				pieces, rest = append(pieces, rest[:n]), rest[n:]
			}
			wait := rapid.SampledFrom([]time.Duration{0, time.Nanosecond, time.Millisecond, time.Hour}).Draw(t, "wait")
			if got := passed(pieces, false, wait); got != said {
				t.Fatalf("%q became %q", said, got)
			}
			if got := passed(pieces, true, wait); got != want {
				t.Fatalf("%q became %q", said, got)
			}
		})
	})
})

// The estimate and the declared size are one function's, whoever calls it.
var _ = It("measures what the engine gets as what the tenant sent", func() {
	body := ` { "user":"me", "max_tokens" : 100, "messages" : [ {"role" : "user", "content": "a \u0062 <c>` + strings.Repeat(`\n`, 300) + `"} ], "model":"` + model + `" } `
	r := start(says(`{}`))
	Expect(r.ask(body).err).NotTo(HaveOccurred())
	var fields map[string]json.RawMessage
	Expect(json.Unmarshal([]byte(r.engine.calls()[0].Body), &fields)).To(Succeed())
	Expect(size.Of(fields).String()).To(And(Equal(sizeOf(body)), Equal("128/128")))
})

// used is an end without its receipt.
func used(end seal.End) seal.End {
	end.Receipt = nil
	return end
}
