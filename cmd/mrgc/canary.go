package main

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/mrgc/mrgc/internal/config"
	"github.com/mrgc/mrgc/internal/routing"
)

// canaryOptions are those of every subcommand.
type canaryOptions struct {
	config, output string
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
	f.StringVarP(&o.output, "output", "o", "table", "table, for people, or json, for programs")
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
		&cobra.Command{
			Use:   "status",
			Short: "Show the versions of each model and their weights",
			Args:  cobra.NoArgs,
			RunE: func(cmd *cobra.Command, _ []string) error {
				cluster, err := config.Load(o.config)
				if err != nil {
					return err
				}
				return o.print(cmd.OutOrStdout(), cluster)
			},
		},
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
	if err := o.check(); err != nil {
		return err
	}
	text, err := os.ReadFile(o.config)
	if err != nil {
		return fmt.Errorf("configuration: %w", err)
	}
	cluster, err := config.Parse(o.config, text)
	if err != nil {
		return err
	}
	split, divided := cluster.Splits()[model]
	if !divided {
		return fmt.Errorf("%s has no model %q with versions", o.config, model)
	}
	if split, err = split.With(version, weight); err != nil {
		return fmt.Errorf("model %q in %s: %w", model, o.config, err)
	}
	edited, err := config.WithSplit(o.config, text, model, split)
	if err != nil {
		return err
	}
	if err := replaceConfig(o.config, text, edited); err != nil {
		return fmt.Errorf("configuration: %w", err)
	}
	if cluster, err = config.Parse(o.config, edited); err != nil {
		return err
	}
	return o.print(w, cluster)
}

// replaceConfig puts an edited file in the place of what was read, with its
// permissions: nobody reads half of it. A link stays one.
func replaceConfig(path string, read, edited []byte) error {
	path, err := filepath.EvalSymlinks(path)
	if err != nil {
		return err
	}
	info, err := os.Stat(path)
	if err != nil {
		return err
	}
	fresh, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".*")
	if err != nil {
		return err
	}
	_, err = fresh.Write(edited)
	if err = errors.Join(err, fresh.Chmod(info.Mode().Perm()), fresh.Sync(), fresh.Close()); err == nil {
		err = unchangedSince(path, read)
	}
	if err == nil {
		err = os.Rename(fresh.Name(), path)
	}
	if err != nil {
		return errors.Join(err, os.Remove(fresh.Name()))
	}
	return nil
}

// unchangedSince gives an error if somebody else has changed the file meanwhile.
func unchangedSince(path string, read []byte) error {
	now, err := os.ReadFile(path)
	if err == nil && !bytes.Equal(now, read) {
		err = fmt.Errorf("%s has just been changed by somebody else: look at it, and try again", path)
	}
	return err
}

// weighted is a version as status shows it.
type weighted struct {
	Model   string `json:"model"`
	Version string `json:"version"`
	Weight  int    `json:"weight_per_mille"`
}

func (o *canaryOptions) check() error {
	if o.output != "table" && o.output != "json" {
		return fmt.Errorf("--output %q: want table or json", o.output)
	}
	return nil
}

// print shows every version of every model that has any.
func (o *canaryOptions) print(w io.Writer, cluster *config.Config) error {
	if err := o.check(); err != nil {
		return err
	}
	all := []weighted{}
	for _, m := range cluster.Models {
		for _, v := range m.Versions {
			all = append(all, weighted{m.Name, v.Name, v.Weight})
		}
	}
	if o.output == "json" {
		encoder := json.NewEncoder(w)
		encoder.SetIndent("", "  ")
		return encoder.Encode(all)
	}
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "MODEL\tVERSION\tSHARE")
	for _, v := range all {
		fmt.Fprintf(table, "%s\t%s\t%s\n", v.Model, v.Version, shareText(v.Weight))
	}
	return table.Flush()
}

func shareText(perMille int) string {
	if perMille == 0 {
		return "0 %, withdrawn"
	}
	return strconv.FormatFloat(float64(perMille)/10, 'f', -1, 64) + " %"
}
