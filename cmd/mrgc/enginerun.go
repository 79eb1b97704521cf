package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"

	"github.com/spf13/cobra"

	"github.com/mrgc/mrgc/engine/supervisor"
	"github.com/mrgc/mrgc/internal/gpu"
	"github.com/mrgc/mrgc/internal/lockdown"
)

func engineRunCommand() *cobra.Command {
	var config supervisor.Config
	var clearGPU bool
	cmd := &cobra.Command{
		Use:   "run --control PATH [flags] -- PROGRAM [ARGUMENTS]",
		Short: "Run an engine so that full washes can restart it",
		Long: `Run runs an engine in the foreground, and restarts it when its guard asks for that on
the control socket, for a full wash: it stops the engine, waits until no process of
it is left, with --clear-gpu overwrites the memory of all GPUs of the machine and
reads it back, and starts the engine again. An engine that ends by itself is not
started again: this program ends with it, for systemd to start both.`,
		Example: `  mrgc engine run --control /run/mrgc-engine/control.sock -- mrgc engine serve --socket /run/mrgc-engine/engine.sock …
  mrgc engine run --control /run/mrgc-engine/control.sock --socket /run/mrgc-engine/engine.sock --clear-gpu -- vllm serve --uds /run/mrgc-engine/engine.sock …`,
		Args: cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := lockdown.NoDumps(); err != nil {
				return err
			}
			config.Command, config.Logger = args, logger(cmd)
			if clearGPU {
				self, err := os.Executable()
				if err := errors.Join(err, gpu.CanClear()); err != nil {
					return fmt.Errorf("--clear-gpu: %w", err)
				}
				config.Clear = []string{self, "engine", "clear-gpu"}
			}
			return supervisor.Run(cmd.Context(), config)
		},
	}
	f := cmd.Flags()
	f.SetInterspersed(false)
	f.StringVar(&config.Control, "control", "", "path of the Unix socket on which the guard asks for a restart")
	f.BoolVar(&config.GroupSocket, "group-socket", false, "let the group of this process's user connect to it, too: for a guard of another user (default: nobody else)")
	f.StringVar(&config.EngineSocket, "socket", "", "the engine's own Unix socket, removed before each start: for an engine that does not start where one is, as vLLM")
	f.BoolVar(&clearGPU, "clear-gpu", false, "overwrite the memory of all GPUs while the engine is down, and fail the restart unless nine tenths of each read back as\nzeros (needs NVIDIA's driver, and a program built by make build-gpu)")
	f.DurationVar(&config.StopTimeout, "stop-timeout", supervisor.DefaultStopTimeout, "how long the engine may take to end before it is killed")
	required(cmd, "control")
	return cmd
}

func engineClearGPUCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "clear-gpu",
		Short: "Overwrite the memory of all GPUs, while nothing runs on them",
		Long: `Clear-gpu takes all memory of each GPU, looks what is in it, overwrites it with zeros,
reads it back, and writes what it found as JSON. It fails unless that was nine tenths
of each GPU's memory, so stop first what runs there. It needs NVIDIA's driver, and a
program built by make build-gpu.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := lockdown.NoDumps(); err != nil {
				return err
			}
			cleared, err := gpu.ClearAll(cmd.Context())
			if err != nil {
				return err
			}
			return json.NewEncoder(cmd.OutOrStdout()).Encode(cleared)
		},
	}
}
