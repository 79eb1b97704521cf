package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"sync"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/mrgc/mrgc/client"
	"github.com/mrgc/mrgc/client/kmskey"
	"github.com/mrgc/mrgc/internal/lockdown"
	"github.com/mrgc/mrgc/internal/release"
	releasefollow "github.com/mrgc/mrgc/internal/release/follow"
)

type connectOptions struct {
	listen, ca, releases, developmentRoot string
	clientCert, clientKey                 string
	releasesKey                           string
	endpoints, modes, regions, types      []string
	minVersion                            uint64
	recipients                            int
	kmsKey                                string
	receipts                              string
	requireReceipt                        bool
}

func connectCommand() *cobra.Command {
	var o connectOptions
	cmd := &cobra.Command{
		Use:   "connect",
		Short: "Serve OpenAI's API on loopback, sealed from there on",
		Long: `Connect is the tenant's side. It serves OpenAI's API on loopback; each request is
sealed to enclaves whose attestation it has verified against --releases, and the
answer is opened here. Point any OpenAI SDK at it; the API key that the SDK
sends is the tenant's, and it goes no further than this process.`,
		Example: `  mrgc connect --endpoint https://use1.example.com --endpoint https://use2.example.com --releases releases.json
  export OPENAI_BASE_URL=http://127.0.0.1:8400/v1`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return connect(cmd.Context(), o, logger(cmd)) },
	}
	f := cmd.Flags()
	f.StringVar(&o.listen, "listen", "127.0.0.1:8400", "loopback address to serve on")
	f.StringSliceVar(&o.endpoints, "endpoint", nil, "a region's URL, https://host[:port]; repeat, or separate by commas, in order of preference: name every\nregion that you may use, as one that gives no answer is left for the next")
	f.StringVar(&o.ca, "ca", "", "PEM file of roots for the endpoints' certificates (default: the system's)")
	f.StringVar(&o.clientCert, "client-cert", "", "PEM file of a certificate that names the tenant to the endpoints, in place of the key's edge token")
	f.StringVar(&o.clientKey, "client-key", "", "PEM file of its key; both are read for each connection")
	cmd.MarkFlagsRequiredTogether("client-cert", "client-key")
	o.trustFlags(f)
	f.IntVar(&o.recipients, "recipients", 3, "enclaves that a request is sealed to, 1 to 4; with 1 it cannot run twice")
	f.StringVar(&o.kmsKey, "kms-key", "", "ARN of a KMS key of your own: each request is sealed by a data key that KMS releases to attested enclaves only; AWS credentials are found as the AWS CLI finds them")
	f.StringVar(&o.receipts, "receipts", "", "directory for each answer's receipt, as REQUEST_ID.json (mrgc verify-receipt), made if it is not there; as confidential as the requests")
	f.BoolVar(&o.requireReceipt, "require-receipt", false, "refuse enclaves that sign no receipts, and answers without one")
	required(cmd, "endpoint", "releases")
	return cmd
}

// trustFlags are what decides which enclaves are trusted.
func (o *connectOptions) trustFlags(f *pflag.FlagSet) {
	f.StringVar(&o.releases, "releases", "", "JSON file of the enclave releases to trust, with their PCRs")
	f.StringVar(&o.releasesKey, "releases-key", "", "PEM file of the key that verifies --releases: a signed manifest (mrgc releases sign), whose minimum version holds, too; a newer one in its place is taken up")
	f.Uint64Var(&o.minVersion, "min-version", 0, "refuse releases below this version")
	f.StringSliceVar(&o.modes, "require-mode", nil, "modes of isolation to accept, of process, nitro, nitro+attested-host, nitro+attested-host+gpu-cc: what is in\nanother is refused before anything is sealed (default: every mode with a Nitro Enclave)")
	f.StringSliceVar(&o.types, "recipient-types", []string{"enclave"}, "whose keys to seal to: enclave, one enclave's own, and fleet, which all of a region hold, for when none of the enclaves is there\nthat are known: the operator's KMS administrators could have it, too")
	f.StringSliceVar(&o.regions, "allow-region", nil, "regions that requests may go to (default: all)")
	f.StringVar(&o.developmentRoot, "trust-development-root", "", "PEM file of a development root to trust IN PLACE OF AWS's: protects nothing")
}

func connect(ctx context.Context, o connectOptions, log *slog.Logger) error {
	if err := errors.Join(lockdown.NoDumps(), lockdown.Untraceable()); err != nil {
		return err
	}
	config := client.Config{
		Endpoints: o.endpoints, Recipients: o.recipients, Logger: log,
		Policy: client.Policy{MinVersion: o.minVersion, Modes: o.modes, Regions: o.regions, RecipientTypes: o.types, RequireReceipt: o.requireReceipt},
	}
	if o.receipts != "" {
		keep, err := keepReceipts(o.receipts, func(err error) { log.Error("A RECEIPT IS LOST", "error", err) })
		if err != nil {
			return err
		}
		config.Receipts = keep
	}
	if err := o.readFiles(&config); err != nil {
		return err
	}
	if o.kmsKey != "" {
		key, err := kmskey.Open(ctx, o.kmsKey)
		if err != nil {
			return fmt.Errorf("--kms-key: %w", err)
		}
		config.DataKeys = key
	}
	if config.Policy.DevelopmentRoot != nil {
		log.Warn("TRUSTING A DEVELOPMENT ROOT: attestation proves nothing against whoever runs this cluster; never send it anything that matters",
			"root", config.Policy.DevelopmentRoot.Subject.CommonName)
	}
	c, err := client.New(config)
	if err != nil {
		return err
	}
	stopFollowing, err := o.followReleases(ctx, c, log)
	if err != nil {
		return err
	}
	defer stopFollowing()
	listener, err := listenLoopback(o.listen)
	if err != nil {
		return err
	}
	server := &http.Server{
		Handler: c.Handler(), ReadHeaderTimeout: 10 * time.Second,
		ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelDebug),
	}
	stop := context.AfterFunc(ctx, func() { _ = server.Close() })
	defer stop()
	log.Info("serving OpenAI's API", "base_url", "http://"+listener.Addr().String()+"/v1")
	if err := server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

// readFiles reads what the tenant trusts.
func (o *connectOptions) readFiles(config *client.Config) error {
	if err := o.readReleases(&config.Policy); err != nil {
		return err
	}
	if o.ca != "" {
		roots, err := os.ReadFile(o.ca)
		if err != nil {
			return fmt.Errorf("--ca: %w", err)
		}
		config.RootCAs = x509.NewCertPool()
		if !config.RootCAs.AppendCertsFromPEM(roots) {
			return fmt.Errorf("--ca %s: no certificate in it", o.ca)
		}
	}
	if o.clientCert != "" {
		if _, err := o.clientCertificate(nil); err != nil {
			return err
		}
		config.ClientCertificate = o.clientCertificate
	}
	if o.developmentRoot != "" {
		root, err := readCertificate(o.developmentRoot)
		if err != nil {
			return fmt.Errorf("--trust-development-root: %w", err)
		}
		config.Policy.DevelopmentRoot = root
	}
	return nil
}

// clientCertificate reads the certificate as it is now: short-lived ones are renewed
// in their place.
func (o *connectOptions) clientCertificate(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
	certificate, err := tls.LoadX509KeyPair(o.clientCert, o.clientKey)
	if err != nil {
		return nil, fmt.Errorf("--client-cert: %w", err)
	}
	return &certificate, nil
}

// readReleases takes releases as they are, or by a signed manifest. Either way
// --min-version can only raise what is demanded.
func (o *connectOptions) readReleases(policy *client.Policy) (err error) {
	if o.releasesKey == "" {
		policy.Releases, err = readReleases(o.releases)
		return err
	}
	m, err := readManifest(o.releases, "--releases-key", o.releasesKey)
	if err != nil {
		return fmt.Errorf("--releases: %w", err)
	}
	policy.Releases, policy.MinVersion = m.Releases, max(m.MinVersion, policy.MinVersion)
	return nil
}

// followReleases has a client trust what the manifest says, if there is a signed one,
// now and from then on.
func (o *connectOptions) followReleases(ctx context.Context, c *client.Client, log *slog.Logger) (stop func(), err error) {
	if o.releasesKey == "" {
		return func() {}, nil
	}
	manifest, err := releasefollow.Open(o.releases, o.releasesKey, log)
	if err != nil {
		return nil, fmt.Errorf("--releases: %w", err)
	}
	manifest.Changed = func(m *release.Manifest) {
		if err := c.SetReleases(m.Releases, m.MinVersion); err != nil {
			log.Error("the manifest of releases is not taken up", "error", err)
		}
	}
	manifest.Changed(manifest.Manifest())
	ctx, cancel := context.WithCancel(ctx)
	var following sync.WaitGroup
	following.Go(func() { manifest.Run(ctx) })
	return func() {
		cancel()
		following.Wait()
	}, nil
}

func readCertificate(path string) (*x509.Certificate, error) {
	content, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	block, _ := pem.Decode(content)
	if block == nil || block.Type != "CERTIFICATE" {
		return nil, fmt.Errorf("%s: no certificate in it", path)
	}
	return x509.ParseCertificate(block.Bytes)
}

// listenLoopback refuses every other address: requests arrive in clear.
func listenLoopback(address string) (net.Listener, error) {
	resolved, err := net.ResolveTCPAddr("tcp", address)
	if err != nil {
		return nil, fmt.Errorf("--listen: %w", err)
	}
	if !resolved.IP.IsLoopback() {
		return nil, fmt.Errorf("--listen %s is not a loopback address, and prompts would cross the network in clear", address)
	}
	return net.Listen("tcp", resolved.String())
}
