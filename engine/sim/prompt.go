package sim

import (
	"encoding/json"

	"github.com/mrgc/mrgc/engine/sim/batching"
)

// startOfText is the token before everything.
const startOfText batching.Token = 1

// message is a message of a chat.
type message struct {
	Role      string          `json:"role"`
	Content   json.RawMessage `json:"content"`
	ToolCalls json.RawMessage `json:"tool_calls"`
}

// renderChat gives the tokens of a chat: its tools and its messages in order,
// each between marks, and the mark behind which the answer begins. A message
// starts a token of its own, so that a chat that goes on starts with the tokens
// of what it was, the answer included.
func renderChat(tools json.RawMessage, messages []message) []batching.Token {
	tokens := []batching.Token{startOfText}
	if len(tools) > 0 {
		tokens = tokenize(tokenize(tokens, "<|tools|>"), string(tools))
	}
	for _, m := range messages {
		tokens = tokenize(tokens, "<|"+m.Role+"|>")
		tokens = tokenize(tokens, text(m.Content))
		tokens = tokenize(tokens, string(m.ToolCalls))
		tokens = tokenize(tokens, "<|end|>")
	}
	return tokenize(tokens, "<|assistant|>")
}

// renderText gives the tokens of a prompt of /v1/completions: text, a list of
// texts, which are strung together, or tokens.
func renderText(prompt json.RawMessage) []batching.Token {
	tokens := []batching.Token{startOfText}
	var list []string
	if json.Unmarshal(prompt, &list) == nil {
		for _, t := range list {
			tokens = tokenize(tokens, t)
		}
		return tokens
	}
	var given []batching.Token
	if json.Unmarshal(prompt, &given) == nil {
		return append(tokens, given...)
	}
	return tokenize(tokens, text(prompt))
}

// text is a content's text. A part that is not text stands for itself, as JSON.
func text(content json.RawMessage) string {
	var s string
	if len(content) == 0 || json.Unmarshal(content, &s) == nil {
		return s
	}
	var parts []json.RawMessage
	if json.Unmarshal(content, &parts) != nil {
		return string(content)
	}
	for _, raw := range parts {
		var part struct{ Text *string }
		if json.Unmarshal(raw, &part) == nil && part.Text != nil {
			s += *part.Text
		} else {
			s += string(raw)
		}
	}
	return s
}

// tokenize appends the tokens of a text: four bytes each, or what is left.
func tokenize(tokens []batching.Token, text string) []batching.Token {
	for len(text) > 0 {
		n := min(4, len(text))
		tokens = append(tokens, token(text[:n]))
		text = text[n:]
	}
	return tokens
}

// token is the number of a piece of text, of its first four bytes. It fits an
// int32, as the tokens of all models do.
func token(piece string) batching.Token {
	var t batching.Token
	for i := range min(4, len(piece)) {
		t |= batching.Token(piece[i]) << (8 * i)
	}
	return t & 0x7fffffff
}
