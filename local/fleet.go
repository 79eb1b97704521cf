package local

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"fmt"
	"log/slog"
	"net/http/httputil"
	"net/netip"
	"net/url"
	"path/filepath"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/credentials"

	"github.com/mrgc/mrgc/internal/attest"
	"github.com/mrgc/mrgc/internal/awsclient"
	"github.com/mrgc/mrgc/internal/dynamo"
	"github.com/mrgc/mrgc/internal/release"
	"github.com/mrgc/mrgc/internal/state/schema"
	"github.com/mrgc/mrgc/standin/devca"
	"github.com/mrgc/mrgc/standin/softkms"
)

// sharedFleet is the plan of the keys that a local cluster's enclaves hold
// together. Its table is in a DynamoDB that runs already, to which enclaves speak
// through TLS of this cluster's own, as they do to AWS's.
type sharedFleet struct {
	name    string // another one at each start, as the stand-in for KMS has other keys then
	address string // of DynamoDB's TLS, on loopback
	policy  string // file: the policy of the KMS key of its seeds
}

// fleetKMSKeyID is of the key of the fleet's seeds, which all regions have.
const fleetKMSKeyID = "mrk-dev-fleet"

func (p *plan) planFleet() (sharedFleet, error) {
	if p.options.FleetDynamoDB == "" {
		return sharedFleet{}, nil
	}
	f := sharedFleet{
		name:   "dev-" + strings.ToLower(rand.Text()[:8]),
		policy: filepath.Join(p.stateDir, "fleet-kms-policy.json"),
	}
	return f, p.drawAll(&f.address)
}

// tableARN is of the fleet's table in a region.
func tableARN(region string) string {
	return "arn:aws:dynamodb:" + region + ":444455556666:table/" + schema.FleetKeys.Name
}

// dynamoDBRelay is what the enclave dials to reach DynamoDB: port 5004.
func (in *instance) dynamoDBRelay() string { return "unix:" + in.vsock + "_5004" }

// enclaveFleet are an enclave's flags.
func (p *plan) enclaveFleet(in instance) []string {
	if p.fleet.name == "" {
		return nil
	}
	return []string{
		"-fleet", p.fleet.name, "-fleet-kms-key", softkms.ARN(in.aws, fleetKMSKeyID), "-fleet-table", tableARN(in.aws), "-dynamodb", in.dynamoDBRelay(),
	}
}

// parentFleet are its parent's.
func (p *plan) parentFleet(in instance) []string {
	if p.fleet.name == "" {
		return nil
	}
	return []string{"-dynamodb-relay", in.dynamoDBRelay(), "-dynamodb-host", p.fleet.address}
}

// fleetPolicy is what `mrgc keys policy --fleet` would write for this cluster.
func (p *plan) fleetPolicy(releases []attest.Release) ([]byte, error) {
	return release.FleetKeyPolicy{
		Releases: releases, Fleet: p.fleet.name,
		Admins: []string{"arn:aws:iam::" + softkms.Account + ":role/admin"}, Cluster: []string{p.kms.cluster.ARN},
	}.JSON()
}

// listenDynamoDB makes the table in each region, and gives what serves it under
// TLS.
func (p *plan) listenDynamoDB(ctx context.Context, ca *devca.Authority) (serve func(context.Context) error, err error) {
	to, err := url.Parse(p.options.FleetDynamoDB)
	if err != nil {
		return nil, fmt.Errorf("--fleet-dynamodb: %w", err)
	}
	var hosts []string
	for _, r := range p.regions {
		hosts = append(hosts, "dynamodb."+r.aws+".amazonaws.com")
		if err := p.makeFleetTable(ctx, r.aws); err != nil {
			return nil, fmt.Errorf("--fleet-dynamodb: %w", err)
		}
	}
	certPEM, keyPEM, err := ca.ServerCertificate(time.Now(), hosts...)
	if err != nil {
		return nil, err
	}
	certificate, err := tls.X509KeyPair(certPEM, keyPEM)
	if err != nil {
		return nil, fmt.Errorf("DynamoDB's TLS: %w", err)
	}
	listener, err := tls.Listen("tcp", p.fleet.address, &tls.Config{Certificates: []tls.Certificate{certificate}, MinVersion: tls.VersionTLS13})
	if err != nil {
		return nil, fmt.Errorf("DynamoDB's TLS: %w", err)
	}
	proxy := &httputil.ReverseProxy{
		Rewrite:  func(r *httputil.ProxyRequest) { r.SetURL(to) },
		ErrorLog: slog.NewLogLogger(slog.DiscardHandler, slog.LevelError),
	}
	return func(ctx context.Context) error { return serveUntil(ctx, "DynamoDB's TLS", proxy, listener) }, nil
}

func (p *plan) makeFleetTable(ctx context.Context, region string) error {
	who := p.kms.cluster.Credentials
	client, err := dynamo.NewClient(ctx, awsclient.Settings{
		Region: region, Endpoint: p.options.FleetDynamoDB, Credentials: credentials.NewStaticCredentialsProvider(who.AccessKeyID, who.SecretAccessKey, ""),
	})
	if err != nil {
		return err
	}
	defer client.Close()
	report, err := client.Ensure(ctx, schema.FleetKeys)
	if err != nil {
		return err
	}
	return report.Err()
}

// checkFleet wants DynamoDB on this machine: what stands in for AWS's is spoken to
// in clear.
func (o *Options) checkFleet() error {
	if o.FleetDynamoDB == "" {
		return nil
	}
	u, err := url.Parse(o.FleetDynamoDB)
	if err == nil && u.Scheme == "http" && strings.Trim(u.Path, "/") == "" {
		if address, err := netip.ParseAddrPort(u.Host); err == nil && address.Addr().IsLoopback() {
			return nil
		}
	}
	return fmt.Errorf("--fleet-dynamodb %s: want the URL of a DynamoDB Local on this machine, http://127.0.0.1:8000", o.FleetDynamoDB)
}
