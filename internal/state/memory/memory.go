// Package memory keeps the cluster's state in memory, for simulations and tests:
// a [state.Store] that waits for nothing, and forgets all when it goes.
package memory

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/mrgc/mrgc/internal/state"
	"github.com/mrgc/mrgc/internal/state/schema"
)

// Data is what the handles on it share.
type Data struct {
	now func() time.Time

	mu    sync.Mutex // guards items
	items map[place]entry
}

type place struct {
	table string
	key   state.Key
}

type entry struct {
	item    state.Item
	expires time.Time // zero: never
}

// New makes data that are empty. What expires does so by the clock; nil: time.Now.
func New(now func() time.Time) *Data {
	if now == nil {
		now = time.Now
	}
	return &Data{now: now, items: map[place]entry{}}
}

// Store is a handle on data.
type Store struct {
	data *Data

	mu     sync.Mutex // guards closed
	closed bool
}

var _ state.Store = (*Store)(nil)

// Open opens a handle.
func (d *Data) Open() *Store { return &Store{data: d} }

// Close closes the handle; the data stay.
func (s *Store) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	return nil
}

// use locks the data, unless the handle is closed or nobody waits any more.
func (s *Store) use(ctx context.Context) (unlock func(), err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil, errors.New("state store is closed")
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	s.data.mu.Lock()
	return s.data.mu.Unlock, nil
}

// at is what is at a place and has not expired.
func (d *Data) at(table schema.Table, key state.Key) (item state.Item, is bool) {
	there, is := d.items[place{table.Name, key}]
	if !is || (!there.expires.IsZero() && !there.expires.After(d.now())) {
		return state.Item{}, false
	}
	return there.item, true
}

// Get reads an item.
func (s *Store) Get(ctx context.Context, table schema.Table, key state.Key) (state.Item, error) {
	items, err := s.GetMany(ctx, table, []state.Key{key})
	if err == nil && len(items) == 0 {
		err = fmt.Errorf("table %s: %s: %w", table.Name, key, state.ErrNotFound)
	}
	if err != nil {
		return state.Item{}, err
	}
	return items[0], nil
}

// GetMany reads several items.
func (s *Store) GetMany(ctx context.Context, table schema.Table, keys []state.Key) ([]state.Item, error) {
	unlock, err := s.use(ctx)
	if err != nil {
		return nil, err
	}
	defer unlock()
	var found []state.Item
	for _, key := range keys {
		if err := key.Check(table); err != nil {
			return nil, err
		}
		if item, is := s.data.at(table, key); is {
			found = append(found, item)
		}
	}
	return found, nil
}

// List reads the items of a partition.
func (s *Store) List(ctx context.Context, table schema.Table, q state.Query) ([]state.Item, error) {
	partition := func(item state.Item) string { return item.Key.Partition }
	if q.Index != "" {
		// Every index so far is sorted as its table is.
		index, err := q.IndexIn(table)
		if err != nil {
			return nil, err
		}
		partition = func(item state.Item) string {
			var fields map[string]any
			_ = json.Unmarshal(item.Fields, &fields) // they were checked when they were written
			text, _ := fields[index.PartitionKey.Name].(string)
			return text
		}
	}
	unlock, err := s.use(ctx)
	if err != nil {
		return nil, err
	}
	defer unlock()
	var found []state.Item
	for at := range s.data.items {
		item, is := s.data.at(table, at.key)
		if is && at.table == table.Name && item.Key.Sort >= q.From && (q.Partition == "" || partition(item) == q.Partition) {
			found = append(found, item)
		}
	}
	slices.SortFunc(found, func(a, b state.Item) int {
		return cmp.Or(cmp.Compare(a.Key.Sort, b.Key.Sort), cmp.Compare(a.Key.Partition, b.Key.Partition))
	})
	if q.Newest {
		slices.Reverse(found)
	}
	if q.Limit > 0 {
		found = found[:min(q.Limit, len(found))]
	}
	return found, nil
}

// Write changes an item.
func (s *Store) Write(ctx context.Context, table schema.Table, w state.Write) (int64, error) {
	fields, err := w.Check(table)
	if err != nil {
		return 0, err
	}
	unlock, err := s.use(ctx)
	if err != nil {
		return 0, err
	}
	defer unlock()
	now, _ := s.data.at(table, w.Key)
	merged, err := w.Apply(now, fields)
	if err != nil {
		return 0, fmt.Errorf("table %s: write %s: %w", table.Name, w.Key, err)
	}
	s.data.put(table, w, state.Item{Key: w.Key, Version: now.Version + 1, Fence: max(now.Fence, w.Fence), Fields: merged})
	return now.Version + 1, nil
}

// Replace stores items whatever is there.
func (s *Store) Replace(ctx context.Context, table schema.Table, writes []state.Write) error {
	for _, w := range writes {
		if _, err := w.Check(table); err != nil {
			return err
		}
	}
	unlock, err := s.use(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	for _, w := range writes {
		s.data.put(table, w, state.Item{Key: w.Key, Version: 1, Fence: w.Fence, Fields: slices.Clone(w.Fields)})
	}
	return nil
}

func (d *Data) put(table schema.Table, w state.Write, item state.Item) {
	d.items[place{table.Name, w.Key}] = entry{item, w.Expires}
}

// Edit changes fields as a person does by hand in AWS's console: no version is
// counted.
func (d *Data) Edit(table schema.Table, key state.Key, fields map[string]json.RawMessage) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	there := d.items[place{table.Name, key}]
	edit := state.Write{Version: state.AnyVersion}
	merged, err := edit.Apply(there.item, fields)
	if err != nil {
		return err
	}
	there.item.Key, there.item.Fields = key, merged
	d.items[place{table.Name, key}] = there
	return nil
}
