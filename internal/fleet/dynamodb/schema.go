package dynamodb

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	sdk "github.com/aws/aws-sdk-go-v2/service/dynamodb"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb/types"
)

// DefaultTable is the name of the fleet's table in a cluster on AWS.
const DefaultTable = "gpu_instances"

// An item is an instance. Only the key is declared to DynamoDB; every item has
// all of these attributes, and others are left alone.
//
// The instance's ID alone is the key: heartbeats and drains know nothing else,
// and it makes IDs unique over all regions.
const (
	attrID       = "instance_id" // S, partition key
	attrRegion   = "region"      // S, short name: use1
	attrZone     = "zone"        // S, may be empty
	attrAddress  = "address"     // S, IP:port
	attrModels   = "models"      // L of S
	attrVersions = "versions"    // M of S, by model; absent in items of before there were any
	attrKeyIDs   = "key_ids"     // L of S, 16 hex digits each
	attrDraining = "draining"    // BOOL

	attrEnclaveOK    = "enclave_ok"    // BOOL
	attrEngineOK     = "engine_ok"     // BOOL
	attrHealthReason = "health_reason" // S, may be empty

	attrRunning = "running_requests" // N
	attrQueued  = "queued_requests"  // N
	attrSlots   = "slots"            // N, 0: not known
	attrLatency = "latency_ns"       // N, 0: not known

	attrRegisteredAt = "registered_at_unix_ns" // N, nanoseconds since 1970
	attrHeartbeatAt  = "heartbeat_at_unix_ns"  // N, nanoseconds since 1970
	attrVersion      = "version"               // N, counts writes from 1
)

// tableInput is the table without what is an operator's choice: its encryption,
// backups and replicas belong to Terraform. Requests are paid for one by one,
// because a fleet of any size that is in sight needs few, and a table that is
// billed so has no capacity to set too low.
func tableInput(name string) *sdk.CreateTableInput {
	return &sdk.CreateTableInput{
		TableName:            aws.String(name),
		AttributeDefinitions: []types.AttributeDefinition{{AttributeName: aws.String(attrID), AttributeType: types.ScalarAttributeTypeS}},
		KeySchema:            []types.KeySchemaElement{{AttributeName: aws.String(attrID), KeyType: types.KeyTypeHash}},
		BillingMode:          types.BillingModePayPerRequest,
	}
}

// CreateTable creates the table and waits until it can be used. A table that is
// there already is left as it is, and is an error when its key is another.
func CreateTable(ctx context.Context, cfg Config) error {
	client, transport, err := newClient(ctx, cfg)
	if err != nil {
		return err
	}
	defer transport.CloseIdleConnections()
	var exists *types.ResourceInUseException
	if _, err := client.CreateTable(ctx, tableInput(cfg.Table)); err != nil && !errors.As(err, &exists) {
		return fmt.Errorf("create DynamoDB table %s: %w", cfg.Table, explain(err))
	}
	active := sdk.NewTableExistsWaiter(client, func(o *sdk.TableExistsWaiterOptions) {
		o.MinDelay, o.MaxDelay = 200*time.Millisecond, 5*time.Second
	})
	created, err := active.WaitForOutput(ctx, &sdk.DescribeTableInput{TableName: aws.String(cfg.Table)}, 2*time.Minute)
	if err != nil {
		return fmt.Errorf("create DynamoDB table %s: wait until it is active: %w", cfg.Table, explain(err))
	}
	if !hasKey(created.Table) {
		return fmt.Errorf("DynamoDB table %s exists with another key, want the partition key %s (S) alone: choose another name",
			cfg.Table, attrID)
	}
	return nil
}

func hasKey(table *types.TableDescription) bool {
	if len(table.KeySchema) != 1 || aws.ToString(table.KeySchema[0].AttributeName) != attrID {
		return false
	}
	for _, attribute := range table.AttributeDefinitions {
		if aws.ToString(attribute.AttributeName) == attrID {
			return attribute.AttributeType == types.ScalarAttributeTypeS
		}
	}
	return false
}
