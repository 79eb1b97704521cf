package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/mrgc/mrgc/internal/dynamo"
	"github.com/mrgc/mrgc/internal/state/open"
	"github.com/mrgc/mrgc/internal/state/schema"
)

// stateOptions are those of every subcommand.
type stateOptions struct {
	state   string
	output  output
	regions []string
}

func stateCommand() *cobra.Command {
	var o stateOptions
	cmd := &cobra.Command{
		Use:   "state",
		Short: "Make and check the cluster's DynamoDB tables",
		Args:  cobra.NoArgs,
	}
	o.output.flag(cmd, cmd.PersistentFlags())
	cmd.PersistentFlags().StringSliceVar(&o.regions, "regions", schema.Regions(),
		"AWS's names of the regions that have a replica; one alone makes none")
	initialise := &cobra.Command{
		Use:   "init",
		Short: "Create the tables that are missing, and say what is wrong with the others",
		Long: `Init creates the cluster's tables, gives those that are there what they lack
(an index, a TTL, a stream, replicas), and says what only a person can put right:
then it fails. It changes nothing that is there, and can be run again at any time.
Replicas take AWS some minutes. With an endpoint in the address, which an emulator
has, none are made. One table, fleet_keys, has none: each region whose enclaves
offer fleet recipients needs its own, so run init with each of them in the address.`,
		Example: `  mrgc state init --state dynamodb:?region=us-east-1
  mrgc state init --state "dynamodb:?region=us-east-1&endpoint=http://127.0.0.1:8000"`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return o.init(cmd.Context(), cmd.OutOrStdout()) },
	}
	initialise.Flags().StringVar(&o.state, "state", "dynamodb:", "where the tables are: dynamodb:[PREFIX][?region=REGION&endpoint=URL]")
	cmd.AddCommand(initialise, &cobra.Command{
		Use:   "schema",
		Short: "Print what the tables are, for Terraform to make or check them by",
		Args:  cobra.NoArgs,
		RunE:  func(cmd *cobra.Command, _ []string) error { return o.schema(cmd.OutOrStdout()) },
	})
	return cmd
}

// tables are the tables with the replicas that were asked for.
func (o *stateOptions) tables(prefix string) ([]schema.Table, error) {
	if err := o.output.check(); err != nil {
		return nil, err
	}
	tables := schema.All(prefix)
	for i := range tables {
		if len(o.regions) != 1 && len(o.regions) != 3 && tables[i].Consistency == schema.Strong {
			return nil, fmt.Errorf("--regions: %d of them: a strongly consistent table has replicas in three regions, or one and no replicas", len(o.regions))
		}
		if tables[i].Consistency != schema.Regional {
			tables[i].Regions = o.regions
		}
	}
	return tables, nil
}

func (o *stateOptions) init(ctx context.Context, w io.Writer) error {
	at, err := open.Tables(o.state)
	if err != nil {
		return err
	}
	tables, err := o.tables(at.Prefix)
	if err != nil {
		return err
	}
	client, err := dynamo.NewClient(ctx, at.Settings)
	if err != nil {
		return fmt.Errorf("--state: %w", err)
	}
	defer client.Close()
	var (
		reports []dynamo.Report
		errs    []error
	)
	for _, table := range tables {
		if at.Endpoint != "" || len(table.Regions) == 1 {
			table.Regions = nil
		}
		report, err := client.Ensure(ctx, table)
		if err != nil {
			return err // the next would fail alike
		}
		reports = append(reports, report)
		errs = append(errs, report.Err())
	}
	return errors.Join(append(errs, o.output.print(w, reports, func(w io.Writer) error {
		table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
		fmt.Fprintln(table, "TABLE\tDONE")
		for _, report := range reports {
			done := strings.Join(report.Did, ", ")
			switch {
			case len(report.Differs) > 0:
				done = strings.TrimPrefix(done+", differs", ", ")
			case done == "":
				done = "as it should be"
			}
			fmt.Fprintf(table, "%s\t%s\n", report.Table, done)
		}
		if at.Endpoint != "" {
			defer fmt.Fprintln(w, "without replicas and strong consistency between regions, which "+at.Endpoint+" is not asked for")
		}
		return table.Flush()
	}))...)
}

func (o *stateOptions) schema(w io.Writer) error {
	tables, err := o.tables("")
	if err != nil {
		return err
	}
	return o.output.print(w, tables, func(w io.Writer) error { return printSchema(w, tables) })
}

func printSchema(w io.Writer, tables []schema.Table) error {
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "TABLE\tKEY\tCONSISTENCY\tEXPIRES BY\tHOLDS")
	for _, t := range tables {
		key, expires := t.PartitionKey.Name, t.TTLAttribute
		if t.SortKey != nil {
			key += ", " + t.SortKey.Name
		}
		if expires == "" {
			expires = "never"
		}
		fmt.Fprintf(table, "%s\t%s\t%s\t%s\t%s\n", t.Name, key, strings.ToLower(string(t.Consistency)), expires, t.Purpose)
	}
	return table.Flush()
}
