package local

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/mrgc/mrgc/envoy"
	"github.com/mrgc/mrgc/internal/attest"
	"github.com/mrgc/mrgc/internal/config"
	"github.com/mrgc/mrgc/internal/credential"
	"github.com/mrgc/mrgc/internal/dsse"
	"github.com/mrgc/mrgc/internal/fleet"
	"github.com/mrgc/mrgc/internal/identity"
	"github.com/mrgc/mrgc/internal/release"
	"github.com/mrgc/mrgc/internal/routing"
	"github.com/mrgc/mrgc/internal/tenant"
	"github.com/mrgc/mrgc/standin/devca"
	"github.com/mrgc/mrgc/standin/softnsm"
)

// tenantName is the one tenant of a local cluster.
const tenantName = "dev"

// contextTokens is what one request can have of prompt and answer: the whole
// context of the model that is fetched.
const contextTokens = 2048

// writeFiles writes what the children read, and makes the tenant's API key. The
// key is new at each start; the cluster's files hold its digests only.
func (p *plan) writeFiles(ctx context.Context, ca *devca.Authority, root *softnsm.Root) (apiKey string, err error) {
	key, err := credential.New(rand.Reader, tenantName)
	if err != nil {
		return "", err
	}
	clusterConfig := p.clusterConfig()
	if _, err := config.Parse(p.config, clusterConfig); err != nil {
		return "", fmt.Errorf("configuration of the local cluster: %w", err)
	}
	hosts, err := hostImages()
	if err != nil {
		return "", err
	}
	files, err := p.tenantFiles(&key, time.Now())
	if err != nil {
		return "", err
	}
	released, err := p.releaseFiles()
	if err != nil {
		return "", err
	}
	maps.Copy(files, released)
	maps.Copy(files, map[string][]byte{
		p.config:  clusterConfig,
		p.caFile:  ca.RootPEM(),
		p.nsmRoot: root.PEM(),
		p.hosts:   hosts,
		p.kms.env: p.kmsEnv(),
	})
	for path, content := range files {
		if err := os.WriteFile(path, content, 0o600); err != nil {
			return "", err
		}
	}
	if err := p.removeLeftovers(); err != nil {
		return "", err
	}
	if err := p.writeModelSums(); err != nil {
		return "", err
	}
	return key.Text(), p.writeEnvoyFiles(ctx, ca)
}

// releaseFiles are what says which enclaves are good: this build's measurements,
// the manifest of them, signed, the key that has signed it, and the policies of KMS
// keys that follow from them.
func (p *plan) releaseFiles() (map[string][]byte, error) {
	measured, err := p.release()
	if err != nil {
		return nil, err
	}
	releases, err := json.MarshalIndent(measured, "", "  ")
	if err != nil {
		return nil, err
	}
	signing, err := newSigningKey()
	if err != nil {
		return nil, err
	}
	manifest, err := release.Sign(signing.key, &release.Manifest{Version: 1, MinVersion: measured[0].Version, Releases: measured})
	if err != nil {
		return nil, err
	}
	keyPolicy, err := p.keyPolicy(measured)
	if err != nil {
		return nil, err
	}
	files := map[string][]byte{
		p.releases:           releases,
		p.manifest:           manifest,
		p.releasing + ".key": signing.private,
		p.releasing + ".pub": signing.public,
		p.kms.policy:         keyPolicy,
	}
	if p.fleet.name != "" {
		if files[p.fleet.policy], err = p.fleetPolicy(measured); err != nil {
			return nil, err
		}
	}
	return files, nil
}

// removeLeftovers takes away what an earlier start has left: its instances are not
// this cluster's, nor are its API key, what was rolled back then, and its logs.
func (p *plan) removeLeftovers() error {
	logs, err := filepath.Glob(filepath.Join(p.stateDir, "logs", "*.log"))
	if err != nil {
		return err
	}
	notes, err := filepath.Glob(filepath.Join(p.stateDir, "washes", "*.json")) // of washes whose records go, too
	if err != nil {
		return err
	}
	for _, path := range append(append(logs, notes...),
		p.envFile(), p.store, p.store+"-wal", p.store+"-shm", p.control, p.control+"-wal", p.control+"-shm", config.RollbackRecord(p.config),
	) {
		if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	return nil
}

// release is what the tenant trusts: the measurement of this very build.
func (p *plan) release() ([]attest.Release, error) {
	pcrs, err := softnsm.Measure(p.bin("mrgc-enclave"))
	if err != nil {
		return nil, err
	}
	return []attest.Release{{Version: 1, Name: "local build", PCRs: pcrs}}, nil
}

// signingKey is an operator's own, who on one machine is whoever starts the
// cluster.
type signingKey struct {
	key             ed25519.PrivateKey
	private, public []byte // PEM
}

func newSigningKey() (s signingKey, err error) {
	if _, s.key, err = ed25519.GenerateKey(rand.Reader); err != nil {
		return s, err
	}
	s.private, s.public, err = dsse.MarshalKey(s.key)
	return s, err
}

// tenantsValid is for how long the list of a start holds: longer than a cluster
// on one machine is left running.
const tenantsValid = 90 * 24 * time.Hour

// tenantFiles are the list of tenants, signed, and the key that has signed it.
func (p *plan) tenantFiles(key *credential.Key, now time.Time) (map[string][]byte, error) {
	signing, err := newSigningKey()
	if err != nil {
		return nil, err
	}
	list := &tenant.List{Version: 1, ExpiresAt: now.Add(tenantsValid).UTC().Truncate(time.Second), Tenants: []tenant.Tenant{{
		Name:          key.Tenant(),
		EdgeTokens:    tenant.Digests{credential.DigestOf(key.EdgeToken())},
		EnclaveTokens: tenant.Digests{credential.DigestOf(key.EnclaveToken())},
	}}}
	signed, err := tenant.Sign(signing.key, list)
	if err != nil {
		return nil, err
	}
	text, err := list.Marshal()
	if err != nil {
		return nil, err
	}
	return map[string][]byte{p.tenants: text, p.signed: signed, p.signing + ".key": signing.private, p.signing + ".pub": signing.public}, nil
}

// clusterConfig is the mrgc.yaml of the local cluster.
func (p *plan) clusterConfig() []byte {
	var b strings.Builder
	b.WriteString("# Written by `mrgc up` at each start.\nregions:\n")
	for _, r := range p.regions {
		fmt.Fprintf(&b, "  - {name: %s, aws_region: %s}\n", r.name, r.aws)
	}
	fmt.Fprintf(&b, "models:\n  - name: %q\n", p.options.ModelName)
	if p.options.Policy != "" {
		fmt.Fprintf(&b, "    policy: %s\n", p.options.Policy)
	}
	for i, version := range p.options.Versions {
		weight := 0
		if i == 0 {
			weight = routing.SplitTotal
			b.WriteString("    auto_rollback: true\n    versions:\n")
		}
		fmt.Fprintf(&b, "      - {name: %q, weight: %d}\n", version, weight)
	}
	if p.options.TenantClientCA != "" {
		fmt.Fprintf(&b, "tenant_client_ca: %q\n", p.options.TenantClientCA)
	}
	return []byte(b.String())
}

// writeEnvoyFiles makes each region's certificates and Envoy's bootstrap, and
// has Envoy check it.
func (p *plan) writeEnvoyFiles(ctx context.Context, ca *devca.Authority) error {
	checks, ctx := errgroup.WithContext(ctx)
	for _, r := range p.regions {
		if err := ca.WriteFiles(r.envoyIdentity, identity.ID{Region: r.name, Role: identity.RoleEnvoy}, time.Now()); err != nil {
			return err
		}
		certPEM, keyPEM, err := ca.ServerCertificate(time.Now(), "localhost", r.name+".mrgc.internal", netip.MustParseAddrPort(r.tenant).Addr().String())
		if err != nil {
			return err
		}
		var routerGRPC, routerHTTP []netip.AddrPort
		for _, router := range r.routers {
			routerGRPC = append(routerGRPC, netip.MustParseAddrPort(router.grpc))
			routerHTTP = append(routerHTTP, netip.MustParseAddrPort(router.http))
		}
		bootstrap, err := envoy.Bootstrap(envoy.Config{
			NodeID: r.name + "-envoy-0", Region: fleet.Region(r.name),
			Admin: netip.MustParseAddrPort(r.envoyAdmin), RouterGRPC: routerGRPC, RouterHTTP: routerHTTP,

			CertificateFile: filepath.Join(r.envoyIdentity, identity.CertificateFile),
			KeyFile:         filepath.Join(r.envoyIdentity, identity.KeyFile),
			TrustFile:       filepath.Join(r.envoyIdentity, identity.RootsFile),
		})
		if err != nil {
			return err
		}
		for path, content := range map[string][]byte{r.tenantCert: certPEM, r.tenantKey: keyPEM, r.envoyConfig: bootstrap} {
			if err := os.WriteFile(path, content, 0o600); err != nil {
				return err
			}
		}
		checks.Go(func() error { return envoy.Validate(ctx, p.envoy, r.envoyConfig) })
	}
	return checks.Wait()
}

func (p *plan) envFile() string { return filepath.Join(p.stateDir, "env") }

// writeEnv leaves what a tenant needs for `source`. It appears at once and
// whole: whoever waits for the file may read it when it is there.
func (p *plan) writeEnv(apiKey string) error {
	fresh := p.envFile() + ".new"
	if err := os.WriteFile(fresh, []byte(strings.Join(p.env(apiKey), "\n")+"\n"), 0o600); err != nil {
		return err
	}
	return os.Rename(fresh, p.envFile())
}

func (p *plan) removeEnv() error {
	if err := os.Remove(p.envFile()); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}
