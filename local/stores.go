package local

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/credentials"
	"golang.org/x/sync/errgroup"

	"github.com/mrgc/mrgc/internal/awsclient"
	"github.com/mrgc/mrgc/internal/dynamo"
	"github.com/mrgc/mrgc/internal/fleet"
	"github.com/mrgc/mrgc/internal/fleet/dynamodb/dynamodblocal"
	"github.com/mrgc/mrgc/internal/state/schema"
	"github.com/mrgc/mrgc/standin/globaltables"
)

// Where the state of a local cluster can be.
const (
	StoreSQLite   = "sqlite"   // one file for all regions
	StoreDynamoDB = "dynamodb" // a DynamoDB Local for each region, made global tables of
)

// globalTables is the plan of the DynamoDB that a local cluster may have. Its processes
// are children like others: a region that dies takes its own with it.
type globalTables struct {
	dir    string            // holds all data, that of each region in a directory of its own
	strong string            // address of the DynamoDB Local of strongly consistent tables; empty: there is none of all this
	fronts map[string]string // addresses of regions' endpoints, by name
	locals map[string]string // addresses of the DynamoDB Local behind each
}

// storeCredentials satisfy the AWS SDK. DynamoDB Local takes any.
const storeCredentials = "mrgcup"

// storesTimeout is how long several JVMs may take to start on a busy machine.
const storesTimeout = 2 * time.Minute

func (o *Options) checkStores() error {
	switch o.Store {
	case "", StoreSQLite:
	case StoreDynamoDB:
		if missing := dynamodblocal.Missing(); missing != "" {
			return fmt.Errorf("--store dynamodb: %s; or leave the flag out, for a file", missing)
		}
		if o.FleetDynamoDB != "" {
			return errors.New("--store dynamodb and --fleet-dynamodb exclude each other")
		}
	default:
		return fmt.Errorf("--store %s: want %s or %s", o.Store, StoreSQLite, StoreDynamoDB)
	}
	for region, network := range o.RegionNetworks {
		_, address, _ := strings.Cut(network, "@")
		if ip, err := netip.ParseAddr(address); err != nil || !ip.IsLoopback() || !slices.Contains(o.Regions, region) {
			return fmt.Errorf("--region-network %s=%s: want REGION=NAMESPACE@ADDRESS, a loopback address", region, network)
		}
	}
	return nil
}

// planStores moves regions into their networks, and gives each its DynamoDB where that
// is asked for.
func (p *plan) planStores() error {
	p.dynamo = globalTables{dir: filepath.Join(p.stateDir, "dynamodb"), fronts: map[string]string{}, locals: map[string]string{}}
	if p.options.Store == StoreDynamoDB {
		if err := p.drawAll(&p.dynamo.strong); err != nil {
			return err
		}
		for _, r := range p.regions {
			var front, behind string
			if err := p.drawAll(&front, &behind); err != nil {
				return err
			}
			p.dynamo.fronts[r.name], p.dynamo.locals[r.name] = p.inRegion(r.name, front), p.inRegion(r.name, behind)
		}
	}
	for i := range p.regions {
		r := &p.regions[i]
		addresses := []*string{&r.tenant, &r.health, &r.envoyAdmin, &r.controller}
		for j := range r.routers {
			addresses = append(addresses, &r.routers[j].grpc, &r.routers[j].http, &r.routers[j].admin)
		}
		for j := range r.instances {
			addresses = append(addresses, &r.instances[j].parent, &r.instances[j].guard, &r.instances[j].metrics)
		}
		for _, address := range addresses {
			*address = p.inRegion(r.name, *address)
		}
	}
	return nil
}

// inRegion is an address of the region's network, with the same port.
func (p *plan) inRegion(region, address string) string {
	_, host, separate := strings.Cut(p.options.RegionNetworks[region], "@")
	if !separate || address == "" {
		return address
	}
	_, port, err := net.SplitHostPort(address)
	if err != nil {
		return address
	}
	return net.JoinHostPort(host, port)
}

// inNetworks has regions' processes run in their namespaces. nsenter(1) becomes what it
// starts, so that the process id is that one's.
func (p *plan) inNetworks(children []process) []process {
	for i, child := range children {
		for region, network := range p.options.RegionNetworks {
			if strings.Contains(child.name+"-", "-"+region+"-") {
				namespace, _, _ := strings.Cut(network, "@")
				children[i].args = append([]string{"nsenter", "--net=" + filepath.Join("/run/netns", namespace)}, child.args...)
			}
		}
	}
	return children
}

// anyStore is the region whose store an operator is pointed to: the last, so that tests
// may have the first one die.
func (p *plan) anyStore() string { return p.regions[len(p.regions)-1].name }

// fleetStore is the address of the fleet's store, for a region's processes.
func (p *plan) fleetStore(region string) string {
	if p.dynamo.strong == "" {
		return "sqlite:" + p.store
	}
	return "dynamodb:" + schema.GPUInstances.Name + p.dynamo.query(region)
}

// controlStore is the same for what controllers decide, and washes.
func (p *plan) controlStore(region string) string {
	if p.dynamo.strong == "" {
		return "sqlite:" + p.control
	}
	return "dynamodb:" + p.dynamo.query(region)
}

func (t *globalTables) query(region string) string {
	return "?region=" + fleet.Region(region).AWS() + "&endpoint=http://" + t.fronts[region]
}

// storeEnvironment is what the AWS SDK wants of processes that have no other AWS
// identity.
func (p *plan) storeEnvironment() []string {
	if p.dynamo.strong == "" {
		return nil
	}
	return []string{"AWS_ACCESS_KEY_ID=" + storeCredentials, "AWS_SECRET_ACCESS_KEY=" + storeCredentials}
}

// storeEnv are lines of .mrgc/env: each region's endpoint of DynamoDB.
func (p *plan) storeEnv() (lines []string) {
	for _, name := range slices.Sorted(maps.Keys(p.dynamo.fronts)) {
		lines = append(lines, "export MRGC_DYNAMODB_"+strings.ToUpper(name)+"=http://"+p.dynamo.fronts[name])
	}
	return lines
}

// stores are the processes of DynamoDB.
func (p *plan) stores() (all []process) {
	if p.dynamo.strong == "" {
		return nil
	}
	command := func(name, dir string, args ...string) process {
		args = append([]string{p.bin("mrgc"), "global-tables", "--dir", filepath.Join(p.dynamo.dir, dir)}, args...)
		return process{name: name, rank: rankStore, args: args}
	}
	all = append(all, command("globaltables", "strong", "--dynamodb-local", p.dynamo.strong))
	for _, r := range p.regions {
		one := command("globaltables-"+r.name, r.name, "--region", r.aws, "--listen", p.dynamo.fronts[r.name],
			"--dynamodb-local", p.dynamo.locals[r.name], "--strong", "http://"+p.dynamo.strong)
		for _, other := range p.regions {
			if other.name != r.name {
				one.args = append(one.args, "--peer", other.aws+"=http://"+p.dynamo.fronts[other.name])
			}
		}
		all = append(all, one)
	}
	return p.inNetworks(all)
}

// startStores starts DynamoDB, if there is one, and makes its tables.
func (p *plan) startStores(ctx context.Context, s *supervisor, ui *display) error {
	if err := os.RemoveAll(p.dynamo.dir); err != nil { // of an earlier start
		return fmt.Errorf("DynamoDB: %w", err)
	}
	children := p.stores()
	if len(children) == 0 {
		return nil
	}
	done := ui.step("store")
	for _, child := range children {
		if err := s.start(child); err != nil {
			return err
		}
	}
	ctx, cancel := context.WithTimeout(ctx, storesTimeout)
	defer cancel()
	first := p.regions[0]
	client, err := dynamo.NewClient(ctx, awsclient.Settings{
		Region: first.aws, Endpoint: "http://" + p.dynamo.fronts[first.name],
		Credentials: credentials.NewStaticCredentialsProvider(storeCredentials, storeCredentials, ""),
	})
	if err != nil {
		return err
	}
	defer client.Close()
	for _, table := range schema.Tables("") {
		table.Regions = nil
		if len(p.regions) > 1 {
			for _, r := range p.regions {
				table.Regions = append(table.Regions, r.aws)
			}
		}
		if err := ensure(ctx, client, table); err != nil {
			return fmt.Errorf("DynamoDB: %w; its logs are %s", err, filepath.Join(p.stateDir, "logs", "globaltables*.log"))
		}
	}
	done("a DynamoDB Local for each region, and one for strongly consistent tables")
	return nil
}

// ensure makes a table, as soon as those that are to have it are there.
func ensure(ctx context.Context, client *dynamo.Client, table schema.Table) error {
	for {
		report, err := client.Ensure(ctx, table)
		if err = errors.Join(err, report.Err()); err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(listenPoll):
		}
	}
}

// GlobalTables is a process of a local cluster's DynamoDB.
type GlobalTables struct {
	Dir   string // for its data
	Local string // host:port of the DynamoDB Local that it starts
	// What follows is empty for the one of strongly consistent tables.
	Region string            // AWS's name
	Listen string            // the region's endpoint
	Strong string            // URL
	Peers  map[string]string // URLs of the other regions' endpoints, by AWS's names
	Logger *slog.Logger
}

// Run runs a DynamoDB Local, again when it dies, and the region's endpoint in front of
// it, until ctx ends.
func (g GlobalTables) Run(ctx context.Context) error {
	if err := os.MkdirAll(g.Dir, 0o700); err != nil {
		return err
	}
	group, ctx := errgroup.WithContext(ctx)
	if g.Region != "" {
		listener, err := net.Listen("tcp", g.Listen)
		if err != nil {
			return err
		}
		front, err := globaltables.Open(globaltables.Config{
			Region: g.Region, Near: "http://" + g.Local, Strong: g.Strong, Peers: g.Peers, Dir: g.Dir, Logger: g.Logger,
		})
		if err != nil {
			return errors.Join(err, listener.Close())
		}
		group.Go(func() error { return front.Run(ctx) })
		group.Go(func() error { return serveUntil(ctx, "global tables", front, listener) })
	}
	group.Go(func() error { return g.keepRunning(ctx) })
	return group.Wait()
}

func (g GlobalTables) keepRunning(ctx context.Context) error {
	host, text, err := net.SplitHostPort(g.Local)
	if err != nil {
		return err
	}
	port, err := strconv.Atoi(text)
	if err != nil {
		return fmt.Errorf("DynamoDB Local at %s: %w", g.Local, err)
	}
	for {
		server, err := dynamodblocal.Start(ctx, dynamodblocal.Config{Host: host, Port: port, Dir: g.Dir, Log: os.Stderr})
		if err == nil {
			select {
			case <-ctx.Done():
				server.Kill()
			case <-server.Gone():
			}
		}
		if ctx.Err() != nil {
			return nil
		}
		g.Logger.WarnContext(ctx, "DynamoDB Local has ended, starting it again", "error", err)
		select {
		case <-ctx.Done():
		case <-time.After(firstBackoff):
		}
	}
}
