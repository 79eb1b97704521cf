package sqlite

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"

	driver "modernc.org/sqlite"
	sqlite3 "modernc.org/sqlite/lib"
)

const (
	applicationID = 0x4d524743 // "MRGC": which program's file it is
	schemaVersion = 2

	schemaSQL = `
CREATE TABLE instances (
	id               TEXT PRIMARY KEY,
	region           TEXT NOT NULL,
	zone             TEXT NOT NULL,
	address          TEXT NOT NULL,
	models           TEXT NOT NULL, -- JSON array
	versions         TEXT NOT NULL, -- JSON object, by model
	key_ids          TEXT NOT NULL, -- JSON array
	draining         INTEGER NOT NULL,
	enclave_ok       INTEGER NOT NULL,
	engine_ok        INTEGER NOT NULL,
	reason           TEXT NOT NULL,
	running          INTEGER NOT NULL,
	queued           INTEGER NOT NULL,
	slots            INTEGER NOT NULL,
	latency_ns       INTEGER NOT NULL,
	registered_at_ns INTEGER NOT NULL, -- since 1970
	heartbeat_at_ns  INTEGER NOT NULL, -- since 1970
	version          INTEGER NOT NULL
) STRICT, WITHOUT ROWID`
)

// file is an open store, and which file it is.
type file struct {
	db   *sql.DB
	info fs.FileInfo
}

func openOrCreate(ctx context.Context, path string) (*file, error) {
	if info, err := os.Stat(filepath.Dir(path)); err != nil || !info.IsDir() {
		return nil, fmt.Errorf("directory %s does not exist: create it first", filepath.Dir(path))
	}
	// In this order: a log that was there before a look at the path that found
	// nothing cannot belong to a store that somebody just created.
	_, logErr := os.Stat(path + "-wal")
	_, err := os.Stat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist) && logErr == nil:
		return nil, errors.New("the file is gone but its -wal file is not: put it back, or remove the -wal and -shm files too")
	case errors.Is(err, fs.ErrNotExist):
		if err := create(ctx, path); err != nil {
			return nil, fmt.Errorf("create: %w", err)
		}
	}
	return openFile(ctx, path)
}

// create makes the store beside its place and then links it there, so that
// nobody ever opens half a store. Who comes second finds the other's.
//
// The descriptor that sets the mode is closed before the file is at its place:
// closing one drops all POSIX locks that this process holds on the file.
func create(ctx context.Context, path string) error {
	dir, err := os.MkdirTemp(filepath.Dir(path), ".mrgc-fleet-*")
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(dir) }()

	draft := filepath.Join(dir, "draft")
	empty, err := os.OpenFile(draft, os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600)
	if err != nil {
		return err
	}
	if err := empty.Close(); err != nil {
		return err
	}
	if err := writeSchema(ctx, draft); err != nil {
		return err
	}
	if err := os.Link(draft, path); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return nil
}

func writeSchema(ctx context.Context, path string) (err error) {
	db, err := connect(path)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	for _, statement := range []string{
		`PRAGMA journal_mode = WAL`,
		fmt.Sprintf(`PRAGMA application_id = %d`, applicationID),
		fmt.Sprintf(`PRAGMA user_version = %d`, schemaVersion),
		schemaSQL,
	} {
		if _, err := db.ExecContext(ctx, statement); err != nil {
			return err
		}
	}
	return nil
}

// openFile opens a store that exists. What it is it asks SQLite alone: see
// create for why it opens no descriptor of its own.
func openFile(ctx context.Context, path string) (*file, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, errors.New("not a regular file")
	}
	if info.Mode().Perm()&0o077 != 0 {
		return nil, fmt.Errorf("others than its owner have access (mode %04o): chmod 600 it", info.Mode().Perm())
	}
	db, err := connect(path)
	if err != nil {
		return nil, err
	}
	if err := check(ctx, db); err != nil {
		return nil, errors.Join(err, db.Close())
	}
	return &file{db: db, info: info}, nil
}

// connect prepares connections to a file that exists; none is made yet.
func connect(path string) (*sql.DB, error) {
	dsn := url.URL{Scheme: "file", Path: path, RawQuery: url.Values{
		"mode":          {"rw"}, // never create
		"_busy_timeout": {"5000"},
		"_txlock":       {"immediate"}, // no transaction finds out at its end that it may not write
		"_synchronous":  {"NORMAL"},
		"_defensive":    {"1"},
		"_dqs":          {"0"},
		"_error_rc":     {"1"}, // no errors of an earlier call in this one's text
	}.Encode()}
	connector, err := driver.NewConnector(dsn.String())
	if err != nil {
		return nil, err
	}
	return sql.OpenDB(connector), nil
}

// check refuses a file that is not a fleet store of this version. It only reads.
func check(ctx context.Context, db *sql.DB) error {
	var application, version int
	err := db.QueryRowContext(ctx, `SELECT application_id, user_version FROM pragma_application_id, pragma_user_version`).
		Scan(&application, &version)
	var sqliteErr *driver.Error
	switch {
	case errors.As(err, &sqliteErr) && sqliteErr.Code() == sqlite3.SQLITE_NOTADB:
		return errors.New("not a fleet store: name another path, or move the file away")
	case err != nil:
		return err
	case application != applicationID:
		return errors.New("not a fleet store (another program's SQLite file, or an empty one): name another path, or move the file away")
	case version > schemaVersion:
		return fmt.Errorf("written by a newer mrgc (schema %d, this one knows %d): use that mrgc, or move the file away",
			version, schemaVersion)
	case version < schemaVersion:
		return fmt.Errorf("damaged, or written by an older mrgc: schema %d, want %d: move the file away, instances register again", version, schemaVersion)
	}
	return nil
}
