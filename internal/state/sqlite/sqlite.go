// Package sqlite keeps the cluster's state in one SQLite file: the store of a
// cluster on one machine. Its file is as internal/sqlitefile has it, and another
// than the fleet's, whose watches would else wake with every heartbeat here.
//
// All regions share the file, so every table is strongly consistent. An item that
// has expired is gone at once.
package sqlite

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/mrgc/mrgc/internal/sqlitefile"
	"github.com/mrgc/mrgc/internal/state"
	"github.com/mrgc/mrgc/internal/state/schema"
)

// Config says where the store is.
type Config struct {
	Path   string       // of the file, which is created where there is none
	Logger *slog.Logger // hears when the file is replaced by another; nil: nobody does
}

// Store is a [state.Store] in a SQLite file.
type Store struct {
	file *sqlitefile.File
}

var _ state.Store = (*Store)(nil)

var kind = sqlitefile.Kind{
	Name: "state store", ApplicationID: 0x4d524753, // "MRGS"
	SchemaVersion: 1, Outdated: "controllers begin anew",
	Schema: []string{`
CREATE TABLE items (
	tab       TEXT NOT NULL,
	partition TEXT NOT NULL,
	sort      TEXT NOT NULL,    -- empty in tables without a sort key
	version   INTEGER NOT NULL,
	fence     INTEGER NOT NULL,
	expires_s INTEGER NOT NULL, -- since 1970; 0: never
	fields    TEXT NOT NULL,    -- JSON object
	PRIMARY KEY (tab, partition, sort)
) STRICT, WITHOUT ROWID`},
}

// Open opens the store, and creates it first where there is none.
func Open(ctx context.Context, cfg Config) (*Store, error) {
	file, err := sqlitefile.Open(ctx, cfg.Path, kind, cfg.Logger)
	if err != nil {
		return nil, err
	}
	return &Store{file: file}, nil
}

// Close closes the file.
func (s *Store) Close() error { return s.file.Close() }

const (
	columnsSQL = `SELECT partition, sort, version, fence, fields FROM items
WHERE tab = :tab AND (expires_s = 0 OR expires_s > :now)`
	oneSQL = columnsSQL + ` AND partition = :partition AND sort = :sort`
	putSQL = `INSERT OR REPLACE INTO items (tab, partition, sort, version, fence, expires_s, fields)
VALUES (?, ?, ?, ?, ?, ?, ?)`
)

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
	var all []state.Item
	for _, key := range keys {
		if err := key.Check(table); err != nil {
			return nil, err
		}
		asked, err := s.file.Statement(ctx, oneSQL)
		if err != nil {
			return nil, s.named(table, err)
		}
		items, err := readOne(ctx, asked, table, key)
		if err != nil {
			return nil, s.named(table, err)
		}
		all = append(all, items...)
	}
	return all, nil
}

// readOne runs the statement that reads an item: there is one, or none.
func readOne(ctx context.Context, asked *sql.Stmt, table schema.Table, key state.Key) ([]state.Item, error) {
	return scan(asked.QueryContext(ctx, arguments(table, sql.Named("partition", key.Partition), sql.Named("sort", key.Sort))...))
}

// List reads the items of a partition.
func (s *Store) List(ctx context.Context, table schema.Table, q state.Query) ([]state.Item, error) {
	query, partition, sort := columnsSQL, "partition", "sort"
	if q.Index != "" {
		index, err := q.IndexIn(table)
		if err != nil {
			return nil, err
		}
		partition, sort = column(table, index.PartitionKey), column(table, index.SortKey)
	}
	if q.Partition != "" {
		query += " AND " + partition + " = :partition"
	}
	if q.From != "" {
		query += " AND " + sort + " >= :from"
	}
	query += " ORDER BY " + sort
	if q.Newest {
		query += " DESC"
	}
	if q.Limit > 0 {
		query += fmt.Sprintf(" LIMIT %d", q.Limit)
	}
	db, err := s.file.Current(ctx)
	if err != nil {
		return nil, s.named(table, err)
	}
	items, err := scan(db.QueryContext(ctx, query, arguments(table, sql.Named("partition", q.Partition), sql.Named("from", q.From))...))
	return items, s.named(table, err)
}

// column is where an attribute of a key is; its name is one of package schema's.
func column(table schema.Table, attribute schema.Attribute) string {
	switch {
	case attribute == table.PartitionKey:
		return "partition"
	case table.SortKey != nil && attribute == *table.SortKey:
		return "sort"
	}
	return "json_extract(fields, '$." + attribute.Name + "')"
}

// arguments adds what every query of a table wants.
func arguments(table schema.Table, args ...any) []any {
	return append(args, sql.Named("tab", table.Name), sql.Named("now", time.Now().Unix()))
}

// scan reads what was asked for.
func scan(rows *sql.Rows, err error) ([]state.Item, error) {
	if err != nil {
		return nil, err
	}
	defer func() { _ = rows.Close() }() // a failure to read is in rows.Err
	var items []state.Item
	for rows.Next() {
		var item state.Item
		if err := rows.Scan(&item.Key.Partition, &item.Key.Sort, &item.Version, &item.Fence, (*[]byte)(&item.Fields)); err != nil {
			return nil, err
		}
		items = append(items, item)
	}
	return items, rows.Err()
}

// Write changes an item.
func (s *Store) Write(ctx context.Context, table schema.Table, w state.Write) (int64, error) {
	fields, err := w.Check(table)
	if err != nil {
		return 0, err
	}
	asked, err := s.file.Statement(ctx, oneSQL)
	if err != nil {
		return 0, s.named(table, err)
	}
	var version int64
	err = s.transact(ctx, func(tx *sql.Tx) error {
		items, err := readOne(ctx, tx.StmtContext(ctx, asked), table, w.Key)
		if err != nil {
			return err
		}
		var now state.Item
		if len(items) == 1 {
			now = items[0]
		}
		merged, err := w.Apply(now, fields)
		if err != nil {
			return err
		}
		version = now.Version + 1
		return s.put(ctx, tx, table, w, version, max(now.Fence, w.Fence), merged)
	})
	if err != nil {
		return 0, s.named(table, fmt.Errorf("write %s: %w", w.Key, err))
	}
	return version, nil
}

// Replace stores items whatever is there.
func (s *Store) Replace(ctx context.Context, table schema.Table, writes []state.Write) error {
	for _, w := range writes {
		if _, err := w.Check(table); err != nil {
			return err
		}
	}
	err := s.transact(ctx, func(tx *sql.Tx) error {
		// What expires in a table is what is stored so, and so it is cleared here.
		if _, err := tx.ExecContext(ctx, `DELETE FROM items WHERE tab = ? AND expires_s BETWEEN 1 AND ?`,
			table.Name, time.Now().Unix()); err != nil {
			return err
		}
		for _, w := range writes {
			if err := s.put(ctx, tx, table, w, 1, w.Fence, w.Fields); err != nil {
				return fmt.Errorf("write %s: %w", w.Key, err)
			}
		}
		return nil
	})
	return s.named(table, err)
}

func (s *Store) put(ctx context.Context, tx *sql.Tx, table schema.Table, w state.Write, version, fence int64, fields json.RawMessage) error {
	var expires int64
	if !w.Expires.IsZero() {
		expires = w.Expires.Unix()
	}
	prepared, err := s.file.Statement(ctx, putSQL)
	if err != nil {
		return err
	}
	_, err = tx.StmtContext(ctx, prepared).ExecContext(ctx, table.Name, w.Key.Partition, w.Key.Sort, version, fence, expires, string(fields))
	return err
}

func (s *Store) transact(ctx context.Context, do func(*sql.Tx) error) error {
	db, err := s.file.Current(ctx)
	if err != nil {
		return err
	}
	tx, err := db.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	if err := do(tx); err != nil {
		return errors.Join(err, tx.Rollback())
	}
	return tx.Commit()
}

func (s *Store) named(table schema.Table, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("state store %s: table %s: %w", s.file.Path(), table.Name, err)
}
