package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"

	"github.com/mrgc/mrgc/controller"
	"github.com/mrgc/mrgc/controller/autoscaler"
	"github.com/mrgc/mrgc/controller/ec2"
	"github.com/mrgc/mrgc/internal/api"
	"github.com/mrgc/mrgc/internal/awsclient"
	"github.com/mrgc/mrgc/internal/fleet"
	"github.com/mrgc/mrgc/internal/identity"
)

const ec2Form = "LAUNCH_TEMPLATE?zones=ZONE[:SUBNET],…[&cluster=NAME&region=REGION&endpoint=URL]"

// scale has a controller keep its region as large as it decides, if it was told of a
// launch template. Identified gives who it is to instances; nobody, if they are not to be
// washed before they are terminated. Stop is for when the controller has ended.
func (o *controllerOptions) scale(ctx context.Context, held *heldConfig, settings *controller.Config, identified func() (*identity.Source, error)) (stop func(), err error) {
	if o.ec2 == "" {
		return func() {}, nil
	}
	if o.store == "" {
		return nil, errors.New("--ec2 needs --store, where instances say how they are")
	}
	at, err := awsclient.ParseAddress(o.ec2, "zones", "cluster")
	if err != nil {
		return nil, fmt.Errorf("--ec2 %q: %w", o.ec2, err)
	}
	if at.Others["zones"] == "" {
		return nil, fmt.Errorf("--ec2 %q: no zones: want %s", o.ec2, ec2Form)
	}
	region := held.Load().Region(settings.Region)
	if region == nil {
		return nil, fmt.Errorf("%s has no region %q", o.config, settings.Region)
	}
	at.Logger = settings.Logger
	if at.Region == "" {
		at.Region = region.AWSRegion
	}
	name := at.Others["cluster"]
	if name == "" {
		name = "mrgc"
	}
	self, err := identified()
	if err != nil {
		return nil, err
	}
	zones := ec2.ParseZones(at.Others["zones"])
	cloud, err := ec2.Open(ctx, ec2.Config{Settings: at.Settings, Template: at.Name, Zones: zones, Cluster: name, Scales: settings.Region})
	if err != nil {
		return nil, fmt.Errorf("--ec2: %w", err)
	}
	scaled := controller.Scaled{Cloud: cloud, Fleet: settings.Fleet, StaleAfter: settings.StaleAfter}
	if self != nil {
		scaled.Washes, scaled.Wash = settings.Store, orderWash(self)
	}
	var names []string
	for _, zone := range zones {
		names = append(names, zone.Name)
	}
	loop, err := scalingLoop(func() autoscaler.Config { return held.rules(settings.Region, names) }, scaled)
	if err != nil {
		cloud.Close()
		return nil, err
	}
	settings.Loops = append(settings.Loops, loop)
	return cloud.Close, nil
}

func scalingLoop(rules func() autoscaler.Config, of controller.Scaled) (controller.Runner, error) {
	scaling, err := controller.NewScaling(rules, of)
	if err != nil {
		return nil, err
	}
	return scaling.Loop()
}

// orderWash asks an instance's parent for a full wash; one that is under way will do, as
// the instance has drained.
func orderWash(self *identity.Source) func(context.Context, *fleet.Instance) error {
	return func(ctx context.Context, in *fleet.Instance) error {
		parent := identity.ID{Region: string(in.Region), Instance: in.ID, Role: identity.RoleParent}
		client := http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{
			TLSClientConfig: self.ClientTLS(func(id identity.ID) bool { return id == parent }), DisableKeepAlives: true,
		}}
		req, err := http.NewRequestWithContext(ctx, http.MethodPost, "https://"+in.Address+api.PathWash, nil)
		if err != nil {
			return err
		}
		resp, err := client.Do(req)
		if err != nil {
			return fmt.Errorf("wash %s: %w", in.ID, err)
		}
		defer resp.Body.Close()
		if resp.StatusCode == http.StatusAccepted || resp.StatusCode == http.StatusConflict {
			return nil
		}
		body, err := io.ReadAll(io.LimitReader(resp.Body, 4<<10))
		if err != nil {
			return fmt.Errorf("wash %s: %w", in.ID, err)
		}
		return fmt.Errorf("wash %s: %w", in.ID, api.ParseError(resp.StatusCode, body))
	}
}
