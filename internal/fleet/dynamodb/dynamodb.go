// Package dynamodb keeps the fleet in a DynamoDB table: the store of a cluster
// on AWS.
//
// Every parent and every router of a region uses the region's table:
//
//	store, err := dynamodb.Open(ctx, dynamodb.Config{Table: "gpu_instances", Region: "us-east-1"})
//	if err != nil { … }
//	defer store.Close()
//
// An instance is an item (schema.go lists its attributes). A write is one
// UpdateItem of the attributes that are its own, and adds 1 to the item's
// version in the same request; a write to an instance that must exist is
// conditional on that. DynamoDB orders the writes to an item, so two writers
// never lose an update, and nothing here reads before it writes.
//
// That holds within one region. Where the table is global, whoever writes to an
// instance does so in the instance's own region: between regions the last writer
// of an item wins, whatever its attributes.
//
// Writes are retried after time-outs. One that took effect although its answer
// was lost is then done, and counted in Version, twice.
//
// Open makes no request, so that routers and parents start, and serve what they
// can, while the table cannot be reached. Nothing here creates the table: `mrgc
// state init` does. Items that are no instances are skipped with one warning each.
//
// The AWS identity needs dynamodb:Scan, UpdateItem and DeleteItem on the table.
package dynamodb

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	sdk "github.com/aws/aws-sdk-go-v2/service/dynamodb"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb/types"

	"github.com/mrgc/mrgc/internal/awsclient"
	"github.com/mrgc/mrgc/internal/dynamo"
	"github.com/mrgc/mrgc/internal/fleet"
	"github.com/mrgc/mrgc/internal/fleet/poll"
)

// Config says where the store is.
type Config struct {
	// Table is the table's name, required.
	Table string
	// Region is AWS's name of the table's region, "us-east-1". Empty: what the
	// environment or AWS's shared configuration says.
	Region string
	// Endpoint is the URL of what speaks DynamoDB's protocol, for emulators and
	// VPC endpoints. http is for loopback addresses. Empty: the region's own.
	Endpoint string
	// Credentials sign requests. nil: AWS's default chain, which on EC2 ends with
	// the instance's role.
	Credentials aws.CredentialsProvider
	// PollInterval is how often a watch reads the table, and so how late it sees
	// a change at most. 0: a second.
	PollInterval time.Duration
	// Clock stamps registrations, heartbeats and snapshots. nil: time.Now.
	Clock func() time.Time
	// Logger hears when a watch cannot read the table, when it can again, and of
	// items that are no instances. nil: nobody does.
	Logger *slog.Logger
}

// Store is a [fleet.Store] in a DynamoDB table.
type Store struct {
	table        *string
	client       *dynamo.Client
	clock        func() time.Time
	pollInterval time.Duration
	log          *slog.Logger
	watches      *poll.Watches
	hearing      fleet.Hearing

	mu      sync.Mutex // guards what follows
	closed  bool
	skipped map[string]string // item → why it is no instance, of the last read
}

var _ fleet.Store = (*Store)(nil)

var errClosed = errors.New("fleet store is closed")

// Open prepares the use of a table. It makes no request: a table that is not
// there is for the first call to find out.
func Open(ctx context.Context, cfg Config) (*Store, error) {
	client, err := newClient(ctx, cfg)
	if err != nil {
		return nil, fmt.Errorf("fleet store: %w", err)
	}
	s := &Store{
		table: aws.String(cfg.Table), client: client,
		clock: cfg.Clock, pollInterval: cfg.PollInterval, log: cfg.Logger, watches: poll.NewWatches(),
	}
	if s.clock == nil {
		s.clock = time.Now
	}
	if s.pollInterval <= 0 {
		s.pollInterval = time.Second
	}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	s.log = s.log.With("table", cfg.Table)
	return s, nil
}

func newClient(ctx context.Context, cfg Config) (*dynamo.Client, error) {
	if err := dynamo.CheckTable(cfg.Table); err != nil {
		return nil, err
	}
	client, err := dynamo.NewClient(ctx, awsclient.Settings{
		Region: cfg.Region, Endpoint: cfg.Endpoint, Credentials: cfg.Credentials, Logger: cfg.Logger,
	})
	if err != nil {
		return nil, fmt.Errorf("DynamoDB table %s: %w", cfg.Table, err)
	}
	return client, nil
}

// Register adds an instance or replaces its registration.
func (s *Store) Register(ctx context.Context, in fleet.Instance) error {
	if err := in.Validate(); err != nil {
		return fmt.Errorf("register: %w", err)
	}
	input := update(in.ID, encodeRegistration(in, s.clock()), item{attrDraining: boolean(in.Draining)})
	return s.write(ctx, "register", in.ID, input)
}

// Heartbeat updates an instance's health, load and time of heartbeat.
func (s *Store) Heartbeat(ctx context.Context, hb fleet.Heartbeat) error {
	if err := hb.Validate(); err != nil {
		return fmt.Errorf("heartbeat: %w", err)
	}
	return s.write(ctx, "heartbeat of", hb.ID, ifThere(update(hb.ID, encodeHeartbeat(hb.Health, hb.Load, hb.Usage, s.clock()), nil)))
}

// SetDraining starts or ends a drain.
func (s *Store) SetDraining(ctx context.Context, id string, draining bool) error {
	if err := fleet.ValidateID(id); err != nil {
		return fmt.Errorf("drain: %w", err)
	}
	return s.write(ctx, "drain", id, ifThere(update(id, item{attrDraining: boolean(draining)}, nil)))
}

// Deregister removes an instance.
func (s *Store) Deregister(ctx context.Context, id string) error {
	if err := fleet.ValidateID(id); err != nil {
		return fmt.Errorf("deregister: %w", err)
	}
	err := s.open()
	if err == nil {
		_, err = s.client.DeleteItem(ctx, &sdk.DeleteItemInput{TableName: s.table, Key: keyOf(id)})
	}
	return s.named("deregister", id, err)
}

// Close ends the watches.
func (s *Store) Close() error {
	s.watches.Close()
	s.mu.Lock()
	s.closed = true
	s.mu.Unlock()
	s.client.Close()
	return nil
}

// open says whether the store still is.
func (s *Store) open() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return errClosed
	}
	return nil
}

// write sends an update, and says [fleet.ErrNotFound] when its condition fails.
func (s *Store) write(ctx context.Context, what, id string, input *sdk.UpdateItemInput) error {
	err := s.open()
	if err == nil {
		input.TableName = s.table
		_, err = s.client.UpdateItem(ctx, input)
	}
	var notThere *types.ConditionalCheckFailedException
	if errors.As(err, &notThere) {
		err = fleet.ErrNotFound
	}
	return s.named(what, id, err)
}

// named wraps an error of a write with what was written where.
func (s *Store) named(what, id string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s instance %s: DynamoDB table %s: %w", what, id, *s.table, dynamo.Explain(err))
}

// update sets attributes of an instance, and initial ones where the instance
// has none of that name, and counts the write. Names are always given through
// placeholders: some are reserved words.
func update(id string, set, initial item) *sdk.UpdateItemInput {
	names := map[string]string{"#" + attrVersion: attrVersion}
	values := item{":one": number(1)}
	var clauses []string
	for name, value := range set {
		names["#"+name], values[":"+name] = name, value
		clauses = append(clauses, fmt.Sprintf("#%[1]s = :%[1]s", name))
	}
	for name, value := range initial {
		names["#"+name], values[":"+name] = name, value
		clauses = append(clauses, fmt.Sprintf("#%[1]s = if_not_exists(#%[1]s, :%[1]s)", name))
	}
	slices.Sort(clauses)
	return &sdk.UpdateItemInput{
		Key:                       keyOf(id),
		UpdateExpression:          aws.String("SET " + strings.Join(clauses, ", ") + " ADD #" + attrVersion + " :one"),
		ExpressionAttributeNames:  names,
		ExpressionAttributeValues: values,
	}
}

// ifThere makes an update fail when there is no such instance.
func ifThere(input *sdk.UpdateItemInput) *sdk.UpdateItemInput {
	input.ExpressionAttributeNames["#"+attrID] = attrID
	input.ConditionExpression = aws.String("attribute_exists(#" + attrID + ")")
	return input
}
