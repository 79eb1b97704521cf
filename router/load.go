package router

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	orcaservicev3 "github.com/cncf/xds/go/xds/service/orca/v3"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/mrgc/mrgc/internal/fleet"
	"github.com/mrgc/mrgc/internal/identity"
	"github.com/mrgc/mrgc/internal/loadreport"
	"github.com/mrgc/mrgc/internal/routing"
)

const (
	// reportInterval is the least time between two reports of an instance. It is
	// below the 100 ms at which a busy parent makes them, so that none waits for
	// the next.
	reportInterval = 50 * time.Millisecond
	// silence is how long a parent may say nothing before its stream counts as
	// broken: an idle one speaks twice a second.
	silence = 5 * time.Second
)

// loads follows the load of the region's ready instances: one stream of reports
// from each one's parent.
type loads struct {
	region   fleet.Region
	identity *identity.Source
	log      *slog.Logger
	silence  time.Duration
	tracker  loadreport.Tracker
	heard    func(instanceID string) // called after each report is in tracker; does not block

	streams sync.WaitGroup
	open    map[string]subscription // of the goroutine that calls update and stop: by instance
}

// subscription is to an instance's parent at an address.
type subscription struct {
	address string
	cancel  context.CancelFunc
}

func newLoads(region fleet.Region, self *identity.Source, heard func(instanceID string), log *slog.Logger) *loads {
	return &loads{region: region, identity: self, heard: heard, log: log, silence: silence, open: map[string]subscription{}}
}

// update follows who is ready now and nobody else. It does not wait for
// anything. Streams end with ctx, too.
func (l *loads) update(ctx context.Context, ready []*fleet.Instance) {
	wanted := map[string]*fleet.Instance{}
	var ids []string
	for _, in := range ready {
		if in.Region == l.region {
			wanted[in.ID] = in
			ids = append(ids, in.ID)
		}
	}
	for id, s := range l.open {
		if in := wanted[id]; in == nil || in.Address != s.address {
			s.cancel()
			delete(l.open, id)
		}
	}
	l.tracker.Follow(ids)
	for id, in := range wanted {
		if _, ok := l.open[id]; ok {
			continue
		}
		streamCtx, cancel := context.WithCancel(ctx)
		l.open[id] = subscription{address: in.Address, cancel: cancel}
		l.streams.Go(func() { l.follow(streamCtx, in) })
	}
}

// stop ends all streams and waits for it.
func (l *loads) stop() {
	for _, s := range l.open {
		s.cancel()
	}
	l.streams.Wait()
}

// follow keeps a stream to an instance's parent open until ctx ends.
func (l *loads) follow(ctx context.Context, in *fleet.Instance) {
	conn, err := dial(in.Address, l.identity, parentOf(in), l.silence)
	if err != nil { // an address that the store has checked
		l.log.Error("no load reports from instance", "instance", in.ID, "error", err)
		return
	}
	defer func() { _ = conn.Close() }()
	client := orcaservicev3.NewOpenRcaServiceClient(conn)
	keepOpen(ctx, func() (bool, error) { return l.listen(ctx, client, in.ID) }, func(err error) {
		l.log.Warn("no load reports from instance; trying on", "instance", in.ID, "error", err)
	})
}

var errSilent = errors.New("the other side has gone silent")

// listen takes reports until the stream breaks, and says whether there was any.
// A report that is not valid breaks it.
func (l *loads) listen(ctx context.Context, client orcaservicev3.OpenRcaServiceClient, id string) (heard bool, err error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	silent := time.AfterFunc(l.silence, func() { cancel(errSilent) })
	defer silent.Stop()
	stream, err := client.StreamCoreMetrics(ctx, &orcaservicev3.OrcaLoadReportRequest{ReportInterval: durationpb.New(reportInterval)})
	for err == nil {
		message, recvErr := stream.Recv()
		if recvErr != nil {
			err = recvErr
			break
		}
		report, decodeErr := loadreport.Decode(message)
		if decodeErr != nil {
			err = decodeErr
			break
		}
		heard = true
		l.tracker.Put(id, report, time.Now())
		l.heard(id)
		silent.Reset(l.silence)
	}
	if errors.Is(context.Cause(ctx), errSilent) {
		err = fmt.Errorf("%w for %s", errSilent, l.silence)
	}
	return heard, err
}

// reported is what the picker goes by.
func (r *Router) reported(in *fleet.Instance) routing.Report {
	report, since, age := r.loads.tracker.Get(in.ID, time.Now())
	return routing.Report{
		Load:  fleet.Load{Running: report.Running, Queued: report.Queued, Slots: report.Slots, Latency: in.Load.Latency},
		Age:   routing.Age(age), //nolint:gosec // the same three, in the same order
		Since: since, UnreadTokens: report.UnreadTokens,
		ReadTokensPerSecond: report.ReadTokensPerSecond, RequestDuration: report.RequestDuration,
	}
}

// heard takes an instance's new load report into account.
func (r *Router) heard(instanceID string) {
	if r.scores.rescore(instanceID) {
		r.xds.Rescored()
	}
}

// weight is an instance's score.
func (r *Router) weight(in *fleet.Instance) uint32 {
	load, _ := r.scored(in)
	return uint32(routing.Score(in.Health, load)) //nolint:gosec // 0 to 100
}

// scored is the load by which an instance's score goes, and what it is of: its
// newest load report as long as that is fresh, else its heartbeat.
func (r *Router) scored(in *fleet.Instance) (load fleet.Load, of string) {
	if reported := r.reported(in); reported.Age == routing.AgeFresh {
		return reported.Load, "report"
	}
	return in.Load, "heartbeat"
}

// Report gives the newest load report of an instance of the router's region
// that is ready, and how far it is still to be trusted. An instance of which
// nothing is known has a report that is [loadreport.Missing], and is none the
// worse for it.
func (r *Router) Report(instanceID string) (loadreport.Report, loadreport.Age) {
	report, _, age := r.loads.tracker.Get(instanceID, time.Now())
	return report, age
}
