package sqlite

import (
	"context"
	"database/sql"
	"time"

	"github.com/mrgc/mrgc/internal/fleet"
)

// pollInterval is how often a watch asks whether the file has changed, and so
// how late it sees a change at most.
const pollInterval = 200 * time.Millisecond

// Watch sends the present snapshot, and then each newer one.
func (s *Store) Watch(ctx context.Context) <-chan *fleet.Snapshot {
	out := make(chan *fleet.Snapshot)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		close(out)
		return out
	}
	ctx, cancel := context.WithCancel(ctx)
	unhook := context.AfterFunc(s.life, cancel)
	s.watches.Go(func() {
		defer close(out)
		defer unhook()
		defer cancel()
		s.watch(ctx, out)
	})
	return out
}

// watch polls until ctx ends. A snapshot that nobody has taken is replaced by
// the next: out is unbuffered, so no old one waits in it.
func (s *Store) watch(ctx context.Context, out chan<- *fleet.Snapshot) {
	w := watcher{store: s}
	defer w.disconnect()
	var (
		newest *fleet.Snapshot
		send   chan<- *fleet.Snapshot // nil, and so never ready, while there is nothing to send
		wait   = pollInterval         // longer while the store cannot be read
		timer  = time.NewTimer(0)
	)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case send <- newest:
			newest, send = nil, nil
		case <-timer.C:
			snapshot, err := w.poll(ctx)
			if ctx.Err() != nil {
				return
			}
			if snapshot != nil {
				newest, send = snapshot, out
			}
			wait = s.nextWait(ctx, wait, err)
			timer.Reset(wait)
		}
	}
}

// nextWait backs off from a store that cannot be read, and logs when that
// begins and when it ends.
func (s *Store) nextWait(ctx context.Context, wait time.Duration, err error) time.Duration {
	failed := wait > pollInterval
	switch {
	case err == nil && failed:
		s.log.InfoContext(ctx, "fleet store can be read again", "path", s.path)
	case err != nil && !failed:
		s.log.WarnContext(ctx, "fleet store cannot be read, trying again", "path", s.path, "error", err)
	}
	if err != nil {
		return min(2*wait, fleet.RefreshInterval)
	}
	return pollInterval
}

// watcher reads the file when it has changed.
type watcher struct {
	store *Store
	file  *file
	// conn is the watcher's own and writes nothing: data_version counts the
	// commits of all other connections, of this process or another, but not
	// those of the connection that asks.
	conn    *sql.Conn
	version *sql.Stmt // asks for data_version on conn
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
	at := w.store.clock()
	snapshot, err := readSnapshot(ctx, w.conn, at)
	if err != nil {
		return nil, err
	}
	w.seen, w.readAt = version, time.Now()
	return snapshot, nil
}

// connect makes sure that conn is a connection to the store's current file.
func (w *watcher) connect(ctx context.Context) error {
	f, err := w.store.current(ctx)
	if err != nil {
		return err
	}
	if w.conn != nil && w.file == f {
		return nil
	}
	w.disconnect()
	if w.conn, err = f.db.Conn(ctx); err != nil {
		return err
	}
	if w.version, err = w.conn.PrepareContext(ctx, `PRAGMA data_version`); err != nil {
		return err
	}
	w.file = f
	return nil
}

func (w *watcher) disconnect() {
	if w.version != nil {
		_ = w.version.Close()
	}
	if w.conn != nil {
		_ = w.conn.Close()
	}
	*w = watcher{store: w.store}
}
