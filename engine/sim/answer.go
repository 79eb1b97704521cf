package sim

import (
	"encoding/json"
	"strings"

	"github.com/mrgc/mrgc/engine/sim/batching"
)

// request is the part of a request that the simulator heeds.
type request struct {
	Model               string          `json:"model"`
	Prompt              json.RawMessage `json:"prompt"`
	Messages            []message       `json:"messages"`
	CacheSalt           string          `json:"cache_salt"`
	Stream              bool            `json:"stream"`
	MaxTokens           int             `json:"max_tokens"`
	MaxCompletionTokens int             `json:"max_completion_tokens"`
	StreamOptions       struct {
		IncludeUsage bool `json:"include_usage"`
	} `json:"stream_options"`
	ResponseFormat struct {
		Type string `json:"type"`
	} `json:"response_format"`
	ToolChoice json.RawMessage `json:"tool_choice"`
	Tools      json.RawMessage `json:"tools"`
}

// firstTool is the name of the first function that the request offers.
func (r *request) firstTool() string {
	var tools []struct {
		Function struct {
			Name string `json:"name"`
		} `json:"function"`
	}
	if json.Unmarshal(r.Tools, &tools) != nil || len(tools) == 0 {
		return ""
	}
	return tools[0].Function.Name
}

// outputTokens is how long an answer was asked for, and whether it was.
func (r *request) outputTokens() (n int, limited bool) {
	if n = max(r.MaxTokens, r.MaxCompletionTokens); n > 0 {
		return n, true
	}
	return defaultTokens, false
}

// answer is what will be said, decided before the first token.
type answer struct {
	pieces []string // the text of each token
	tool   string   // name of the function to call, instead of the text
	finish string   // OpenAI's finish_reason
}

const defaultTokens = 16

// words have four bytes each with the space behind them: a token.
var words = strings.Fields("the sea ebb and the sun set and one old man sat out his day and did not say why")

// answer starts with another word for prompts of another length.
func (r *request) answer(promptTokens int) answer {
	if tool := r.firstTool(); tool != "" && string(r.ToolChoice) == `"required"` {
		return answer{pieces: []string{"{}"}, tool: tool, finish: "tool_calls"}
	}
	n, limited := r.outputTokens()
	a := answer{finish: "stop", pieces: make([]string, 0, n+2)}
	if limited {
		a.finish = "length"
	}
	isJSON := strings.HasPrefix(r.ResponseFormat.Type, "json")
	if isJSON {
		a.pieces = append(a.pieces, `{"text": "`)
	}
	for i := range n {
		a.pieces = append(a.pieces, words[(promptTokens+i)%len(words)]+" ")
	}
	if isJSON {
		a.pieces, a.finish = append(a.pieces, `"}`), "stop"
	}
	return a
}

func (a answer) tokens() []batching.Token {
	tokens := make([]batching.Token, len(a.pieces))
	for i, piece := range a.pieces {
		tokens[i] = token(piece)
	}
	return tokens
}

func (a answer) text() string { return strings.Join(a.pieces, "") }

// shape is the difference between chat and text completions.
type shape interface {
	render(r *request) []batching.Token
	whole() string    // object of an answer in one piece
	streamed() string // object of a piece of a stream
	full(a answer) object
	delta(a answer, i int, piece string) object
	end(a answer) object
}

type chatShape struct{}

func (chatShape) render(r *request) []batching.Token { return renderChat(r.Tools, r.Messages) }

func (chatShape) whole() string    { return "chat.completion" }
func (chatShape) streamed() string { return "chat.completion.chunk" }

func (chatShape) full(a answer) object {
	message := object{"role": "assistant", "content": a.text()}
	if a.tool != "" {
		message = object{"role": "assistant", "content": nil, "tool_calls": []object{a.call()}}
	}
	return object{"message": message, "finish_reason": a.finish}
}

func (chatShape) delta(a answer, i int, piece string) object {
	d := object{"content": piece}
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

func (textShape) render(r *request) []batching.Token { return renderText(r.Prompt) }

func (textShape) whole() string        { return "text_completion" }
func (textShape) streamed() string     { return "text_completion" }
func (textShape) full(a answer) object { return object{"text": a.text(), "finish_reason": a.finish} }

func (textShape) delta(_ answer, _ int, piece string) object {
	return object{"text": piece, "finish_reason": nil}
}
func (textShape) end(a answer) object { return object{"text": "", "finish_reason": a.finish} }
