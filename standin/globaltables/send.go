package globaltables

import (
	"context"
	"encoding/json"
	"fmt"
	"sync"
	"time"
)

const (
	changesPath = "/changes"
	mostChanges = 50 // in one request
	retryEvery  = 200 * time.Millisecond
	idleEvery   = 50 * time.Millisecond
)

// peer is another region, and what it has not been told yet.
type peer struct {
	region, url string

	mu     sync.Mutex
	waits  []waiting       // guarded by mu: in the order in which they were written
	queued map[ref]version // guarded by mu: the newest that is waiting or was told
}

// waiting is a change that was read from the stream.
type waiting struct {
	change
	read time.Time
}

func newPeer(region, url string) *peer {
	return &peer{region: region, url: url, queued: map[ref]version{}}
}

// queue notes a change, once.
func (p *peer) queue(c change, read time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	at := ref{c.Table, c.Key}
	if p.queued[at] == c.Version {
		return
	}
	p.queued[at] = c.Version
	p.waits = append(p.waits, waiting{c, read})
}

// due are those that have waited long enough, the oldest first.
func (p *peer) due(lag time.Duration) (changes []change) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, w := range p.waits {
		if len(changes) == mostChanges || time.Since(w.read) < lag {
			break
		}
		changes = append(changes, w.change)
	}
	return changes
}

// told forgets the first n changes.
func (p *peer) told(n int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.waits = p.waits[n:]
}

// send tells another region of all changes until ctx ends, again until it has them.
func (r *Region) send(ctx context.Context, p *peer) {
	failing := false
	for ctx.Err() == nil {
		changes := p.due(r.lag())
		if len(changes) == 0 {
			pause(ctx, idleEvery)
			continue
		}
		err := r.toPeer(ctx, p, changesPath, changes)
		if err == nil {
			p.told(len(changes))
		}
		if (err != nil) != failing && ctx.Err() == nil {
			failing = err != nil
			r.log.InfoContext(ctx, "replication", "to", p.region, "failing", failing, "error", err)
		}
		if failing {
			pause(ctx, retryEvery)
		}
	}
}

// apply does what another region says that was written there, unless what is here is
// later.
func (r *Region) apply(ctx context.Context, body []byte) error {
	var changes []change
	if err := json.Unmarshal(body, &changes); err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, c := range changes {
		at := ref{c.Table, c.Key}
		if _, known := r.tables[c.Table]; !known {
			return fmt.Errorf("table %q is not replicated", c.Table)
		}
		if !c.Version.later(r.journal.of(at)) {
			continue
		}
		operation, in := "PutItem", map[string]any{"TableName": c.Table, "Item": c.Item}
		if len(c.Item) == 0 {
			operation, in = "DeleteItem", map[string]any{"TableName": c.Table, "Key": json.RawMessage(c.Key)}
		}
		if err := r.near.call(ctx, dynamoDB+operation, in, nil); err != nil {
			return err
		}
		c.Version.Deleted = len(c.Item) == 0
		if err := r.journal.set(at, c.Version); err != nil {
			return err
		}
	}
	return nil
}
