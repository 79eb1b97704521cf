package controller

import (
	"context"
	"log/slog"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/mrgc/mrgc/internal/fleet"
	"github.com/mrgc/mrgc/internal/lease"
	"github.com/mrgc/mrgc/internal/state"
)

// Lags is what measures lag.
type Lags = lags

func (l Lags) Leased(region fleet.Region, version, token int64, now time.Time) {
	l.leased(region, version, token, now)
}

func (l Lags) Heard(region fleet.Region, version int64, now time.Time) { l.heard(region, version, now) }

func (l Lags) Behind(region fleet.Region, now time.Time) (time.Duration, bool) {
	return l.behind(region, now)
}

// Minutes is what gathers a region's minutes.
type Minutes struct{ m minutes }

func NewMinutes(region fleet.Region, from fleet.Store, to state.Store) *Minutes {
	return &Minutes{minutes{
		region: region, fleet: from, stale: 15 * time.Second, table: state.MinuteTable(to), log: slog.New(slog.DiscardHandler),
	}}
}

func (m *Minutes) Sample(ctx context.Context, now time.Time) { m.m.sample(ctx, now) }

func (m *Minutes) Lag(from fleet.Region, behind time.Duration) { m.m.lag(lagSample{from, behind}) }

// Round goes once round a loop, as the leader with a token, whose clock shows what
// now says. It ends as if the process were killed when ctx does.
func Round[S state.Row, O, A any](ctx context.Context, l Loop[S, O, A], store state.Store, token int64, now func() time.Time) error {
	candidate, err := lease.New(lease.Config{Self: "test", Length: time.Hour})
	if err != nil {
		return err
	}
	candidate.Read(lease.Record{Holder: "before", Token: token - 1, Length: time.Millisecond * 10}, 1, time.Now().Add(-time.Second))
	candidate.Next(time.Now())
	candidate.Wrote(2)
	metric, err := newMetrics(prometheus.NewRegistry(), "use1")
	if err != nil {
		return err
	}
	t := &term{token: token, ctx: ctx, elector: &elector{candidate: candidate, poked: make(chan struct{}, 1)}}
	log := slog.New(slog.DiscardHandler)
	var ahead time.Duration
	return l.round(t, env{store: store, now: now, log: log, metric: metric}, log, &ahead)
}
