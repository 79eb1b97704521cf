package main

import (
	"context"
	"encoding/json"

	"github.com/mrgc/mrgc/bench/rig"
)

// play sends every request when it is due.
func play(ctx context.Context, f rig.Front, requests []request) []rig.Outcome {
	sent := make([]rig.Request, len(requests)) // made beforehand: sending is all that is left to do in time
	for i, r := range requests {
		sent[i] = r.sent()
	}
	return rig.Play(ctx, f, sent)
}

func (r request) sent() rig.Request {
	return rig.Request{At: r.at, Conversation: r.conversation, PromptTokens: r.promptTokens, OutputTokens: r.outputTokens, Body: r.body()}
}

func (r request) body() []byte {
	type said struct {
		Role    string `json:"role"`
		Content string `json:"content"`
	}
	var messages []said
	for _, m := range r.messages {
		messages = append(messages, said{m.role, m.content})
	}
	body, err := json.Marshal(map[string]any{"model": rig.Model, "messages": messages, "max_tokens": r.outputTokens, "stream": true})
	if err != nil {
		panic(err) // strings and numbers
	}
	return body
}
