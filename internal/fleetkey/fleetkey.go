// Package fleetkey is what a region's enclaves share for recipients of type
// fleet: each epoch's seed, encrypted by KMS, and which requests were run by the
// keys that come of it. Both are items of one DynamoDB table (schema.FleetKeys),
// which the enclave itself asks, over TLS that ends in it (package awscall).
//
//	table, err := fleetkey.Open(fleetkey.Config{Table: "arn:aws:dynamodb:…:table/fleet_keys", Dial: dial})
//	err = table.Record(ctx, keyID, requestID, expiry) // before a request is run
//
// The seed's ciphertext could come from anybody: only KMS can open it, for the
// epoch that it was made for. What was run could not: whoever can write this table
// can remove a record, and have the request run once more. So the table is named
// by its ARN, in the measured image: the credentials that the parent brings, which
// could be anybody's, reach no table of the same name in another account. And the
// package only ever reads items and puts new ones; a role that may do nothing else
// (dynamodb:GetItem, dynamodb:PutItem) cannot remove a record.
//
// The package is part of the measured enclave. It logs nothing.
package fleetkey

import (
	"context"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"regexp"
	"strconv"
	"time"

	"github.com/mrgc/mrgc/internal/awscall"
	"github.com/mrgc/mrgc/internal/seal"
)

// ErrUnavailable is a table that has given no answer, or refused: nobody can say
// whether a request was run.
var ErrUnavailable = errors.New("the fleet's table cannot be asked")

// Config says where the table is.
type Config struct {
	Table string // ARN. Required
	// Dial connects to port 443 of DynamoDB in the table's region, as bytes. Required.
	Dial func(context.Context) (net.Conn, error)
	Host string // default: dynamodb.REGION.amazonaws.com
	// Roots verify its certificate; nil: Amazon's.
	Roots *x509.CertPool
}

// Table is the table of one region. It is safe for concurrent use.
type Table struct {
	*awscall.Client

	arn string
}

var tableARN = regexp.MustCompile(`^arn:aws[a-z-]*:dynamodb:([a-z0-9-]+):[0-9]{12}:table/[a-zA-Z0-9_.-]{3,255}$`)

// Open makes a table's client. It connects to nothing yet.
func Open(config Config) (*Table, error) {
	parts := tableARN.FindStringSubmatch(config.Table)
	if parts == nil {
		return nil, fmt.Errorf("fleet's table %q: want an ARN, arn:aws:dynamodb:REGION:ACCOUNT:table/NAME: a name alone could be of a table in any account", config.Table)
	}
	caller, err := awscall.New(awscall.Config{Service: awscall.DynamoDB, Region: parts[1], Host: config.Host, Dial: config.Dial, Roots: config.Roots})
	if err != nil {
		return nil, fmt.Errorf("fleet's table: %w", err)
	}
	return &Table{Client: caller, arn: config.Table}, nil
}

// Rows outlive what they are about by this: DynamoDB removes them by its own
// clock, of which an enclave's may be behind.
const (
	seedMargin   = 24 * time.Hour
	recordMargin = time.Hour
)

// value is one of DynamoDB's (API reference, AttributeValue).
type value struct {
	S string `json:"S,omitempty"`
	N string `json:"N,omitempty"`
	B []byte `json:"B,omitempty"`
}

// item is a row: its id, one attribute of its own, and when it may go
// (schema.TTL).
type item struct {
	ID         value  `json:"id"`
	Expires    value  `json:"expires_at_unix_s"`
	Ciphertext *value `json:"ciphertext,omitempty"` // of a seed
	By         *value `json:"put_by,omitempty"`     // of any: names the one call that has put it
}

type getRequest struct {
	TableName      string           `json:"TableName"`
	Key            map[string]value `json:"Key"`
	ConsistentRead bool             `json:"ConsistentRead"`
}

type putRequest struct {
	TableName           string `json:"TableName"`
	Item                item   `json:"Item"`
	ConditionExpression string `json:"ConditionExpression"`
	ReturnOnFailure     string `json:"ReturnValuesOnConditionCheckFailure"`
}

// answer is what is read of an answer, and of a failed condition.
type answer struct {
	Item *item `json:"Item"`
}

// Seed gives the ciphertext of an epoch's seed; nil: there is none yet. Errors are
// ErrUnavailable.
func (t *Table) Seed(ctx context.Context, epoch seal.FleetEpoch) ([]byte, error) {
	var said answer
	err := t.Call(ctx, "GetItem", getRequest{TableName: t.arn, Key: map[string]value{"id": {S: seedID(epoch)}}, ConsistentRead: true}, &said)
	switch {
	case err != nil:
		return nil, unavailable(err)
	case said.Item == nil:
		return nil, nil
	case said.Item.Ciphertext == nil || len(said.Item.Ciphertext.B) == 0:
		return nil, fmt.Errorf("%w: the row of epoch %d has no ciphertext", ErrUnavailable, epoch.Number)
	}
	return said.Item.Ciphertext.B, nil
}

// PutSeed stores the ciphertext of an epoch's seed, which is used until then,
// unless one is there: first says whether it was stored. Errors are ErrUnavailable.
func (t *Table) PutSeed(ctx context.Context, epoch seal.FleetEpoch, ciphertext []byte, until time.Time) (first bool, err error) {
	return t.put(ctx, item{
		ID: value{S: seedID(epoch)}, Ciphertext: &value{B: ciphertext}, Expires: seconds(until.Add(seedMargin)),
	})
}

// Record notes that a fleet's key is about to run a request, whose envelope
// expires then. It may run only if the error is nil; else it is [seal.ErrReplayed]
// or ErrUnavailable. After the latter the record may be there.
func (t *Table) Record(ctx context.Context, key seal.KeyID, request seal.RequestID, expiry time.Time) error {
	first, err := t.put(ctx, item{ID: value{S: "run/" + key.String() + "/" + request.String()}, Expires: seconds(expiry.Add(recordMargin))})
	if err == nil && !first {
		return seal.ErrReplayed
	}
	return err
}

// put puts an item where there is none, expired or not. It knows its own item
// again: a call may reach DynamoDB twice.
func (t *Table) put(ctx context.Context, it item) (first bool, err error) {
	it.By = &value{S: rand.Text()}
	err = t.Call(ctx, "PutItem", putRequest{
		TableName: t.arn, Item: it, ConditionExpression: "attribute_not_exists(id)", ReturnOnFailure: "ALL_OLD",
	}, &answer{})
	var refused *awscall.Refusal
	if !errors.As(err, &refused) || refused.Code != "ConditionalCheckFailedException" {
		return err == nil, unavailable(err)
	}
	var there answer
	if json.Unmarshal(refused.Body, &there) != nil || there.Item == nil || there.Item.By == nil {
		return false, nil
	}
	return there.Item.By.S == it.By.S, nil
}

func unavailable(err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%w: %w", ErrUnavailable, err)
}

func seedID(e seal.FleetEpoch) string {
	return "seed/" + e.Fleet + "/" + e.Region + "/" + strconv.FormatUint(e.Number, 10)
}

func seconds(t time.Time) value { return value{N: strconv.FormatInt(t.Unix(), 10)} }
