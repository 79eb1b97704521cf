package enclave_test

import (
	"bytes"
	"io"
	"net/http"
	"strconv"
	"strings"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"

	"github.com/mrgc/mrgc/internal/api"
	"github.com/mrgc/mrgc/internal/seal"
)

var _ = Describe("An answer in one piece, to a client that reads frames of more sizes", func() {
	// wire is the sealed answer to a request with that many times the header.
	wire := func(r *running, sealed *seal.Sealed, reads ...string) []byte {
		GinkgoHelper()
		req := r.post(sealed)
		for _, value := range reads {
			req.Header.Add(api.HeaderFrames, value)
		}
		return []byte(readAll(r.send(req)))
	}
	data := func(wire []byte) []int { GinkgoHelper(); sizes := chunksOf(wire); return sizes[1 : len(sizes)-1] }

	It("is asked for by what package seal has as step", func() {
		Expect(api.FramesRead).To(Equal(strconv.Itoa(seal.FrameStep)))
	})

	DescribeTable("has frames", func(bytes int, want ...int) {
		r := start(says(strings.Repeat("x", bytes)))
		sealed := r.seal(chat)
		answered := wire(r, sealed, api.FramesRead)
		Expect(data(answered)).To(Equal(want))
		Expect(readSealed(sealed, answered)).To(Equal(strings.Repeat("x", bytes)))
	},
		Entry("of one size when there is nothing", 0, 960),
		Entry("of that when it is short", 957, 960),
		Entry("of the next when it is longer", 958, 1024),
		Entry("of four significant bits then", 1022, 1152),
		Entry("one after those that it filled as it came", 2*16381+1, 16384, 16384, 4096),
	)

	DescribeTable("has frames of four sizes as before when the header is", func(reads ...string) {
		r := start(says(strings.Repeat("x", 600)))
		sealed := r.seal(chat)
		answered := wire(r, sealed, reads...)
		Expect(data(answered)).To(Equal([]int{512, 512}))
		Expect(readSealed(sealed, answered)).To(HaveLen(600))
	},
		Entry("absent"),
		Entry("another", "1"),
		Entry("several", "64, 1"),
		Entry("there twice", api.FramesRead, api.FramesRead),
	)

	It("looks like any other short one: a refusal of the engine's or the enclave's, a call of a tool, nothing at all", func() {
		var status int
		var text string
		r := start(func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "application/json")
			w.WriteHeader(status)
			_, _ = io.WriteString(w, text)
		})
		sizes := map[int][]string{}
		for _, c := range []struct {
			what, request string
			status        int
			text          string
		}{
			{"nothing", chat, 200, ""},
			{"a word", chat, 200, `{"choices":[{"message":{"content":"No."}}],"usage":{"prompt_tokens":1,"completion_tokens":1}}`},
			{"sentences", chat, 200, `{"choices":[{"message":{"content":"` + strings.Repeat("word ", 150) + `"}}],"usage":{"prompt_tokens":70000,"completion_tokens":160}}`},
			{"a call of a tool", chat, 200, `{"choices":[{"message":{"content":null,"tool_calls":[{"id":"call_1","type":"function","function":{"name":"f","arguments":"{}"}}]}}]}`},
			{"an error of the engine's", chat, 400, `{"error":{"message":"the prompt is too long"}}`},
			{"one on a stream", stream, 400, `{"error":{"message":"the prompt is too long"}}`},
			{"one of the enclave's", `{"model":"` + model + `","tool":1}`, 200, "not asked"},
		} {
			status, text = c.status, c.text
			answered := wire(r, r.seal(c.request), api.FramesRead)
			sizes[len(answered)] = append(sizes[len(answered)], c.what)
		}
		Expect(sizes).To(HaveLen(1), "%v", sizes)
	})
})

func readSealed(sealed *seal.Sealed, wire []byte) string {
	GinkgoHelper()
	text, err := io.ReadAll(sealed.OpenResponse(bytes.NewReader(wire)))
	Expect(err).NotTo(HaveOccurred())
	return string(text)
}
