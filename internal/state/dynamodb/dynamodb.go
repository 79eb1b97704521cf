// Package dynamodb keeps the cluster's state in DynamoDB tables: the store of a
// cluster on AWS.
//
//	store, err := dynamodb.Open(ctx, dynamodb.Config{Settings: awsclient.Settings{Region: "us-east-1"}})
//	if err != nil { … }
//	defer store.Close()
//
// A write is one UpdateItem, whose condition is the version that it replaces, the
// fencing token, and the values that must be unchanged; so nothing is read before
// it is written. A write has an id, by which one whose answer was lost, and that
// is sent again, knows that it has been made.
//
// Every region uses its own replica of the tables. A write to a strongly
// consistent one that meets another region's is retried.
//
// Open makes no request. Nothing here creates tables: internal/dynamo does.
//
// The AWS identity needs dynamodb:GetItem, BatchGetItem, Query, Scan, UpdateItem
// and BatchWriteItem on the tables, and Query on cleanup_validation's index.
package dynamodb

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	mathrand "math/rand/v2"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	sdk "github.com/aws/aws-sdk-go-v2/service/dynamodb"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb/types"

	"github.com/mrgc/mrgc/internal/awsclient"
	"github.com/mrgc/mrgc/internal/dynamo"
	"github.com/mrgc/mrgc/internal/state"
	"github.com/mrgc/mrgc/internal/state/schema"
)

// Config says where the store is.
type Config struct {
	awsclient.Settings
	// Prefix of the tables' names; may be empty.
	Prefix string
	// StrongRegion is the region whose strongly consistent tables are used, by AWS's
	// name; empty: Region. It is for emulators, which keep their regions apart: there,
	// one region's tables are every region's.
	StrongRegion string
}

// Store is a [state.Store] in DynamoDB tables.
type Store struct {
	prefix       string
	near, strong *dynamo.Client // eventually and strongly consistent tables

	mu     sync.Mutex // guards what follows
	closed bool
}

var _ state.Store = (*Store)(nil)

var errClosed = errors.New("state store is closed")

// Open prepares the use of the tables, without a request.
func Open(ctx context.Context, cfg Config) (*Store, error) {
	for _, table := range schema.Tables(cfg.Prefix) {
		if err := dynamo.CheckTable(table.Name); err != nil {
			return nil, fmt.Errorf("state store: %w", err)
		}
	}
	near, err := dynamo.NewClient(ctx, cfg.Settings)
	if err != nil {
		return nil, fmt.Errorf("state store: %w", err)
	}
	s := &Store{prefix: cfg.Prefix, near: near, strong: near}
	if cfg.StrongRegion != "" {
		cfg.Region = cfg.StrongRegion
		if s.strong, err = dynamo.NewClient(ctx, cfg.Settings); err != nil {
			return nil, fmt.Errorf("state store: %w", err)
		}
	}
	return s, nil
}

// Close gives the connections back.
func (s *Store) Close() error {
	s.mu.Lock()
	s.closed = true
	s.mu.Unlock()
	s.near.Close()
	s.strong.Close()
	return nil
}

// at is what to ask about a table, and the table's name there.
func (s *Store) at(table schema.Table) (*dynamo.Client, *string, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil, nil, errClosed
	}
	client := s.near
	if table.Consistency == schema.Strong {
		client = s.strong
	}
	return client, aws.String(s.prefix + table.Name), nil
}

func (s *Store) named(table schema.Table, what string, err error) error {
	return fmt.Errorf("state store: DynamoDB table %s: %s: %w", s.prefix+table.Name, what, dynamo.Explain(err))
}

// Get reads an item.
func (s *Store) Get(ctx context.Context, table schema.Table, key state.Key) (state.Item, error) {
	if err := key.Check(table); err != nil {
		return state.Item{}, err
	}
	what := "read " + key.String()
	client, name, err := s.at(table)
	if err != nil {
		return state.Item{}, s.named(table, what, err)
	}
	got, err := client.GetItem(ctx, &sdk.GetItemInput{TableName: name, Key: encodeKey(table, key), ConsistentRead: aws.Bool(true)})
	if err != nil {
		return state.Item{}, s.named(table, what, err)
	}
	items, err := decodeLive(table, []item{got.Item})
	if err == nil && len(items) == 0 {
		err = state.ErrNotFound
	}
	if err != nil {
		return state.Item{}, s.named(table, what, err)
	}
	return items[0], nil
}

// What DynamoDB takes in one call (API reference, BatchGetItem, BatchWriteItem).
const (
	mostGets = 100
	mostPuts = 25
)

// GetMany reads several items.
func (s *Store) GetMany(ctx context.Context, table schema.Table, keys []state.Key) ([]state.Item, error) {
	for _, key := range keys {
		if err := key.Check(table); err != nil {
			return nil, err
		}
	}
	client, name, err := s.at(table)
	if err != nil {
		return nil, s.named(table, "read", err)
	}
	var found []item
	for chunk := range slices.Chunk(keys, mostGets) {
		ask := types.KeysAndAttributes{ConsistentRead: aws.Bool(true)}
		for _, key := range chunk {
			ask.Keys = append(ask.Keys, encodeKey(table, key))
		}
		err := untilDone(ctx, func() (left int, err error) {
			got, err := client.BatchGetItem(ctx, &sdk.BatchGetItemInput{RequestItems: map[string]types.KeysAndAttributes{*name: ask}})
			if err != nil {
				return 0, err
			}
			found = append(found, got.Responses[*name]...)
			ask.Keys = got.UnprocessedKeys[*name].Keys
			return len(ask.Keys), nil
		})
		if err != nil {
			return nil, s.named(table, "read several", err)
		}
	}
	items, err := decodeLive(table, found)
	if err != nil {
		return nil, s.named(table, "read several", err)
	}
	return items, nil
}

// List reads the items of a partition.
func (s *Store) List(ctx context.Context, table schema.Table, q state.Query) ([]state.Item, error) {
	partition, sort := table.PartitionKey, table.SortKey
	if q.Index != "" {
		index, err := q.IndexIn(table)
		if err != nil {
			return nil, err
		}
		partition, sort = index.PartitionKey, &index.SortKey
	}
	client, name, err := s.at(table)
	if err != nil {
		return nil, s.named(table, "list", err)
	}
	next := scan(ctx, client, name)
	if q.Partition != "" {
		next = query(ctx, client, name, partition, sort, q)
	}
	var (
		all  []state.Item
		from item
	)
	for {
		page, last, err := next(from)
		if err != nil {
			return nil, s.named(table, "list "+q.Partition, err)
		}
		items, err := decodeLive(table, page)
		if err != nil {
			return nil, s.named(table, "list "+q.Partition, err)
		}
		all = append(all, items...)
		if q.Limit > 0 && len(all) >= q.Limit {
			return all[:q.Limit], nil
		}
		if from = last; len(last) == 0 {
			return all, nil
		}
	}
}

// pages gives a page of items, and from where the next one goes on; empty: there is none.
type pages func(from item) (page []item, last item, err error)

func scan(ctx context.Context, client *dynamo.Client, name *string) pages {
	return func(from item) ([]item, item, error) {
		page, err := client.Scan(ctx, &sdk.ScanInput{TableName: name, ConsistentRead: aws.Bool(true), ExclusiveStartKey: from})
		if err != nil {
			return nil, nil, err
		}
		return page.Items, page.LastEvaluatedKey, nil
	}
}

// query reads one partition, of the table or of an index. An index is never strongly
// consistent.
func query(ctx context.Context, client *dynamo.Client, name *string, partition schema.Attribute, sort *schema.Attribute, q state.Query) pages {
	input := &sdk.QueryInput{
		TableName: name, ScanIndexForward: aws.Bool(!q.Newest),
		KeyConditionExpression:    aws.String("#p = :p"),
		ExpressionAttributeNames:  map[string]string{"#p": partition.Name},
		ExpressionAttributeValues: item{":p": text(q.Partition)},
	}
	if q.Index != "" {
		input.IndexName = aws.String(q.Index)
	} else {
		input.ConsistentRead = aws.Bool(true)
	}
	if q.From != "" && sort != nil {
		input.KeyConditionExpression = aws.String("#p = :p AND #s >= :s")
		input.ExpressionAttributeNames["#s"], input.ExpressionAttributeValues[":s"] = sort.Name, text(q.From)
	}
	if q.Limit > 0 {
		input.Limit = aws.Int32(int32(q.Limit))
	}
	return func(from item) ([]item, item, error) {
		input.ExclusiveStartKey = from
		page, err := client.Query(ctx, input)
		if err != nil {
			return nil, nil, err
		}
		return page.Items, page.LastEvaluatedKey, nil
	}
}

// Write changes an item.
func (s *Store) Write(ctx context.Context, table schema.Table, w state.Write) (int64, error) {
	fields, err := w.Check(table)
	if err != nil {
		return 0, err
	}
	what := "write " + w.Key.String()
	client, name, err := s.at(table)
	if err != nil {
		return 0, s.named(table, what, err)
	}
	id := rand.Text()
	input, err := update(table, w, fields, id)
	if err != nil {
		return 0, s.named(table, what, err)
	}
	input.TableName = name
	written, err := client.UpdateItem(ctx, input)
	var refused *types.ConditionalCheckFailedException
	switch {
	case errors.As(err, &refused):
		now, err := decode(table, refused.Item)
		if err == nil && writeID(refused.Item) == id {
			return now.Version, nil // it was sent twice
		}
		if err == nil {
			err = w.Refusal(now)
		}
		if err == nil {
			err = state.ErrConflict // what refused it has changed again
		}
		return 0, s.named(table, what, err)
	case err != nil:
		return 0, s.named(table, what, err)
	}
	version, err := whole(written.Attributes, state.FieldVersion)
	if err != nil {
		return 0, s.named(table, what, err)
	}
	return version, nil
}

// update is a write as DynamoDB takes it. Names and values are given through
// placeholders, because some names are reserved words.
func update(table schema.Table, w state.Write, fields map[string]json.RawMessage, id string) (*sdk.UpdateItemInput, error) {
	e := expression{names: map[string]string{}, values: item{}}
	var set, conditions []string
	for _, name := range slices.Sorted(maps.Keys(fields)) {
		value, err := encode(fields[name])
		if err != nil {
			return nil, fmt.Errorf("field %s: %w", name, err)
		}
		set = append(set, e.name(name)+" = "+e.value(value))
	}
	set = append(set, e.name(state.FieldWriteID)+" = "+e.value(text(id)))
	if !w.Expires.IsZero() {
		set = append(set, e.name(schema.TTL)+" = "+e.value(number(w.Expires.Unix())))
	}
	if w.Fence != 0 {
		fence, token := e.name(state.FieldFence), e.value(number(w.Fence))
		set = append(set, fence+" = "+token)
		conditions = append(conditions, fmt.Sprintf("(attribute_not_exists(%s) OR %s <= %s)", fence, fence, token))
	}
	switch w.Version {
	case state.AnyVersion:
	case 0:
		conditions = append(conditions, "attribute_not_exists("+e.name(state.FieldVersion)+")")
	default:
		conditions = append(conditions, e.name(state.FieldVersion)+" = "+e.value(number(w.Version)))
	}
	for _, name := range slices.Sorted(maps.Keys(w.Unchanged)) {
		value, err := encode(w.Unchanged[name])
		if err != nil {
			return nil, fmt.Errorf("field %s: %w", name, err)
		}
		condition := e.name(name) + " = " + e.value(value)
		if _, null := value.(*types.AttributeValueMemberNULL); null {
			condition = fmt.Sprintf("(attribute_not_exists(%s) OR %s)", e.name(name), condition)
		}
		conditions = append(conditions, condition)
	}
	input := &sdk.UpdateItemInput{
		Key:              encodeKey(table, w.Key),
		UpdateExpression: aws.String("SET " + strings.Join(set, ", ") + " ADD " + e.name(state.FieldVersion) + " " + e.value(number(1))),
		ReturnValues:     types.ReturnValueUpdatedNew,

		ReturnValuesOnConditionCheckFailure: types.ReturnValuesOnConditionCheckFailureAllOld,
	}
	if len(conditions) > 0 {
		input.ConditionExpression = aws.String(strings.Join(conditions, " AND "))
	}
	input.ExpressionAttributeNames, input.ExpressionAttributeValues = e.names, e.values
	return input, nil
}

// expression collects placeholders.
type expression struct {
	names  map[string]string
	values item
}

func (e *expression) name(of string) string {
	e.names["#"+of] = of
	return "#" + of
}

func (e *expression) value(of types.AttributeValue) string {
	placeholder := fmt.Sprintf(":v%d", len(e.values))
	e.values[placeholder] = of
	return placeholder
}

// Replace stores items whatever is there.
func (s *Store) Replace(ctx context.Context, table schema.Table, writes []state.Write) error {
	client, name, err := s.at(table)
	if err != nil {
		return s.named(table, "write several", err)
	}
	var puts []types.WriteRequest
	for _, w := range writes {
		full, err := replacement(table, w)
		if err != nil {
			return s.named(table, "write several", err)
		}
		puts = append(puts, types.WriteRequest{PutRequest: &types.PutRequest{Item: full}})
	}
	for chunk := range slices.Chunk(puts, mostPuts) {
		err := untilDone(ctx, func() (left int, err error) {
			written, err := client.BatchWriteItem(ctx, &sdk.BatchWriteItemInput{RequestItems: map[string][]types.WriteRequest{*name: chunk}})
			if err != nil {
				return 0, err
			}
			chunk = written.UnprocessedItems[*name]
			return len(chunk), nil
		})
		if err != nil {
			return s.named(table, "write several", err)
		}
	}
	return nil
}

// replacement is all of an item.
func replacement(table schema.Table, w state.Write) (item, error) {
	fields, err := w.Check(table)
	if err != nil {
		return nil, err
	}
	full := encodeKey(table, w.Key)
	for name, field := range fields {
		if full[name], err = encode(field); err != nil {
			return nil, fmt.Errorf("field %s: %w", name, err)
		}
	}
	full[state.FieldVersion] = number(1)
	if w.Fence != 0 {
		full[state.FieldFence] = number(w.Fence)
	}
	if !w.Expires.IsZero() {
		full[schema.TTL] = number(w.Expires.Unix())
	}
	return full, nil
}

// How often the rest of a batch is sent again, and the longest wait before.
const (
	batchTries  = 6
	firstPause  = 50 * time.Millisecond
	longestWait = time.Second
)

// untilDone calls a batch until it leaves nothing undone. DynamoDB says nothing
// else of throttling within a batch, so the waits grow, each a random part of its
// limit (Brooker, "Exponential backoff and jitter", AWS 2015).
func untilDone(ctx context.Context, call func() (left int, err error)) error {
	limit := firstPause
	for try := 1; ; try++ {
		left, err := call()
		if err != nil || left == 0 {
			return err
		}
		if try == batchTries {
			return fmt.Errorf("throttled: %d of the batch left undone after %d tries", left, try)
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%d of the batch left undone: %w", left, ctx.Err())
		case <-time.After(mathrand.N(limit)): //nolint:gosec // jitter
		}
		limit = min(2*limit, longestWait)
	}
}
