package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/mrgc/mrgc/internal/config"
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
			fmt.Fprintf(cmd.OutOrStdout(), "%s is valid: %d regions, %d models, %d tenants restricted\n",
				path, len(c.Regions), len(c.Models), len(c.Tenants))
			return nil
		},
	})
	return cmd
}
