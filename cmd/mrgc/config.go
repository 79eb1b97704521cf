package main

import (
	"crypto/rand"
	"encoding/json"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/mrgc/mrgc/internal/config"
	"github.com/mrgc/mrgc/internal/credential"
)

func configCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "config", Short: "Work with mrgc.yaml", Args: cobra.NoArgs}
	cmd.AddCommand(&cobra.Command{
		Use:   "check [FILE]",
		Short: "Say everything that is wrong with a configuration",
		Args:  cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			path := "mrgc.yaml"
			if len(args) == 1 {
				path = args[0]
			}
			c, err := config.Load(path)
			if err != nil {
				return err
			}
			fmt.Fprintf(cmd.OutOrStdout(), "%s is valid: %d regions, %d models, %d tenants\n",
				path, len(c.Regions), len(c.Models), len(c.Tenants))
			return nil
		},
	})
	return cmd
}

func tenantsCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "tenants", Short: "Work with tenants", Args: cobra.NoArgs}
	cmd.AddCommand(&cobra.Command{
		Use:   "new NAME",
		Short: "Make an API key, and what mrgc.yaml stores of it",
		Long: `New makes an API key for a tenant. The key is printed once, to standard error, for
the tenant alone; what the cluster stores is printed to standard output, for the
"tenants" list of mrgc.yaml. Neither can be had from the other.`,
		Example: `  mrgc tenants new acme >> mrgc.yaml`,
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			key, err := credential.New(rand.Reader, args[0])
			if err != nil {
				return err
			}
			fmt.Fprintln(cmd.ErrOrStderr(), key.Text())
			fmt.Fprintf(cmd.OutOrStdout(), "  - name: %s\n    edge_token_sha256: [%s]\n    enclave_token_sha256: [%s]\n",
				key.Tenant(), credential.DigestOf(key.EdgeToken()), credential.DigestOf(key.EnclaveToken()))
			return nil
		},
	})
	var path string
	export := &cobra.Command{
		Use:   "export",
		Short: "Print the list of tenants that mrgc-enclave -tenants reads",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := config.Load(path)
			if err != nil {
				return err
			}
			return json.NewEncoder(cmd.OutOrStdout()).Encode(c.EnclaveTokens())
		},
	}
	export.Flags().StringVar(&path, "config", "mrgc.yaml", "the cluster's configuration")
	cmd.AddCommand(export)
	return cmd
}
