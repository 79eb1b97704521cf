// Mrgc-parent runs on each GPU instance, outside its enclave: it relays sealed
// requests, reports the instance's health and load, and sees no plaintext.
package main

import (
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"strings"
	"sync"
	"syscall"

	awsconfig "github.com/aws/aws-sdk-go-v2/config"

	"github.com/mrgc/mrgc/internal/api"
	"github.com/mrgc/mrgc/internal/audit"
	"github.com/mrgc/mrgc/internal/audit/cloudwatchlogs"
	"github.com/mrgc/mrgc/internal/config"
	"github.com/mrgc/mrgc/internal/fleet"
	"github.com/mrgc/mrgc/internal/fleet/open"
	"github.com/mrgc/mrgc/internal/gpu"
	"github.com/mrgc/mrgc/internal/identity"
	"github.com/mrgc/mrgc/internal/loadreport"
	"github.com/mrgc/mrgc/internal/lockdown"
	"github.com/mrgc/mrgc/internal/tenant/follow"
	"github.com/mrgc/mrgc/internal/vsock"
	"github.com/mrgc/mrgc/parent"
	"github.com/mrgc/mrgc/parent/wash"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:], os.Getenv, os.Stderr); err != nil && !errors.Is(err, flag.ErrHelp) {
		fmt.Fprintln(os.Stderr, "mrgc-parent:", err)
		os.Exit(1)
	}
}

// options are the flags.
type options struct {
	config, metricsListen              string
	zone, listen, advertise            string
	enclave, engineRelay               string
	kmsRelay, kmsHost                  string
	dynamoDBRelay, dynamoDBHost        string
	audit, auditCopy                   string
	guard                              string
	slots                              int
	store                              string
	identity, identityRelay, authority string
	tenants, tenantsKey                string
	models                             string
	washing                            *washOptions
}

func parseOptions(args []string, output io.Writer) (o options, err error) {
	f := flag.NewFlagSet("mrgc-parent", flag.ContinueOnError)
	f.SetOutput(output)
	f.StringVar(&o.config, "config", "mrgc.yaml", "the cluster's configuration")
	f.StringVar(&o.metricsListen, "metrics-listen", "", "loopback address that serves /metrics, in clear; default: none")
	f.StringVar(&o.zone, "zone", "", "availability zone of this instance")
	f.StringVar(&o.listen, "listen", ":8080", "where Envoy and routers connect, by mutual TLS")
	f.StringVar(&o.advertise, "advertise", "", "IP:port by which they reach it; default: -listen, when that has an IP")
	f.StringVar(&o.enclave, "enclave", "vsock://16:5000", "the enclave's request port")
	f.StringVar(&o.engineRelay, "engine-relay", "vsock://:5001", "where the enclave's connections to the engine arrive")
	f.StringVar(&o.kmsRelay, "kms-relay", "", "where the enclave's connections to KMS arrive: vsock://:5002; default: it asks no KMS")
	f.StringVar(&o.kmsHost, "kms-host", "", "the region's KMS, where they are connected to and nowhere else: kms.us-east-1.amazonaws.com:443")
	f.StringVar(&o.dynamoDBRelay, "dynamodb-relay", "", "where the enclave's connections to a fleet's table arrive: vsock://:5004; default: it is of no fleet")
	f.StringVar(&o.dynamoDBHost, "dynamodb-host", "", "the region's DynamoDB, where they are connected to and nowhere else: dynamodb.us-east-1.amazonaws.com:443")
	f.StringVar(&o.audit, "audit", "", "file for the data keys that KMS releases to the enclave, whether it trusts its engine's host, and washes; appended to, with hashes that chain it (mrgc audit verify)")
	f.StringVar(&o.auditCopy, "audit-cloudwatch", "", "CloudWatch log group to which it is copied as it grows: GROUP[?region=REGION&endpoint=URL]")
	f.StringVar(&o.guard, "guard", "127.0.0.1:8081", "the engine's guard")
	f.IntVar(&o.slots, "engine-slots", 4, "requests that the engine runs at once")
	f.StringVar(&o.store, "store", "", "fleet store: "+open.Forms)
	f.StringVar(&o.identity, "identity", "", "identity for mutual TLS: dir:PATH, or unix:PATH with MRGC_IDENTITY_TOKEN")
	f.StringVar(&o.identityRelay, "identity-relay", "", "where the enclave's requests for a certificate arrive: vsock://:5003, with -enclave-authority; default: it has another way")
	f.StringVar(&o.authority, "enclave-authority", "", "unix:PATH of the authority that signs the enclave's certificate, by MRGC_ENCLAVE_IDENTITY_TOKEN")
	f.StringVar(&o.tenants, "tenants", "", "signed list of tenants, handed to the enclave and taken again when it changes")
	f.StringVar(&o.tenantsKey, "tenants-key", "", "PEM file of the key that verifies it")
	o.washing = washFlags(f)
	f.StringVar(&o.models, "models", "", "models that the engine serves, comma separated, each NAME or NAME@VERSION")
	if err := f.Parse(args); err != nil {
		return o, err
	}
	o.advertise = cmp.Or(o.advertise, o.listen)
	return o, nil
}

func run(ctx context.Context, args []string, getenv func(string) string, stderr io.Writer) (err error) {
	o, err := parseOptions(args, stderr)
	if err != nil {
		return err
	}
	if err := errors.Join(lockdown.NoDumps(), lockdown.Untraceable()); err != nil {
		return err
	}
	logger := slog.New(slog.NewTextHandler(stderr, nil))
	cluster, err := config.Load(o.config)
	if err != nil {
		return err
	}
	self, err := identity.Open(ctx, o.identity, getenv("MRGC_IDENTITY_TOKEN"))
	if err != nil {
		return err
	}
	instances, err := open.Store(ctx, o.store, logger)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, instances.Close()) }()
	tenants, err := follow.Open(o.tenants, o.tenantsKey, logger)
	if err != nil {
		return err
	}
	relayIdentity, err := openIdentityRelay(o.identityRelay, o.authority, getenv("MRGC_ENCLAVE_IDENTITY_TOKEN"))
	if err != nil {
		return err
	}
	records, closeRecords, err := openAudit(ctx, o.audit, o.auditCopy, self.ID().Instance, logger)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, closeRecords()) }()
	washes, err := o.washing.open(ctx, self.ID().Region, o.enclave, getenv, stderr, logger)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, washes.close()) }()
	readGPU, closeGPU := openGPU(logger)
	defer closeGPU()

	settings := parent.Config{
		Store: instances, Identity: self, Tenants: tenants.Keeper(), Audit: records,
		ReadGPU: readGPU, ModelFiles: washes.files, Enclaves: washes.enclaves, Wash: washes.config,
		Settings: settingsOf(cluster), Logger: logger,
	}
	if err := o.connect(ctx, &settings); err != nil {
		return err
	}
	service, err := parent.New(settings)
	if err != nil {
		return err
	}
	listener, err := net.Listen("tcp", o.listen)
	if err != nil {
		return err
	}
	following, stop := context.WithCancel(ctx)
	var followed sync.WaitGroup
	followed.Go(func() { tenants.Run(following) })
	followed.Go(func() { washes.run(following) })
	followed.Go(func() { followConfig(following, o.config, cluster, self.ID().Region, service, logger) })
	followed.Go(func() {
		if err := relayIdentity(following); err != nil {
			logger.Error("an enclave that starts now gets no certificate", "error", err)
		}
	})
	defer followed.Wait()
	defer stop()
	return service.Run(ctx, listener)
}

// connect says which instance it is, and opens what it is reached by and reaches others
// by, all but its own port.
func (o *options) connect(ctx context.Context, c *parent.Config) (err error) {
	id := c.Identity.ID()
	c.Instance = fleet.Instance{ID: id.Instance, Region: fleet.Region(id.Region), Zone: o.zone, Address: o.advertise}
	c.Instance.Models, c.ModelVersions = splitModels(o.models)
	c.EngineSlots, c.DialGuard = o.slots, dialer(o.guard)
	if c.Enclaves == nil { // somebody else starts the enclave
		c.DialEnclave = func(ctx context.Context) (net.Conn, error) { return vsock.Dial(ctx, o.enclave) }
	}
	if c.EngineRelay, err = vsock.Listen(o.engineRelay); err != nil {
		return err
	}
	if o.metricsListen != "" {
		if c.MetricsListener, err = net.Listen("tcp", o.metricsListen); err != nil {
			return err
		}
	}
	kms, err := openKMS(ctx, o.kmsRelay, o.kmsHost)
	if err != nil {
		return err
	}
	c.KMSRelay, c.DialKMS, c.Credentials = kms.relay, kms.dial, kms.credentials
	c.DynamoDBRelay, c.DialDynamoDB, err = openRelay("dynamodb", o.dynamoDBRelay, o.dynamoDBHost)
	return err
}

// openAudit opens the audit log, and has it copied as it grows; without a path there is
// none.
func openAudit(ctx context.Context, path, group, instance string, logger *slog.Logger) (_ *audit.Log, closeAll func() error, err error) {
	if path == "" {
		if group != "" {
			return nil, nil, errors.New("-audit-cloudwatch without -audit: there is nothing to copy")
		}
		return nil, func() error { return nil }, nil
	}
	records, err := audit.Open(path)
	if err != nil {
		return nil, nil, err
	}
	stopCopying, err := cloudwatchlogs.Start(ctx, group, instance, path, logger)
	if err != nil {
		return nil, nil, errors.Join(err, records.Close())
	}
	return records, func() error {
		stopCopying()
		return records.Close()
	}, nil
}

// settingsOf are what the configuration says to a parent.
func settingsOf(cluster *config.Config) parent.Settings {
	return parent.Settings{
		HeartbeatInterval:  cluster.Fleet.HeartbeatInterval,
		StaleAfter:         cluster.Fleet.StaleAfter,
		RequestBodyBytes:   int64(cluster.Limits.RequestBodyBytes),
		ConcurrentRequests: cluster.Limits.ConcurrentRequestsPerInstance,
		FirstTokenWithin:   cluster.Scaling.FirstTokenWithin,
		Wash: wash.Config{
			EveryRequests: cluster.Wash.EveryRequests, Every: cluster.Wash.Every,
			OnTenantChange: cluster.Wash.OnTenantChange, Strict: cluster.Wash.Strict, RestartEngine: cluster.Wash.RestartEngine,
		},
	}
}

// followConfig has a parent go by what the file says, from what it began with, until
// ctx ends. What cannot be had as a whole changes nothing.
func followConfig(ctx context.Context, path string, holds *config.Config, region string, service *parent.Parent, logger *slog.Logger) {
	config.Follow(ctx, path, func(next *config.Config, err error) {
		if err == nil {
			err = holds.Change(next, fleet.Region(region))
		}
		if err != nil {
			logger.Error("the configuration is refused; the one before stays in force", "in_force", holds.Version(), "error", err)
			return
		}
		if next.Version() != holds.Version() {
			service.SetSettings(settingsOf(next))
			logger.Info("the configuration has changed", "version", next.Version(), "before", holds.Version())
			holds = next
		}
	})
}

// dialer connects to one address.
func dialer(address string) func(context.Context) (net.Conn, error) {
	return func(ctx context.Context) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "tcp", address)
	}
}

// openIdentityRelay gives what relays until its context ends; nothing, without
// an address.
func openIdentityRelay(address, authority, token string) (func(context.Context) error, error) {
	if address == "" {
		return func(context.Context) error { return nil }, nil
	}
	path, ok := strings.CutPrefix(authority, "unix:")
	if !ok || path == "" {
		return nil, fmt.Errorf("-enclave-authority %q: want unix:PATH", authority)
	}
	listener, err := vsock.Listen(address)
	if err != nil {
		return nil, err
	}
	return func(ctx context.Context) error { return identity.Relay(ctx, listener, path, token) }, nil
}

// kmsAccess is what the enclave needs of its parent to ask KMS; all of it nil
// when it does not.
type kmsAccess struct {
	relay       net.Listener
	dial        func(context.Context) (net.Conn, error)
	credentials func(context.Context) (api.AWSCredentials, error)
}

// openKMS takes credentials from where the AWS SDK finds them: on an instance,
// its role's.
func openKMS(ctx context.Context, relay, host string) (k kmsAccess, err error) {
	if relay == "" && host == "" {
		return k, nil
	}
	account, err := awsconfig.LoadDefaultConfig(ctx)
	if err != nil {
		return k, fmt.Errorf("AWS credentials: %w", err)
	}
	if k.relay, k.dial, err = openRelay("kms", relay, host); err != nil {
		return k, err
	}
	k.credentials = func(ctx context.Context) (api.AWSCredentials, error) {
		c, err := account.Credentials.Retrieve(ctx) // cached until they expire
		return api.AWSCredentials{AccessKeyID: c.AccessKeyID, SecretAccessKey: c.SecretAccessKey, SessionToken: c.SessionToken}, err
	}
	return k, nil
}

// openRelay listens for the enclave's connections to one host; nothing, without
// either.
func openRelay(flag, relay, host string) (net.Listener, func(context.Context) (net.Conn, error), error) {
	if relay == "" && host == "" {
		return nil, nil, nil
	}
	if relay == "" {
		return nil, nil, fmt.Errorf("-%s-host needs -%s-relay: where the enclave's connections arrive", flag, flag)
	}
	if _, _, err := net.SplitHostPort(host); err != nil {
		return nil, nil, fmt.Errorf("-%s-host: %w", flag, err)
	}
	listener, err := vsock.Listen(relay)
	return listener, dialer(host), err
}

// splitModels reads NAME and NAME@VERSION, comma separated.
func splitModels(list string) (names []string, versions map[string]string) {
	versions = map[string]string{}
	for _, model := range strings.Split(list, ",") {
		name, version, _ := strings.Cut(model, "@")
		names = append(names, name)
		versions[name] = version
	}
	return names, versions
}

// openGPU gives what reads the GPUs; nil, said once, when none is seen.
func openGPU(logger *slog.Logger) (read func() (loadreport.GPU, error), closeGPU func()) {
	device, err := gpu.Open()
	if err != nil {
		logger.Info("load reports go without GPUs", "reason", err)
		return nil, func() {}
	}
	return device.Read, func() { _ = device.Close() } // nothing is lost with it
}
