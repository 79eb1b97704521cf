package dynamodb

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"regexp"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/aws/retry"
	awshttp "github.com/aws/aws-sdk-go-v2/aws/transport/http"
	awsconfig "github.com/aws/aws-sdk-go-v2/config"
	sdk "github.com/aws/aws-sdk-go-v2/service/dynamodb"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb/types"
	"github.com/aws/smithy-go/logging"
)

// How long a call may take when its context allows more: three attempts, and
// two waits between them.
const (
	attempts       = 3
	attemptTimeout = 2 * time.Second // DynamoDB answers within 10 ms
	dialTimeout    = time.Second
	maxBackoff     = 500 * time.Millisecond
)

// tableName is DynamoDB's rule (API reference, CreateTable, TableName).
var tableName = regexp.MustCompile(`^[a-zA-Z0-9_.-]{3,255}$`)

// newClient makes a client, without a request to anyone. Whoever is done with it
// closes the transport's idle connections.
func newClient(ctx context.Context, cfg Config) (*sdk.Client, *http.Transport, error) {
	if !tableName.MatchString(cfg.Table) {
		return nil, nil, fmt.Errorf("DynamoDB table %q: want 3 to 255 of a-z, A-Z, 0-9 and _.-", cfg.Table)
	}
	if err := checkEndpoint(cfg.Endpoint); err != nil {
		return nil, nil, fmt.Errorf("DynamoDB table %s: %w", cfg.Table, err)
	}
	builder := awshttp.NewBuildableClient().WithTimeout(attemptTimeout).
		WithDialerOptions(func(d *net.Dialer) { d.Timeout = dialTimeout }).
		WithTransportOptions(func(t *http.Transport) { t.TLSHandshakeTimeout = dialTimeout })
	options := []func(*awsconfig.LoadOptions) error{
		awsconfig.WithHTTPClient(builder),
		awsconfig.WithRetryer(func() aws.Retryer { return newRetryer() }),
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
		return nil, nil, fmt.Errorf("DynamoDB table %s: AWS settings: %w", cfg.Table, err)
	}
	if settings.Region == "" {
		return nil, nil, fmt.Errorf("DynamoDB table %s: no AWS region: name one with the table, or set AWS_REGION", cfg.Table)
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
	return sdk.NewFromConfig(settings, func(o *sdk.Options) {
		if cfg.Endpoint != "" {
			o.BaseEndpoint = aws.String(cfg.Endpoint)
		}
	}), transport, nil
}

// newRetryer says what the SDK does about throttling, time-outs and dropped
// connections. The SDK's budget for retries stays, so that a table in trouble
// is not asked three times as often.
func newRetryer() aws.Retryer {
	return retry.NewStandard(func(o *retry.StandardOptions) {
		o.MaxAttempts, o.MaxBackoff = attempts, maxBackoff
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

// explain says first what a person can do about an error of the SDK's.
func explain(err error) error {
	var (
		noTable *types.ResourceNotFoundException
		network net.Error
	)
	switch {
	case err == nil, errors.Is(err, context.Canceled):
		return err
	case errors.As(err, &noTable):
		return fmt.Errorf("the table is not in this AWS region, or not ready: check its name and the region: %w", err)
	case retry.ThrottleErrorCode{Codes: retry.DefaultThrottleErrorCodes}.IsErrorThrottle(err).Bool():
		return fmt.Errorf("throttled: the table's or the account's limit is reached: %w", err)
	case errors.Is(err, context.DeadlineExceeded):
		return fmt.Errorf("timed out: %w", err)
	case errors.As(err, &network):
		return fmt.Errorf("cannot be reached: %w", err)
	}
	return err
}
