package main

import (
	"github.com/spf13/cobra"

	"github.com/mrgc/mrgc/parent/nitrocli"
)

func enclaveCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "enclave",
		Short: "Run a Nitro enclave in the foreground",
		Args:  cobra.NoArgs,
	}
	cmd.AddCommand(enclaveRunCommand())
	return cmd
}

func enclaveRunCommand() *cobra.Command {
	var c nitrocli.Config
	cmd := &cobra.Command{
		Use:   "run",
		Short: "Start a Nitro enclave by nitro-cli, stay while it runs, terminate it on SIGTERM",
		Long: `Run starts an enclave by nitro-cli and stays while it runs, as a parent needs that
starts its enclaves itself, for full washes (mrgc-parent -enclave-command). It ends with
an error when the enclave ends by itself, and terminates the enclave when it is told to
end. What an earlier run left in its place, since that was killed, is terminated first.

Two enclaves run beside each other during a wash, so the allocator's pool
(/etc/nitro_enclaves/allocator.yaml) has to have room for two.`,
		Example: `  mrgc-parent … -enclave vsock://1{place}:5000 \
    -enclave-command '["mrgc", "enclave", "run", "--eif", "/opt/mrgc/enclave.eif", "--cid", "1{place}"]'`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c.Log = logger(cmd)
			return nitrocli.Run(cmd.Context(), c)
		},
		ValidArgsFunction: cobra.NoFileCompletions,
	}
	f := cmd.Flags()
	f.StringVar(&c.Program, "nitro-cli", "nitro-cli", "the program")
	f.StringVar(&c.EIF, "eif", "", "file of the enclave's image (make eif)")
	f.Uint32Var(&c.CID, "cid", 0, "the enclave's vsock address, 4 or more")
	f.IntVar(&c.CPUs, "cpus", 2, "virtual CPUs that the enclave gets of the allocator's pool")
	f.IntVar(&c.MemoryMiB, "memory-mib", 1024, "memory that the enclave gets of the allocator's pool, in MiB")
	required(cmd, "eif", "cid")
	return cmd
}
