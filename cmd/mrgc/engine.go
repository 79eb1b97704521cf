package main

import (
	"context"
	"errors"
	"net"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/mrgc/mrgc/engine"
	"github.com/mrgc/mrgc/internal/attest"
	"github.com/mrgc/mrgc/internal/identity"
	"github.com/mrgc/mrgc/internal/lockdown"
)

func engineCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "engine",
		Short: "Run an engine on a Unix socket, and guard it",
		Long: `An instance has two processes of its own user for the model: the engine on a Unix
socket, and the guard, which is the only way to it. A supervisor around the engine
restarts it for full washes.`,
		Args: cobra.NoArgs,
	}
	cmd.AddCommand(engineServeCommand(), engineRunCommand(), engineClearGPUCommand(), engineGuardCommand(), softwareTPMCommand())
	return cmd
}

func engineServeCommand() *cobra.Command {
	var config engine.Config
	var kind string
	cmd := &cobra.Command{
		Use:   "serve",
		Short: "Run an engine on a Unix socket",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := lockdown.NoDumps(); err != nil {
				return err
			}
			config.Kind, config.Logger = engine.Kind(kind), logger(cmd)
			return engine.Run(cmd.Context(), config, func() { config.Logger.Info("engine answers", "socket", config.Socket) })
		},
	}
	f := cmd.Flags()
	f.StringVar(&kind, "kind", string(engine.Llama), "llama or sim")
	f.StringVar(&config.Socket, "socket", "", "path of the Unix socket")
	f.BoolVar(&config.GroupSocket, "group-socket", false, "let the group of this process's user connect to the socket, too: for a guard of another user (default: nobody else)")
	f.StringVar(&config.Model, "model-name", "", "name that the model is served under")
	f.StringVar(&config.ModelPath, "model", "", "llama: GGUF file")
	f.StringVar(&config.PythonPath, "python-path", "", "llama: folder that has the xllamacpp module")
	f.IntVar(&config.Slots, "slots", 0, "requests that run at once (default 4, or what the profile says)")
	f.IntVar(&config.ContextTokens, "context-tokens", 0, "llama: context of one request (default 2048)")
	f.IntVar(&config.Threads, "threads", 0, "llama: threads that compute (default: one per core, at most 8)")
	f.DurationVar(&config.FirstToken, "first-token", 0, "sim: time to the first token")
	f.DurationVar(&config.PerToken, "per-token", 0, "sim: time to each further token")
	f.StringVar(&config.Profile, "profile", "", "sim: hardware to imitate, instead of those times: "+simProfiles())
	f.IntVar(&config.KVBlocks, "kv-blocks", 0, "sim: blocks of 16 tokens of KV cache (default: the profile's)")
	f.Float64Var(&config.Speed, "speed", 1, "sim: how fast time passes")
	f.Float64Var(&config.Faults.Slowness, "slowness", 1, "sim: how many times as long computing takes")
	f.Float64Var(&config.Faults.FailShare, "fail-share", 0, "sim: share of requests that fail at once, from 0 to 1")
	f.StringVar(&config.Listen, "listen", "", "sim: loopback address to listen on, instead of a socket: for benchmarks, all users reach it")
	cmd.MarkFlagsOneRequired("socket", "listen")
	cmd.MarkFlagsMutuallyExclusive("socket", "listen")
	required(cmd, "model-name")
	return cmd
}

func engineGuardCommand() *cobra.Command {
	var listen, upstream, identityAt, nitroTPM, cache, control string
	var slots int
	var readyTimeout time.Duration
	cmd := &cobra.Command{
		Use:   "guard",
		Short: "Guard an engine: mutual TLS, and an allow-list of paths by caller",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := errors.Join(lockdown.NoDumps(), lockdown.Untraceable()); err != nil {
				return err
			}
			ctx := cmd.Context()
			self, err := identity.Open(ctx, identityAt, os.Getenv("MRGC_IDENTITY_TOKEN"))
			if err != nil {
				return err
			}
			var attestHost func(context.Context, []byte) ([]byte, error)
			if command := strings.Fields(nitroTPM); len(command) > 0 {
				attestHost = func(ctx context.Context, nonce []byte) ([]byte, error) {
					return engine.NitroTPM(ctx, command, attest.VouchedKey(self.PublicKey()), nonce)
				}
			}
			guard, err := engine.NewGuard(engine.GuardConfig{
				Upstream: upstream, Cache: cache, Slots: slots, AttestHost: attestHost,
				Control: control, ReadyTimeout: readyTimeout,
				TLS: self.ServerTLS(func(id identity.ID) bool { return roleAt(self.ID(), id) != engine.RoleNone }),
				Role: func(r *http.Request) engine.Role {
					peer, _ := identity.Peer(r.TLS)
					return roleAt(self.ID(), peer)
				},
				Logger: logger(cmd),
			})
			if err != nil {
				return err
			}
			listener, err := net.Listen("tcp", listen)
			if err != nil {
				return err
			}
			logger(cmd).Info("guarding", "identity", self.ID(), "upstream", upstream)
			return guard.Serve(ctx, listener)
		},
	}
	f := cmd.Flags()
	f.StringVar(&listen, "listen", "127.0.0.1:8081", "where parent and enclave connect, by mutual TLS")
	f.StringVar(&upstream, "upstream", "", "engine: unix:PATH or http://host:port")
	f.StringVar(&identityAt, "identity", "", "identity for mutual TLS: dir:PATH, or unix:PATH with MRGC_IDENTITY_TOKEN")
	f.StringVar(&nitroTPM, "nitro-tpm-attest", "", "AWS's tool of this name, by which the host vouches for the guard to enclaves that want it\n(-engine-hosts); on an attestable AMI: /usr/bin/nitro-tpm-attest (default: it does not)")
	f.StringVar(&cache, "cache", "", `how tenants are kept apart in the engine's prefix cache: salt (vLLM, simulator: each prompt is found under its
tenant's salt only), slots (llama.cpp: each slot is reused under one salt only), or none (an engine that reuses no
prompts: one that does shows tenants each other's prompts by its timing). By it the guard also has the engine
forget, in full washes, which fail with none`)
	f.IntVar(&slots, "slots", 4, "slots of that engine, for --cache slots")
	f.StringVar(&control, "engine-control", "", "unix:PATH of the control socket of the engine's supervisor (mrgc engine run), by which full washes restart the engine;\nthe engine must be this guard's alone (default: it cannot be restarted)")
	f.DurationVar(&readyTimeout, "engine-ready-timeout", 10*time.Minute, "how long an engine that was restarted may take until it answers")
	required(cmd, "upstream", "identity", "cache")
	return cmd
}

// roleAt says what a peer may do at a guard: the enclave and the parent of the
// guard's own instance have a role, nobody else has.
func roleAt(guard, peer identity.ID) engine.Role {
	if peer.Region != guard.Region || peer.Instance != guard.Instance {
		return engine.RoleNone
	}
	switch peer.Role {
	case identity.RoleEnclave:
		return engine.RoleEnclave
	case identity.RoleParent:
		return engine.RoleParent
	default:
		return engine.RoleNone
	}
}
