// Package dynamo is how the cluster speaks to DynamoDB: clients that give up in
// time, errors that say what to do about them, and the tables themselves.
//
//	address, err := dynamo.ParseAddress("gpu_instances?region=us-east-1")
//	client, err := dynamo.NewClient(ctx, address.Settings)
//	if err != nil { … }
//	defer client.Close()
//
// What is stored is for the stores to say: internal/fleet/dynamodb and
// internal/state/dynamodb.
package dynamo

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

// CheckTable checks the name of a table.
func CheckTable(name string) error {
	if !tableName.MatchString(name) {
		return fmt.Errorf("DynamoDB table %q: want 3 to 255 of a-z, A-Z, 0-9 and _.-", name)
	}
	return nil
}

// Settings say where DynamoDB is, and as whom to ask it.
type Settings struct {
	// Region is AWS's name of the region, "us-east-1". Empty: what the environment
	// or AWS's shared configuration says.
	Region string
	// Endpoint is the URL of what speaks DynamoDB's protocol, for emulators and
	// VPC endpoints. http is for loopback addresses. Empty: the region's own.
	Endpoint string
	// Credentials sign requests. nil: AWS's default chain, which on EC2 ends with
	// the instance's role.
	Credentials aws.CredentialsProvider
	// Logger hears, at its debug level, what the SDK says. nil: nobody does.
	Logger *slog.Logger
}

// Client is DynamoDB in one region.
type Client struct {
	*sdk.Client
	Region string // AWS's name

	transport *http.Transport
}

// Close gives the connections back that are not in use.
func (c *Client) Close() { c.transport.CloseIdleConnections() }

// NewClient makes a client, without a request to anyone.
func NewClient(ctx context.Context, cfg Settings) (*Client, error) {
	if err := checkEndpoint(cfg.Endpoint); err != nil {
		return nil, err
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
		return nil, fmt.Errorf("AWS settings: %w", err)
	}
	if settings.Region == "" {
		return nil, errors.New("no AWS region: name one with the table, or set AWS_REGION")
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
	client := sdk.NewFromConfig(settings, func(o *sdk.Options) {
		if cfg.Endpoint != "" {
			o.BaseEndpoint = aws.String(cfg.Endpoint)
		}
	})
	return &Client{Client: client, Region: settings.Region, transport: transport}, nil
}

// newRetryer says what the SDK does about throttling, time-outs and dropped
// connections, and about a write to a strongly consistent table that met another
// region's. The SDK's budget for retries stays, so that a table in trouble is not
// asked three times as often; its waits have full jitter.
func newRetryer() aws.Retryer {
	return retry.NewStandard(func(o *retry.StandardOptions) {
		o.MaxAttempts, o.MaxBackoff = attempts, maxBackoff
		o.Retryables = append(o.Retryables, retry.RetryableErrorCode{
			Codes: map[string]struct{}{(&types.ReplicatedWriteConflictException{}).ErrorCode(): {}},
		})
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

// Explain says first what a person can do about an error of the SDK's.
func Explain(err error) error {
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
