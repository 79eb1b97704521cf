// Package sim is a stand-in for an inference engine: it speaks enough of
// OpenAI's API to put load on everything around an engine, without a model, and
// takes the time that a real one would, so that routing can be measured on it.
//
//	err := sim.Run(ctx, sim.Config{Socket: "engine.sock", Model: "sim", Profile: batching.H100()}, ready)
//
// # What it answers
//
// /v1/chat/completions and /v1/completions (streamed or not, with usage, JSON
// mode, and a tool call where one is required), /v1/models, /health, /metrics
// under vLLM's names, and what routers for vLLM ask besides: /tokenize,
// /v1/chat/completions/render, /v1/completions/render, /reset_prefix_cache.
//
// What it says depends on how long the prompt is alone, so that equal requests
// get equal answers. An answer has as many tokens as the request allows, or 16.
// A token is four bytes of text; a chat's text is that of its tools and its
// messages in order, so that a conversation that goes on repeats the tokens of
// what it was.
//
// # How long it takes
//
// With a [batching.Profile], as long as that hardware would: requests share
// steps, prompts are prefilled in pieces, prefixes are found in a cache of the
// hardware's size, separated by cache_salt, and what finds no room waits in
// order of arrival. Package batching says what of an engine is modelled and what
// is not, and where the figures come from. What the model leaves out is left
// out here too; the time that HTTP takes in this process comes on top of it.
//
// Without a profile every request that has a slot gets its first token after
// Config.FirstToken and each further one after Config.PerToken, however long the
// prompt is and however many run beside it: no batching, no cache.
//
// Config.Speed makes time pass faster or slower, [Faults] make the engine slow
// or broken, also while it runs.
//
// It never writes what it was asked anywhere, and it never listens where another
// machine could reach it.
package sim

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"os"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/mrgc/mrgc/engine/sim/batching"
)

// Config describes the engine to imitate.
type Config struct {
	// Socket is the Unix socket that Run listens on. A file that is there is
	// replaced.
	Socket string
	// GroupSocket lets the user's group connect to it, too.
	GroupSocket bool
	// Listen is a loopback address, such as 127.0.0.1:8000, that Run listens on
	// instead of a socket: every user of the machine reaches it there. It is for
	// benchmarks against routers that cannot dial sockets.
	Listen string
	// Model is the model's name; requests for another are refused.
	Model string
	// Profile is the hardware to imitate. The zero Profile means the fixed times
	// below.
	Profile batching.Profile
	// Slots is how many requests run at once, at least 1; with a profile 0 means
	// as many as the profile says.
	Slots int
	// FirstToken is the time to the first token, without a profile.
	FirstToken time.Duration
	// PerToken is the time to each further token, without a profile.
	PerToken time.Duration
	// Speed is how fast time passes: with 2 everything takes half as long. 0
	// means 1. What the metrics say of times is not affected.
	Speed float64
	// Faults is what is wrong with the engine from the start.
	Faults Faults
}

// Faults is what is wrong with an engine.
type Faults struct {
	// Slowness is how many times as long everything takes that is computed; 0
	// means 1.
	Slowness float64
	// FailShare is the share of completions that are answered with status 500 at
	// once, from 0 to 1. They are spread evenly: with 0.25 it is every fourth.
	FailShare float64
}

func (f Faults) check() error {
	if !(f.Slowness >= 0 && f.Slowness <= maxFactor) {
		return fmt.Errorf("engine simulator: a slowness of %g: it is from 0 to %g", f.Slowness, float64(maxFactor))
	}
	if !(f.FailShare >= 0 && f.FailShare <= 1) {
		return fmt.Errorf("engine simulator: a share of %g failures: it is from 0 to 1", f.FailShare)
	}
	return nil
}

const (
	// maxFactor is the most that time is stretched or pressed by.
	maxFactor = 1e6
	// pacedContext is what an engine without a profile takes, in tokens.
	pacedContext = 1 << 20
)

// Engine is an engine. It is an http.Handler and safe for concurrent use. While
// no request is under way it has no goroutine, so it need not be closed.
type Engine struct {
	cfg     Config
	context int // tokens that a prompt and its answer may have together
	driver  *driver
	metrics *metrics
	mux     *http.ServeMux

	faultsMu  sync.Mutex // guards both below
	failShare float64
	owed      float64 // failures
}

// New gives an engine. Config.Socket and Config.Listen are not used.
func New(cfg Config) (*Engine, error) {
	if cfg.Speed == 0 {
		cfg.Speed = 1
	}
	if !(cfg.Speed > 0 && cfg.Speed <= maxFactor) {
		return nil, fmt.Errorf("engine simulator: a speed of %g: it is above 0 and at most %g", cfg.Speed, float64(maxFactor))
	}
	c, context, err := cfg.core()
	if err != nil {
		return nil, err
	}
	e := &Engine{cfg: cfg, context: context, metrics: newMetrics(cfg.Model), mux: http.NewServeMux()}
	e.driver = newDriver(c, cfg.Speed, e.metrics)
	e.metrics.registry.MustRegister(newCollector(e.driver, cfg.Model))
	e.route()
	if err := e.SetFaults(cfg.Faults); err != nil {
		return nil, err
	}
	return e, nil
}

// core is what the configuration asks for, and the context that it takes.
func (cfg Config) core() (core, int, error) {
	profile := cfg.Profile
	if profile == (batching.Profile{}) {
		if cfg.Slots < 1 || cfg.Model == "" {
			return nil, 0, errors.New("engine simulator: it needs a model's name and at least one slot")
		}
		return newPaced(cfg.Slots, cfg.FirstToken, cfg.PerToken), pacedContext, nil
	}
	if cfg.Slots < 0 || cfg.Model == "" {
		return nil, 0, errors.New("engine simulator: it needs a model's name, and slots are not negative")
	}
	if cfg.FirstToken != 0 || cfg.PerToken != 0 {
		return nil, 0, errors.New("engine simulator: the times of tokens follow from the profile; leave one of them out")
	}
	if cfg.Slots > 0 {
		profile.MaxSequences = cfg.Slots
	}
	m, err := batching.New(profile)
	if err != nil {
		return nil, 0, fmt.Errorf("engine simulator: %w", err)
	}
	return m, profile.CapacityTokens(), nil
}

func (e *Engine) route() {
	chat, text := chatShape{}, textShape{}
	e.mux.HandleFunc("POST /v1/chat/completions", func(w http.ResponseWriter, r *http.Request) { e.complete(w, r, chat) })
	e.mux.HandleFunc("POST /v1/completions", func(w http.ResponseWriter, r *http.Request) { e.complete(w, r, text) })
	e.mux.HandleFunc("POST /v1/chat/completions/render", e.renderChat)
	e.mux.HandleFunc("POST /v1/completions/render", e.renderText)
	e.mux.HandleFunc("POST /tokenize", e.tokenize)
	e.mux.HandleFunc("POST /reset_prefix_cache", e.resetCache)
	e.mux.HandleFunc("GET /v1/models", func(w http.ResponseWriter, _ *http.Request) {
		writeJSON(w, object{"object": "list", "data": []object{{
			"id": e.cfg.Model, "object": "model", "owned_by": "mrgc", "max_model_len": e.context,
		}}})
	})
	e.mux.HandleFunc("GET /health", func(w http.ResponseWriter, _ *http.Request) { writeJSON(w, object{"status": "ok"}) })
	e.mux.Handle("GET /metrics", promhttp.HandlerFor(e.metrics.registry, promhttp.HandlerOpts{DisableCompression: true}))
}

// resetCache answers vLLM's /reset_prefix_cache, which says in its answer alone
// whether it has.
func (e *Engine) resetCache(w http.ResponseWriter, r *http.Request) {
	var done bool
	e.driver.with(func(c core) { done = c.ResetCache(r.URL.Query().Get("reset_running_requests") == "true") })
	writeJSON(w, object{"success": done})
}

// ServeHTTP answers a request.
func (e *Engine) ServeHTTP(w http.ResponseWriter, r *http.Request) { e.mux.ServeHTTP(w, r) }

// SetFaults makes these the engine's faults from now on, instead of those that
// it had.
func (e *Engine) SetFaults(f Faults) error {
	if err := f.check(); err != nil {
		return err
	}
	if f.Slowness == 0 {
		f.Slowness = 1
	}
	e.driver.with(func(c core) { c.Slow(f.Slowness) })
	e.faultsMu.Lock()
	defer e.faultsMu.Unlock()
	e.failShare, e.owed = f.FailShare, 0
	return nil
}

// fails says whether the request that has come is one of those that fail.
func (e *Engine) fails() bool {
	e.faultsMu.Lock()
	defer e.faultsMu.Unlock()
	e.owed += e.failShare
	if e.owed < 1 {
		return false
	}
	e.owed--
	return true
}

// Run serves on the socket or the address, calls ready, and returns when ctx
// ends. It cuts the answers that are under way and removes the socket.
func Run(ctx context.Context, cfg Config, ready func()) error {
	e, err := New(cfg)
	if err != nil {
		return err
	}
	l, err := listen(cfg)
	if err != nil {
		return fmt.Errorf("engine simulator: %w", err)
	}
	ready() // whoever connects is in the listener's queue
	return e.Serve(ctx, l)
}

// Serve answers on a listener, which it closes, until ctx ends (nil). It is an
// error if other machines could reach the listener. It cuts the answers that
// are under way when it ends.
func (e *Engine) Serve(ctx context.Context, l net.Listener) error {
	if tcp, ok := l.Addr().(*net.TCPAddr); ok && !tcp.IP.IsLoopback() {
		_ = l.Close()
		return fmt.Errorf("engine simulator: %s is open to other machines: it listens on loopback only, such as 127.0.0.1", tcp)
	}
	server := &http.Server{Handler: e, ReadHeaderTimeout: 10 * time.Second}
	ended := make(chan error, 1)
	go func() { ended <- server.Serve(l) }()
	select {
	case err := <-ended:
		return fmt.Errorf("engine simulator: %w", err)
	case <-ctx.Done():
		_ = server.Close()
		<-ended
		return nil
	}
}

func listen(cfg Config) (net.Listener, error) {
	if (cfg.Socket == "") == (cfg.Listen == "") {
		return nil, errors.New("it needs a socket or an address to listen on, one of them")
	}
	if cfg.Listen != "" {
		addr, err := net.ResolveTCPAddr("tcp", cfg.Listen)
		if err != nil {
			return nil, err
		}
		if !addr.IP.IsLoopback() {
			return nil, fmt.Errorf("%s is open to other machines: it listens on loopback only, such as 127.0.0.1:8000", cfg.Listen)
		}
		return net.ListenTCP("tcp", addr)
	}
	if err := os.Remove(cfg.Socket); err != nil && !os.IsNotExist(err) {
		return nil, err
	}
	l, err := net.Listen("unix", cfg.Socket)
	if err != nil {
		return nil, err
	}
	mode := fs.FileMode(0o600)
	if cfg.GroupSocket {
		mode = 0o660
	}
	if err := os.Chmod(cfg.Socket, mode); err != nil {
		_ = l.Close()
		return nil, err
	}
	return l, nil
}
