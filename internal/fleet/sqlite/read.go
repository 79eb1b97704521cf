package sqlite

import (
	"context"
	"database/sql"
	"encoding/json"
	"fmt"
	"time"

	"github.com/mrgc/mrgc/internal/fleet"
)

const snapshotSQL = `
SELECT id, region, zone, address, models, versions, key_ids, draining, enclave_ok, engine_ok, reason,
	running, queued, slots, latency_ns, requests, usage, registered_at_ns, heartbeat_at_ns, version
FROM instances`

// readSnapshot reads all instances in one statement, which is snapshotSQL's, and so as
// of one moment.
func (s *Store) readSnapshot(ctx context.Context, asked *sql.Stmt) (*fleet.Snapshot, error) {
	at := s.clock().Round(0).UTC()
	rows, err := asked.QueryContext(ctx)
	if err != nil {
		return nil, err
	}
	defer func() { _ = rows.Close() }() // a failure to read is in rows.Err
	var instances []*fleet.Instance
	for rows.Next() {
		in, err := scanInstance(rows)
		if err != nil {
			return nil, err
		}
		instances = append(instances, in)
	}
	if err := rows.Err(); err != nil {
		return nil, err
	}
	s.hearing.Date(at, instances, func(*fleet.Instance) bool { return false })
	return fleet.NewSnapshot(at, instances), nil
}

func scanInstance(rows *sql.Rows) (*fleet.Instance, error) {
	var (
		in                              fleet.Instance
		models, versions, keyIDs, usage []byte
		latency, registered, heard      int64
	)
	err := rows.Scan(&in.ID, &in.Region, &in.Zone, &in.Address, &models, &versions, &keyIDs, &in.Draining,
		&in.Health.Enclave, &in.Health.Engine, &in.Health.Reason,
		&in.Load.Running, &in.Load.Queued, &in.Load.Slots, &latency, &in.Load.Requests, &usage, &registered, &heard, &in.Version)
	if err != nil {
		return nil, err
	}
	if err := json.Unmarshal(models, &in.Models); err != nil {
		return nil, fmt.Errorf("instance %s: models: %w", in.ID, err)
	}
	if err := json.Unmarshal(versions, &in.Versions); err != nil {
		return nil, fmt.Errorf("instance %s: versions: %w", in.ID, err)
	}
	if err := json.Unmarshal(keyIDs, &in.KeyIDs); err != nil {
		return nil, fmt.Errorf("instance %s: key ids: %w", in.ID, err)
	}
	if err := json.Unmarshal(usage, &in.Usage); err != nil {
		return nil, fmt.Errorf("instance %s: usage: %w", in.ID, err)
	}
	in.Load.Latency = time.Duration(latency)
	in.RegisteredAt = time.Unix(0, registered).UTC()
	in.HeartbeatAt = time.Unix(0, heard).UTC()
	return &in, nil
}
