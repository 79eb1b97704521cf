package main

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"math"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/mrgc/mrgc/internal/config"
	"github.com/mrgc/mrgc/internal/routing"
	"github.com/mrgc/mrgc/operator"
	"github.com/mrgc/mrgc/router"
)

// canaryOptions are those of every subcommand.
type canaryOptions struct {
	config string
	output output
	admins []string // of status
}

func canaryCommand() *cobra.Command {
	var o canaryOptions
	cmd := &cobra.Command{
		Use:   "canary",
		Short: "Divide a model's requests between its versions",
		Long: `Canary changes the weights of a model's versions in mrgc.yaml, which routers follow:
a weight that is lowered holds within a second, and one that is raised reaches
clients with their next refresh, within 5 s. The file is replaced as a whole, and
nothing in it but the weights changes. List the versions there first, those that
shall get no requests yet with weight 0.`,
		Example: `  mrgc canary set qwen2.5-0.5b-instruct 2026-11 5%
  mrgc canary status
  mrgc canary promote qwen2.5-0.5b-instruct 2026-11
  mrgc canary abort qwen2.5-0.5b-instruct 2026-11`,
		Args: cobra.NoArgs,
	}
	f := cmd.PersistentFlags()
	f.StringVar(&o.config, "config", cmp.Or(os.Getenv("MRGC_CONFIG"), "mrgc.yaml"), "the cluster's configuration, by default $MRGC_CONFIG if that is set; every router must have it")
	o.output.flag(cmd, f)
	cmd.AddCommand(
		&cobra.Command{
			Use:   "set MODEL VERSION WEIGHT",
			Short: "Give a version a weight, per mille (50) or in percent (5%); the others share the rest as they did",
			Args:  cobra.ExactArgs(3),
			RunE: func(cmd *cobra.Command, args []string) error {
				weight, err := parseWeight(args[2])
				if err != nil {
					return err
				}
				return o.set(cmd.OutOrStdout(), args[0], args[1], weight)
			},
		},
		canaryStatusCommand(&o),
		&cobra.Command{
			Use:   "promote MODEL VERSION",
			Short: "Give a version all requests",
			Args:  cobra.ExactArgs(2),
			RunE: func(cmd *cobra.Command, args []string) error {
				return o.set(cmd.OutOrStdout(), args[0], args[1], routing.SplitTotal)
			},
		},
		&cobra.Command{
			Use:   "abort MODEL VERSION",
			Short: "Withdraw a version: it gets no request, even if nothing else is ready",
			Args:  cobra.ExactArgs(2),
			RunE:  func(cmd *cobra.Command, args []string) error { return o.set(cmd.OutOrStdout(), args[0], args[1], 0) },
		},
	)
	return cmd
}

func canaryStatusCommand(o *canaryOptions) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Show the versions of each model, their weights, and how new ones do beside the present one",
		Long: `Status shows every version and its weight, and what the routers have found out of
those on trial: of the versions that have a weight, each but the first listed. Evidence
is from 0, a verdict at 1; below 0 the version has rather been better, or there is
little yet. Times are compared size by size, and shown as multiples of the present
version's. Versions that were rolled back have the reason beside them.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return o.status(cmd.Context(), cmd.OutOrStdout(), cmd.ErrOrStderr())
		},
	}
	adminFlag(cmd, &o.admins)
	return cmd
}

// parseWeight reads a weight per mille, or a percentage of which tenths count.
func parseWeight(text string) (perMille int, err error) {
	if percent, is := strings.CutSuffix(text, "%"); is {
		share, parseErr := strconv.ParseFloat(percent, 64)
		if perMille := math.Round(share * 10); parseErr == nil && perMille >= 0 && perMille <= routing.SplitTotal && math.Abs(share*10-perMille) < 1e-6 {
			return int(perMille), nil
		}
	} else if perMille, err = strconv.Atoi(text); err == nil && perMille >= 0 && perMille <= routing.SplitTotal {
		return perMille, nil
	}
	return 0, fmt.Errorf("weight %q: want 0 to %d, which is per mille, or 0%% to 100%% in tenths", text, routing.SplitTotal)
}

// set gives a version a weight, and shows what has become of them all.
func (o *canaryOptions) set(w io.Writer, model, version string, weight int) error {
	if err := o.output.check(); err != nil {
		return err
	}
	if err := setWeight(o.config, model, version, weight, nil); err != nil {
		return err
	}
	cluster, err := config.Load(o.config)
	if err != nil {
		return err
	}
	return o.show(w, weightsOf(cluster))
}

// status shows weights, what routers say of them, and what has been rolled back. Where
// there is no router to ask it says so, and shows the rest.
func (o *canaryOptions) status(ctx context.Context, w, notes io.Writer) error {
	if err := o.output.check(); err != nil {
		return err
	}
	cluster, err := config.Load(o.config)
	if err != nil {
		return err
	}
	all := weightsOf(cluster)
	done, err := recorded(o.config)
	if err != nil {
		return err
	}
	admins, noRouter := operator.NewAdmins(o.admins, os.Environ())
	if noRouter != nil && len(o.admins) > 0 {
		return noRouter
	}
	var trials []operator.TrialStatus
	if noRouter == nil {
		trials, noRouter = admins.Trials(ctx)
	}
	for i := range all {
		all[i].find(trials, done)
	}
	if noRouter != nil {
		fmt.Fprintln(notes, "mrgc: what routers say of versions is missing here:", noRouter)
	}
	return o.show(w, all)
}

// setWeight gives a version a weight in a file; only if its model's requests are
// divided as is expected, unless that is nil.
func setWeight(path, model, version string, weight int, expected routing.Split) error {
	return config.Edit(path, func(text []byte) ([]byte, error) {
		cluster, err := config.Parse(path, text)
		if err != nil {
			return nil, err
		}
		split, divided := cluster.Splits()[model]
		if expected != nil && !slices.Equal(split, expected) {
			return nil, router.ErrDivided
		}
		if !divided {
			return nil, fmt.Errorf("%s has no model %q with versions", path, model)
		}
		if split, err = split.With(version, weight); err != nil {
			return nil, fmt.Errorf("model %q in %s: %w", model, path, err)
		}
		return config.WithSplit(path, text, model, split)
	})
}
