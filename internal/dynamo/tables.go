package dynamo

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	sdk "github.com/aws/aws-sdk-go-v2/service/dynamodb"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb/types"

	"github.com/mrgc/mrgc/internal/state/schema"
)

// Report is what was found of a table, and what was done.
type Report struct {
	Table string `json:"table"`
	// Did is what was done, in order: "created", unless the answer to that was lost,
	// "ttl_attribute" and so on.
	Did []string `json:"did"`
	// Differs is what a person has to put right.
	Differs []schema.Difference `json:"differs"`
}

// Err is an error while something differs.
func (r Report) Err() error {
	var errs []error
	for _, d := range r.Differs {
		errs = append(errs, fmt.Errorf("DynamoDB table %s: %s", r.Table, d))
	}
	return errors.Join(errs...)
}

// How long a table may take to become usable. DynamoDB Local takes milliseconds,
// AWS seconds, and minutes for an index or a replica.
const (
	settleTime   = 20 * time.Minute
	firstLook    = 100 * time.Millisecond
	longestPause = 5 * time.Second
)

// Ensure creates a table where there is none, adds to one that is there what it
// lacks, and returns when it can be used. It changes nothing that is there, and
// done again does nothing. Without regions in the table no replicas are made.
func (c *Client) Ensure(ctx context.Context, want schema.Table) (Report, error) {
	report := Report{Table: want.Name, Did: []string{}, Differs: []schema.Difference{}}
	err := c.ensure(ctx, want, &report)
	if err != nil {
		err = fmt.Errorf("DynamoDB table %s: %w", want.Name, err)
	}
	return report, err
}

func (c *Client) ensure(ctx context.Context, want schema.Table, report *Report) error {
	var exists *types.ResourceInUseException
	_, err := c.CreateTable(ctx, creation(want))
	switch {
	case err == nil:
		report.Did = append(report.Did, "created")
	case !errors.As(err, &exists):
		return fmt.Errorf("create: %w", Explain(err))
	}
	// Each change is made on what the one before has left: DynamoDB makes one at a
	// time.
	done := map[string]bool{}
	for {
		got, err := c.settled(ctx, want.Name)
		if err != nil {
			return err
		}
		differences := schema.Compare(want, got)
		i := slices.IndexFunc(differences, func(d schema.Difference) bool { return d.Todo == "" })
		if i < 0 {
			report.Differs = append(report.Differs, differences...)
			return nil
		}
		d := differences[i]
		key := d.What + " " + d.Got
		if done[key] {
			return fmt.Errorf("%s: DynamoDB accepted the change and did not make it", d)
		}
		done[key] = true
		if err := c.change(ctx, want, got, d.What); err != nil {
			return fmt.Errorf("%s: %w", d, Explain(err))
		}
		if !slices.Contains(report.Did, d.What) {
			report.Did = append(report.Did, d.What)
		}
	}
}

// change makes one difference go away, or begins to.
func (c *Client) change(ctx context.Context, want, got schema.Table, what string) error {
	if what == "ttl_attribute" {
		_, err := c.UpdateTimeToLive(ctx, &sdk.UpdateTimeToLiveInput{
			TableName:               aws.String(want.Name),
			TimeToLiveSpecification: &types.TimeToLiveSpecification{AttributeName: aws.String(want.TTLAttribute), Enabled: aws.Bool(true)},
		})
		return err
	}
	input := &sdk.UpdateTableInput{TableName: aws.String(want.Name)}
	switch what {
	case "stream":
		input.StreamSpecification = stream()
	case "regions":
		missing := want.MissingIn(got)
		if want.Consistency == schema.Strong {
			input.MultiRegionConsistency = types.MultiRegionConsistencyStrong // all at once
		} else {
			missing = missing[:1] // one at a time
		}
		for _, region := range missing {
			input.ReplicaUpdates = append(input.ReplicaUpdates, types.ReplicationGroupUpdate{
				Create: &types.CreateReplicationGroupMemberAction{RegionName: aws.String(region)},
			})
		}
	default:
		i := slices.IndexFunc(want.Indexes, func(index schema.Index) bool { return what == "index "+index.Name })
		index := want.Indexes[i]
		input.AttributeDefinitions = attributes(want)
		input.GlobalSecondaryIndexUpdates = []types.GlobalSecondaryIndexUpdate{{Create: &types.CreateGlobalSecondaryIndexAction{
			IndexName: aws.String(index.Name), KeySchema: keys(index.PartitionKey, &index.SortKey), Projection: everything(),
		}}}
	}
	_, err := c.UpdateTable(ctx, input)
	return err
}

// settled describes a table once nothing about it changes any more.
func (c *Client) settled(ctx context.Context, name string) (schema.Table, error) {
	ctx, cancel := context.WithTimeout(ctx, settleTime)
	defer cancel()
	for pause := firstLook; ; pause = min(2*pause, longestPause) {
		table, err := c.DescribeTable(ctx, &sdk.DescribeTableInput{TableName: aws.String(name)})
		if err != nil {
			return schema.Table{}, fmt.Errorf("describe: %w", Explain(err))
		}
		ttl, err := c.DescribeTimeToLive(ctx, &sdk.DescribeTimeToLiveInput{TableName: aws.String(name)})
		if err != nil {
			return schema.Table{}, fmt.Errorf("describe time to live: %w", Explain(err))
		}
		if isSettled(table.Table) {
			return describe(c.Region, table.Table, ttl.TimeToLiveDescription), nil
		}
		select {
		case <-ctx.Done():
			return schema.Table{}, fmt.Errorf("still changing (%s): run this again later: %w", table.Table.TableStatus, ctx.Err())
		case <-time.After(pause):
		}
	}
}

func isSettled(t *types.TableDescription) bool {
	return t.TableStatus == types.TableStatusActive &&
		!slices.ContainsFunc(t.GlobalSecondaryIndexes, func(i types.GlobalSecondaryIndexDescription) bool {
			return i.IndexStatus != types.IndexStatusActive
		}) &&
		!slices.ContainsFunc(t.Replicas, func(r types.ReplicaDescription) bool {
			return r.ReplicaStatus == types.ReplicaStatusCreating || r.ReplicaStatus == types.ReplicaStatusUpdating
		})
}

// describe is what DynamoDB says of a table, in this project's words.
func describe(region string, t *types.TableDescription, ttl *types.TimeToLiveDescription) schema.Table {
	kind := map[string]string{}
	for _, a := range t.AttributeDefinitions {
		kind[aws.ToString(a.AttributeName)] = string(a.AttributeType)
	}
	attribute := func(elements []types.KeySchemaElement, i int) schema.Attribute {
		if i >= len(elements) {
			return schema.Attribute{}
		}
		name := aws.ToString(elements[i].AttributeName)
		return schema.Attribute{Name: name, Type: kind[name]}
	}
	got := schema.Table{
		Name: aws.ToString(t.TableName), PartitionKey: attribute(t.KeySchema, 0),
		Consistency: schema.Consistency(t.MultiRegionConsistency), Regions: []string{region},
	}
	if len(t.KeySchema) > 1 {
		sort := attribute(t.KeySchema, 1)
		got.SortKey = &sort
	}
	for _, i := range t.GlobalSecondaryIndexes {
		got.Indexes = append(got.Indexes, schema.Index{
			Name: aws.ToString(i.IndexName), PartitionKey: attribute(i.KeySchema, 0), SortKey: attribute(i.KeySchema, 1),
		})
	}
	if ttl != nil && (ttl.TimeToLiveStatus == types.TimeToLiveStatusEnabled || ttl.TimeToLiveStatus == types.TimeToLiveStatusEnabling) {
		got.TTLAttribute = aws.ToString(ttl.AttributeName)
	}
	got.Stream = t.StreamSpecification != nil && aws.ToBool(t.StreamSpecification.StreamEnabled) &&
		t.StreamSpecification.StreamViewType == types.StreamViewTypeNewAndOldImages
	for _, r := range t.Replicas {
		if name := aws.ToString(r.RegionName); !slices.Contains(got.Regions, name) {
			got.Regions = append(got.Regions, name)
		}
	}
	if got.Consistency == "" && len(got.Regions) > 1 {
		got.Consistency = schema.Eventual // what DynamoDB means when it does not say
	}
	return got
}

func creation(t schema.Table) *sdk.CreateTableInput {
	input := &sdk.CreateTableInput{
		TableName: aws.String(t.Name), AttributeDefinitions: attributes(t),
		KeySchema: keys(t.PartitionKey, t.SortKey), BillingMode: types.BillingModePayPerRequest,
	}
	for _, index := range t.Indexes {
		input.GlobalSecondaryIndexes = append(input.GlobalSecondaryIndexes, types.GlobalSecondaryIndex{
			IndexName: aws.String(index.Name), KeySchema: keys(index.PartitionKey, &index.SortKey), Projection: everything(),
		})
	}
	if t.Stream {
		input.StreamSpecification = stream()
	}
	return input
}

// attributes are those that keys are made of, each once.
func attributes(t schema.Table) []types.AttributeDefinition {
	all := []schema.Attribute{t.PartitionKey}
	if t.SortKey != nil {
		all = append(all, *t.SortKey)
	}
	for _, index := range t.Indexes {
		all = append(all, index.PartitionKey, index.SortKey)
	}
	var definitions []types.AttributeDefinition
	for i, a := range all {
		if !slices.Contains(all[:i], a) {
			definitions = append(definitions, types.AttributeDefinition{
				AttributeName: aws.String(a.Name), AttributeType: types.ScalarAttributeType(a.Type),
			})
		}
	}
	return definitions
}

func keys(partition schema.Attribute, sort *schema.Attribute) []types.KeySchemaElement {
	elements := []types.KeySchemaElement{{AttributeName: aws.String(partition.Name), KeyType: types.KeyTypeHash}}
	if sort != nil {
		elements = append(elements, types.KeySchemaElement{AttributeName: aws.String(sort.Name), KeyType: types.KeyTypeRange})
	}
	return elements
}

func stream() *types.StreamSpecification {
	return &types.StreamSpecification{StreamEnabled: aws.Bool(true), StreamViewType: types.StreamViewTypeNewAndOldImages}
}

func everything() *types.Projection {
	return &types.Projection{ProjectionType: types.ProjectionTypeAll}
}
