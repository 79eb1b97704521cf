package controller

import (
	"context"
	"log/slog"
	"time"

	"github.com/mrgc/mrgc/internal/fleet"
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
