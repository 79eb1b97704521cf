// Package dynamo is how the cluster speaks to DynamoDB: errors that say what to do
// about them, and the tables themselves.
//
//	address, err := awsclient.ParseAddress("gpu_instances?region=us-east-1")
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
	"net"
	"regexp"

	"github.com/aws/aws-sdk-go-v2/aws/retry"
	sdk "github.com/aws/aws-sdk-go-v2/service/dynamodb"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb/types"

	"github.com/mrgc/mrgc/internal/awsclient"
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

// Client is DynamoDB in one region.
type Client struct {
	*sdk.Client
	Region string // AWS's name

	loaded *awsclient.Loaded
}

// Close gives the connections back that are not in use.
func (c *Client) Close() { c.loaded.Close() }

// NewClient makes a client, without a request to anyone. It tries again what a
// write to a strongly consistent table says that met another region's.
func NewClient(ctx context.Context, cfg awsclient.Settings) (*Client, error) {
	loaded, err := awsclient.Load(ctx, cfg, (&types.ReplicatedWriteConflictException{}).ErrorCode())
	if err != nil {
		return nil, err
	}
	return &Client{Client: sdk.NewFromConfig(loaded.Config), Region: loaded.Region, loaded: loaded}, nil
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
