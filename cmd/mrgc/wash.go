package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/mrgc/mrgc/internal/state"
	"github.com/mrgc/mrgc/internal/state/open"
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

// washOrder is an order of a wash.
type washOrder struct {
	ask
	wait    bool
	timeout time.Duration
	state   string
}

func washNowCommand() *cobra.Command {
	var o washOrder
	cmd := &cobra.Command{
		Use:   "now INSTANCE",
		Short: "Have an instance washed in full now; one in quarantine comes out of it when that passes",
		Long: `Now orders a full wash by way of a router: a fresh enclave takes the place of the
present one, the engine forgets, and all of it is checked. Requests go on meanwhile.
Where mrgc.yaml's wash.restart_engine says so the engine is restarted: other instances
take the requests then, and the wash waits until they can.
With --wait it says how the wash went, step by step, and fails when the wash does;
else it does not wait, and mrgc wash show INSTANCE says how it went, and goes.`,
		Example: `  source .mrgc/env && mrgc wash now use1-0 --wait`,
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if o.wait {
				return o.orderAndWait(cmd.Context(), cmd.OutOrStdout(), cmd.ErrOrStderr(), args[0])
			}
			return o.order(cmd.Context(), cmd.OutOrStdout(), args[0])
		},
		ValidArgsFunction: cobra.NoFileCompletions,
	}
	o.flags(cmd)
	f := cmd.Flags()
	f.BoolVar(&o.wait, "wait", false, "wait for the wash's end; Ctrl-C ends the waiting, not the wash")
	f.DurationVar(&o.timeout, "timeout", 15*time.Minute, "with --wait: for how long at most")
	stateFlag(f, &o.state)
	return cmd
}

// stateFlag is which state store a command reads washes from.
func stateFlag(f *pflag.FlagSet, address *string) {
	f.StringVar(address, "state", "", "state store: "+open.Forms+" (default: MRGC_STATE of the environment, or dynamodb:)")
}

func openWashes(ctx context.Context, address string) (state.Store, error) {
	return open.Store(ctx, cmp.Or(address, os.Getenv("MRGC_STATE"), "dynamodb:"), nil)
}

func (o *washOrder) order(ctx context.Context, out io.Writer, instance string) error {
	admins, err := o.routers()
	if err != nil {
		return err
	}
	id, err := admins.Wash(ctx, instance)
	if err != nil {
		return err
	}
	ordered := map[string]string{"instance": instance, "wash": id}
	return o.output.print(out, ordered, func(w io.Writer) error {
		_, err := fmt.Fprintf(w, "a wash of %s is ordered; mrgc wash show %s says how it went, when it has ended\n", instance, id)
		return err
	})
}

// orderAndWait orders a wash, and shows how it went. A wash that fails is an error.
func (o *washOrder) orderAndWait(ctx context.Context, out, progress io.Writer, instance string) (err error) {
	admins, err := o.routers()
	if err != nil {
		return err
	}
	store, err := openWashes(ctx, o.state)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, store.Close()) }()
	id, err := admins.Wash(ctx, instance)
	if err != nil {
		return err
	}
	waiting, cancel := context.WithTimeout(ctx, o.timeout)
	defer cancel()
	wash, err := awaitWash(waiting, state.WashTable(store), id, newProgressLine(progress))
	if waiting.Err() != nil && err != nil {
		return fmt.Errorf("the wash goes on without being waited for (mrgc wash show %s says how it went): %w", id, err)
	}
	if err != nil {
		return err
	}
	one := []recordedWash{wash}
	if err := o.output.print(out, one, func(w io.Writer) error { return printWashes(w, one, true) }); err != nil || wash.Passed {
		return err
	}
	return fmt.Errorf("the wash has failed, and %s takes no requests until one passes: %s", instance, wash.Reason)
}

// washPoll is how often a store is asked for what a wash has come to.
const washPoll = 250 * time.Millisecond

// awaitWash waits for a wash's end, however long the store is away meanwhile.
func awaitWash(ctx context.Context, table state.Table[state.Wash], id string, line *progressLine) (recordedWash, error) {
	defer line.clear()
	began := time.Now()
	tick := time.NewTicker(washPoll)
	defer tick.Stop()
	instance, sort, _ := strings.Cut(id, "/")
	for {
		row, err := table.Get(ctx, state.Key{Partition: instance, Sort: sort})
		what := "under way"
		switch {
		case errors.Is(err, state.ErrNotWhole):
			return recordedWash{}, fmt.Errorf("wash %s: %w", id, err)
		case errors.Is(err, state.ErrNotFound): // most are recorded when they have ended
			err = nil
		case err != nil:
			what = "the state store does not answer: " + err.Error()
		case row.Value.Open == "":
			return recordOf(row), nil
		case row.Value.Open == state.WashWaiting:
			what = "waiting: " + row.Value.Reason
		}
		line.show("wash of %s, %.0f s: %s", instance, time.Since(began).Seconds(), what)
		select {
		case <-ctx.Done():
			if err == nil || errors.Is(err, ctx.Err()) {
				return recordedWash{}, ctx.Err()
			}
			return recordedWash{}, fmt.Errorf("%w: the state store does not answer: %w", ctx.Err(), err)
		case <-tick.C:
		}
	}
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
	stateFlag(f, &o.state)
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
	store, err := openWashes(ctx, o.state)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, store.Close()) }()
	table := state.WashTable(store)
	instance, sort, one := strings.Cut(what, "/")
	if !one {
		washes, err := readWashes(ctx, table, instance, o.last)
		if err != nil && len(washes) == 0 {
			return err
		}
		printed := o.print(w, washes, func(w io.Writer) error {
			if len(washes) == 0 {
				_, err := fmt.Fprintf(w, "no wash of %s is recorded (mrgc status lists the instances)\n", instance)
				return err
			}
			return printWashes(w, washes, false)
		})
		return errors.Join(printed, err) // what is whole is shown beside what is not
	}
	row, err := table.Get(ctx, state.Key{Partition: instance, Sort: sort})
	switch {
	case errors.Is(err, state.ErrNotFound):
		return fmt.Errorf("no wash %s is recorded (mrgc wash show %s lists the instance's)", what, instance)
	case errors.Is(err, state.ErrNotWhole): // its steps are shown, and that it has not passed
		row.Value.Passed, row.Value.Reason = false, err.Error()
	case err != nil:
		return err
	}
	washes := []recordedWash{recordOf(row)}
	return errors.Join(o.print(w, washes, func(w io.Writer) error { return printWashes(w, washes, true) }), err)
}

func recordOf(row state.Record[state.Wash]) recordedWash {
	return recordedWash{ID: row.Key.Partition + "/" + row.Key.Sort, Wash: row.Value}
}

// readWashes gives an instance's last washes, the newest first. With
// [state.ErrNotWhole] come those that are whole.
func readWashes(ctx context.Context, table state.Table[state.Wash], instance string, last int) ([]recordedWash, error) {
	rows, err := table.List(ctx, state.Query{Partition: instance, Newest: true, Limit: last})
	if err != nil && !errors.Is(err, state.ErrNotWhole) {
		return nil, err
	}
	washes := []recordedWash{}
	for _, row := range rows {
		washes = append(washes, recordOf(row))
	}
	return washes, err
}

func printWashes(w io.Writer, washes []recordedWash, steps bool) error {
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
