package sqlite

import "github.com/mrgc/mrgc/internal/sqlitefile"

var kind = sqlitefile.Kind{
	Name: "fleet store", ApplicationID: 0x4d524743, // "MRGC"
	SchemaVersion: 4, Schema: []string{schemaSQL}, Outdated: "instances register again",
}

const schemaSQL = `
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
	requests         INTEGER NOT NULL, -- since the parent started
	usage            TEXT NOT NULL, -- JSON object, by model; null: not known
	registered_at_ns INTEGER NOT NULL, -- since 1970
	heartbeat_at_ns  INTEGER NOT NULL, -- since 1970
	version          INTEGER NOT NULL
) STRICT, WITHOUT ROWID`
