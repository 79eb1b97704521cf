package sim

import (
	"encoding/json"
	"io"
	"strings"
)

// request is the part of a request that the simulator heeds.
type request struct {
	Model               string `json:"model"`
	Stream              bool   `json:"stream"`
	MaxTokens           int    `json:"max_tokens"`
	MaxCompletionTokens int    `json:"max_completion_tokens"`
	StreamOptions       struct {
		IncludeUsage bool `json:"include_usage"`
	} `json:"stream_options"`
	ResponseFormat struct {
		Type string `json:"type"`
	} `json:"response_format"`
	ToolChoice json.RawMessage `json:"tool_choice"`
	Tools      []struct {
		Function struct {
			Name string `json:"name"`
		} `json:"function"`
	} `json:"tools"`

	promptTokens int // four bytes of the body count as one
}

// answer is what will be said, decided before the first token.
type answer struct {
	tokens []string
	tool   string // name of the function to call, instead of the text
	finish string // OpenAI's finish_reason
}

const defaultTokens = 16

func (r *request) answer() answer {
	words := strings.Fields("the tide comes in and the tide goes out while boats wait by a quiet shore")
	n := max(r.MaxTokens, r.MaxCompletionTokens)
	a := answer{finish: "length"}
	if n <= 0 {
		n, a.finish = defaultTokens, "stop"
	}
	if string(r.ToolChoice) == `"required"` && len(r.Tools) > 0 {
		return answer{tokens: []string{"{}"}, tool: r.Tools[0].Function.Name, finish: "tool_calls"}
	}
	for i := range n {
		a.tokens = append(a.tokens, words[(r.promptTokens+i)%len(words)]+" ")
	}
	if strings.HasPrefix(r.ResponseFormat.Type, "json") {
		a.tokens = append(append([]string{`{"text": "`}, a.tokens...), `"}`)
		a.finish = "stop"
	}
	return a
}

func (a answer) text() string { return strings.Join(a.tokens, "") }

// shape is the difference between chat and text completions.
type shape interface {
	whole() string    // object of an answer in one piece
	streamed() string // object of a piece of a stream
	full(a answer) object
	delta(a answer, i int, token string) object
	end(a answer) object
}

type chatShape struct{}

func (chatShape) whole() string    { return "chat.completion" }
func (chatShape) streamed() string { return "chat.completion.chunk" }

func (chatShape) full(a answer) object {
	message := object{"role": "assistant", "content": a.text()}
	if a.tool != "" {
		message = object{"role": "assistant", "content": nil, "tool_calls": []object{a.call()}}
	}
	return object{"message": message, "finish_reason": a.finish}
}

func (chatShape) delta(a answer, i int, token string) object {
	d := object{"content": token}
	if a.tool != "" {
		call := a.call()
		call["index"] = 0
		d = object{"tool_calls": []object{call}}
	}
	if i == 0 {
		d["role"] = "assistant"
	}
	return object{"delta": d, "finish_reason": nil}
}

func (chatShape) end(a answer) object { return object{"delta": object{}, "finish_reason": a.finish} }

func (a answer) call() object {
	return object{"id": "call-0", "type": "function", "function": object{"name": a.tool, "arguments": a.text()}}
}

type textShape struct{}

func (textShape) whole() string        { return "text_completion" }
func (textShape) streamed() string     { return "text_completion" }
func (textShape) full(a answer) object { return object{"text": a.text(), "finish_reason": a.finish} }

func (textShape) delta(_ answer, _ int, token string) object {
	return object{"text": token, "finish_reason": nil}
}
func (textShape) end(a answer) object { return object{"text": "", "finish_reason": a.finish} }

// counter counts what is read through it.
type counter struct {
	r io.Reader
	n int
}

func (c *counter) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.n += n
	return n, err
}
