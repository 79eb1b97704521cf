// Package sim is a stand-in for an inference engine: it speaks enough of
// OpenAI's API to put load on everything around an engine, without a model.
//
//	err := sim.Run(ctx, sim.Config{Socket: "engine.sock", Model: "sim", Slots: 16}, ready)
//
// It answers /v1/chat/completions and /v1/completions (streamed or not, with
// usage, JSON mode, and a tool call where one is required), /v1/models,
// /health, and /metrics under vLLM's names. As many requests as there are slots
// run at once and the others queue in order of arrival, roughly. The first
// token takes Config.FirstToken and every other one Config.PerToken, however
// long the prompt is and however many run beside it: it has no notion of
// prefill, batching or caches. What it says depends on the size of the request
// alone, so that equal requests get equal answers.
package sim

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"strings"
	"sync/atomic"
	"time"

	"github.com/mrgc/mrgc/internal/api"
)

// Config describes the engine to imitate.
type Config struct {
	Socket     string        // Unix socket that Run listens on
	Model      string        // name of the model; requests for another are refused
	Slots      int           // requests that run at once, at least 1
	FirstToken time.Duration // time to the first token
	PerToken   time.Duration // time to each further token
}

// Run serves on the socket, calls ready, and returns when ctx ends. It cuts
// the answers that are under way and removes the socket.
func Run(ctx context.Context, cfg Config, ready func()) error {
	if cfg.Slots < 1 || cfg.Model == "" {
		return errors.New("engine simulator: it needs a model's name and at least one slot")
	}
	if err := os.Remove(cfg.Socket); err != nil && !os.IsNotExist(err) {
		return fmt.Errorf("engine simulator: %w", err)
	}
	l, err := net.Listen("unix", cfg.Socket)
	if err != nil {
		return fmt.Errorf("engine simulator: %w", err)
	}
	if err := os.Chmod(cfg.Socket, 0o600); err != nil {
		_ = l.Close()
		return fmt.Errorf("engine simulator: %w", err)
	}
	server := &http.Server{Handler: New(cfg), ReadHeaderTimeout: 10 * time.Second}
	ended := make(chan error, 1)
	go func() { ended <- server.Serve(l) }()
	ready()
	select {
	case err := <-ended:
		return fmt.Errorf("engine simulator: %w", err)
	case <-ctx.Done():
		_ = server.Close()
		<-ended
		return nil
	}
}

// New gives the engine as a handler. Config.Socket is not used.
func New(cfg Config) http.Handler {
	e := &engine{cfg: cfg, slots: make(chan struct{}, cfg.Slots)}
	mux := http.NewServeMux()
	mux.HandleFunc("POST /v1/chat/completions", func(w http.ResponseWriter, r *http.Request) { e.complete(w, r, chatShape{}) })
	mux.HandleFunc("POST /v1/completions", func(w http.ResponseWriter, r *http.Request) { e.complete(w, r, textShape{}) })
	mux.HandleFunc("GET /v1/models", func(w http.ResponseWriter, _ *http.Request) {
		writeJSON(w, object{"object": "list", "data": []object{{"id": cfg.Model, "object": "model", "owned_by": "mrgc"}}})
	})
	mux.HandleFunc("GET /health", func(w http.ResponseWriter, _ *http.Request) { writeJSON(w, object{"status": "ok"}) })
	mux.HandleFunc("GET /metrics", func(w http.ResponseWriter, _ *http.Request) {
		_, _ = fmt.Fprintf(w, "# TYPE vllm:num_requests_running gauge\nvllm:num_requests_running{model_name=%q} %d\n"+
			"# TYPE vllm:num_requests_waiting gauge\nvllm:num_requests_waiting{model_name=%q} %d\n",
			cfg.Model, e.running.Load(), cfg.Model, e.waiting.Load())
	})
	return mux
}

type engine struct {
	cfg              Config
	slots            chan struct{} // holds one for each request that runs
	running, waiting atomic.Int64
}

// complete waits for a slot and then generates, until it is done or the
// caller is gone.
func (e *engine) complete(w http.ResponseWriter, r *http.Request, s shape) {
	req, refusal := e.read(w, r)
	if refusal != nil {
		refusal.Write(w)
		return
	}
	e.waiting.Add(1)
	select {
	case e.slots <- struct{}{}:
		e.waiting.Add(-1)
	case <-r.Context().Done():
		e.waiting.Add(-1)
		return
	}
	e.running.Add(1)
	defer func() {
		e.running.Add(-1)
		<-e.slots
	}()

	a := req.answer()
	if req.Stream {
		w.Header().Set("Content-Type", "text/event-stream")
	}
	for i, token := range a.tokens {
		if !e.think(r.Context(), i) {
			panic(http.ErrAbortHandler)
		}
		if req.Stream {
			writeEvent(w, e.envelope(s.streamed(), s.delta(a, i, token), nil))
		}
	}
	usage := object{"prompt_tokens": req.promptTokens, "completion_tokens": len(a.tokens), "total_tokens": req.promptTokens + len(a.tokens)}
	if !req.Stream {
		writeJSON(w, e.envelope(s.whole(), s.full(a), usage))
		return
	}
	writeEvent(w, e.envelope(s.streamed(), s.end(a), nil))
	if req.StreamOptions.IncludeUsage {
		writeEvent(w, e.envelope(s.streamed(), nil, usage))
	}
	_, _ = fmt.Fprint(w, "data: [DONE]\n\n")
}

// think takes the time of token i. It says false if the caller is gone.
func (e *engine) think(ctx context.Context, i int) bool {
	d := e.cfg.PerToken
	if i == 0 {
		d = e.cfg.FirstToken
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// envelope is what all answers have in common. No choice gives an empty list.
func (e *engine) envelope(kind string, choice, usage object) object {
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

func writeEvent(w http.ResponseWriter, o object) {
	var b strings.Builder
	_ = json.NewEncoder(&b).Encode(o) // writing to a Builder does not fail
	_, _ = fmt.Fprintf(w, "data: %s\n", b.String())
	_ = http.NewResponseController(w).Flush()
}

// read reads a request's parameters.
func (e *engine) read(w http.ResponseWriter, r *http.Request) (*request, *api.Error) {
	req := &request{}
	body := &counter{r: http.MaxBytesReader(w, r.Body, 32<<20)}
	if err := json.NewDecoder(body).Decode(req); err != nil {
		return nil, api.Errorf(http.StatusBadRequest, "invalid_json", "the request is not JSON of the right shape")
	}
	if req.Model != "" && req.Model != e.cfg.Model {
		return nil, api.Errorf(http.StatusNotFound, "model_not_found", "this engine serves another model")
	}
	req.promptTokens = body.n/4 + 1
	return req, nil
}
