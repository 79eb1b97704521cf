package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"

	"github.com/mrgc/mrgc/controller"
	"github.com/mrgc/mrgc/controller/accelerator"
	"github.com/mrgc/mrgc/controller/door"
	"github.com/mrgc/mrgc/controller/failover"
	"github.com/mrgc/mrgc/internal/awsclient"
	"github.com/mrgc/mrgc/internal/config"
	"github.com/mrgc/mrgc/internal/fleet"
	"github.com/mrgc/mrgc/internal/identity"
)

// watch has a controller watch all regions, and take part in deciding which of them
// tenants are sent to, if it was told where their doors are. Stop is for when the
// controller has ended.
func (o *controllerOptions) watch(ctx context.Context, cluster *config.Config, settings *controller.Config, identified func() (*identity.Source, error)) (stop func(), err error) {
	none := func() {}
	if len(o.doors) == 0 {
		if o.accelerator != "" {
			return none, errors.New("--accelerator is of use with --door alone")
		}
		return none, nil
	}
	if o.store == "" || o.identity == "" {
		return none, errors.New("--door needs --store and --identity")
	}
	addresses, err := parseDoors(cluster, o.doors)
	if err != nil {
		return none, err
	}
	self, err := identified()
	if err != nil {
		return none, err
	}
	dials, stopDials, err := o.dials(ctx, cluster, settings)
	if err != nil {
		return none, err
	}
	loop, err := controller.NewRouting(failover.Config{Regions: settings.Regions}, settings.Store, dials).Loop()
	if err != nil {
		stopDials()
		return none, err
	}
	doors := door.New(self, addresses)
	settings.Door = doors.Ask
	settings.Loops = append(settings.Loops, loop)
	return func() { stopDials(); doors.Close() }, nil
}

// ownIdentity is who the controller is to front doors and instances; nil: nobody.
func (o *controllerOptions) ownIdentity(ctx context.Context) (*identity.Source, error) {
	if o.identity == "" {
		return nil, nil
	}
	self, err := identity.Open(ctx, o.identity, os.Getenv("MRGC_IDENTITY_TOKEN"))
	if err != nil {
		return nil, err
	}
	if want := (identity.ID{Region: o.region, Role: identity.RoleController}); self.ID() != want {
		return nil, fmt.Errorf("--identity is %s, want %s", self.ID(), want)
	}
	return self, nil
}

// dials are the accelerator's, looked after until stop is called; nil: there is none.
func (o *controllerOptions) dials(ctx context.Context, cluster *config.Config, settings *controller.Config) (dials *controller.Dials, stop func(), err error) {
	if o.accelerator == "" {
		return nil, func() {}, nil
	}
	at, err := awsclient.ParseAddress(o.accelerator)
	if err != nil {
		return nil, nil, fmt.Errorf("--accelerator %q: %w", o.accelerator, err)
	}
	at.Logger = settings.Logger
	names := map[string]fleet.Region{}
	for _, region := range cluster.Regions {
		names[region.AWSRegion] = region.Name
	}
	opened, err := accelerator.Open(ctx, accelerator.Config{Settings: at.Settings, Listener: at.Name, Regions: names})
	if err != nil {
		return nil, nil, fmt.Errorf("--accelerator: %w", err)
	}
	dials = controller.NewDials(opened, settings.Logger)
	ctx, cancel := context.WithCancel(ctx)
	var running sync.WaitGroup
	running.Go(func() { dials.Run(ctx) })
	return dials, func() { cancel(); running.Wait(); opened.Close() }, nil
}

// parseDoors reads where each region's door is.
func parseDoors(cluster *config.Config, given []string) (map[fleet.Region]string, error) {
	addresses := map[fleet.Region]string{}
	for _, text := range given {
		region, address, ok := strings.Cut(text, "=")
		name := fleet.Region(region)
		switch {
		case !ok || address == "":
			return nil, fmt.Errorf("--door %s: want REGION=host:port", text)
		case cluster.Region(name) == nil:
			return nil, fmt.Errorf("--door %s: the cluster has no such region", text)
		case addresses[name] != "":
			return nil, fmt.Errorf("--door %s: the region has one already", text)
		}
		addresses[name] = address
	}
	for _, region := range cluster.Regions {
		if addresses[region.Name] == "" {
			return nil, fmt.Errorf("--door: none for region %s; who judges regions must see all of them", region.Name)
		}
	}
	return addresses, nil
}
