package controller

import (
	"context"
	"log/slog"
	"time"

	"github.com/mrgc/mrgc/controller/failover"
	"github.com/mrgc/mrgc/internal/fleet"
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
type Minutes struct{ m *minutes }

func NewMinutes(config Config) *Minutes {
	config.StaleAfter = staleByDefault
	return &Minutes{newMinutes(&config, slog.New(slog.DiscardHandler))}
}

func (m *Minutes) Sample(ctx context.Context, now time.Time) { m.m.sample(ctx, now) }

func (m *Minutes) Lag(from fleet.Region, behind time.Duration) { m.m.lag(lagSample{from, behind}) }

// Sights says what a look has found of each region (see seen.sights).
func Sights(regions []fleet.Region, open map[fleet.Region]bool, snapshot *fleet.Snapshot, stale time.Duration,
	lag map[fleet.Region]time.Duration, been map[string]bool,
) (map[fleet.Region]failover.Sight, map[string]bool) {
	s := seen{regions, open, snapshot, stale, lag, been}
	return s.sights()
}
