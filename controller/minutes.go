package controller

import (
	"context"
	"log/slog"
	"maps"
	"time"

	"github.com/mrgc/mrgc/internal/fleet"
	"github.com/mrgc/mrgc/internal/state"
)

// minutes gathers what the region does, and writes a row of it for each minute.
type minutes struct {
	region fleet.Region
	fleet  fleet.Store
	stale  time.Duration
	table  state.Table[state.Minute]
	log    *slog.Logger

	// What follows is the goroutine's that runs a term.
	gathered state.Minute // sums, of the minute that is
	begun    time.Time
	unsent   []state.Record[state.Minute] // oldest first
	failing  bool
}

const (
	sampleInterval = 10 * time.Second
	// mostUnsent minutes are kept while they cannot be written.
	mostUnsent = 60
)

// run samples until the term ends; lag hears of lags from elsewhere.
func (m *minutes) run(t *term, lag <-chan lagSample) {
	m.gathered = state.Minute{} // of an earlier term
	tick := time.NewTicker(sampleInterval)
	defer tick.Stop()
	for {
		select {
		case <-t.ctx.Done():
			return
		case sample := <-lag:
			m.lag(sample)
		case <-tick.C:
			m.sample(t.ctx, time.Now())
		}
	}
}

type lagSample struct {
	from   fleet.Region
	behind time.Duration
}

func (m *minutes) lag(sample lagSample) {
	if m.gathered.Lag == nil {
		m.gathered.Lag = map[fleet.Region]float64{}
	}
	m.gathered.Lag[sample.from] = max(m.gathered.Lag[sample.from], sample.behind.Seconds())
}

// sample takes one, after the minute before was closed.
func (m *minutes) sample(ctx context.Context, now time.Time) {
	if minute := now.Truncate(time.Minute); minute != m.begun {
		m.close()
		m.begun = minute
		m.send(ctx)
	}
	snapshot, err := m.fleet.Snapshot(ctx)
	if err != nil {
		m.tell(ctx, "fleet cannot be read for the metrics, trying again", err)
		return
	}
	ready := map[string]bool{}
	for _, in := range snapshot.Ready(m.stale) {
		ready[in.ID] = true
	}
	m.gathered.Samples++
	for _, in := range snapshot.Instances {
		if in.Region != m.region {
			continue
		}
		m.gathered.Instances++
		if ready[in.ID] {
			m.gathered.Ready++
		}
		if in.Draining {
			m.gathered.Draining++
		}
		m.gathered.Running += float64(in.Load.Running)
		m.gathered.Queued += float64(in.Load.Queued)
		m.gathered.Slots += float64(in.Load.Slots)
	}
}

// close makes a row of the minute.
func (m *minutes) close() {
	row := m.gathered
	m.gathered = state.Minute{}
	if row.Samples == 0 {
		return
	}
	for _, sum := range []*float64{&row.Instances, &row.Ready, &row.Draining, &row.Running, &row.Queued, &row.Slots} {
		*sum /= float64(row.Samples)
	}
	row.Lag = maps.Clone(row.Lag)
	m.unsent = append(m.unsent, state.Record[state.Minute]{Key: state.MinuteKey(m.region, m.begun), Value: row})
	m.unsent = m.unsent[max(len(m.unsent)-mostUnsent, 0):]
}

// send writes what is unsent.
func (m *minutes) send(ctx context.Context) {
	if len(m.unsent) == 0 {
		return
	}
	err := m.table.Replace(ctx, m.unsent...)
	m.tell(ctx, "metrics cannot be written, keeping them", err)
	if err == nil {
		m.unsent = nil
	}
}

func (m *minutes) tell(ctx context.Context, what string, err error) {
	if err != nil && !m.failing && ctx.Err() == nil {
		m.log.WarnContext(ctx, what, "error", err)
	}
	m.failing = err != nil
}
