package sqlite

import (
	"context"
	"database/sql"
	"time"

	"github.com/mrgc/mrgc/internal/fleet"
	"github.com/mrgc/mrgc/internal/fleet/poll"
)

// pollInterval is how often a watch asks whether the file has changed, and so
// how late it sees a change at most.
const pollInterval = 200 * time.Millisecond

// Watch sends the present snapshot, and then each newer one.
func (s *Store) Watch(ctx context.Context) <-chan *fleet.Snapshot {
	w := &watcher{store: s}
	return s.watches.Start(ctx, poll.Watch{
		Interval: pollInterval, Poll: w.poll, Stop: w.disconnect, Log: s.log.With("path", s.path),
	})
}

// watcher reads the file when it has changed.
type watcher struct {
	store *Store
	db    *sql.DB // that conn is of
	// conn is the watcher's own and writes nothing: data_version counts the
	// commits of all other connections, of this process or another, but not
	// those of the connection that asks.
	conn    *sql.Conn
	version *sql.Stmt // asks for data_version on conn
	all     *sql.Stmt // asks for all instances on conn
	seen    int64     // data_version before the last read
	readAt  time.Time // of the last read; zero: never
}

// poll gives a snapshot when there is a new one to send, else nil.
func (w *watcher) poll(ctx context.Context) (*fleet.Snapshot, error) {
	snapshot, err := w.tryPoll(ctx)
	if err != nil {
		w.disconnect() // whatever is wrong with it, the next poll starts anew
	}
	return snapshot, err
}

func (w *watcher) tryPoll(ctx context.Context) (*fleet.Snapshot, error) {
	if err := w.connect(ctx); err != nil {
		return nil, err
	}
	var version int64
	if err := w.version.QueryRowContext(ctx).Scan(&version); err != nil {
		return nil, err
	}
	if version == w.seen && time.Since(w.readAt) < fleet.RefreshInterval {
		return nil, nil
	}
	snapshot, err := w.store.readSnapshot(ctx, w.all)
	if err != nil {
		return nil, err
	}
	w.seen, w.readAt = version, time.Now()
	return snapshot, nil
}

// connect makes sure that conn is a connection to the store's current file.
func (w *watcher) connect(ctx context.Context) error {
	db, err := w.store.file.Current(ctx)
	if err != nil {
		return err
	}
	if w.conn != nil && w.db == db {
		return nil
	}
	w.disconnect()
	if w.conn, err = db.Conn(ctx); err != nil {
		return err
	}
	if w.version, err = w.conn.PrepareContext(ctx, `PRAGMA data_version`); err != nil {
		return err
	}
	if w.all, err = w.conn.PrepareContext(ctx, snapshotSQL); err != nil {
		return err
	}
	w.db = db
	return nil
}

func (w *watcher) disconnect() {
	for _, prepared := range []*sql.Stmt{w.version, w.all} {
		if prepared != nil {
			_ = prepared.Close()
		}
	}
	if w.conn != nil {
		_ = w.conn.Close()
	}
	*w = watcher{store: w.store}
}
