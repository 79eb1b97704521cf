// Package state is what the cluster remembers beside its instances: leases, each
// region's failover state and capacity, washes, and metrics.
//
//	store, err := open.Store(ctx, "dynamodb:?region=us-east-1", log)
//	routing := state.RoutingTable(store)
//	row, err := routing.Get(ctx, state.RoutingKey)
//	if err != nil { … }
//	row.Value.Regions = …
//	row, err = routing.Put(ctx, row, state.Fenced(token))
//
// A [Store] keeps items: an object of fields under a key, in one of the tables of
// internal/state/schema. It counts the writes to an item, and a write says which
// version it replaces, so that of two writers one is told [ErrConflict]. A write
// may carry the fencing token of a lease (internal/lease): an item remembers the
// highest one that wrote it, and one with a lower token is told [ErrFenced],
// however recent what it has read.
//
// A [Table] is typed access to one of the tables. Rows that people write by hand
// are read strictly, and what does not fit is an error that names the field.
//
// Nothing on a request's path comes here.
package state

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"reflect"
	"regexp"
	"slices"
	"time"

	"github.com/mrgc/mrgc/internal/state/schema"
)

// Key is an item's key. Sort is empty in tables without a sort key.
type Key struct{ Partition, Sort string }

func (k Key) String() string {
	if k.Sort == "" {
		return k.Partition
	}
	return k.Partition + "/" + k.Sort
}

// Item is what is stored under a key.
type Item struct {
	Key     Key
	Version int64           // counts the writes, from 1
	Fence   int64           // highest fencing token that wrote it; 0: none did
	Fields  json.RawMessage // an object, without the key and what is above
}

// AnyVersion is the version of a write that replaces whatever there is.
const AnyVersion int64 = -1

// Write is a change to an item, and on which conditions it is made.
type Write struct {
	Key Key
	// Fields are an object. Fields of the item that it does not name stay.
	Fields json.RawMessage
	// Version that is replaced; 0: there must be no item; or AnyVersion.
	Version int64
	// Fence is the writer's fencing token; 0: it has none, and is not refused.
	Fence int64
	// Unchanged are fields that must have the values that they have here: what
	// people write by hand, without counting it in Version. null stands for a field
	// that is not there, too.
	Unchanged map[string]json.RawMessage
	// Expires is when the item may be removed, in tables with a TTL; zero: never.
	Expires time.Time
}

// Query asks for the items of a partition, in order of their sort keys.
type Query struct {
	// Partition; empty: all of the table, which must be a small one, in any order.
	Partition string
	// Index is a secondary index's name, and Partition one of its; empty: the table
	// itself. What an index answers may lag behind.
	Index string
	From  string // sort keys from it on; empty: all
	// Newest begins at the other end.
	Newest bool
	Limit  int // 0: all
}

// Errors that callers tell apart.
var (
	ErrNotFound = errors.New("there is no such item")
	ErrConflict = errors.New("somebody else has written it meanwhile: read it again")
	ErrFenced   = errors.New("a later holder of the lease has written it: this one is no longer in charge")
)

// Store holds the tables. Implementations are safe for concurrent use, also by
// several processes on the same data. Calls end within some seconds whatever
// their context allows, after a few retries of what may pass by itself: a store
// that is throttled, does not answer, or does a part of a batch.
//
// Tables are those of package schema, by their names there. Reads are strongly
// consistent: within a region, and in tables that are so, over all regions.
type Store interface {
	// Get reads an item, or gives ErrNotFound.
	Get(ctx context.Context, table schema.Table, key Key) (Item, error)
	// GetMany reads several items. Those that are not there are left out.
	GetMany(ctx context.Context, table schema.Table, keys []Key) ([]Item, error)
	// List reads the items of a partition.
	List(ctx context.Context, table schema.Table, query Query) ([]Item, error)
	// Write changes an item, creates it where there is none, and gives the item's
	// new version. ErrFenced or ErrConflict: a condition did not hold, and nothing
	// was changed. After any other error the write may have taken effect.
	Write(ctx context.Context, table schema.Table, write Write) (int64, error)
	// Replace stores items as they are given, in the place of what is there, whatever
	// that is: for rows that nobody else writes. Several are not one change: after an
	// error some may be stored, and it may be done again.
	Replace(ctx context.Context, table schema.Table, writes []Write) error
	// Close gives back what the store holds. Other methods return an error
	// afterwards; closing again does nothing.
	Close() error
}

// Reserved names of fields belong to the store.
const (
	FieldVersion = "version"
	FieldFence   = "fence"
	FieldWriteID = "write_id" // of the last write, so that one whose answer was lost knows itself
)

var fieldName = regexp.MustCompile(`^[a-z][a-z0-9_]{0,63}$`)

// Check says what is wrong with a write, for stores. It gives its fields one by one.
func (w *Write) Check(table schema.Table) (map[string]json.RawMessage, error) {
	if err := w.Key.Check(table); err != nil {
		return nil, err
	}
	var fields map[string]json.RawMessage
	if err := json.Unmarshal(w.Fields, &fields); err != nil || fields == nil {
		return nil, fmt.Errorf("item %s: fields: want a JSON object (%w)", w.Key, err)
	}
	for name := range fields {
		if !fieldName.MatchString(name) || reserved(table, name) {
			return nil, fmt.Errorf("item %s: no field may be named %q", w.Key, name)
		}
	}
	switch {
	case w.Version < AnyVersion:
		return nil, fmt.Errorf("item %s: version %d is negative", w.Key, w.Version)
	case w.Fence < 0:
		return nil, fmt.Errorf("item %s: fencing token %d is negative", w.Key, w.Fence)
	case !w.Expires.IsZero() && table.TTLAttribute == "":
		return nil, fmt.Errorf("item %s: nothing expires in table %s", w.Key, table.Name)
	}
	return fields, nil
}

func reserved(table schema.Table, name string) bool {
	return slices.Contains([]string{FieldVersion, FieldFence, FieldWriteID, schema.TTL, table.PartitionKey.Name}, name) ||
		(table.SortKey != nil && name == table.SortKey.Name)
}

const longestKey = 512 // bytes; DynamoDB takes a sort key of 1,024

// Check says what is wrong with a key, for stores.
func (k Key) Check(table schema.Table) error {
	switch {
	case k.Partition == "" || len(k.Partition) > longestKey:
		return fmt.Errorf("table %s: key %q: want 1 to %d bytes of %s", table.Name, k, longestKey, table.PartitionKey.Name)
	case (k.Sort == "") != (table.SortKey == nil):
		return fmt.Errorf("table %s: key %q: want a sort key if and only if the table has one", table.Name, k)
	case len(k.Sort) > longestKey:
		return fmt.Errorf("table %s: key %q: sort key longer than %d bytes", table.Name, k, longestKey)
	}
	return nil
}

// IndexIn finds the index that a query names, for stores.
func (q Query) IndexIn(table schema.Table) (schema.Index, error) {
	for _, index := range table.Indexes {
		if index.Name == q.Index {
			return index, nil
		}
	}
	return schema.Index{}, fmt.Errorf("table %s has no index %q", table.Name, q.Index)
}

// Refusal says whether the present item refuses the write: nil, ErrFenced or
// ErrConflict. It is the rule that every store follows.
func (w *Write) Refusal(now Item) error {
	if w.Fence != 0 && w.Fence < now.Fence {
		return ErrFenced
	}
	if w.Version != AnyVersion && w.Version != now.Version {
		return ErrConflict
	}
	if len(w.Unchanged) == 0 {
		return nil
	}
	var fields map[string]json.RawMessage
	if len(now.Fields) > 0 {
		if err := json.Unmarshal(now.Fields, &fields); err != nil {
			return err
		}
	}
	for name, want := range w.Unchanged {
		if !SameJSON(want, fields[name]) {
			return ErrConflict
		}
	}
	return nil
}

// Apply gives the fields that an item has after a write, for stores that do not
// do that themselves; or the write's Refusal.
func (w *Write) Apply(now Item, fields map[string]json.RawMessage) (json.RawMessage, error) {
	if err := w.Refusal(now); err != nil {
		return nil, err
	}
	merged := map[string]json.RawMessage{}
	if len(now.Fields) > 0 {
		if err := json.Unmarshal(now.Fields, &merged); err != nil {
			return nil, err
		}
	}
	maps.Copy(merged, fields)
	return json.Marshal(merged)
}

// SameJSON says whether two JSON values are the same, however they are written:
// objects in any order, numbers by value. What is not there is null.
func SameJSON(a, b json.RawMessage) bool {
	left, err := canonical(a)
	right, otherErr := canonical(b)
	return err == nil && otherErr == nil && reflect.DeepEqual(left, right)
}

func canonical(text json.RawMessage) (any, error) {
	if len(text) == 0 {
		return nil, nil
	}
	decoder := json.NewDecoder(bytes.NewReader(text))
	decoder.UseNumber()
	var value any
	if err := decoder.Decode(&value); err != nil {
		return nil, err
	}
	return withNumbers(value), nil
}

// withNumbers makes numbers of their texts: whole ones of 64 bits exactly.
func withNumbers(value any) any {
	switch v := value.(type) {
	case json.Number:
		if whole, err := v.Int64(); err == nil {
			return whole
		}
		float, err := v.Float64()
		if err != nil {
			return v
		}
		if whole := int64(float); float64(whole) == float && whole > -1<<53 && whole < 1<<53 {
			return whole // 4e1
		}
		return float
	case []any:
		for i := range v {
			v[i] = withNumbers(v[i])
		}
	case map[string]any:
		for name := range v {
			v[name] = withNumbers(v[name])
		}
	}
	return value
}
