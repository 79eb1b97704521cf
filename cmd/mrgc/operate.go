package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/spf13/cobra"

	"github.com/mrgc/mrgc/internal/decision"
	"github.com/mrgc/mrgc/internal/routing"
	"github.com/mrgc/mrgc/operator"
)

// ask is how a command asks routers, and how it prints what they say.
type ask struct {
	admins []string
	output output
}

func (a *ask) flags(cmd *cobra.Command) {
	adminFlag(cmd, &a.admins)
	a.output.flag(cmd, cmd.Flags())
}

func adminFlag(cmd *cobra.Command, admins *[]string) {
	cmd.Flags().StringArrayVar(admins, "admin", nil, "a router's admin, http://127.0.0.1:9003 (repeat; default: every "+operator.EnvPrefix+"* of the environment)")
}

func (a *ask) routers() (*operator.Admins, error) {
	if err := a.output.check(); err != nil {
		return nil, err
	}
	return operator.NewAdmins(a.admins, os.Environ())
}

func statusCommand() *cobra.Command {
	var a ask
	var watch time.Duration
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Show routers, instances with their scores, and what each Envoy has accepted",
		Long: `Status asks the routers' admins and shows the cluster as they see it: whether each
router is ready and hears the others; each instance, the release of its
enclave as a router with a manifest has verified it, its score and the score's terms; each Envoy, whether it has accepted what it was sent (SYNCED), has yet to
(STALE), or has refused it (REJECTED), since when and why.`,
		Example: `  source .mrgc/env && mrgc status
  mrgc status --admin http://127.0.0.1:9003 --watch 2s
  mrgc status -o json | jq '.instances[] | {id, ready, score: .score.score}'`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			admins, err := a.routers()
			if err != nil {
				return err
			}
			if watch < 0 {
				return fmt.Errorf("--watch %s: must not be negative", watch)
			}
			return showStatus(cmd.Context(), cmd.OutOrStdout(), &a, admins, watch)
		},
	}
	a.flags(cmd)
	cmd.Flags().DurationVar(&watch, "watch", 0, "show it again so often, until Ctrl-C")
	return cmd
}

// showStatus shows it once, or again and again until ctx ends. Only the first
// way fails when no router answers.
func showStatus(ctx context.Context, w io.Writer, a *ask, admins *operator.Admins, every time.Duration) error {
	for {
		status := admins.Ask(ctx)
		if ctx.Err() != nil {
			return nil
		}
		if every > 0 && a.output == "table" {
			fmt.Fprint(w, "\x1b[H\x1b[2J") // from the top of an empty screen
		}
		if err := a.output.print(w, status, status.Print); err != nil {
			return err
		}
		if every == 0 {
			return status.Answered()
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(every):
		}
	}
}

func modelsCommand() *cobra.Command {
	var a ask
	cmd := &cobra.Command{
		Use:   "models",
		Short: "Show which models and versions instances serve, and how many are ready",
		Long: `Models asks the routers' admins, as status does, and adds up their instances: by model,
version and region, how many take requests. Which versions requests are divided
between, and how, is in mrgc canary status.`,
		Example: `  source .mrgc/env && mrgc models`,
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			admins, err := a.routers()
			if err != nil {
				return err
			}
			status := admins.Ask(cmd.Context())
			models := status.Models()
			return errors.Join(
				a.output.print(cmd.OutOrStdout(), models, func(w io.Writer) error { return operator.PrintModels(w, models) }), status.Answered())
		},
	}
	a.flags(cmd)
	return cmd
}

func explainCommand() *cobra.Command {
	var a ask
	cmd := &cobra.Command{
		Use:   "explain REQUEST_ID",
		Short: "Say why a request went where it did, or was refused",
		Long: `Explain asks the routers for their decision over a request, by the id that its
tenant knows (Mrgc-Request-Id) or Envoy's (x-request-id): who could have served
it, what was known of each one and how old that was, who came second and why,
which rule kept the others out, and what became of it. Routers keep their last
decisions only.`,
		Example: `  mrgc explain 0f8e6c7ab1d94c5ea2f1c7b3d4e5f607`,
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			admins, err := a.routers()
			if err != nil {
				return err
			}
			found, err := admins.Explain(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			return a.output.print(cmd.OutOrStdout(), found, func(w io.Writer) error { return operator.PrintExplanations(w, found) })
		},
		ValidArgsFunction: cobra.NoFileCompletions,
	}
	a.flags(cmd)
	return cmd
}

type replayOptions struct {
	ask
	policy    string
	fromAdmin bool
	last      int
}

func replayCommand() *cobra.Command {
	var o replayOptions
	cmd := &cobra.Command{
		Use:   "replay [TRACE]",
		Short: "Decide recorded requests again, under another policy",
		Long: `Replay decides the requests of a trace again: how many would have gone elsewhere,
to whom, and what that would have done to the predicted first token. Each is
decided with what was known then; what one changed decision would have changed
for the next is not in it. Decisions of the policy that made them must come out
the same to the last bit; when one does not, the command fails.`,
		Example: `  curl -s "$MRGC_ADMIN_USE1/decisions?last=4096" > trace.jsonl
  mrgc replay trace.jsonl --policy least-in-flight
  mrgc replay --from-admin --policy score`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			result, err := o.replay(cmd.Context(), cmd.InOrStdin(), args)
			if err != nil {
				return err
			}
			table := func(w io.Writer) error { return operator.PrintReplay(w, result) }
			return errors.Join(o.output.print(cmd.OutOrStdout(), result, table), operator.Exact(result))
		},
	}
	o.flags(cmd)
	f := cmd.Flags()
	f.StringVar(&o.policy, "policy", "", "policy to decide by (default: the one that made each decision)")
	f.BoolVar(&o.fromAdmin, "from-admin", false, "replay the routers' last decisions in place of a file's")
	f.IntVar(&o.last, "last", decision.Kept, "with --from-admin: how many of each router's")
	complete(cmd, "policy", routing.PolicyNames()...)
	return cmd
}

func (o *replayOptions) replay(ctx context.Context, stdin io.Reader, args []string) (result decision.Result, err error) {
	var policy *routing.Policy
	if o.policy != "" {
		parsed, err := routing.ParsePolicy(o.policy)
		if err != nil {
			return result, fmt.Errorf("--policy: %w", err)
		}
		policy = &parsed
	}
	switch {
	case o.fromAdmin == (len(args) == 1):
		return result, errors.New("give a trace file, - for standard input, or --from-admin")
	case o.fromAdmin:
		admins, err := o.routers()
		if err != nil {
			return result, err
		}
		return admins.Replay(ctx, o.last, policy)
	}
	if err := o.output.check(); err != nil {
		return result, err
	}
	if args[0] == "-" {
		return operator.Replay(stdin, policy)
	}
	f, err := os.Open(args[0])
	if err != nil {
		return result, err
	}
	defer func() { _ = f.Close() }() // it was only read
	result, err = operator.Replay(f, policy)
	if err != nil {
		err = fmt.Errorf("%s: %w", args[0], err)
	}
	return result, err
}
