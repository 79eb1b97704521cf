package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/mrgc/mrgc/internal/state"
	"github.com/mrgc/mrgc/internal/state/open"
	"github.com/mrgc/mrgc/operator"
)

func washCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "wash",
		Short: "Wash an instance in full, and show what its washes found",
		Args:  cobra.NoArgs,
	}
	cmd.AddCommand(washNowCommand(), washShowCommand())
	return cmd
}

func washNowCommand() *cobra.Command {
	var a ask
	var wait bool
	var store string
	cmd := &cobra.Command{
		Use:   "now INSTANCE",
		Short: "Have an instance washed in full now; one in quarantine comes out of it when that passes",
		Long: `Now orders a full wash by way of a router: a fresh enclave takes the place of the
present one, the engine forgets, and all of it is checked. Requests go on meanwhile.
Where mrgc.yaml's wash.restart_engine says so the engine is restarted: other instances
take the requests then, and the wash waits until they can.
It does not wait: mrgc wash show INSTANCE says how it went, and goes. With --wait it
does, by the state store, and fails when the wash has; Ctrl-C ends the waiting, not the
wash.`,
		Example: `  source .mrgc/env && mrgc wash now use1-0
  mrgc wash now use1-0 --wait --state dynamodb:?region=us-east-1`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			admins, err := a.routers()
			if err != nil {
				return err
			}
			if wait {
				return washAndWait(cmd.Context(), cmd.OutOrStdout(), cmd.ErrOrStderr(), &a, admins, store, args[0])
			}
			if err := orderNow(cmd.Context(), admins, args[0]); err != nil {
				return err
			}
			ordered := map[string]string{"instance": args[0], "wash": "ordered"}
			return a.output.print(cmd.OutOrStdout(), ordered, func(w io.Writer) error {
				_, err := fmt.Fprintf(w, "a wash of %s is ordered; mrgc wash show %s says how it went\n", args[0], args[0])
				return err
			})
		},
		ValidArgsFunction: cobra.NoFileCompletions,
	}
	a.flags(cmd)
	cmd.Flags().BoolVar(&wait, "wait", false, "until the wash has ended, and fail if it has")
	cmd.Flags().StringVar(&store, "state", "", "with --wait: state store, "+open.Forms+" (default: MRGC_STATE of the environment, or dynamodb:)")
	return cmd
}

// orderNow orders a wash, and names the instances when there is none of that name.
func orderNow(ctx context.Context, admins *operator.Admins, instance string) error {
	err := admins.Wash(ctx, instance)
	if err == nil {
		return nil
	}
	var known []string
	for _, in := range admins.Ask(ctx).Instances {
		known = append(known, in.ID)
	}
	if len(known) == 0 || slices.Contains(known, instance) {
		return err
	}
	return fmt.Errorf("no instance %s: %s\n%w", instance, hint(instance, known), err)
}

// washAndWait orders a wash, and shows it when it has ended.
func washAndWait(ctx context.Context, out, progress io.Writer, a *ask, admins *operator.Admins, store, instance string) (err error) {
	waiting, closeStore, err := awaitWash(ctx, store, instance, progress)
	if err != nil {
		return fmt.Errorf("nothing is ordered: %w", err)
	}
	defer func() { err = errors.Join(err, closeStore()) }()
	if err := orderNow(ctx, admins, instance); err != nil {
		return err
	}
	washed, err := waiting.wait(ctx)
	if err != nil {
		return err
	}
	return errors.Join(a.output.print(out, washed, func(w io.Writer) error { return printWashes(w, instance, []recordedWash{washed}, true) }), washed.failure(instance))
}

// washOptions are those of show.
type washOptions struct {
	output
	state string
	last  int
}

func washShowCommand() *cobra.Command {
	var o washOptions
	cmd := &cobra.Command{
		Use:   "show ID | INSTANCE",
		Short: "Show a wash step by step, by the id that receipts have, or an instance's last ones",
		Example: `  mrgc wash show use1-0/2026-11-26T18:08:06.494999Z --state dynamodb:?region=us-east-1
  mrgc wash show use1-0`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return o.show(cmd.Context(), cmd.OutOrStdout(), args[0])
		},
		ValidArgsFunction: cobra.NoFileCompletions,
	}
	f := cmd.Flags()
	f.StringVar(&o.state, "state", "", "state store: "+open.Forms+" (default: MRGC_STATE of the environment, or dynamodb:)")
	o.flag(cmd, f)
	f.IntVar(&o.last, "last", 10, "of an instance: how many")
	return cmd
}

// recordedWash is a wash as show prints it.
type recordedWash struct {
	ID string `json:"id"`
	state.Wash
}

func (o *washOptions) show(ctx context.Context, w io.Writer, what string) (err error) {
	if err := o.check(); err != nil {
		return err
	}
	if o.last < 1 {
		return fmt.Errorf("--last %d: want at least 1", o.last)
	}
	store, err := open.Store(ctx, cmp.Or(o.state, os.Getenv("MRGC_STATE"), "dynamodb:"), nil)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, store.Close()) }()
	washes, err := o.read(ctx, state.WashTable(store), what)
	if err != nil && !errors.Is(err, state.ErrNotWhole) {
		return err
	}
	if len(washes) == 0 && err != nil {
		return err
	}
	printed := o.print(w, washes, func(w io.Writer) error { return printWashes(w, what, washes, strings.Contains(what, "/")) })
	return errors.Join(printed, err) // what is whole is shown beside what is not
}

func (o *washOptions) read(ctx context.Context, table state.Table[state.Wash], what string) ([]recordedWash, error) {
	instance, sort, one := strings.Cut(what, "/")
	var rows []state.Record[state.Wash]
	var err error
	if one {
		var row state.Record[state.Wash]
		row, err = table.Get(ctx, state.Key{Partition: instance, Sort: sort})
		switch {
		case errors.Is(err, state.ErrNotFound):
			known, _ := knownWashes(ctx, table, instance) // what there is only helps
			return nil, fmt.Errorf("no wash %s is recorded: of %s %s", what, instance, hint(what, known))
		case errors.Is(err, state.ErrNotWhole): // its steps are shown, and that it has not passed
			row.Value.Passed, row.Value.Reason = false, err.Error()
		}
		rows = append(rows, row)
	} else {
		rows, err = table.List(ctx, state.Query{Partition: instance, Newest: true, Limit: o.last})
	}
	if err != nil && !errors.Is(err, state.ErrNotWhole) {
		return nil, err
	}
	washes := []recordedWash{}
	for _, row := range rows {
		washes = append(washes, recordedWash{ID: row.Key.Partition + "/" + row.Key.Sort, Wash: row.Value})
	}
	return washes, err
}

// knownWashes are the ids of an instance's last washes.
func knownWashes(ctx context.Context, table state.Table[state.Wash], instance string) (ids []string, err error) {
	rows, err := table.List(ctx, state.Query{Partition: instance, Newest: true, Limit: 5})
	for _, row := range rows {
		ids = append(ids, row.Key.Partition+"/"+row.Key.Sort)
	}
	return ids, err
}

func printWashes(w io.Writer, of string, washes []recordedWash, steps bool) error {
	if len(washes) == 0 {
		_, err := fmt.Fprintf(w, "no wash of %s is recorded; mrgc status names the instances\n", of)
		return err
	}
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "WASH\tTRIGGER\tTOOK\tOUTCOME")
	for _, wash := range washes {
		took := wash.EndedAt().Sub(wash.StartedAt).Round(time.Millisecond).String()
		outcome := "passed"
		switch {
		case wash.Open == state.WashWaiting:
			took, outcome = "-", "waits: "+wash.Reason
		case wash.Open != "":
			took, outcome = "-", "under way"
		case !wash.Passed:
			outcome = "FAILED: " + wash.Reason
		}
		fmt.Fprintf(table, "%s\t%s\t%s\t%s\n", wash.ID, wash.Trigger, took, outcome)
		if !steps {
			continue
		}
		fmt.Fprintln(table, "\nSTEP\tTOOK\tPASSED\tFOUND")
		for _, step := range wash.Steps {
			fmt.Fprintf(table, "%s\t%s\t%t\t%s\n", step.Name, step.Duration.Round(time.Millisecond), step.Passed, step.Detail)
		}
	}
	return table.Flush()
}
