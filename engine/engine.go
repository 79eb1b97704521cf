// Package engine runs a model behind a Unix socket and guards it.
//
// An instance has two processes of this package, both under a user of their
// own. One is the engine: [Run] starts llama.cpp or a stand-in on a Unix
// socket, where no other user can reach it, and speaks OpenAI's API there.
//
//	err := engine.Run(ctx, engine.Config{Kind: engine.Llama, Socket: "/run/mrgc/engine.sock", …}, ready)
//
// The other is the guard: [Guard] is the only way to that socket from outside.
// It takes mutual TLS, asks who is calling, and passes on what that caller may
// ask for: completions from the enclave, health and load from the parent
// service. An engine that runs elsewhere is guarded in the same way, by URL.
//
// Here plaintext is at home: engine and guard see prompts, and that is why
// they are apart from the parent. Nothing in this package writes a prompt, an
// answer or any part of them to a log, an error or a metric.
//
// The package does not restart an engine that ends; whoever runs it does.
package engine

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/mrgc/mrgc/engine/llama"
	"github.com/mrgc/mrgc/engine/sim"
	"github.com/mrgc/mrgc/engine/sim/batching"
)

// Kind is a kind of engine.
type Kind string

// The kinds of engine.
const (
	Llama Kind = "llama" // llama.cpp, see package llama
	Sim   Kind = "sim"   // a stand-in without a model, see package sim
)

// Config says what engine to run.
type Config struct {
	Kind Kind
	// Socket is the path of the Unix socket, at most 94 bytes long. A file that
	// is there is replaced. Only for the kind Sim there is another way, Listen.
	Socket string
	// GroupSocket lets the group of the engine's user connect to it, too, where the
	// guard runs as another user of that group. Otherwise it is for its user alone.
	GroupSocket bool
	// Model is the name that the model is served under.
	Model string
	// Slots is how many requests run at once; more wait. 0 means 4, or what the
	// kind Sim's profile says.
	Slots int
	// Logger is told of start and end; nil means silence.
	Logger *slog.Logger

	// For the kind Llama; see llama.Config.
	ModelPath, PythonPath, Python string
	ContextTokens, Threads        int
	StartTimeout                  time.Duration

	// For the kind Sim; see sim.Config.
	FirstToken, PerToken time.Duration
	Profile              string // of batching.Profiles; empty means none
	KVBlocks             int    // instead of the profile's; 0 means the profile's
	Speed                float64
	Faults               sim.Faults
	Listen               string // loopback address, instead of Socket
}

// Run starts an engine, calls ready once it answers, and returns when ctx ends
// (nil) or when the engine has ended by itself (an error that says why). The
// engine is gone and its socket removed when Run returns.
func Run(ctx context.Context, cfg Config, ready func()) error {
	if cfg.Slots == 0 && (cfg.Kind != Sim || cfg.Profile == "") {
		cfg.Slots = 4
	}
	switch cfg.Kind {
	case Llama:
		return llama.Run(ctx, llama.Config{
			Socket: cfg.Socket, GroupSocket: cfg.GroupSocket, Model: cfg.Model, Slots: cfg.Slots, Logger: cfg.Logger,
			ModelPath: cfg.ModelPath, PythonPath: cfg.PythonPath, Python: cfg.Python,
			ContextTokens: cfg.ContextTokens, Threads: cfg.Threads, StartTimeout: cfg.StartTimeout,
		}, ready)
	case Sim:
		profile, err := cfg.profile()
		if err != nil {
			return err
		}
		return sim.Run(ctx, sim.Config{
			Socket: cfg.Socket, GroupSocket: cfg.GroupSocket, Listen: cfg.Listen, Model: cfg.Model, Slots: cfg.Slots, Profile: profile,
			FirstToken: cfg.FirstToken, PerToken: cfg.PerToken, Speed: cfg.Speed, Faults: cfg.Faults,
		}, ready)
	default:
		return fmt.Errorf("engine kind %q: it is either %q or %q", cfg.Kind, Llama, Sim)
	}
}

// profile is the simulator's profile, with the KV cache that was asked for.
func (cfg Config) profile() (batching.Profile, error) {
	if cfg.Profile == "" {
		if cfg.KVBlocks != 0 {
			return batching.Profile{}, errors.New("engine simulator: without a profile it has no KV cache")
		}
		return batching.Profile{}, nil
	}
	profile, err := batching.Named(cfg.Profile)
	if err != nil {
		return batching.Profile{}, fmt.Errorf("engine simulator: %w", err)
	}
	if cfg.KVBlocks != 0 {
		profile.KVBlocks = cfg.KVBlocks
	}
	return profile, nil
}
