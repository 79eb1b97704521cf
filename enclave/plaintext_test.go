package enclave_test

import (
	"net/http"
	"strings"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"

	"github.com/mrgc/mrgc/internal/seal"
)

// with is a chat request with more fields.
func with(fields string) string {
	return `{"model":"` + model + `","messages":[],` + fields + `}`
}

// saying is a chat request with one message of the given content.
func saying(content string) string {
	return `{"model":"` + model + `","messages":[{"role":"user","content":` + content + `}]}`
}

var _ = Describe("A request that is not the tenant's", func() {
	DescribeTable("gets a sealed 401, and the engine hears of nothing",
		func(change func(*seal.Request)) {
			r := start(says(`{}`))
			r.expectSealedRefusal(r.ask(chat, change), http.StatusUnauthorized, "invalid_api_key")
			Expect(r.engine.calls()).To(BeEmpty())
		},
		Entry("with another key of the same tenant's name", func(req *seal.Request) {
			other := newAPIKey()
			req.Payload.Credential = other.EnclaveToken()
		}),
		Entry("without a key", func(req *seal.Request) { req.Payload.Credential = nil }),
		Entry("of a tenant that is not known", func(req *seal.Request) { req.Tenant = "nobody" }),
	)

	It("gets it before its content is looked at", func() {
		r := start(says(`{}`))
		a := r.ask("no JSON", func(req *seal.Request) { req.Payload.Credential = nil })
		r.expectSealedRefusal(a, http.StatusUnauthorized, "invalid_api_key")
	})
})

var _ = Describe("A request's content", func() {
	DescribeTable("that is refused",
		func(body, code string) {
			r := start(says(`{}`))
			r.expectSealedRefusal(r.ask(body), http.StatusBadRequest, code)
			Expect(r.engine.calls()).To(BeEmpty())
		},
		Entry("nothing", ``, "invalid_request"),
		Entry("no JSON", marker, "invalid_request"),
		Entry("no object", `["`+marker+`"]`, "invalid_request"),
		Entry("null", `null`, "invalid_request"),
		Entry("cut off", chat[:len(chat)-1], "invalid_request"),
		Entry("something after the end", chat+` {}`, "invalid_request"),
		Entry("another model", strings.Replace(chat, model, "other", 1), "invalid_request"),
		Entry("no model", `{"messages":[]}`, "invalid_request"),
		Entry("a model that is null", strings.Replace(chat, `"`+model+`"`, "null", 1), "invalid_request"),
		Entry("a field that is not known", with(`"lora_request":"`+marker+`"`), "unknown_field"),
		Entry("a field of the other operation", with(`"prompt":"p"`), "unknown_field"),
		Entry("a field in another case", with(`"Temperature":1`), "unknown_field"),
		Entry("a cache salt that is no text", with(`"cache_salt":1`), "invalid_request"),
		Entry("an empty cache salt", with(`"cache_salt":""`), "invalid_request"),
		Entry("llama.cpp's choice of a slot", with(`"id_slot":1`), "unknown_field"),
		Entry("llama.cpp's switch for its cache", with(`"cache_prompt":true`), "unknown_field"),
		Entry("a name twice", with(`"seed":1,"seed":2`), "invalid_request"),
		Entry("the model twice", with(`"model":"`+model+`"`), "invalid_request"),
		Entry("a name twice, spelled differently", with(`"seed":1,"s\u0065ed":2`), "invalid_request"),
		Entry("a name twice, deep inside", with(`"logit_bias":{"a":{"b":1,"b":2}}`), "invalid_request"),
		Entry("stream that is no boolean", with(`"stream":"yes"`), "invalid_request"),
		Entry("invalid UTF-8", saying("\"\xff\""), "invalid_request"),
		Entry("deep nesting", saying(strings.Repeat("[", 100)+strings.Repeat("]", 100)), "invalid_request"),
		Entry("nesting without end", saying(strings.Repeat("[", 50_000)), "invalid_request"),
		Entry("deep objects", saying(strings.Repeat(`{"a":`, 100)+"1"+strings.Repeat("}", 100)), "invalid_request"),
		Entry("a picture to fetch", saying(`[{"type":"image_url","image_url":{"url":"http://169.254.169.254/"}}]`), "invalid_request"),
		Entry("a picture to fetch, in short", saying(`[{"type":"image_url","image_url":"https://example.com/a.png"}]`), "invalid_request"),
		Entry("pictures to fetch, in a list", saying(`[{"image_url":["file:///etc/passwd"]}]`), "invalid_request"),
		Entry("a sound to fetch", saying(`[{"type":"audio_url","audio_url":{"url":"ftp://example.com"}}]`), "invalid_request"),
		Entry("a URL whose name is spelled differently", saying(`[{"image_url":{"\u0075rl":"http://example.com"}}]`), "invalid_request"),
		// vLLM keeps media of all tenants by this name, and gives them to whoever says it.
		Entry("a picture of whoever has used the name", saying(`[{"type":"image_url","image_url":null,"uuid":"`+marker+`"}]`), "invalid_request"),
		Entry("a picture in the place of the one that others mean", saying(`[{"type":"image_url","image_url":{"url":"data:image/png;base64,AA=="},"uuid":"logo"}]`), "invalid_request"),
		Entry("the same name elsewhere in it", saying(`[{"type":"image_url","image_url":{"url":"data:image/png;base64,AA==","\u0075uid":"logo"}}]`), "invalid_request"),
		Entry("the same name in one part, not in a list", saying(`{"type":"video_url","video_url":null,"uuid":"logo"}`), "invalid_request"),
		Entry("tensors that the engine would load", saying(`[{"type":"image_embeds","image_embeds":"gAJ9cQAu"}]`), "invalid_request"),
		Entry("tensors of sound", saying(`[{"audio_embeds":"gAJ9cQAu"}]`), "invalid_request"),
		Entry("tensors of the whole prompt", saying(`[{"type":"prompt_embeds","data":"gAJ9cQAu"}]`), "invalid_request"),
		Entry("tensors of the whole prompt, by their name alone", saying(`[{"prompt_embeds":1,"data":"gAJ9cQAu"}]`), "invalid_request"),
		Entry("a name inside of a picture", saying(`[{"type":"image_url","image_url":{"url":"data:image/png;base64,AA==","uuid":"logo"}}]`), "invalid_request"),
		Entry("a file by its id", saying(`[{"type":"file","file":{"file_id":"file-1"}}]`), "invalid_request"),
	)

	DescribeTable("that goes on to the engine",
		func(body string) {
			r := start(says(`{}`))
			Expect(r.ask(body).err).NotTo(HaveOccurred())
			Expect(r.engine.calls()).To(HaveExactElements(HaveField("Body", MatchJSON(body))))
		},
		Entry("a picture inside the request", saying(`[{"type":"image_url","image_url":{"url":"data:image/png;base64,AA=="}}]`)),
		Entry("all that a message may be made of", `{"model":"`+model+`","messages":[`+
			`{"role":"user","content":[{"type":"text","text":"what is this?"},{"type":"image_url","image_url":{"url":"data:image/png;base64,AA==","detail":"low"}},`+
			`{"type":"input_audio","input_audio":{"data":"AA==","format":"wav"}},{"type":"audio_url","audio_url":{"url":"data:audio/wav;base64,AA=="}},`+
			`{"type":"video_url","video_url":{"url":"data:video/mp4;base64,AA=="}}]},`+
			`{"role":"assistant","content":[{"type":"refusal","refusal":"no"}],"tool_calls":[{"id":"1","type":"function","function":{"name":"f","arguments":"{}"}}]},`+
			`{"role":"tool","tool_call_id":"1","content":[{"type":"text","text":"{}"}]}]}`),
		Entry("a URL in what somebody says", saying(`"look at http://example.com"`)),
		Entry("a tool with a parameter called url",
			with(`"tools":[{"type":"function","function":{"name":"fetch","parameters":{"type":"object",`+
				`"properties":{"url":{"type":"string","description":"http://example.com"},"default_url":"http://example.com"}}}}]`)),
		Entry("a schema for the answer", with(`"response_format":{"type":"json_schema","json_schema":{"schema":{"properties":{"url":"http://x"}}}}`)),
		Entry("the same name in two objects", with(`"logit_bias":{"a":{"b":1},"c":{"b":2}}`)),
		Entry("nesting of a usual depth", saying(strings.Repeat("[", 60)+strings.Repeat("]", 60))),
		Entry("numbers that no float holds", with(`"seed":123456789012345678901234567890`)),
	)

	It("that is refused is named, so that the tenant can find it", func() {
		r := start(says(`{}`))
		Expect(r.ask(with(`"best_of":2`)).body).To(And(ContainSubstring(`"param":"best_of"`), ContainSubstring("chat.completions")))
	})
})
