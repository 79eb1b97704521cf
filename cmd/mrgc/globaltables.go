package main

import (
	"github.com/spf13/cobra"

	"github.com/mrgc/mrgc/local"
)

// globalTablesCommand is a process of mrgc up --store dynamodb.
func globalTablesCommand() *cobra.Command {
	var g local.GlobalTables
	cmd := &cobra.Command{
		Use:    "global-tables",
		Short:  "Run a DynamoDB Local of mrgc up, and what makes a global table's replica of it",
		Hidden: true,
		Args:   cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			g.Logger = logger(cmd)
			return g.Run(cmd.Context())
		},
	}
	f := cmd.Flags()
	f.StringVar(&g.Dir, "dir", "", "directory for its data")
	f.StringVar(&g.Local, "dynamodb-local", "", "host:port for the DynamoDB Local")
	f.StringVar(&g.Region, "region", "", "AWS region that it is (default: none; it holds the strongly consistent tables)")
	f.StringVar(&g.Listen, "listen", "", "host:port for the region's endpoint")
	f.StringVar(&g.Strong, "strong", "", "URL of the one that holds the strongly consistent tables")
	f.StringToStringVar(&g.Peers, "peer", nil, "REGION=URL of another region's endpoint (repeat)")
	required(cmd, "dir", "dynamodb-local")
	cmd.MarkFlagsRequiredTogether("region", "listen", "strong")
	return cmd
}
