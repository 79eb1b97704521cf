// Package awsclient is how the cluster's programs speak to AWS: with clients that
// give up in time, over TLS but to this machine, and with connections that can be
// closed.
//
//	loaded, err := awsclient.Load(ctx, awsclient.Settings{Region: "us-east-1"})
//	if err != nil { … }
//	defer loaded.Close()
//	client := dynamodb.NewFromConfig(loaded.Config, …)
package awsclient

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/aws/retry"
	awshttp "github.com/aws/aws-sdk-go-v2/aws/transport/http"
	awsconfig "github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/smithy-go/logging"
)

// How long a call may take when its context allows more: three attempts, and
// two waits between them.
const (
	attempts       = 3
	attemptTimeout = 2 * time.Second // services answer within tens of milliseconds
	dialTimeout    = time.Second
	maxBackoff     = 500 * time.Millisecond
)

// Settings say where a service is, and as whom to ask it.
type Settings struct {
	// Region is AWS's name of the region, "us-east-1". Empty: what the environment
	// or AWS's shared configuration says.
	Region string
	// Endpoint is the URL of what speaks the service's protocol, for emulators and
	// VPC endpoints. http is for loopback addresses. Empty: the region's own.
	Endpoint string
	// Credentials sign requests. nil: AWS's default chain, which on EC2 ends with
	// the instance's role.
	Credentials aws.CredentialsProvider
	// Logger hears, at its debug level, what the SDK says. nil: nobody does.
	Logger *slog.Logger
}

// Loaded is what a client is made of.
type Loaded struct {
	aws.Config

	transport *http.Transport
}

// Close gives the connections back that are not in use.
func (l *Loaded) Close() { l.transport.CloseIdleConnections() }

// Load finds out what the environment and AWS's shared configuration say, without
// a request. Errors of the service with one of the codes are tried again, as those
// are that the SDK knows.
func Load(ctx context.Context, cfg Settings, retryCodes ...string) (*Loaded, error) {
	if err := checkEndpoint(cfg.Endpoint); err != nil {
		return nil, err
	}
	builder := awshttp.NewBuildableClient().WithTimeout(attemptTimeout).
		WithDialerOptions(func(d *net.Dialer) { d.Timeout = dialTimeout }).
		WithTransportOptions(func(t *http.Transport) { t.TLSHandshakeTimeout = dialTimeout })
	options := []func(*awsconfig.LoadOptions) error{
		awsconfig.WithHTTPClient(builder),
		awsconfig.WithRetryer(func() aws.Retryer { return newRetryer(retryCodes) }),
		awsconfig.WithLogger(sdkLogger(cfg.Logger)),
	}
	if cfg.Region != "" {
		options = append(options, awsconfig.WithRegion(cfg.Region))
	}
	if cfg.Credentials != nil {
		options = append(options, awsconfig.WithCredentialsProvider(cfg.Credentials))
	}
	settings, err := awsconfig.LoadDefaultConfig(ctx, options...)
	if err != nil {
		return nil, fmt.Errorf("AWS settings: %w", err)
	}
	if settings.Region == "" {
		return nil, errors.New("no AWS region: name one in the address, or set AWS_REGION")
	}
	// The builder, which may have been given more certificates by AWS_CA_BUNDLE,
	// keeps its connections to itself: take its transport, to be able to close them.
	if b, ok := settings.HTTPClient.(*awshttp.BuildableClient); ok {
		builder = b
	}
	transport := builder.GetTransport()
	settings.HTTPClient = &http.Client{
		Transport: transport, Timeout: attemptTimeout,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	if cfg.Endpoint != "" {
		settings.BaseEndpoint = aws.String(cfg.Endpoint)
	}
	return &Loaded{Config: settings, transport: transport}, nil
}

// newRetryer says what the SDK does about throttling, time-outs and dropped
// connections. The SDK's budget for retries stays, so that a service in trouble is
// not asked three times as often; its waits have full jitter.
func newRetryer(codes []string) aws.Retryer {
	return retry.NewStandard(func(o *retry.StandardOptions) {
		o.MaxAttempts, o.MaxBackoff = attempts, maxBackoff
		for _, code := range codes {
			o.Retryables = append(o.Retryables, retry.RetryableErrorCode{Codes: map[string]struct{}{code: {}}})
		}
	})
}

// sdkLogger is for debugging: what matters of the SDK's troubles is in its errors.
func sdkLogger(log *slog.Logger) logging.LoggerFunc {
	return func(_ logging.Classification, format string, arguments ...any) {
		if log != nil {
			log.Debug("AWS SDK: " + fmt.Sprintf(format, arguments...))
		}
	}
}

// checkEndpoint wants TLS to everywhere but this machine.
func checkEndpoint(endpoint string) error {
	if endpoint == "" {
		return nil
	}
	parsed, err := url.Parse(endpoint)
	if err != nil || parsed.Host == "" || (parsed.Scheme != "https" && parsed.Scheme != "http") {
		return fmt.Errorf("endpoint %q: want https://HOST", endpoint)
	}
	if address, err := netip.ParseAddr(parsed.Hostname()); parsed.Scheme == "http" && (err != nil || !address.IsLoopback()) {
		return fmt.Errorf("endpoint %q: http is for a loopback address alone, want https", endpoint)
	}
	return nil
}
