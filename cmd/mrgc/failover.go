package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os/user"
	"slices"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/mrgc/mrgc/controller"
	"github.com/mrgc/mrgc/controller/failover"
	"github.com/mrgc/mrgc/internal/fleet"
	"github.com/mrgc/mrgc/internal/state"
)

// failoverOptions are those of every subcommand, and of some.
type failoverOptions struct {
	state   stateStore
	output  output // of status
	actions bool   // likewise
	why, by string // of orders
}

func failoverCommand() *cobra.Command {
	var o failoverOptions
	cmd := &cobra.Command{
		Use:   "failover",
		Short: "Show which regions tenants are sent to, and give orders about it",
		Long: `Failover reads and writes routing_state, and asks no controller. An order holds from
when the leading controller next decides, within a second or so. None may leave the
cluster without a region that takes all that comes.`,
		Example: `  mrgc failover status --state dynamodb:?region=us-east-1
  mrgc failover drain use1 --why "new drivers" --state dynamodb:?region=us-east-1
  mrgc failover restore use1 --why "drivers are in" --state dynamodb:?region=us-east-1`,
		Args: cobra.NoArgs,
	}
	o.state.flag(cmd.PersistentFlags())
	status := &cobra.Command{
		Use:   "status",
		Short: "Show each region's state and dial, and why",
		Args:  cobra.NoArgs,
		RunE:  func(cmd *cobra.Command, _ []string) error { return o.status(cmd.Context(), cmd.OutOrStdout()) },
	}
	o.output.flag(status, status.Flags())
	status.Flags().BoolVar(&o.actions, "why", false, "show each of the last actions, and its reason")
	cmd.AddCommand(status)
	for _, order := range []struct {
		kind  failover.OrderKind
		short string
	}{
		{failover.Hold, "Keep a region as it is until it is resumed, whatever happens to it"},
		{failover.Drain, "Take a region out until it is restored or resumed"},
		{failover.Restore, "Bring a region back in steps, without waiting until it is validated"},
		{failover.Resume, "Have the controller decide over a region again, from where it is"},
	} {
		sub := &cobra.Command{
			Use:   string(order.kind) + " REGION",
			Short: order.short,
			Args:  cobra.ExactArgs(1),
			RunE:  func(cmd *cobra.Command, args []string) error { return o.order(cmd.Context(), order.kind, args[0]) },
		}
		sub.Flags().StringVar(&o.why, "why", "", "reason, which is shown with the region")
		sub.Flags().StringVar(&o.by, "by", "", "who orders it (default this system's user)")
		required(sub, "why")
		cmd.AddCommand(sub)
	}
	return cmd
}

// failoverStatus is what status shows.
type failoverStatus struct {
	led
	state.Routing
}

func (o *failoverOptions) status(ctx context.Context, w io.Writer) error {
	if err := o.output.check(); err != nil {
		return err
	}
	return o.state.with(ctx, func(store state.Store) error {
		row, err := state.RoutingTable(store).Get(ctx, state.RoutingKey)
		if errors.Is(err, state.ErrNotFound) {
			return controller.ErrNoRouting
		}
		if err != nil {
			return err
		}
		leader, err := leaders(ctx, store, controller.RoutingLease)
		if err != nil {
			return err
		}
		is := failoverStatus{leader[0], row.Value}
		return o.output.print(w, is, func(w io.Writer) error { return is.print(w, o.actions) })
	})
}

func (s failoverStatus) print(w io.Writer, actions bool) error {
	fmt.Fprintf(w, "led by %s\n\n", s.led)
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "REGION\tSTATE\tDIAL\tSINCE\tREASON")
	for _, name := range slices.Sorted(maps.Keys(s.Regions)) {
		r := s.Regions[name]
		is := string(r.State)
		if r.Drain {
			is += ", draining"
		}
		if r.Hold != "" {
			is += ", held"
		}
		fmt.Fprintf(table, "%s\t%s\t%d %%\t%s\t%s\n", name, is, r.Dial, when(r.Since), r.Reason)
	}
	if actions {
		fmt.Fprintln(table, "\nDECIDED\tACTION\tREASON\tOUTCOME")
		printJournal(table, "", s.Journal)
	}
	return table.Flush()
}

func (o *failoverOptions) order(ctx context.Context, kind failover.OrderKind, region string) error {
	order := failover.Order{Kind: kind, By: o.by, Why: o.why, At: time.Now().UTC()}
	if order.By == "" {
		self, err := user.Current()
		if err != nil {
			return fmt.Errorf("--by: %w", err)
		}
		order.By = self.Username
	}
	return o.state.with(ctx, func(store state.Store) error { return controller.Order(ctx, store, fleet.Region(region), order) })
}
