package dynamodb

import (
	"time"

	"github.com/mrgc/mrgc/internal/state/schema"
)

// An item is an instance. Only the key is declared to DynamoDB, in
// internal/state/schema; every item has all of these attributes, and others are
// left alone.
//
// The instance's ID alone is the key: heartbeats and drains know nothing else,
// and it makes IDs unique over all regions.
const (
	attrID       = "instance_id" // S, partition key
	attrRegion   = "region"      // S, short name: use1
	attrZone     = "zone"        // S, may be empty
	attrAddress  = "address"     // S, IP:port
	attrModels   = "models"      // L of S
	attrVersions = "versions"    // M of S, by model; absent in items of before there were any
	attrKeyIDs   = "key_ids"     // L of S, 16 hex digits each
	attrDraining = "draining"    // BOOL

	attrEnclaveOK    = "enclave_ok"    // BOOL
	attrEngineOK     = "engine_ok"     // BOOL
	attrHealthReason = "health_reason" // S, may be empty

	attrRunning  = "running_requests" // N
	attrQueued   = "queued_requests"  // N
	attrSlots    = "slots"            // N, 0: not known
	attrRequests = "requests"         // N, since the parent started
	attrLatency  = "latency_ns"       // N, 0: not known
	attrUsage    = "usage"            // M by model, of M of N; absent: not known

	attrRegisteredAt = "registered_at_unix_ns" // N, nanoseconds since 1970
	attrHeartbeatAt  = "heartbeat_at_unix_ns"  // N, nanoseconds since 1970
	attrVersion      = "version"               // N, counts writes from 1

	attrExpiresAt = schema.TTL // N, seconds since 1970: when DynamoDB may remove it
)

// silentFor is how long after its last heartbeat DynamoDB may remove an instance:
// of one that ended without a word, nothing else does. It is long, so that
// neither clocks that differ nor a table that could not be written matter (AWS
// refuses requests that are signed by a clock 15 minutes off).
const silentFor = 24 * time.Hour
