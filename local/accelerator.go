package local

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sync/errgroup"

	"github.com/mrgc/mrgc/standin/sigv4"
	"github.com/mrgc/mrgc/standin/softaccelerator"
)

// softwareAccelerator is the plan of the accelerator that a local cluster may have.
type softwareAccelerator struct {
	api         string            // address of its API; empty: there is no accelerator
	near        map[string]string // addresses for tenants near a region, by its name
	credentials sigv4.Credentials // of who may set dials
	env         string            // file: what an operator needs to use the API
	log         string            // file: what changed, and endpoints' health
}

// nearest are the regions in the order of how near they are to each.
var nearest = map[string][]string{
	"use1": {"use1", "use2", "usw2"},
	"use2": {"use2", "use1", "usw2"},
	"usw2": {"usw2", "use2", "use1"},
}

func (p *plan) planAccelerator() error {
	a := softwareAccelerator{
		env: filepath.Join(p.stateDir, "accelerator.env"),
		log: filepath.Join(p.stateDir, "logs", "accelerator.log"),
	}
	if p.options.Accelerator {
		a.near, a.credentials = map[string]string{}, sigv4.NewCredentials()
		if err := p.drawAll(&a.api); err != nil {
			return err
		}
		for _, r := range p.regions {
			address, err := p.draw()
			if err != nil {
				return err
			}
			a.near[r.name] = address
		}
	}
	p.accelerator = a
	return nil
}

// acceleratorConfig has each region's Envoy behind the accelerator, checked where a
// load balancer would check it.
func (p *plan) acceleratorConfig() (softaccelerator.Config, error) {
	config := softaccelerator.Config{Credentials: p.accelerator.credentials}
	for _, r := range p.regions {
		_, healthPort, err := net.SplitHostPort(r.health)
		if err != nil {
			return config, err
		}
		check := softaccelerator.Check{Protocol: "HTTP", Path: "/healthz", IntervalSeconds: 10}
		if check.Port, err = net.LookupPort("tcp", healthPort); err != nil {
			return config, err
		}
		config.Groups = append(config.Groups, softaccelerator.Group{Region: r.aws, Check: check, Endpoints: []softaccelerator.Endpoint{{
			ID:      "arn:aws:elasticloadbalancing:" + r.aws + ":" + softaccelerator.Account + ":loadbalancer/net/mrgc-" + r.name + "/0123456789abcdef",
			Address: r.tenant,
		}}})
	}
	return config, nil
}

// acceleratorEnv are lines of .mrgc/env; none without an accelerator.
func (p *plan) acceleratorEnv() (lines []string) {
	if p.accelerator.api == "" {
		return nil
	}
	for _, r := range p.regions {
		lines = append(lines, "export MRGC_ACCELERATOR_"+strings.ToUpper(r.name)+"=https://"+p.accelerator.near[r.name])
	}
	return append(lines, "export MRGC_ACCELERATOR="+shellQuote(p.acceleratorAddress()))
}

// acceleratorAddress names the accelerator's listener, and where its API is.
func (p *plan) acceleratorAddress() string {
	return softaccelerator.ListenerARN + "?endpoint=http://" + p.accelerator.api
}

// acceleratorFile is a file of its own: these names may mean somebody's real account.
func (p *plan) acceleratorFile() []byte {
	var b strings.Builder
	b.WriteString("# For: aws globalaccelerator …, and what sets its dials; the accelerator is a stand-in.\n")
	for _, line := range append(p.accelerator.credentials.Environment(),
		"AWS_REGION="+softaccelerator.HomeRegion, "AWS_ENDPOINT_URL_GLOBAL_ACCELERATOR=http://"+p.accelerator.api) {
		fmt.Fprintf(&b, "export %s\n", line)
	}
	return []byte(b.String())
}

// nearestTo are this cluster's regions, by AWS's names, the nearest to one first.
func (p *plan) nearestTo(r region) (names []string) {
	for _, name := range nearest[r.name] {
		if i := slices.IndexFunc(p.regions, func(other region) bool { return other.name == name }); i >= 0 {
			names = append(names, p.regions[i].aws)
		}
	}
	return names
}

// serveAccelerator serves the accelerator, if there is one: its API, and what it
// forwards.
func (p *plan) serveAccelerator(ctx context.Context, group *errgroup.Group) error {
	if p.accelerator.api == "" {
		if err := os.Remove(p.accelerator.env); err != nil && !errors.Is(err, os.ErrNotExist) { // of an earlier start
			return fmt.Errorf("software accelerator: %w", err)
		}
		return nil
	}
	config, err := p.acceleratorConfig()
	if err != nil {
		return fmt.Errorf("software accelerator: %w", err)
	}
	var opened []interface{ Close() error }
	failed := func(err error) error {
		for _, o := range opened {
			err = errors.Join(err, o.Close())
		}
		return fmt.Errorf("software accelerator: %w", err)
	}
	if err := os.WriteFile(p.accelerator.env, p.acceleratorFile(), 0o600); err != nil {
		return failed(err)
	}
	log, err := os.OpenFile(p.accelerator.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return failed(err)
	}
	opened = append(opened, log)
	config.Logger = slog.New(slog.NewJSONHandler(log, nil))
	listen := func(address string) (net.Listener, error) {
		l, err := net.Listen("tcp", address)
		if err == nil {
			opened = append(opened, l)
		}
		return l, err
	}
	api, err := listen(p.accelerator.api)
	if err != nil {
		return failed(err)
	}
	for _, r := range p.regions {
		listener, err := listen(p.accelerator.near[r.name])
		if err != nil {
			return failed(err)
		}
		config.Clients = append(config.Clients, softaccelerator.Client{Nearest: p.nearestTo(r), Listener: listener})
	}
	service, err := softaccelerator.New(config)
	if err != nil {
		return failed(err)
	}
	group.Go(func() error { return errors.Join(service.Run(ctx), log.Close()) })
	group.Go(func() error { return serveUntil(ctx, "software accelerator", service, api) })
	return nil
}
