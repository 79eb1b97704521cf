// Mrgc is every role of the cluster but the instance's own two (mrgc-parent and
// mrgc-enclave), one subcommand each: what runs it, what uses it, what operates
// it.
package main

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:], os.Stdout, os.Stderr); err != nil {
		fmt.Fprintln(os.Stderr, "mrgc:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	root := rootCommand()
	root.SetArgs(args)
	root.SetOut(stdout)
	root.SetErr(stderr)
	return root.ExecuteContext(ctx)
}

// rootCommand is mrgc with all its commands.
func rootCommand() *cobra.Command {
	root := &cobra.Command{
		Use:   "mrgc",
		Short: "Confidential LLM inference over several regions",
		Long: `MRGC serves LLM inference so that nobody but the tenant and measured code sees
a prompt. Start with "mrgc up": it runs a whole cluster on this machine.`,
		SilenceUsage:  true, // an error in what was asked for is not an error in how
		SilenceErrors: true,
	}
	root.AddGroup(
		&cobra.Group{ID: "use", Title: "Use:"},
		&cobra.Group{ID: "operate", Title: "Operate:"},
		&cobra.Group{ID: "role", Title: "Roles (what a deployment runs):"},
	)
	for group, commands := range map[string][]*cobra.Command{
		"use":     {upCommand(), connectCommand(), verifyReceiptCommand()},
		"operate": {statusCommand(), modelsCommand(), explainCommand(), replayCommand(), drainCommand(), configCommand(), tenantsCommand(), releasesCommand(), imageCommand(), keysCommand(), auditCommand(), canaryCommand(), failoverCommand(), scaleCommand(), washCommand(), stateCommand(), partsCommand()},
		"role":    {routerCommand(), controllerCommand(), engineCommand(), enclaveCommand()},
	} {
		for _, command := range commands {
			command.GroupID = group
			root.AddCommand(command)
		}
	}
	root.AddCommand(globalTablesCommand())
	return root
}

// logger is what a role writes: one line of text per event, to standard error.
func logger(cmd *cobra.Command) *slog.Logger {
	return slog.New(slog.NewTextHandler(cmd.ErrOrStderr(), nil))
}

// required marks flags that a command cannot do without.
func required(cmd *cobra.Command, names ...string) {
	for _, name := range names {
		if err := cmd.MarkFlagRequired(name); err != nil {
			panic(err) // the flag's name is misspelt here
		}
	}
}
