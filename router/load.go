package router

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	orcaservicev3 "github.com/cncf/xds/go/xds/service/orca/v3"
	"google.golang.org/grpc"
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
	// farInterval is the same of instances in other regions, to which requests go when
	// there is much to do here: every router follows all of them.
	farInterval = time.Second
	// silence is how long a parent may say nothing before its stream counts as
	// broken: an idle one speaks twice a second.
	silence = 5 * time.Second
)

// loads follows the load of the ready instances of the region, and less often of
// those to which it spills: one stream of reports from each one's parent.
type loads struct {
	region   fleet.Region
	far      func() []fleet.Region // regions to which it spills now
	trips    *roundTrips
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

func newLoads(region fleet.Region, far func() []fleet.Region, trips *roundTrips, self *identity.Source, heard func(instanceID string), log *slog.Logger) *loads {
	return &loads{region: region, far: far, trips: trips, identity: self, heard: heard, log: log, silence: silence, open: map[string]subscription{}}
}

// update follows who is ready now and nobody else. It does not wait for
// anything. Streams end with ctx, too.
func (l *loads) update(ctx context.Context, ready []*fleet.Instance) {
	wanted := map[string]*fleet.Instance{}
	spillTo := l.far()
	var near, far []string
	for _, in := range ready {
		switch {
		case in.Region == l.region:
			near = append(near, in.ID)
		case slices.Contains(spillTo, in.Region):
			far = append(far, in.ID)
		default:
			continue
		}
		wanted[in.ID] = in
	}
	for id, s := range l.open {
		if in := wanted[id]; in == nil || in.Address != s.address {
			s.cancel()
			delete(l.open, id)
		}
	}
	l.tracker.Follow(near, far...)
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
	f := &followed{instance: in, interval: reportInterval}
	if in.Region != l.region {
		f.interval = farInterval
		defer l.trips.forget(in.ID)
	}
	conn, err := dial(in.Address, l.identity, parentOf(in), l.silence, grpc.WithContextDialer(f.dial))
	if err != nil { // an address that the store has checked
		l.log.Error("no load reports from instance", "instance", in.ID, "error", err)
		return
	}
	defer func() { _ = conn.Close() }()
	client := orcaservicev3.NewOpenRcaServiceClient(conn)
	keepOpen(ctx, func() (bool, error) { return l.listen(ctx, client, f) }, func(err error) {
		l.log.Warn("no load reports from instance; trying on", "instance", in.ID, "error", err)
	})
}

// followed is an instance whose reports are taken.
type followed struct {
	instance *fleet.Instance
	interval time.Duration
	conn     atomic.Pointer[net.Conn] // the one that was opened last
}

func (f *followed) dial(ctx context.Context, address string) (net.Conn, error) {
	conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", address)
	if err == nil {
		f.conn.Store(&conn)
	}
	return conn, err
}

// roundTrip is what the kernel has measured on the way.
func (f *followed) roundTrip() (time.Duration, bool) {
	if conn := f.conn.Load(); conn != nil {
		return roundTripOf(*conn)
	}
	return 0, false
}

var errSilent = errors.New("the other side has gone silent")

// listen takes reports until the stream breaks, and says whether there was any.
// A report that is not valid breaks it.
func (l *loads) listen(ctx context.Context, client orcaservicev3.OpenRcaServiceClient, f *followed) (heard bool, err error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	silent := time.AfterFunc(l.silence, func() { cancel(errSilent) })
	defer silent.Stop()
	stream, err := client.StreamCoreMetrics(ctx, &orcaservicev3.OrcaLoadReportRequest{ReportInterval: durationpb.New(f.interval)})
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
		l.tracker.Put(f.instance.ID, report, time.Now())
		l.heard(f.instance.ID)
		if f.instance.Region != l.region {
			if took, known := f.roundTrip(); known {
				l.trips.put(f.instance, took)
			}
		}
		silent.Reset(l.silence)
	}
	if errors.Is(context.Cause(ctx), errSilent) {
		err = fmt.Errorf("%w for %s", errSilent, l.silence)
	}
	return heard, err
}

// reported is what the picker goes by. That of an instance in another region is
// older by the way that it came and that requests take to get there.
func (r *Router) reported(in *fleet.Instance) routing.Report {
	report, since, age := r.loads.tracker.Get(in.ID, time.Now())
	if in.Region != r.config.Region {
		if took, known := r.trips.to(in.Region); known {
			since += took
		}
	}
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

// Report gives the newest load report of an instance that is ready, in the router's
// region or one that it spills to, and how far it is still to be trusted. An instance of which
// nothing is known has a report that is [loadreport.Missing], and is none the
// worse for it.
func (r *Router) Report(instanceID string) (loadreport.Report, loadreport.Age) {
	report, _, age := r.loads.tracker.Get(instanceID, time.Now())
	return report, age
}
