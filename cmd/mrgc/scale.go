package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/mrgc/mrgc/controller"
	"github.com/mrgc/mrgc/internal/fleet"
	"github.com/mrgc/mrgc/internal/state"
	"github.com/mrgc/mrgc/internal/state/open"
)

type scaleOptions struct {
	state, output string
	why           bool
}

func scaleCommand() *cobra.Command {
	var o scaleOptions
	cmd := &cobra.Command{
		Use:   "scale",
		Short: "Show how large each region is to be, and why",
		Args:  cobra.NoArgs,
	}
	status := &cobra.Command{
		Use:   "status",
		Short: "Show each region's capacity, and what its controller last did",
		Long: `Status reads autoscaling_state: each region's capacity and limits, and the actions
that its controller decided on, with the reason for each. It asks no controller.`,
		Example: `  mrgc scale status --state dynamodb:?region=us-east-1
  mrgc scale status --state dynamodb:?region=us-east-1 --why`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return o.status(cmd.Context(), cmd.OutOrStdout()) },
	}
	f := status.Flags()
	f.StringVar(&o.state, "state", "dynamodb:", "state store: "+open.Forms)
	f.StringVarP(&o.output, "output", "o", "table", "table, for people, or json, for programs")
	f.BoolVar(&o.why, "why", false, "show each of the last actions, and its reason")
	cmd.AddCommand(status)
	return cmd
}

// regionScale is a region as status shows it.
type regionScale struct {
	Region string `json:"region"`
	Leader string `json:"leader,omitempty"` // who leads or did last
	Token  int64  `json:"token,omitempty"`
	state.Autoscaling
}

func (o *scaleOptions) status(ctx context.Context, w io.Writer) (err error) {
	if o.output != "table" && o.output != "json" {
		return fmt.Errorf("--output %q: want table or json", o.output)
	}
	store, err := open.Store(ctx, o.state, nil)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, store.Close()) }()
	regions, err := readScale(ctx, store)
	switch {
	case len(regions) == 0 && err != nil:
		return err
	case o.output == "json":
		return errors.Join(err, printJSON(w, regions))
	case len(regions) == 0:
		_, err := fmt.Fprintln(w, "no controller has decided on a capacity yet")
		return err
	}
	return errors.Join(err, printScale(w, regions, o.why))
}

// readScale reads all regions' rows. Those that cannot be read are an error beside
// the others.
func readScale(ctx context.Context, store state.Store) ([]regionScale, error) {
	rows, err := state.AutoscalingTable(store).List(ctx, state.Query{})
	slices.SortFunc(rows, func(a, b state.Record[state.Autoscaling]) int {
		return strings.Compare(a.Key.Partition, b.Key.Partition)
	})
	regions := []regionScale{}
	leases := make([]state.Key, 0, len(rows))
	for _, row := range rows {
		regions = append(regions, regionScale{Region: row.Key.Partition, Autoscaling: row.Value})
		leases = append(leases, state.LeaseKey(controller.RegionLease(fleet.Region(row.Key.Partition))))
	}
	held, leaseErr := state.LeaseTable(store).GetMany(ctx, leases)
	for _, record := range held {
		i := slices.Index(leases, record.Key)
		regions[i].Leader, regions[i].Token = record.Value.Holder, record.Value.Token
	}
	return regions, errors.Join(err, leaseErr)
}

func printScale(w io.Writer, regions []regionScale, why bool) error {
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "REGION\tDESIRED\tMIN\tMAX\tCOOLDOWN UNTIL\tLEADER\tLAST ACTION")
	for _, r := range regions {
		leader := r.Leader
		if leader == "" {
			leader = "nobody"
		}
		last := r.LastAction
		if r.LastReason != "" {
			last += ": " + r.LastReason
		}
		fmt.Fprintf(table, "%s\t%d\t%d\t%d\t%s\t%s\t%s\n", r.Region, r.DesiredCapacity, r.Min, r.Max, when(r.CooldownUntil), leader, last)
	}
	if !why {
		return table.Flush()
	}
	fmt.Fprintln(table, "\nREGION\tDECIDED\tACTION\tREASON\tOUTCOME")
	for _, r := range regions {
		printJournal(table, r.Region+"\t", r.Journal)
	}
	return table.Flush()
}

// printJournal prints a line for each action, the newest at the end.
func printJournal(w io.Writer, begin string, journal state.Journal) {
	for _, action := range slices.Concat(journal.Done, journal.Pending) {
		fmt.Fprintf(w, "%s%s\t%s\t%s\t%s\n", begin, when(action.DecidedAt), action.What, action.Reason, outcome(action))
	}
}

func outcome(action state.Action) string {
	ended := !action.EndedAt.IsZero()
	switch {
	case ended && action.Error == "":
		return "done at " + when(action.EndedAt)
	case ended:
		return fmt.Sprintf("given up at %s after %d tries: %s", when(action.EndedAt), action.Tries, action.Error)
	case action.Error != "":
		return fmt.Sprintf("pending, tried %d times: %s", action.Tries, action.Error)
	}
	return "pending"
}

func when(at time.Time) string {
	if at.IsZero() {
		return "-"
	}
	return at.UTC().Format("2006-01-02 15:04:05Z")
}
