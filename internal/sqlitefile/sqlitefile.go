// Package sqlitefile opens the SQLite files of a cluster on one machine, for the
// stores in them:
//
//	file, err := sqlitefile.Open(ctx, path, sqlitefile.Kind{Name: "fleet store", …})
//	if err != nil { … }
//	defer file.Close()
//	db, err := file.Current(ctx)
//
// A file is in write-ahead-log mode, so that readers never wait for a writer, and
// readable by its owner alone. A transaction takes the write lock at its start and
// waits for it as long as its context allows, five seconds at most. A process
// that is killed in the middle leaves the file as it was before; a commit survives
// the death of every process, but the last ones may be lost with the machine's
// power.
//
// It must be on a local disk. The package never opens a file that it did not
// write, and never changes one to find that out.
package sqlitefile

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/url"
	"os"
	"path/filepath"
	"sync"

	driver "modernc.org/sqlite"
	sqlite3 "modernc.org/sqlite/lib"
)

// Kind is what a file is for.
type Kind struct {
	Name          string // of the store in it, for people: "fleet store"
	ApplicationID int32  // which store's file it is
	SchemaVersion int
	Schema        []string // statements that make an empty one
	Outdated      string   // what is lost with a file of an older version, for people
}

// File is what lies at a path, followed when another file of its kind is put
// there. It is safe for concurrent use.
type File struct {
	path string
	kind Kind
	log  *slog.Logger

	mu     sync.Mutex // guards what follows
	closed bool
	file   *file
}

// Open opens the file, and creates it first where there is none. It refuses a
// file of another kind or version, without changing it.
func Open(ctx context.Context, path string, kind Kind, log *slog.Logger) (*File, error) {
	absolute, err := filepath.Abs(path)
	if path == "" || err != nil {
		return nil, fmt.Errorf("%s: no usable path in the configuration: %q", kind.Name, path)
	}
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	f := &File{path: absolute, kind: kind, log: log}
	if f.file, err = kind.openOrCreate(ctx, absolute); err != nil {
		return nil, fmt.Errorf("%s %s: %w", kind.Name, absolute, err)
	}
	return f, nil
}

// Path is absolute.
func (f *File) Path() string { return f.path }

// Current is the open database, after a check that it still is what the path
// names: else what is there now, when it is of the same kind. While the file is
// gone it is an error; it is never created anew.
func (f *File) Current(ctx context.Context) (*sql.DB, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.current(ctx)
}

// Statement is a query, prepared for the database that Current gives, and kept: what
// is asked again and again costs more to parse than to answer. It is for queries that
// are constants, and is not to be closed.
func (f *File) Statement(ctx context.Context, query string) (*sql.Stmt, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	db, err := f.current(ctx)
	if err != nil {
		return nil, err
	}
	if prepared := f.file.prepared[query]; prepared != nil {
		return prepared, nil
	}
	prepared, err := db.PrepareContext(ctx, query)
	if err != nil {
		return nil, err
	}
	f.file.prepared[query] = prepared
	return prepared, nil
}

// current is Current, with mu held.
func (f *File) current(ctx context.Context) (*sql.DB, error) {
	if f.closed {
		return nil, fmt.Errorf("%s is closed", f.kind.Name)
	}
	there, err := os.Stat(f.path)
	if err != nil {
		return nil, fmt.Errorf("the file is gone, put it back or restart the cluster: %w", err)
	}
	if os.SameFile(there, f.file.info) {
		return f.file.db, nil
	}
	replacement, err := f.kind.openFile(ctx, f.path)
	if err != nil {
		return nil, err
	}
	f.log.WarnContext(ctx, f.kind.Name+" was replaced by another file, which is used from now on", "path", f.path)
	_ = f.file.db.Close() // nobody can reach that file any more
	f.file = replacement
	return f.file.db, nil
}

// Close closes the file; again does nothing.
func (f *File) Close() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closed {
		return nil
	}
	f.closed = true
	if err := f.file.db.Close(); err != nil {
		return fmt.Errorf("close %s %s: %w", f.kind.Name, f.path, err)
	}
	return nil
}

// file is an open store, and which file it is.
type file struct {
	db       *sql.DB
	info     fs.FileInfo
	prepared map[string]*sql.Stmt // by query; closed with db
}

func (k Kind) openOrCreate(ctx context.Context, path string) (*file, error) {
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
		if err := k.create(ctx, path); err != nil {
			return nil, fmt.Errorf("create: %w", err)
		}
	}
	return k.openFile(ctx, path)
}

// create makes the store beside its place and then links it there, so that
// nobody ever opens half a store. Who comes second finds the other's.
//
// The descriptor that sets the mode is closed before the file is at its place:
// closing one drops all POSIX locks that this process holds on the file.
func (k Kind) create(ctx context.Context, path string) error {
	dir, err := os.MkdirTemp(filepath.Dir(path), ".mrgc-*")
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
	if err := k.writeSchema(ctx, draft); err != nil {
		return err
	}
	if err := os.Link(draft, path); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return nil
}

func (k Kind) writeSchema(ctx context.Context, path string) (err error) {
	db, err := connect(path)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	for _, statement := range append([]string{
		`PRAGMA journal_mode = WAL`,
		fmt.Sprintf(`PRAGMA application_id = %d`, k.ApplicationID),
		fmt.Sprintf(`PRAGMA user_version = %d`, k.SchemaVersion),
	}, k.Schema...) {
		if _, err := db.ExecContext(ctx, statement); err != nil {
			return err
		}
	}
	return nil
}

// openFile opens a store that exists. What it is it asks SQLite alone: see
// create for why it opens no descriptor of its own.
func (k Kind) openFile(ctx context.Context, path string) (*file, error) {
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
	if err := k.check(ctx, db); err != nil {
		return nil, errors.Join(err, db.Close())
	}
	return &file{db: db, info: info, prepared: map[string]*sql.Stmt{}}, nil
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

// check refuses a file that is not of this kind and version. It only reads.
func (k Kind) check(ctx context.Context, db *sql.DB) error {
	var (
		application int32
		version     int
	)
	err := db.QueryRowContext(ctx, `SELECT application_id, user_version FROM pragma_application_id, pragma_user_version`).
		Scan(&application, &version)
	var sqliteErr *driver.Error
	switch {
	case errors.As(err, &sqliteErr) && sqliteErr.Code() == sqlite3.SQLITE_NOTADB:
		return fmt.Errorf("not a %s: name another path, or move the file away", k.Name)
	case err != nil:
		return err
	case application != k.ApplicationID:
		return fmt.Errorf("not a %s (another program's SQLite file, or an empty one): name another path, or move the file away", k.Name)
	case version > k.SchemaVersion:
		return fmt.Errorf("written by a newer mrgc (schema %d, this one knows %d): use that mrgc, or move the file away",
			version, k.SchemaVersion)
	case version < k.SchemaVersion:
		return fmt.Errorf("damaged, or written by an older mrgc: schema %d, want %d: move the file away, %s",
			version, k.SchemaVersion, k.Outdated)
	}
	return nil
}
