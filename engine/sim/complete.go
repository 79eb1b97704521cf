package sim

import (
	"bytes"
	"context"
	"encoding/json"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/mrgc/mrgc/engine/sim/batching"
	"github.com/mrgc/mrgc/internal/api"
)

// complete answers a completion as its tokens come, until it is done or the
// caller is gone.
func (e *Engine) complete(w http.ResponseWriter, r *http.Request, s shape) {
	if e.fails() {
		api.Errorf(http.StatusInternalServerError, "engine_failed", "this engine was told to fail").Write(w)
		return
	}
	req, refusal := e.read(w, r)
	if refusal != nil {
		refusal.Write(w)
		return
	}
	prompt := s.render(req)
	if n, _ := req.outputTokens(); n > e.context || len(prompt)+n > e.context {
		api.Errorf(http.StatusBadRequest, "context_length_exceeded",
			"prompt and answer are longer than the context of %d tokens", e.context).Write(w)
		return
	}
	a := req.answer(len(prompt))
	job, err := e.driver.submit(batching.Request{Prompt: prompt, Output: a.tokens(), Salt: req.CacheSalt})
	if err != nil { // the marks of JSON mode did not fit
		api.Errorf(http.StatusBadRequest, "context_length_exceeded", "%v", err).Write(w)
		return
	}
	defer e.driver.cancel(job)

	var done bool
	if req.Stream {
		done = e.stream(r.Context(), w, s, a, job)
	} else {
		done = job.wait(r.Context(), len(a.pieces))
	}
	if !done {
		panic(http.ErrAbortHandler)
	}
	e.metrics.ended.WithLabelValues(finishedReason(a)).Inc()
	usage := e.usage(len(prompt), len(a.pieces), job.cached)
	if !req.Stream {
		writeJSON(w, e.envelope(s.whole(), s.full(a), usage))
		return
	}
	last := event(nil, e.envelope(s.streamed(), s.end(a), nil))
	if req.StreamOptions.IncludeUsage {
		last = event(last, e.envelope(s.streamed(), nil, usage))
	}
	_, _ = w.Write(append(last, "data: [DONE]\n\n"...)) // a caller that has gone cannot be told
}

// stream writes the answer's tokens as they come, those that have come at the
// same time at once. It says false if the caller is gone.
func (e *Engine) stream(ctx context.Context, w http.ResponseWriter, s shape, a answer, j *job) bool {
	w.Header().Set("Content-Type", "text/event-stream")
	flush := http.NewResponseController(w)
	// Events from the second on differ in their piece alone.
	const mark = "\x01"
	before, behind, _ := bytes.Cut(event(nil, e.envelope(s.streamed(), s.delta(a, 1, mark), nil)), []byte(`\u0001`))
	var buffer []byte
	for sent := 0; sent < len(a.pieces); {
		if !j.wait(ctx, sent+1) {
			return false
		}
		buffer = buffer[:0]
		for came := int(j.tokens.Load()); sent < came; sent++ {
			piece := a.pieces[sent]
			if sent == 0 {
				buffer = event(buffer, e.envelope(s.streamed(), s.delta(a, sent, piece), nil))
				continue
			}
			quoted := strconv.Quote(piece) // ASCII, and so as JSON has it
			buffer = append(append(append(buffer, before...), quoted[1:len(quoted)-1]...), behind...)
		}
		if _, err := w.Write(buffer); err != nil || flush.Flush() != nil {
			return false
		}
	}
	return true
}

// wait returns when there are that many tokens; false if ctx ends before.
func (j *job) wait(ctx context.Context, tokens int) bool {
	for j.tokens.Load() < int64(tokens) {
		select {
		case <-j.poke:
		case <-ctx.Done():
			return false
		}
	}
	return true
}

// finishedReason is vLLM's word for why an answer ended.
func finishedReason(a answer) string {
	if a.finish == "length" {
		return "length"
	}
	return "stop"
}

func (e *Engine) usage(prompt, completion, cached int) object {
	u := object{"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}
	if e.cfg.Profile != (batching.Profile{}) {
		u["prompt_tokens_details"] = object{"cached_tokens": cached}
	}
	return u
}

// tokenize answers vLLM's /tokenize, for text and for chats.
func (e *Engine) tokenize(w http.ResponseWriter, r *http.Request) {
	req, refusal := e.read(w, r)
	if refusal != nil {
		refusal.Write(w)
		return
	}
	tokens := renderText(req.Prompt)
	if req.Messages != nil {
		tokens = renderChat(req.Tools, req.Messages)
	}
	writeJSON(w, object{"count": len(tokens), "max_model_len": e.context, "tokens": tokens, "token_strs": nil})
}

// renderChat answers vLLM's /v1/chat/completions/render.
func (e *Engine) renderChat(w http.ResponseWriter, r *http.Request) {
	req, refusal := e.read(w, r)
	if refusal != nil {
		refusal.Write(w)
		return
	}
	writeJSON(w, e.rendered(req, chatShape{}))
}

// renderText answers vLLM's /v1/completions/render, with a list.
func (e *Engine) renderText(w http.ResponseWriter, r *http.Request) {
	req, refusal := e.read(w, r)
	if refusal != nil {
		refusal.Write(w)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode([]object{e.rendered(req, textShape{})}) // a caller that has gone cannot be told
}

func (e *Engine) rendered(req *request, s shape) object {
	n, _ := req.outputTokens()
	return object{
		"request_id": "sim-0", "model": e.cfg.Model, "token_ids": s.render(req), "features": nil,
		"sampling_params": object{"max_tokens": n}, "stream": req.Stream,
	}
}

// read reads a request's parameters.
func (e *Engine) read(w http.ResponseWriter, r *http.Request) (*request, *api.Error) {
	req := &request{}
	if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, 32<<20)).Decode(req); err != nil {
		return nil, api.Errorf(http.StatusBadRequest, "invalid_json", "the request is not JSON of the right shape")
	}
	if req.Model != "" && req.Model != e.cfg.Model {
		return nil, api.Errorf(http.StatusNotFound, "model_not_found", "this engine serves another model")
	}
	if len(req.CacheSalt) > 128 || strings.ContainsAny(req.CacheSalt, "@/\\\x00") { // vLLM 0.32.0, validate_cache_salt
		return nil, api.Errorf(http.StatusBadRequest, "invalid_request", "cache_salt is too long, or has a character that vLLM refuses")
	}
	return req, nil
}

// envelope is what all answers have in common. No choice gives an empty list.
func (e *Engine) envelope(kind string, choice, usage object) object {
	choices := []object{}
	if choice != nil {
		choice["index"] = 0
		choices = append(choices, choice)
	}
	o := object{"id": "sim-0", "object": kind, "created": time.Now().Unix(), "model": e.cfg.Model, "choices": choices}
	if usage != nil {
		o["usage"] = usage
	}
	return o
}

type object map[string]any

func writeJSON(w http.ResponseWriter, o object) {
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(o) // a caller that has gone cannot be told
}

// event appends a server-sent event.
func event(to []byte, o object) []byte {
	data, _ := json.Marshal(o) // strings, numbers and maps of them
	return append(append(append(to, "data: "...), data...), "\n\n"...)
}
