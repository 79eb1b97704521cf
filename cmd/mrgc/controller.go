package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"github.com/mrgc/mrgc/controller"
	"github.com/mrgc/mrgc/controller/cloudwatch"
	"github.com/mrgc/mrgc/internal/awsclient"
	"github.com/mrgc/mrgc/internal/config"
	"github.com/mrgc/mrgc/internal/fleet"
	fleetopen "github.com/mrgc/mrgc/internal/fleet/open"
	"github.com/mrgc/mrgc/internal/identity"
	stateopen "github.com/mrgc/mrgc/internal/state/open"
)

type controllerOptions struct {
	config, region, name string
	state, store, admin  string
	cloudwatch           string
	identity             string
	doors                []string
	accelerator, ec2     string
	lease                time.Duration
}

func controllerCommand() *cobra.Command {
	var o controllerOptions
	cmd := &cobra.Command{
		Use:   "controller",
		Short: "Run a region's controller: run two or more, of which one leads",
		Long: `Controller leads its region or stands by for whoever does: when the leader is gone,
another takes over within 10 s, and goes on with what the leader had decided. What
it remembers is in the state store; "mrgc state init" makes its tables.

Told where the regions' front doors are, it watches all regions, and one controller of
all decides which of them tenants are sent to (see "mrgc failover").

Told of a launch template, it keeps as many instances as the region's requests want
(see "mrgc scale"), and names as the fleet does: an instance is called by its EC2 id.

It follows the configuration: what is changed there holds from its next step on. Which
regions there are, and what routers cannot change either, takes a restart.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return runController(cmd.Context(), o, logger(cmd)) },
	}
	f := cmd.Flags()
	f.StringVar(&o.config, "config", "mrgc.yaml", "the cluster's configuration")
	f.StringVar(&o.region, "region", "", "region that it controls, by the configuration's name")
	f.StringVar(&o.name, "name", "", "name of this process, for people (default the host's)")
	f.StringVar(&o.state, "state", "", "state store: "+stateopen.Forms)
	f.StringVar(&o.store, "store", "", "fleet store: "+fleetopen.Forms+"; without it no metrics of the fleet are written")
	f.StringVar(&o.cloudwatch, "cloudwatch", "", "publish the region's metrics by the minute: NAMESPACE[?region=REGION&endpoint=URL]; needs --store")
	f.StringArrayVar(&o.doors, "door", nil, "REGION=host:port where tenants of a region connect; for each region, or for none: then nobody decides on failover.\nNeeds --store and --identity")
	f.StringVar(&o.identity, "identity", "", "identity for mutual TLS with doors and instances: dir:PATH, or unix:PATH with MRGC_IDENTITY_TOKEN")
	f.StringVar(&o.ec2, "ec2", "", "EC2 launch template of the region's instances, which it launches and terminates:\n"+ec2Form+".\nNeeds --store; with --identity an instance has to pass a full wash before it is terminated (default: nobody scales)")
	f.StringVar(&o.accelerator, "accelerator", "", "ARN[?region=REGION&endpoint=URL] of the Global Accelerator listener whose traffic dials it sets (default: there is none)")
	f.StringVar(&o.admin, "admin-listen", "127.0.0.1:9004", "operator's admin, loopback only: /status and /metrics")
	f.DurationVar(&o.lease, "lease", 5*time.Second, "how long a leader leads after it was last heard of; the same for all of a region")
	required(cmd, "region", "state")
	return cmd
}

func runController(ctx context.Context, o controllerOptions, log *slog.Logger) (err error) {
	cluster, err := config.Load(o.config)
	if err != nil {
		return err
	}
	held := holding(cluster)
	settings, err := controllerConfig(cluster, o)
	if err != nil {
		return err
	}
	settings.StaleAfter = held.staleAfter
	settings.Logger = log
	if o.cloudwatch != "" {
		publisher, err := openCloudWatch(ctx, o, log)
		if err != nil {
			return err
		}
		defer publisher.Close()
		settings.Publish = publisher.Publish
	}
	if settings.Store, err = stateopen.Store(ctx, o.state, log); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, settings.Store.Close()) }()
	if o.store != "" {
		if settings.Fleet, err = fleetopen.Store(ctx, o.store, log); err != nil {
			return err
		}
		defer func() { err = errors.Join(err, settings.Fleet.Close()) }()
	}
	if o.identity != "" && len(o.doors) == 0 && o.ec2 == "" {
		return errors.New("--identity is of use with --door or --ec2 alone")
	}
	identified := sync.OnceValues(func() (*identity.Source, error) { return o.ownIdentity(ctx) })
	stop, err := o.watch(ctx, cluster, &settings, identified)
	if err != nil {
		return err
	}
	defer stop()
	stopScaling, err := o.scale(ctx, held, &settings, identified)
	if err != nil {
		return err
	}
	defer stopScaling()
	if settings.Admin, err = net.Listen("tcp", o.admin); err != nil {
		return err
	}
	c, err := controller.New(settings)
	if err != nil {
		return errors.Join(err, settings.Admin.Close())
	}
	following, stopFollowing := context.WithCancel(ctx)
	var followed sync.WaitGroup
	followed.Go(func() { held.follow(following, o.config, settings.Region, c, log) })
	defer followed.Wait()
	defer stopFollowing()
	return c.Run(ctx)
}

func openCloudWatch(ctx context.Context, o controllerOptions, log *slog.Logger) (*cloudwatch.Publisher, error) {
	if o.store == "" {
		return nil, errors.New("--cloudwatch: needs --store, from where the fleet is counted")
	}
	at, err := awsclient.ParseAddress(o.cloudwatch)
	if err != nil {
		return nil, fmt.Errorf("--cloudwatch %q: %w", o.cloudwatch, err)
	}
	at.Logger = log
	publisher, err := cloudwatch.Open(ctx, cloudwatch.Config{Settings: at.Settings, Namespace: at.Name})
	if err != nil {
		return nil, fmt.Errorf("--cloudwatch: %w", err)
	}
	return publisher, nil
}

// controllerConfig is what mrgc.yaml says to a region's controller.
func controllerConfig(cluster *config.Config, o controllerOptions) (controller.Config, error) {
	settings := controller.Config{
		Region: fleet.Region(o.region), Name: o.name, Lease: o.lease, Version: cluster.Version(),
	}
	for _, region := range cluster.Regions {
		settings.Regions = append(settings.Regions, region.Name)
	}
	if settings.Name == "" {
		host, err := os.Hostname()
		if err != nil {
			return settings, fmt.Errorf("--name: %w", err)
		}
		settings.Name = host
	}
	return settings, nil
}
