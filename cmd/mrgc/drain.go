package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/mrgc/mrgc/internal/fleet"
	"github.com/mrgc/mrgc/internal/fleet/open"
)

type drainOptions struct {
	store      string
	end, force bool
	wait       time.Duration
}

func drainCommand() *cobra.Command {
	var o drainOptions
	cmd := &cobra.Command{
		Use:   "drain INSTANCE",
		Short: "Have an instance take no new requests",
		Long: `Drain marks an instance in the fleet store: every router stops sending it requests as
soon as it has read that, and those under way go on. It stays so, also when its parent
starts anew, until --end. Where a controller scales the region, it takes an instance
that was drained out of service, and puts another one in its place.

The last ready instance of a model, of all regions, is not drained without --force.`,
		Example: `  mrgc drain use1-0 --store dynamodb:mrgc-gpu_instances?region=us-east-1 --wait 10m
  source .mrgc/env && mrgc drain use1-0; mrgc drain use1-0 --end`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return o.drain(cmd.Context(), cmd.OutOrStdout(), args[0])
		},
	}
	f := cmd.Flags()
	f.StringVar(&o.store, "store", os.Getenv("MRGC_STORE"), "fleet store: "+open.Forms+"; default $MRGC_STORE")
	f.BoolVar(&o.end, "end", false, "have it take requests again")
	f.BoolVar(&o.force, "force", false, "drain it even if nobody else serves its model")
	f.DurationVar(&o.wait, "wait", 0, "wait until it has no requests any more, for so long at most")
	cmd.MarkFlagsMutuallyExclusive("end", "force")
	cmd.MarkFlagsMutuallyExclusive("end", "wait")
	return cmd
}

// staleAfter is the configuration's default: drain does not read mrgc.yaml.
const staleAfter = 15 * time.Second

func (o *drainOptions) drain(ctx context.Context, w io.Writer, id string) (err error) {
	switch {
	case o.store == "":
		return errors.New("no fleet store: give --store, or `source .mrgc/env`, which `mrgc up` writes")
	case o.wait < 0:
		return fmt.Errorf("--wait %s: must not be negative", o.wait)
	}
	store, err := open.Store(ctx, o.store, nil)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, store.Close()) }()
	if !o.end && !o.force {
		snapshot, err := store.Snapshot(ctx)
		if err != nil {
			return err
		}
		if models := lastOf(snapshot, id); len(models) > 0 {
			return fmt.Errorf("no other instance is ready that serves %s: --force drains %s all the same", strings.Join(models, ", "), id)
		}
	}
	if err := store.SetDraining(ctx, id, !o.end); err != nil {
		return fmt.Errorf("%s: %w", id, err)
	}
	if o.end {
		_, err = fmt.Fprintf(w, "%s takes requests again\n", id)
		return err
	}
	if _, err = fmt.Fprintf(w, "%s drains\n", id); err != nil || o.wait == 0 {
		return err
	}
	if err := o.waitFor(ctx, store, id); err != nil {
		return err
	}
	_, err = fmt.Fprintf(w, "%s has no requests\n", id)
	return err
}

// waitFor waits until an instance that drains has no requests.
func (o *drainOptions) waitFor(ctx context.Context, store fleet.Store, id string) error {
	ctx, cancel := context.WithTimeout(ctx, o.wait)
	defer cancel()
	var d fleet.Drain
	for snapshot := range store.Watch(ctx) {
		if done, err := drained(&d, id, find(snapshot, id)); done || err != nil {
			return err
		}
	}
	return fmt.Errorf("%s drains, and %s within %s", id, whyNot(&d), o.wait)
}

func find(s *fleet.Snapshot, id string) *fleet.Instance {
	if i := slices.IndexFunc(s.Instances, func(in *fleet.Instance) bool { return in.ID == id }); i >= 0 {
		return s.Instances[i]
	}
	return nil
}

// lastOf are the models that nobody would be ready to serve without an instance.
func lastOf(s *fleet.Snapshot, id string) (models []string) {
	ready := s.Ready(staleAfter)
	for _, in := range ready {
		if in.ID != id {
			continue
		}
		for _, model := range in.Models {
			if !slices.ContainsFunc(ready, func(other *fleet.Instance) bool { return other.ID != id && slices.Contains(other.Models, model) }) {
				models = append(models, model)
			}
		}
	}
	return models
}

// drained says whether an instance that drains has no requests any more; one that has
// left, nil, has none either.
func drained(d *fleet.Drain, id string, in *fleet.Instance) (done bool, err error) {
	switch {
	case in == nil:
		return true, nil
	case !in.Draining:
		return false, fmt.Errorf("somebody has ended the drain of %s", id)
	default:
		return d.See(in), nil
	}
}

// whyNot says why an instance is not known to have drained.
func whyNot(d *fleet.Drain) string {
	if d.Requests() > 0 {
		return fmt.Sprintf("has had %d requests still", d.Requests())
	}
	return "has not said twice that it has no requests"
}
