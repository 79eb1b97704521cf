// Package sqlite keeps the fleet in one SQLite file: the store of a cluster on
// one machine.
//
// Every parent and every router of the cluster opens the same file:
//
//	store, err := sqlite.Open(ctx, sqlite.Config{Path: "/run/mrgc/fleet.db"})
//	if err != nil { … }
//	defer store.Close()
//
// The file is as internal/sqlitefile has it. A change is one SQL statement in a
// transaction of its own, and nothing else happens inside, so that its lock is
// held for microseconds. What is lost with the machine's power instances register
// again.
//
// A store follows its path: when the file is replaced by another store, the next
// call uses that one (and instances, unknown to it, register again). While the
// file is gone, calls fail; a running store never creates it anew.
package sqlite

import (
	"context"
	"database/sql"
	"encoding/json"
	"fmt"
	"log/slog"
	"time"

	"github.com/mrgc/mrgc/internal/fleet"
	"github.com/mrgc/mrgc/internal/fleet/poll"
	"github.com/mrgc/mrgc/internal/sqlitefile"
)

// Config says where the store is.
type Config struct {
	// Path of the file, required. It is created, readable by its owner alone,
	// when it does not exist; its directory must exist.
	Path string
	// Clock stamps registrations, heartbeats and snapshots. nil: time.Now.
	Clock func() time.Time
	// Logger hears when a watch cannot read the store, and when it can again.
	// nil: nobody does.
	Logger *slog.Logger
}

// Store is a [fleet.Store] in a SQLite file.
type Store struct {
	file    *sqlitefile.File
	path    string
	clock   func() time.Time
	log     *slog.Logger
	watches *poll.Watches
	hearing fleet.Hearing
}

var _ fleet.Store = (*Store)(nil)

// Open opens the store, and creates it first where there is none. It refuses a
// file that is no fleet store, or one of a newer version, without changing it.
func Open(ctx context.Context, cfg Config) (*Store, error) {
	s := &Store{clock: cfg.Clock, log: cfg.Logger, watches: poll.NewWatches()}
	if s.clock == nil {
		s.clock = time.Now
	}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	var err error
	if s.file, err = sqlitefile.Open(ctx, cfg.Path, kind, s.log); err != nil {
		return nil, err
	}
	s.path = s.file.Path()
	return s, nil
}

const registerSQL = `
INSERT INTO instances (id, region, zone, address, models, versions, key_ids, draining,
	enclave_ok, engine_ok, reason, running, queued, slots, latency_ns, requests, usage,
	registered_at_ns, heartbeat_at_ns, version)
VALUES (:id, :region, :zone, :address, :models, :versions, :key_ids, :draining,
	:enclave_ok, :engine_ok, :reason, :running, :queued, :slots, :latency_ns, :requests, :usage, :now, :now, 1)
ON CONFLICT (id) DO UPDATE SET
	region = excluded.region, zone = excluded.zone, address = excluded.address,
	models = excluded.models, versions = excluded.versions, key_ids = excluded.key_ids,
	enclave_ok = excluded.enclave_ok, engine_ok = excluded.engine_ok, reason = excluded.reason,
	running = excluded.running, queued = excluded.queued, slots = excluded.slots,
	latency_ns = excluded.latency_ns, requests = excluded.requests, usage = excluded.usage,
	registered_at_ns = excluded.registered_at_ns, heartbeat_at_ns = excluded.heartbeat_at_ns, version = instances.version + 1`

// Register adds an instance or replaces its registration.
func (s *Store) Register(ctx context.Context, in fleet.Instance) error {
	if err := in.Validate(); err != nil {
		return fmt.Errorf("register: %w", err)
	}
	models, err := json.Marshal(in.Models)
	if err != nil {
		return fmt.Errorf("register instance %s: models: %w", in.ID, err)
	}
	versions, err := json.Marshal(in.Versions)
	if err != nil {
		return fmt.Errorf("register instance %s: versions: %w", in.ID, err)
	}
	keyIDs, err := json.Marshal(in.KeyIDs)
	if err != nil {
		return fmt.Errorf("register instance %s: key ids: %w", in.ID, err)
	}
	load, err := healthAndLoad(in.Health, in.Load, in.Usage)
	if err != nil {
		return fmt.Errorf("register instance %s: %w", in.ID, err)
	}
	args := append(load,
		sql.Named("id", in.ID), sql.Named("region", string(in.Region)), sql.Named("zone", in.Zone),
		sql.Named("address", in.Address), sql.Named("models", string(models)), sql.Named("versions", string(versions)),
		sql.Named("key_ids", string(keyIDs)), sql.Named("draining", in.Draining),
		sql.Named("now", s.clock().UnixNano()))
	if _, err := s.write(ctx, registerSQL, args...); err != nil {
		return fmt.Errorf("register instance %s: %w", in.ID, err)
	}
	return nil
}

const heartbeatSQL = `
UPDATE instances SET
	enclave_ok = :enclave_ok, engine_ok = :engine_ok, reason = :reason, running = :running,
	queued = :queued, slots = :slots, latency_ns = :latency_ns, requests = :requests, usage = :usage,
	heartbeat_at_ns = :now, version = version + 1
WHERE id = :id`

// Heartbeat updates an instance's health, load and time of heartbeat.
func (s *Store) Heartbeat(ctx context.Context, hb fleet.Heartbeat) error {
	if err := hb.Validate(); err != nil {
		return fmt.Errorf("heartbeat: %w", err)
	}
	load, err := healthAndLoad(hb.Health, hb.Load, hb.Usage)
	if err != nil {
		return fmt.Errorf("heartbeat of instance %s: %w", hb.ID, err)
	}
	args := append(load, sql.Named("id", hb.ID), sql.Named("now", s.clock().UnixNano()))
	return s.update(ctx, "heartbeat of", hb.ID, heartbeatSQL, args...)
}

// SetDraining starts or ends a drain.
func (s *Store) SetDraining(ctx context.Context, id string, draining bool) error {
	if err := fleet.ValidateID(id); err != nil {
		return fmt.Errorf("drain: %w", err)
	}
	return s.update(ctx, "drain", id,
		`UPDATE instances SET draining = ?, version = version + 1 WHERE id = ?`, draining, id)
}

// Deregister removes an instance.
func (s *Store) Deregister(ctx context.Context, id string) error {
	if err := fleet.ValidateID(id); err != nil {
		return fmt.Errorf("deregister: %w", err)
	}
	if _, err := s.write(ctx, `DELETE FROM instances WHERE id = ?`, id); err != nil {
		return fmt.Errorf("deregister instance %s: %w", id, err)
	}
	return nil
}

// Snapshot reads all instances.
func (s *Store) Snapshot(ctx context.Context) (*fleet.Snapshot, error) {
	asked, err := s.file.Statement(ctx, snapshotSQL)
	if err != nil {
		return nil, fmt.Errorf("fleet store %s: %w", s.path, err)
	}
	snapshot, err := s.readSnapshot(ctx, asked)
	if err != nil {
		return nil, fmt.Errorf("fleet store %s: read instances: %w", s.path, err)
	}
	return snapshot, nil
}

// Close ends the watches and closes the file.
func (s *Store) Close() error {
	s.watches.Close()
	return s.file.Close()
}

// update is write for an instance that must exist.
func (s *Store) update(ctx context.Context, what, id, query string, args ...any) error {
	rows, err := s.write(ctx, query, args...)
	if err != nil {
		return fmt.Errorf("%s instance %s: %w", what, id, err)
	}
	if rows == 0 {
		return fmt.Errorf("%s instance %s: %w", what, id, fleet.ErrNotFound)
	}
	return nil
}

// write runs one statement, which is a transaction of its own, and counts the
// rows that it changed.
func (s *Store) write(ctx context.Context, query string, args ...any) (int64, error) {
	prepared, err := s.file.Statement(ctx, query)
	if err != nil {
		return 0, err
	}
	result, err := prepared.ExecContext(ctx, args...)
	if err != nil {
		return 0, err
	}
	return result.RowsAffected()
}

func healthAndLoad(h fleet.Health, l fleet.Load, used map[string]fleet.Usage) ([]any, error) {
	usage, err := json.Marshal(used)
	if err != nil {
		return nil, fmt.Errorf("usage: %w", err)
	}
	return []any{
		sql.Named("enclave_ok", h.Enclave), sql.Named("engine_ok", h.Engine), sql.Named("reason", h.Reason),
		sql.Named("running", l.Running), sql.Named("queued", l.Queued), sql.Named("slots", l.Slots),
		sql.Named("latency_ns", int64(l.Latency)), sql.Named("requests", l.Requests),
		sql.Named("usage", string(usage)),
	}, nil
}
