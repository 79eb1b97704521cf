// Mrgc-enclave runs inside the Nitro Enclave, or as a process on a laptop. It
// opens sealed requests, has the engine answer them, and seals the answers. Its
// imports are kept small by a test: all of it is measured and must be trusted.
package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"sync"
	"syscall"
	"time"

	"github.com/mrgc/mrgc/enclave"
	"github.com/mrgc/mrgc/internal/attest"
	"github.com/mrgc/mrgc/internal/dsse"
	"github.com/mrgc/mrgc/internal/fleetkey"
	"github.com/mrgc/mrgc/internal/identity"
	"github.com/mrgc/mrgc/internal/kms"
	"github.com/mrgc/mrgc/internal/lockdown"
	"github.com/mrgc/mrgc/internal/nsm"
	"github.com/mrgc/mrgc/internal/seal"
	"github.com/mrgc/mrgc/internal/tenant"
	"github.com/mrgc/mrgc/internal/vsock"
)

// cleanWithin is how long a request's copies may stay in the memory of libraries.
const cleanWithin = 500 * time.Millisecond

func main() {
	if err := lockdown.OverwriteFreed(); err != nil {
		fmt.Fprintln(os.Stderr, "mrgc-enclave:", err)
		os.Exit(1)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:], os.Getenv, os.Stderr); err != nil && !errors.Is(err, flag.ErrHelp) {
		fmt.Fprintln(os.Stderr, "mrgc-enclave:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string, getenv func(string) string, stderr io.Writer) error {
	flags := flag.NewFlagSet("mrgc-enclave", flag.ContinueOnError)
	flags.SetOutput(stderr)
	listen := flags.String("listen", "vsock://:5000", "where the parent's connections arrive")
	engine := flags.String("engine", "vsock://3:5001", "what to dial for the engine's guard: the parent's byte relay")
	module := flags.String("nsm", "", "Nitro Security Module: device:/dev/nsm, or unix:PATH for the software one")
	identityAt := flags.String("identity", "", "identity for mutual TLS: dir:PATH, unix:PATH with MRGC_IDENTITY_TOKEN, or vsock://3:5003, the parent's relay to the authority, with -identity-roots")
	identityRoots := flags.String("identity-roots", "", "PEM file, part of the measured image, of the roots to trust for identities")
	tenantsKey := flags.String("tenants-key", "", "PEM file, part of the measured image, of the key that verifies the list of tenants, which the parent brings")
	kmsAt := flags.String("kms", "", "what to dial for KMS: the parent's byte relay, vsock://3:5002; default: KMS is not asked, and requests by tenants' data keys are refused")
	kmsRegion := flags.String("kms-region", "", "AWS region of that KMS: us-east-1")
	kmsRoots := flags.String("kms-roots", "", "PEM file, part of the measured image, of the roots to trust for KMS and DynamoDB in place of Amazon's: for development")
	fleet := flags.String("fleet", "", "fleet of enclaves to hold keys together with, for recipients of type fleet; default: none")
	fleetKMS := flags.String("fleet-kms-key", "", "ARN of the KMS key of its seeds, whose policy is mrgc keys policy --fleet's")
	fleetTable := flags.String("fleet-table", "", "ARN of its DynamoDB table, in this region")
	dynamoDBAt := flags.String("dynamodb", "", "what to dial for DynamoDB: the parent's byte relay, vsock://3:5004")
	engineHosts := flags.String("engine-hosts", "", "file, part of the measured image, of the measured host images on which alone the engine may run (as mrgc's docs/enclave.md says); needed for -mode nitro+attested-host; default: any")
	engineHostRoots := flags.String("engine-host-root", "", "PEM file, part of the measured image, of the root of their attestation in place of Amazon's: for development")
	model := flags.String("model", "", "model that the engine serves")
	mode := flags.String("mode", "", "what protects the plaintext: process, nitro, nitro+attested-host, nitro+attested-host+gpu-cc")
	bodyBytes := flags.Int64("request-body-bytes", 8<<20, "largest sealed request: mrgc.yaml's limits.request_body_bytes")
	concurrent := flags.Int("concurrent-requests", 64, "requests at once: mrgc.yaml's limits.concurrent_requests_per_instance")
	answerWait := flags.Duration("answer-wait", enclave.DefaultAnswerWait, "how long an event of a stream waits at most for others to be sealed with; 0: none waits, and a stream has twice or thrice the bytes")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if err := lockdown.NoDumps(); err != nil {
		return err
	}
	logger := slog.New(slog.NewTextHandler(stderr, nil))
	tenants, err := tenantKeeper(*tenantsKey)
	if err != nil {
		return err
	}
	security, err := nsm.Dial(*module)
	if err != nil {
		return err
	}
	self, err := ownIdentity(ctx, *identityAt, *identityRoots, getenv("MRGC_IDENTITY_TOKEN"))
	if err != nil {
		return err
	}
	keys, err := kmsClient(*kmsAt, *kmsRegion, *kmsRoots, security)
	if err != nil {
		return err
	}
	fleetKeys, err := ofFleet(*fleet, *fleetKMS, *fleetTable, *dynamoDBAt, *kmsRoots)
	if err != nil {
		return err
	}
	transport, host, err := engineTransport(self, *engine, *mode, *engineHosts, *engineHostRoots, logger)
	if err != nil {
		return err
	}
	service, err := enclave.New(ctx, enclave.Config{
		Model: *model, Region: self.ID().Region, Mode: *mode,
		NSM: security, Tenants: tenants, Engine: transport, EngineHost: host, KMS: keys, Fleet: fleetKeys, Logger: logger,
		RequestBodyBytes: *bodyBytes, ConcurrentRequests: *concurrent, AnswerWait: *answerWait, CleanWithin: cleanWithin,
	})
	if err != nil {
		return err
	}
	listener, err := vsock.Listen(*listen)
	if err != nil {
		return err
	}
	ctx, stop := context.WithCancel(ctx)
	var renewing sync.WaitGroup
	renewing.Go(func() { self.Renew(ctx, logger) })
	defer renewing.Wait()
	defer stop()
	logger.Info("serving", "identity", self.ID(), "mode", *mode, "model", *model)
	return service.Serve(ctx, listener)
}

// ownIdentity comes from files or an authority that are trusted to name the
// roots, too, or, by way of the parent, from one that must be of rootsPath's.
func ownIdentity(ctx context.Context, address, rootsPath, token string) (*identity.Source, error) {
	if rootsPath == "" {
		return identity.Open(ctx, address, token)
	}
	roots, err := os.ReadFile(rootsPath)
	if err != nil {
		return nil, fmt.Errorf("-identity-roots: %w", err)
	}
	dial := func(ctx context.Context) (net.Conn, error) { return vsock.Dial(ctx, address) }
	return identity.Enrol(ctx, dial, identity.RoleEnclave, roots)
}

// tenantKeeper takes what the key verifies, and has nothing yet.
func tenantKeeper(path string) (*tenant.Keeper, error) {
	content, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("key that verifies tenants: %w", err)
	}
	keys, err := dsse.ParseVerificationKeys(content)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return tenant.NewKeeper(keys...)
}

// kmsClient reaches KMS through the parent's byte relay, under TLS that ends in
// KMS; nil without an address.
func kmsClient(address, region, rootsPath string, security nsm.Module) (*kms.Client, error) {
	if address == "" {
		return nil, nil
	}
	config := kms.Config{Region: region, NSM: security, Dial: func(ctx context.Context) (net.Conn, error) { return vsock.Dial(ctx, address) }}
	var err error
	if config.Roots, err = awsRoots(rootsPath); err != nil {
		return nil, err
	}
	return kms.New(config)
}

// awsRoots are those of a file; without one nil, which stands for Amazon's.
func awsRoots(path string) (*x509.CertPool, error) {
	if path == "" {
		return nil, nil
	}
	content, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("-kms-roots: %w", err)
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(content) {
		return nil, fmt.Errorf("-kms-roots %s: no certificate in it", path)
	}
	return roots, nil
}

// ofFleet is the fleet whose keys are held; nil without a name.
func ofFleet(name, kmsKey, table, address, rootsPath string) (*enclave.Fleet, error) {
	if name == "" {
		return nil, nil
	}
	roots, err := awsRoots(rootsPath)
	if err != nil {
		return nil, err
	}
	shared, err := fleetkey.Open(fleetkey.Config{
		Table: table, Roots: roots, Dial: func(ctx context.Context) (net.Conn, error) { return vsock.Dial(ctx, address) },
	})
	if err != nil {
		return nil, err
	}
	return &enclave.Fleet{Name: name, KMS: kmsKey, Table: shared}, nil
}

// engineTransport reaches the guard of this instance through the parent's byte
// relay, under TLS that ends in the guard; with host images, in one on a host of
// those, which the check sees to; else there is none.
func engineTransport(self *identity.Source, address, mode, hostsPath, rootPath string, log *slog.Logger) (_ http.RoundTripper, host *enclave.EngineHost, err error) {
	guard := identity.ID{Region: self.ID().Region, Instance: self.ID().Instance, Role: identity.RoleGuard}
	dial := func(ctx context.Context) (net.Conn, error) { return vsock.Dial(ctx, address) }
	isGuard := func(id identity.ID) bool { return id == guard }
	var further []func(tls.ConnectionState) error
	switch attested := mode == seal.ModeNitroAttestedHost || mode == seal.ModeNitroAttestedHostCC; {
	case hostsPath != "":
		policy, err := hostPolicy(hostsPath, rootPath)
		if err != nil {
			return nil, nil, err
		}
		unchecked := self.DialTLS(dial, isGuard)
		host, err = enclave.NewEngineHost(policy, func(ctx context.Context) (net.Conn, error) { return unchecked(ctx, "", "") }, log)
		if err != nil {
			return nil, nil, err
		}
		further = append(further, host.VerifyConnection)
	case attested:
		return nil, nil, fmt.Errorf("-mode %s without -engine-hosts: nothing would vouch for the host", mode)
	}
	return &http.Transport{
		DialTLSContext:      self.DialTLS(dial, isGuard, further...),
		MaxIdleConnsPerHost: 64,
		IdleConnTimeout:     30 * time.Second, // below the guard's own
		DisableCompression:  true,
	}, host, nil
}

// hostPolicy is which hosts the engine may run on.
func hostPolicy(hostsPath, rootPath string) (policy attest.HostPolicy, err error) {
	content, err := os.ReadFile(hostsPath)
	if err != nil {
		return policy, fmt.Errorf("-engine-hosts: %w", err)
	}
	if policy.Hosts, err = attest.ParseHosts(content); err != nil {
		return policy, fmt.Errorf("-engine-hosts %s: %w", hostsPath, err)
	}
	policy.Roots = []*x509.Certificate{attest.AWSRoot()}
	if rootPath == "" {
		return policy, nil
	}
	content, err = os.ReadFile(rootPath)
	if err != nil {
		return policy, fmt.Errorf("-engine-host-root: %w", err)
	}
	block, _ := pem.Decode(content)
	if block == nil {
		return policy, fmt.Errorf("-engine-host-root %s: no certificate in PEM", rootPath)
	}
	root, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return policy, fmt.Errorf("-engine-host-root %s: %w", rootPath, err)
	}
	policy.Roots = []*x509.Certificate{root}
	return policy, nil
}
