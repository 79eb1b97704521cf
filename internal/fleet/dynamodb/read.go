package dynamodb

import (
	"context"
	"fmt"
	"reflect"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	sdk "github.com/aws/aws-sdk-go-v2/service/dynamodb"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb/types"

	"github.com/mrgc/mrgc/internal/dynamo"
	"github.com/mrgc/mrgc/internal/fleet"
	"github.com/mrgc/mrgc/internal/fleet/poll"
)

// Snapshot reads all instances, each as of its last write; a fleet that fits no
// page of 1 MB is read page by page, and so not as of one moment.
//
// It is one Scan, because the table holds nothing but the fleet: 60 instances of
// less than 1 KB each are one request and 15 read units. A Query for each region
// would read the same bytes in more requests, and need the region in the key,
// which heartbeats do not know.
func (s *Store) Snapshot(ctx context.Context) (*fleet.Snapshot, error) {
	if err := s.open(); err != nil {
		return nil, fmt.Errorf("fleet store: DynamoDB table %s: %w", *s.table, err)
	}
	at := s.clock().Round(0).UTC()
	var instances []*fleet.Instance
	skipped := map[string]string{}
	pages := sdk.NewScanPaginator(s.client, &sdk.ScanInput{TableName: s.table, ConsistentRead: aws.Bool(true)})
	for pages.HasMorePages() {
		page, err := pages.NextPage(ctx)
		if err != nil {
			return nil, fmt.Errorf("fleet store: DynamoDB table %s: read instances: %w", *s.table, dynamo.Explain(err))
		}
		for _, it := range page.Items {
			in, err := decode(it)
			if err != nil {
				skipped[idOf(it)] = err.Error()
				continue
			}
			instances = append(instances, in)
		}
	}
	s.tellSkipped(ctx, skipped)
	s.hearing.Date(at, instances, func(in *fleet.Instance) bool { return in.Region.AWS() != s.client.Region })
	return fleet.NewSnapshot(at, instances), nil
}

// tellSkipped warns of items that are no instances, once for as long as they
// stay as they are.
func (s *Store) tellSkipped(ctx context.Context, skipped map[string]string) {
	s.mu.Lock()
	before := s.skipped
	s.skipped = skipped
	s.mu.Unlock()
	for id, why := range skipped {
		if before[id] != why {
			s.log.WarnContext(ctx, "fleet store holds an item that is no instance, skipped", "item", id, "error", why)
		}
	}
}

func idOf(it item) string {
	id, _ := it[attrID].(*types.AttributeValueMemberS)
	if id == nil {
		return ""
	}
	return id.Value
}

// Watch sends the present snapshot, and then each newer one.
//
// Each poll reads the whole table. A smaller question first would save nothing:
// DynamoDB counts the bytes that it reads, not those that it sends, and with
// heartbeats on their way the answer nearly always were that there is something
// new. What does not differ from what was sent last is not sent.
func (s *Store) Watch(ctx context.Context) <-chan *fleet.Snapshot {
	w := watcher{store: s}
	return s.watches.Start(ctx, poll.Watch{Interval: s.pollInterval, Poll: w.poll, Log: s.log})
}

// watcher knows what it has given out last.
type watcher struct {
	store  *Store
	last   *fleet.Snapshot // nil: none yet
	readAt time.Time       // of last, by this process's clock
}

// poll gives a snapshot when there is a new one to send, else nil.
func (w *watcher) poll(ctx context.Context) (*fleet.Snapshot, error) {
	readAt := time.Now()
	snapshot, err := w.store.Snapshot(ctx)
	if err != nil {
		return nil, err
	}
	if w.last != nil && readAt.Sub(w.readAt) < fleet.RefreshInterval && reflect.DeepEqual(snapshot.Instances, w.last.Instances) {
		return nil, nil
	}
	w.last, w.readAt = snapshot, readAt
	return snapshot, nil
}
