package state

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/mrgc/mrgc/internal/state/schema"
)

// Row is what a table's rows are made of: a struct whose JSON is the item's
// fields. Every field is always there ("omitempty" would keep the old value).
type Row interface{ Validate() error }

// Table is typed access to a table.
type Table[T Row] struct {
	store  Store
	schema schema.Table
	keep   time.Duration // after a write; 0: for ever
}

// Record is a row and what the store knows of it. The zero Version is one that
// is not stored.
type Record[T any] struct {
	Key     Key
	Version int64
	Fence   int64
	Value   T
}

// NewTable gives typed access to a table whose rows may be removed some time
// after their last write; 0: they stay.
func NewTable[T Row](store Store, table schema.Table, keep time.Duration) Table[T] {
	return Table[T]{store: store, schema: table, keep: keep}
}

// Option is a condition of a write.
type Option func(*Write)

// Fenced refuses the write when a later holder of the lease has written the row.
func Fenced(token int64) Option { return func(w *Write) { w.Fence = token } }

// Anyway writes over whatever version there is.
func Anyway() Option { return func(w *Write) { w.Version = AnyVersion } }

// Get reads a row, or gives ErrNotFound.
func (t Table[T]) Get(ctx context.Context, key Key) (Record[T], error) {
	item, err := t.store.Get(ctx, t.schema, key)
	if err != nil {
		return Record[T]{}, err
	}
	return t.decode(item)
}

// GetMany reads several rows. Those that are not there are left out; those that
// cannot be read are an error beside the others.
func (t Table[T]) GetMany(ctx context.Context, keys []Key) ([]Record[T], error) {
	items, err := t.store.GetMany(ctx, t.schema, keys)
	if err != nil {
		return nil, err
	}
	return t.decodeAll(items)
}

// List reads the rows of a partition; errors are as GetMany's.
func (t Table[T]) List(ctx context.Context, query Query) ([]Record[T], error) {
	items, err := t.store.List(ctx, t.schema, query)
	if err != nil {
		return nil, err
	}
	return t.decodeAll(items)
}

// Put stores a record in the place of the version that it has, and gives it with
// its new one.
func (t Table[T]) Put(ctx context.Context, record Record[T], options ...Option) (Record[T], error) {
	write, err := t.write(record)
	if err != nil {
		return record, err
	}
	for _, option := range options {
		option(&write)
	}
	version, err := t.store.Write(ctx, t.schema, write)
	if err != nil {
		return record, err
	}
	record.Version, record.Fence = version, max(record.Fence, write.Fence)
	return record, nil
}

// Replace stores records whatever is there, as [Store.Replace] does.
func (t Table[T]) Replace(ctx context.Context, records ...Record[T]) error {
	writes := make([]Write, 0, len(records))
	for _, record := range records {
		write, err := t.write(record)
		if err != nil {
			return err
		}
		writes = append(writes, write)
	}
	return t.store.Replace(ctx, t.schema, writes)
}

func (t Table[T]) write(record Record[T]) (Write, error) {
	if err := record.Value.Validate(); err != nil {
		return Write{}, fmt.Errorf("table %s: %s: %w", t.schema.Name, record.Key, err)
	}
	fields, err := json.Marshal(record.Value)
	if err != nil {
		return Write{}, fmt.Errorf("table %s: %s: %w", t.schema.Name, record.Key, err)
	}
	write := Write{Key: record.Key, Fields: fields, Version: record.Version}
	if t.keep > 0 {
		write.Expires = time.Now().Add(t.keep)
	}
	return write, nil
}

func (t Table[T]) decodeAll(items []Item) ([]Record[T], error) {
	var (
		records []Record[T]
		errs    []error
	)
	for _, item := range items {
		record, err := t.decode(item)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		records = append(records, record)
	}
	return records, errors.Join(errs...)
}

func (t Table[T]) decode(item Item) (Record[T], error) {
	record := Record[T]{Key: item.Key, Version: item.Version, Fence: item.Fence}
	err := json.Unmarshal(item.Fields, &record.Value)
	if err == nil {
		err = record.Value.Validate()
	}
	if err != nil {
		return record, fmt.Errorf("table %s: %s: %w", t.schema.Name, item.Key, err)
	}
	return record, nil
}
