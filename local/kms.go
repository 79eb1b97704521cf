package local

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/mrgc/mrgc/internal/attest"
	"github.com/mrgc/mrgc/internal/release"
	"github.com/mrgc/mrgc/standin/devca"
	"github.com/mrgc/mrgc/standin/softkms"
	"github.com/mrgc/mrgc/standin/softnsm"
)

// softwareKMS is the plan of the KMS that a local cluster has, with one key: the
// tenant's own.
type softwareKMS struct {
	address string            // of its HTTPS, on loopback
	tenant  softkms.Principal // makes data keys: the tenant, in its own account
	cluster softkms.Principal // on whose behalf enclaves ask: the instances' role, in the cluster's account
	policy  string            // file: the key's policy
	env     string            // file: what the tenant needs for `mrgc connect --kms-key`
	log     string            // file: what was asked, as CloudTrail would have it
}

// kmsKeyID is of the tenant's key, which all regions have.
const kmsKeyID = "mrk-dev"

func (p *plan) planKMS() (softwareKMS, error) {
	k := softwareKMS{
		tenant:  softkms.NewPrincipal("arn:aws:iam::" + softkms.Account + ":role/" + tenantName),
		cluster: softkms.NewPrincipal("arn:aws:iam::444455556666:role/mrgc-gpu-instance"),
		policy:  filepath.Join(p.stateDir, "kms-policy.json"),
		env:     filepath.Join(p.stateDir, "kms.env"),
		log:     filepath.Join(p.stateDir, "logs", "kms.log"),
	}
	return k, p.drawAll(&k.address)
}

// keyPolicy is what `mrgc keys policy` would write for this cluster.
func (p *plan) keyPolicy(releases []attest.Release) ([]byte, error) {
	return release.KeyPolicy{
		Releases: releases, Tenant: tenantName,
		Admins:  []string{"arn:aws:iam::" + softkms.Account + ":role/admin"},
		Clients: []string{p.kms.tenant.ARN}, Cluster: []string{p.kms.cluster.ARN},
	}.JSON()
}

// kmsEnv is what a tenant sources beside .mrgc/env to use its key. It is a file
// of its own: these names may mean somebody's real account.
func (p *plan) kmsEnv() []byte {
	var b strings.Builder
	fmt.Fprintf(&b, "# For: mrgc connect --kms-key \"$MRGC_KMS_KEY\" …; the KMS is a stand-in.\n")
	fmt.Fprintf(&b, "export MRGC_KMS_KEY=%s\n", softkms.ARN(p.regions[0].aws, kmsKeyID))
	for _, line := range append(awsEnvironment(p.kms.tenant), "AWS_ENDPOINT_URL_KMS=https://"+p.kms.address) {
		fmt.Fprintf(&b, "export %s\n", line)
	}
	fmt.Fprintf(&b, "export AWS_CA_BUNDLE=%s\n", shellQuote(p.caFile))
	return []byte(b.String())
}

// awsEnvironment has the AWS SDK sign as a principal.
func awsEnvironment(p softkms.Principal) []string {
	return p.Credentials.Environment()
}

// listenKMS makes the KMS and its key, and gives what serves it.
func (p *plan) listenKMS(ca *devca.Authority, root *softnsm.Root) (serve func(context.Context) error, err error) {
	var regions, hosts []string
	for _, r := range p.regions {
		regions, hosts = append(regions, r.aws), append(hosts, "kms."+r.aws+".amazonaws.com")
	}
	log, err := os.OpenFile(p.kms.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, fmt.Errorf("software KMS: %w", err)
	}
	service, err := softkms.New(softkms.Config{Regions: regions, Roots: []*x509.Certificate{root.Certificate()}, Audit: writeEvents(log)})
	if err != nil {
		return nil, errors.Join(err, log.Close())
	}
	service.AddPrincipal(p.kms.tenant)
	service.AddPrincipal(p.kms.cluster)
	keys := map[string]string{kmsKeyID: p.kms.policy}
	if p.fleet.name != "" {
		keys[fleetKMSKeyID] = p.fleet.policy
	}
	for id, file := range keys {
		policy, err := os.ReadFile(file)
		if err == nil {
			_, err = service.CreateKey(id, policy)
		}
		if err != nil {
			return nil, errors.Join(fmt.Errorf("software KMS: %w", err), log.Close())
		}
	}
	certPEM, keyPEM, err := ca.ServerCertificate(time.Now(), hosts...)
	if err != nil {
		return nil, errors.Join(err, log.Close())
	}
	certificate, err := tls.X509KeyPair(certPEM, keyPEM)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("software KMS: %w", err), log.Close())
	}
	listener, err := tls.Listen("tcp", p.kms.address, &tls.Config{Certificates: []tls.Certificate{certificate}, MinVersion: tls.VersionTLS13})
	if err != nil {
		return nil, errors.Join(fmt.Errorf("software KMS: %w", err), log.Close())
	}
	return func(ctx context.Context) error {
		following, stop := context.WithCancel(ctx)
		var followed sync.WaitGroup
		for id, file := range keys {
			followed.Go(func() { followPolicy(following, service, id, file) })
		}
		err := serveUntil(ctx, "software KMS", service, listener)
		stop()
		followed.Wait()
		return errors.Join(err, log.Close())
	}, nil
}

// followPolicy puts a key's policy whenever its file is another, as its administrator
// would. One that the KMS does not take leaves the one before.
func followPolicy(ctx context.Context, service *softkms.Service, id, file string) {
	last, _ := os.ReadFile(file) // which the key was made with
	every := time.NewTicker(time.Second)
	defer every.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-every.C:
		}
		policy, err := os.ReadFile(file)
		if err == nil && !bytes.Equal(policy, last) && service.PutKeyPolicy(id, policy) == nil {
			last = policy
		}
	}
}

// serveUntil serves until ctx ends.
func serveUntil(ctx context.Context, what string, service http.Handler, listener net.Listener) error {
	server := &http.Server{Handler: service, ReadHeaderTimeout: 10 * time.Second, ErrorLog: slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)}
	stop := context.AfterFunc(ctx, func() { _ = server.Close() })
	defer stop()
	if err := server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("%s: %w", what, err)
	}
	return nil
}

// writeEvents writes a line of JSON for each call.
func writeEvents(w io.Writer) func(softkms.Event) {
	var mu sync.Mutex
	return func(e softkms.Event) {
		mu.Lock()
		defer mu.Unlock()
		_ = json.NewEncoder(w).Encode(e) // a log that is full stops nobody
	}
}
