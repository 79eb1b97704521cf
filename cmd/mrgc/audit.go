package main

import (
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/mrgc/mrgc/internal/audit"
	"github.com/mrgc/mrgc/internal/audit/cloudwatchlogs"
	"github.com/mrgc/mrgc/internal/awsclient"
)

func auditCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "audit",
		Short: "Read and verify audit logs",
		Long: `Audit logs are what mrgc router --audit and mrgc-parent -audit append to: key
releases, release changes, refused attestation. Each record carries the hash of
the one before.`,
		Args: cobra.NoArgs,
	}
	cmd.AddCommand(auditVerifyCommand(), auditShowCommand(), auditFetchCommand())
	return cmd
}

func auditVerifyCommand() *cobra.Command {
	var heads []string
	cmd := &cobra.Command{
		Use:   "verify FILE",
		Short: "Verify an audit log's chain, and say how far it goes",
		Long: `Verify fails at the first record that was changed, or before which others are
missing. Whoever can write the file could also cut its end off, or write another
chain: note the head that is printed, elsewhere, and give it with --head later.`,
		Example: `  mrgc audit verify audit.log
  mrgc audit verify audit.log --head 1712:5f0c…`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			summary, err := walkAudit(args[0], heads, func(audit.Record) {})
			if err != nil {
				return err
			}
			for _, name := range slices.Sorted(maps.Keys(summary.Events)) {
				fmt.Fprintf(cmd.OutOrStdout(), "%7d %s\n", summary.Events[name], name)
			}
			fmt.Fprintf(cmd.OutOrStdout(), "head %s\n", summary.Head)
			return nil
		},
	}
	cmd.Flags().StringArrayVar(&heads, "head", nil, "a head that was noted earlier, SEQUENCE:HASH; repeatable")
	return cmd
}

func auditShowCommand() *cobra.Command {
	var event string
	cmd := &cobra.Command{
		Use:   "show FILE",
		Short: "Print an audit log's records, as far as its chain verifies",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if event != "" && !slices.Contains(audit.Events(), event) {
				return fmt.Errorf("--event %s: %s", event, hint(event, audit.Events()))
			}
			enc := json.NewEncoder(cmd.OutOrStdout())
			var failed error
			_, err := walkAudit(args[0], nil, func(r audit.Record) {
				if failed == nil && (event == "" || r.Event == event) {
					failed = enc.Encode(r)
				}
			})
			if err != nil {
				return err
			}
			return failed
		},
	}
	cmd.Flags().StringVar(&event, "event", "", "only those of this name: "+strings.Join(audit.Events(), ", "))
	return cmd
}

func auditFetchCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "fetch GROUP[?region=REGION&endpoint=URL] STREAM",
		Short: "Print the copy of an audit log that CloudWatch Logs has",
		Long: `Fetch prints the records that mrgc router --audit-cloudwatch or mrgc-parent
-audit-cloudwatch has copied, as they are in the file, for the other commands to
read. A stream is called by its writer (an instance, or router/HOST) and the
beginning of its first record's hash: aws logs describe-log-streams lists them.`,
		Example: `  mrgc audit fetch 'mrgc-audit?region=us-east-1' use1-0/5f0c2a7be1d94c3a > copy.log
  mrgc audit verify copy.log`,
		Args: cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			at, err := awsclient.ParseAddress(args[0])
			if err != nil {
				return fmt.Errorf("log group %q: %w", args[0], err)
			}
			return cloudwatchlogs.Fetch(cmd.Context(), at.Settings, at.Name, args[1], cmd.OutOrStdout())
		},
	}
}

func walkAudit(path string, heads []string, visit func(audit.Record)) (audit.Summary, error) {
	var noted []audit.Head
	for _, text := range heads {
		head, err := audit.ParseHead(text)
		if err != nil {
			return audit.Summary{}, fmt.Errorf("--head: %w", err)
		}
		noted = append(noted, head)
	}
	file, err := os.Open(path)
	if err != nil {
		return audit.Summary{}, err
	}
	defer file.Close()
	summary, err := audit.Walk(file, visit, noted...)
	if err != nil {
		return summary, fmt.Errorf("%s: %w", path, err)
	}
	return summary, nil
}
