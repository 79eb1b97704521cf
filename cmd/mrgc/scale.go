package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/mrgc/mrgc/controller"
	"github.com/mrgc/mrgc/internal/fleet"
	"github.com/mrgc/mrgc/internal/state"
)

type scaleOptions struct {
	state  stateStore
	output output
	why    bool
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
		Long: `Status reads autoscaling_state: each region's capacity and limits, which rules are on and
what each said of the load, and the actions that its controller decided on, with the
reason for each. It asks no controller.`,
		Example: `  mrgc scale status --state dynamodb:?region=us-east-1
  mrgc scale status --state dynamodb:?region=us-east-1 --why`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return o.status(cmd.Context(), cmd.OutOrStdout()) },
	}
	f := status.Flags()
	o.state.flag(f)
	o.output.flag(status, f)
	f.BoolVar(&o.why, "why", false, "show what each rule says, and each of the last actions and its reason")
	cmd.AddCommand(status)
	return cmd
}

// regionScale is a region as status shows it.
type regionScale struct {
	Region string `json:"region"`
	led
	state.Autoscaling
}

func (o *scaleOptions) status(ctx context.Context, w io.Writer) error {
	if err := o.output.check(); err != nil {
		return err
	}
	return o.state.with(ctx, func(store state.Store) error {
		regions, err := readScale(ctx, store)
		if len(regions) == 0 && err != nil {
			return err
		}
		return errors.Join(err, o.output.print(w, regions, func(w io.Writer) error { return printScale(w, regions, o.why) }))
	})
}

// readScale reads all regions' rows. Those that cannot be read are an error beside
// the others.
func readScale(ctx context.Context, store state.Store) ([]regionScale, error) {
	rows, err := state.AutoscalingTable(store).List(ctx, state.Query{})
	slices.SortFunc(rows, func(a, b state.Record[state.Autoscaling]) int {
		return strings.Compare(a.Key.Partition, b.Key.Partition)
	})
	regions := []regionScale{}
	leases := make([]string, 0, len(rows))
	for _, row := range rows {
		regions = append(regions, regionScale{Region: row.Key.Partition, Autoscaling: row.Value})
		leases = append(leases, controller.RegionLease(fleet.Region(row.Key.Partition)))
	}
	led, leaseErr := leaders(ctx, store, leases...)
	for i := range regions {
		regions[i].led = led[i]
	}
	return regions, errors.Join(err, leaseErr)
}

func printScale(w io.Writer, regions []regionScale, why bool) error {
	if len(regions) == 0 {
		_, err := fmt.Fprintln(w, "no controller has decided on a capacity yet")
		return err
	}
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "REGION\tDESIRED\tMIN\tMAX\tCOOLDOWN UNTIL\tLEADER\tLAST ACTION")
	for _, r := range regions {
		last := r.LastAction
		if r.LastReason != "" {
			last += ": " + r.LastReason
		}
		fmt.Fprintf(table, "%s\t%d\t%d\t%d\t%s\t%s\t%s\n", r.Region, r.DesiredCapacity, r.Min, r.Max, when(r.CooldownUntil), r.led, last)
	}
	if !why {
		return table.Flush()
	}
	if err := printSayings(table, regions); err != nil {
		return err
	}
	fmt.Fprintln(table, "\nREGION\tDECIDED\tACTION\tREASON\tOUTCOME")
	for _, r := range regions {
		printJournal(table, r.Region+"\t", r.Journal)
	}
	return table.Flush()
}
