package globaltables

import (
	"context"
	"encoding/json"
	"time"

	"github.com/mrgc/mrgc/internal/state/schema"
)

const (
	// pollEvery is how often a stream is read: DynamoDB allows five times a second for
	// each shard.
	pollEvery = 200 * time.Millisecond
	// shardsEvery is how often a stream is asked which shards it has.
	shardsEvery = 10 * time.Second
)

// record is a change in a stream.
type record struct {
	EventName string `json:"eventName"` // INSERT, MODIFY, REMOVE
	DynamoDB  struct {
		Keys attributes
	} `json:"dynamodb"`
}

// follow reads a table's stream until ctx ends, from its beginning whenever something
// went wrong: what the others have is not sent again.
func (r *Region) follow(ctx context.Context, table schema.Table) {
	for ctx.Err() == nil {
		if r.health.near() {
			if err := r.followUntilWrong(ctx, table); ctx.Err() == nil {
				r.log.DebugContext(ctx, "stream not read", "table", table.Name, "error", err)
			}
		}
		pause(ctx, pollEvery)
	}
}

// followUntilWrong reads it until something goes wrong, which is what it gives.
func (r *Region) followUntilWrong(ctx context.Context, table schema.Table) error {
	var described struct {
		Table struct{ LatestStreamArn string }
	}
	if err := r.near.call(ctx, dynamoDB+"DescribeTable", map[string]string{"TableName": table.Name}, &described); err != nil {
		return err // it may not have been made yet
	}
	stream := described.Table.LatestStreamArn
	iterators := map[string]string{} // by shard; empty: it was read to its end
	var at time.Time                 // when the stream was last asked for its shards
	for ; ; pause(ctx, pollEvery) {
		if err := ctx.Err(); err != nil {
			return err
		}
		if time.Since(at) > shardsEvery {
			if err := r.findShards(ctx, stream, iterators); err != nil {
				return err
			}
			at = time.Now()
		}
		for shard, iterator := range iterators {
			if iterator == "" {
				continue
			}
			var got struct {
				Records           []record
				NextShardIterator string
			}
			if err := r.near.call(ctx, streams+"GetRecords", map[string]string{"ShardIterator": iterator}, &got); err != nil {
				return err
			}
			for _, one := range got.Records {
				if err := r.changed(ctx, table, one); err != nil {
					return err
				}
			}
			if iterators[shard] = got.NextShardIterator; got.NextShardIterator == "" {
				at = time.Time{} // another has taken its place
			}
		}
	}
}

// findShards has shards that are not known yet read from their beginning.
func (r *Region) findShards(ctx context.Context, stream string, iterators map[string]string) error {
	var described struct {
		StreamDescription struct {
			Shards []struct {
				ShardID string `json:"ShardId"`
			}
		}
	}
	if err := r.near.call(ctx, streams+"DescribeStream", map[string]string{"StreamArn": stream}, &described); err != nil {
		return err
	}
	for _, shard := range described.StreamDescription.Shards {
		if _, known := iterators[shard.ShardID]; known {
			continue
		}
		var got struct{ ShardIterator string }
		err := r.near.call(ctx, streams+"GetShardIterator", map[string]string{
			"StreamArn": stream, "ShardId": shard.ShardID, "ShardIteratorType": "TRIM_HORIZON",
		}, &got)
		if err != nil {
			return err
		}
		iterators[shard.ShardID] = got.ShardIterator
	}
	return nil
}

// change is an item as one region has it, for the others.
type change struct {
	Table   string     `json:"table"`
	Key     string     `json:"key"`
	Item    attributes `json:"item,omitempty"` // none: it was removed
	Version version    `json:"version"`
}

// changed takes up a record of the stream: what the item is now is sent, if it was
// written here. A later record of it then has nothing new to say.
func (r *Region) changed(ctx context.Context, table schema.Table, one record) error {
	at, err := refOf(table, one.DynamoDB.Keys)
	if err != nil {
		return err
	}
	c, err := r.current(ctx, at, one)
	if err != nil || c.Version.Region != r.cfg.Region {
		return err
	}
	for _, p := range r.peers {
		p.queue(c, time.Now())
	}
	return nil
}

// current is an item as it is. One that is gone without a request has expired.
func (r *Region) current(ctx context.Context, at ref, one record) (change, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	var got struct{ Item attributes }
	err := r.near.call(ctx, dynamoDB+"GetItem", map[string]any{
		"TableName": at.table, "Key": json.RawMessage(at.key), "ConsistentRead": true,
	}, &got)
	if err != nil {
		return change{}, err
	}
	v := r.journal.of(at)
	if one.EventName == "REMOVE" && len(got.Item) == 0 && !v.Deleted {
		v = version{At: r.journal.tick(), Region: r.cfg.Region, Deleted: true}
		if err := r.journal.set(at, v); err != nil {
			return change{}, err
		}
	}
	return change{Table: at.table, Key: at.key, Item: got.Item, Version: v}, nil
}
